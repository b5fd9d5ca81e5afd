"""The monitoring listener: a small HTTP server for a few trusted readers, on which others register what they serve.

    a connection   the watcher reads its head: at most HEAD_BYTES, within HEAD_SECONDS; among CONNECTIONS that have not
                   sent one the oldest gives way, so that who is slow costs no thread and keeps nobody out
    a request      one of THREADS threads asks `qanat.monitor.access`, has a handler answer, and sends that
    an answer      ends its connection.  Its reader has SEND_SECONDS; when all threads are busy with readers that are
                   slow, the one that has been at it longest gives way
    a stream       (server-sent events) has no thread: whoever has news sends it without blocking, and a reader that
                   does not keep up is cut off; at most STREAMS at once

No TLS: a proxy in front does that, or `ssh -L`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from qanat.base.addresses import ListenAddress, parse_listen
from qanat.base.errors import NoThread
from qanat.base.listen import bind
from qanat.base.request_head import BadRequest, HeadReader, RequestHead
from qanat.base.sockets import format_address
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.config.settings import MonitorSettings
from qanat.endpoints.accepting import Accepting
from qanat.endpoints.unix import Permissions, UnixListener
from qanat.monitor.access import Access
from qanat.monitor.http import Handler, Response, encode_head, failure

log = logging.getLogger("qanat.monitor")

HEAD_BYTES = 16_384
HEAD_SECONDS = 10.0
CONNECTIONS = 64
"""Connections at once that have not sent a whole request, and as many that wait for a thread."""
THREADS = 4
SEND_SECONDS = 10.0
STREAMS = 32
"""Answers at once that go on."""
STREAM_BYTES = 1 << 20
"""Bytes that the system may keep for a reader, in place of a thread that waits for it."""
_BACKLOG = 64


class MonitorListener:
    """See the module's docstring.  From `start` to `close`; any thread may call these."""

    def __init__(self, settings: MonitorSettings, routes: Mapping[str, Handler], watcher: Watcher) -> None:
        """Bind; `routes` has what answers for each path.

        Raises BindError or EndpointError when the address cannot be had.  Blocks as `bind` does.
        """
        self._routes = routes
        self._watcher = watcher
        self._access = Access(settings.token_file, unix=settings.is_unix)
        self._threads = ThreadGroup("monitor")
        self._lock = threading.Lock()  # guards what follows
        self._reading: dict[_Connection, None] = {}  # the oldest first, as the next two
        self._waiting: deque[tuple[_Connection, RequestHead]] = deque()
        self._sending: dict[_Connection, None] = {}
        self._streams: set[_Stream] = set()
        self._busy = 0
        self._closed = False
        self._deadlines = watcher.timer(self._cut_slow)
        self._listener: Accepting | UnixListener
        self.address: str
        """What is listened on: ADDRESS:PORT with the real port, or the path of a Unix socket."""
        if settings.is_unix:
            permissions = Permissions(int(settings.mode, 8), group=settings.group or "")
            self._listener = UnixListener(
                settings.listen, self._accepted, "the monitoring listener", watcher, permissions=permissions
            )
            self.address = settings.listen
        else:
            sockets = bind([ListenAddress(*parse_listen(settings.listen))], backlog=_BACKLOG)
            self.address = format_address(sockets[0].getsockname())
            self._listener = Accepting(sockets, self._accepted_tcp, "the monitoring listener", watcher)

    def start(self) -> None:
        """Answer requests from now on.  Does not block.  Raises EndpointError when the system has no thread for it."""
        self._listener.start()
        log.info("metrics are served on %s", self.address, extra={"event": "monitoring"})

    def close(self, timeout: float = 0.0) -> list[str]:
        """Listen no more, and end all connections.  Idempotent.

        Blocks at most `timeout` seconds for the threads; returns the names of those that still run.
        """
        self._listener.close()
        with self._lock:
            self._closed = True
            connections = [*self._reading, *(each for each, _ in self._waiting), *self._sending]
            streams = list(self._streams)
            self._waiting.clear()
        self._deadlines.cancel()
        for connection in connections:
            connection.close()
        for stream in streams:
            stream.close()
        return self._threads.join(timeout)

    # --- one connection, by the watcher ---------------------------------------------------------

    def _accepted_tcp(self, sock: socket.socket, address: Any) -> None:
        self._accepted(sock, format_address(address))

    def _accepted(self, sock: socket.socket, peer: str) -> None:
        connection = _Connection(sock, peer, self._watcher, self._request, self._done_reading)
        with self._lock:
            room = not self._closed
            oldest = next(iter(self._reading)) if len(self._reading) >= CONNECTIONS else None
            if room:
                self._reading[connection] = None
        if oldest is not None:
            oldest.close()
        if not room:
            sock.close()
            return
        connection.start()
        with contextlib.suppress(NoThread, OSError):
            self._deadlines.set(time.monotonic() + HEAD_SECONDS)

    def _done_reading(self, connection: _Connection) -> None:
        with self._lock:
            self._reading.pop(connection, None)

    def _cut_slow(self) -> None:
        """Close those whose time for a head is up."""
        late = time.monotonic() - HEAD_SECONDS
        with self._lock:
            slow = [connection for connection in self._reading if connection.since <= late]
            rest = next((each.since for each in self._reading if each.since > late), None)
        for connection in slow:
            connection.close()
        if rest is not None:
            self._deadlines.set(rest + HEAD_SECONDS)

    def _request(self, connection: _Connection, head: RequestHead | BadRequest) -> None:
        """Have a request answered, or a head that is none refused."""
        if isinstance(head, BadRequest):
            connection.send_now(failure(head.status, "That is no request that can be answered here."))
            connection.close()
            return
        gives_way: list[_Connection] = []
        with self._lock:
            if self._closed or len(self._waiting) >= CONNECTIONS:
                gives_way.append(connection)
            else:
                self._waiting.append((connection, head))
                starts = self._busy < THREADS
                self._busy += starts
                if not starts and len(self._sending) >= THREADS:
                    gives_way.append(next(iter(self._sending)))
        for each in gives_way:
            each.close()
        if connection in gives_way or not starts:
            return
        try:
            self._threads.start("monitor", self._answer_loop)
        except NoThread:
            with self._lock:
                self._busy -= 1
            connection.close()

    # --- answers, in a thread -------------------------------------------------------------------

    def _answer_loop(self) -> None:
        """Answer what waits, until nothing does."""
        while True:
            with self._lock:
                if self._closed or not self._waiting:
                    self._busy -= 1
                    return
                connection, head = self._waiting.popleft()
            try:
                self._answer(connection, head)
            except Exception:
                log_unexpected("answering a monitoring request ended")
                connection.close()

    def _answer(self, connection: _Connection, head: RequestHead) -> None:
        response = self._access.refuse(head, connection.peer) or self._handle(head)
        if response.stream is not None and head.method == "GET":
            self._begin_stream(connection, response, response.stream)
            return
        with self._lock:
            self._sending[connection] = None
        try:
            connection.send(encode_head(response) + (b"" if head.method == "HEAD" else response.body))
        finally:
            with self._lock:
                self._sending.pop(connection, None)
            connection.close()

    def _handle(self, head: RequestHead) -> Response:
        handler = self._routes.get(head.path)
        if handler is None:
            return failure(404, f"Nothing is here. Ask for one of: {' '.join(sorted(self._routes))}")
        try:
            return handler(head)
        except Exception:
            log_unexpected(f"what is served at {head.path} could not be made")
            return failure(500, "This could not be made; the log of this end says why.")

    def _begin_stream(self, connection: _Connection, response: Response, begin: Callable[[_Stream], None]) -> None:
        stream = _Stream(connection.release(), self._watcher)
        with self._lock:
            room = not self._closed and len(self._streams) < STREAMS
            if room:
                self._streams.add(stream)
        if not room:
            busy = failure(503, f"{STREAMS} readers are here already; close one of them.")
            stream.send(encode_head(busy) + busy.body)
            stream.close()
            return
        stream.on_close(partial(self._stream_over, stream))
        if stream.start(encode_head(response) + response.body):
            begin(stream)

    def _stream_over(self, stream: _Stream) -> None:
        with self._lock:
            self._streams.discard(stream)


class _Connection:
    """One connection until its answer has been sent: read by the watcher, then a thread's."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        watcher: Watcher,
        on_request: Callable[[_Connection, RequestHead | BadRequest], None],
        on_read: Callable[[_Connection], None],
    ) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BYTES)
        self.peer = peer
        self.since = time.monotonic()
        self._sock = sock
        self._watcher = watcher
        self._on_request = on_request
        self._on_read = on_read
        self._reader = HeadReader(HEAD_BYTES)
        self._lock = threading.Lock()  # guards the next two, and the socket's descriptor
        self._over = False
        self._sends = False  # a thread is inside `send`, and closes the descriptor that it waits for

    def start(self) -> None:
        """Read the request."""
        try:
            self._watcher.add(self._sock.fileno(), self._ready)
        except (NoThread, OSError):
            self.close()

    def send_now(self, response: Response) -> None:
        """Send what the system takes at once."""
        with self._lock, contextlib.suppress(OSError):
            if not self._over:
                self._sock.send(encode_head(response) + response.body)

    def send(self, data: bytes) -> None:
        """Send all of it, or what the reader takes in time.  Blocks for SEND_SECONDS at most, and until `close`."""
        deadline = time.monotonic() + SEND_SECONDS
        rest = memoryview(data)
        with self._lock:
            if self._over:
                return
            self._sends = True
        with contextlib.suppress(OSError):
            while rest and (seconds := deadline - time.monotonic()) > 0:
                self._sock.settimeout(seconds)
                rest = rest[self._sock.send(rest) :]
        with self._lock:
            self._sends = False
            if self._over:
                self._sock.close()

    def release(self) -> socket.socket:
        """Give the socket to somebody else; this is over then."""
        with self._lock:
            self._over = True
            return self._sock

    def close(self) -> None:
        """End the connection; a blocked `send` returns.  Idempotent; does not block."""
        self._on_read(self)
        with self._lock:
            if self._over:
                return
            self._over = True
            self._watcher.remove(self._sock.fileno())
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            if not self._sends:
                self._sock.close()

    def _ready(self) -> None:
        """Read once.  By the watcher."""
        try:
            with self._lock:
                if self._over:
                    return
                data = self._sock.recv(self._reader.room)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        head: RequestHead | BadRequest | None
        try:
            head = self._reader.feed(data)
        except BadRequest as error:
            head = error
        if head is not None:
            self._watcher.remove(self._sock.fileno())
            self._on_read(self)
            self._on_request(self, head)


class _Stream:
    """An answer that goes on; see `qanat.monitor.http.EventStream`."""

    def __init__(self, sock: socket.socket, watcher: Watcher) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._watcher = watcher
        self._lock = threading.RLock()  # guards what follows; nobody else is called with it
        self._rest = b""
        self._over = False
        self._callbacks: list[Callable[[], None]] = []

    def start(self, head: bytes) -> bool:
        """Send the head, and notice when the reader goes; False when it has."""
        if not self.send(head):
            return False
        try:
            self._watcher.add(self._sock.fileno(), self._ready)
        except (NoThread, OSError):
            self.close()
            return False
        return True

    def send(self, data: bytes) -> bool:
        """See `EventStream.send`."""
        with self._lock:
            if self._over:
                return False
            if self._send_locked(self._rest) and self._send_locked(data):
                return True
        self.close()
        return False

    def _send_locked(self, data: bytes) -> bool:
        """Send, and keep the rest; False when there was one before that is not gone, or the connection is."""
        try:
            sent = self._sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if data is self._rest:
            self._rest = data[sent:]
            return not self._rest
        self._rest = data[sent:]
        return True

    def close(self) -> None:
        """See `EventStream.close`."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self._watcher.remove(self._sock.fileno())
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log_unexpected("telling of a reader's end failed")

    def on_close(self, callback: Callable[[], None]) -> None:
        """See `EventStream.on_close`."""
        with self._lock:
            if not self._over:
                self._callbacks.append(callback)
                return
        callback()

    def _ready(self) -> None:
        """Notice that the reader is gone, or sends what it should not.  By the watcher."""
        self.close()
