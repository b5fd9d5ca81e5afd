"""One application's connection whose HTTP requests go through: its socket, and those that lead to their targets.

    application's socket  <->  `qanat.endpoints.dynamic.http_proxy`  <->  a pair of sockets  <->  the stream

While something comes, one thread serves both ways; when nothing did for a moment, the watcher waits for it.  So a
browser's kept connection, a page that waits for its server, and a WebSocket that is silent cost no thread.  Exactly
one of the two has the machine at a time.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable

from qanat.base.errors import NoThread
from qanat.base.sockets import set_no_delay
from qanat.base.unexpected import log_unexpected
from qanat.endpoints.dynamic.asked import Asked, Command
from qanat.endpoints.dynamic.connection import HEAD_SECONDS, DynamicConnection, ProxyPort
from qanat.endpoints.dynamic.http_proxy import HttpProxy
from qanat.endpoints.dynamic.lingering import Lingering
from qanat.endpoints.pending import MAX_EARLY
from qanat.mux.frames import Reason
from qanat.mux.stream import Stream

log = logging.getLogger("qanat.dynamic")

QUIET_SECONDS = 0.2
"""Seconds without a byte after which the thread is given back."""
IDLE_SECONDS = 120.0
"""How long a connection may be kept between two requests."""
READ = 64 * 1024
"""Bytes read at once."""
WAITING = 256 * 1024
"""Bytes that wait to be sent to one side, above which nothing is read for it."""

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # neither needs a descriptor of its own
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _Upstream:
    """Our end of what leads to one target; the other end is the stream's.

    A `qanat.endpoints.pending.PendingConnection`.
    """

    def __init__(self, origin: str, early: bytes) -> None:
        """Make a pair of sockets.  Raises OSError when there are no descriptors."""
        self.origin = origin
        self.early = early
        self.refusal: tuple[Reason, str] | None = None
        self.sock, self._theirs = socket.socketpair()
        self.sock.setblocking(False)
        self._lock = threading.Lock()  # guards the next
        self._stream: Stream | None = None
        self._closed = False
        self._given = False  # the other end belongs to the stream

    def opened(self, stream: Stream) -> None:
        """Note the stream, which is reset when this is closed."""
        with self._lock:
            self._stream = stream
            closed = self._closed
        if closed:
            stream.reset(Reason.CANCELED, "")

    def accepted(self, address: str) -> socket.socket | None:
        """Give the stream its end."""
        with self._lock:
            if self._closed:
                return None
            self._given = True
            return self._theirs

    def refused(self, reason: Reason, text: str) -> None:
        """Have our end find why."""
        with self._lock:
            self.refusal = reason, text
            if not self._closed:
                self._given = True
                self._theirs.close()

    def ended(self) -> None:
        """Take no notice: our end finds it."""

    @property
    def was_reset(self) -> bool:
        """Whether the stream did not end as it should; asked once our end is at its end."""
        with self._lock:
            return self._stream is not None and self._stream.failure is not None

    def close(self, *, orderly: bool) -> None:
        """Close our end: the target has all that it should, unless it is not `orderly`.  Idempotent; does not block."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            stream = self._stream
            if not self._given:
                self._theirs.close()
        if stream is not None and not orderly:
            stream.reset(Reason.CANCELED, "")
        self.sock.close()


class HttpForwarding:
    """See the module's docstring.  From `start` until it is closed, when `done` is called once."""

    def __init__(
        self,
        sock: socket.socket,
        origin: str,
        machine: HttpProxy,
        port: ProxyPort,
        start_thread: Callable[[str, Callable[[], object]], object],
        on_over: Callable[[HttpForwarding], None],
        done: Callable[[], None],
    ) -> None:
        """Own `sock`, whose requests `machine` has begun to read."""
        sock.setblocking(False)
        set_no_delay(sock)
        self._sock = sock
        self._origin = origin
        self._machine = machine
        self._port = port
        self._start_thread = start_thread
        self._on_over = on_over
        self._done = done
        self._upstream: _Upstream | None = None
        self._to_application = bytearray()
        self._to_target = bytearray()
        self._application_ended = self._target_ended = False  # what each sends
        self._told_application = self._told_target = False  # that the other has ended, once nothing waits to be sent
        self._idle_since: float | None = None  # when the present wait for a request began
        self._head_since: float | None = None  # when the first byte of one came that is not whole
        self._lock = threading.Lock()  # guards the next five, and whom the watcher calls
        self._serving = True  # somebody has the machine
        self._closing = self._finishing = False
        self._over = False
        self._lingering: Lingering | None = None
        self._timer = port.watcher.timer(self._look)

    def start(self, asked: Asked) -> None:
        """Have the first request's target connected to, and go on from there.  By the watcher; does not block."""
        try:
            going = self._follow(asked)
        except Exception:
            self._fault()
            return
        if going:
            self._rest()

    def close(self) -> None:
        """Reset the connection.  Idempotent, from any thread; does not block."""
        with self._lock:
            self._closing = True
            lingering = self._lingering
            if self._serving and not self._over:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)  # which wakes whoever serves
        if lingering is not None:
            lingering.close()
        elif self._take():
            self._end_abruptly()

    def finish(self) -> None:
        """End the connection once no request is under way.  Idempotent, from any thread; does not block."""
        with self._lock:
            self._finishing = True
            if self._serving or self._over or not self._machine.idle:
                return
        if self._take():
            self._machine.over = True
            self._finish()

    # --- while nothing comes: the watcher ---------------------------------------------------------

    def _rest(self) -> None:
        """Have the watcher wait for what comes next."""
        problem = ""
        with self._lock:
            ends = self._closing
            if not ends:
                try:
                    self._watch_locked()
                    self._serving = False
                except (NoThread, OSError) as error:
                    self._unwatch_locked()
                    problem, ends = str(error), True
        if problem:
            self._port.tell(self._origin, problem)
        if ends:
            self._end_abruptly()

    def _watch_locked(self) -> None:
        limit = self._limit()
        if limit is not None:
            self._timer.set(limit)
        for sock, events in self._wanted():
            if events & _READ:
                self._port.watcher.add(sock.fileno(), self._ready)

    def _unwatch_locked(self) -> None:
        for sock in (self._sock, self._upstream.sock if self._upstream is not None else None):
            if sock is not None:
                self._port.watcher.remove(sock.fileno())

    def _take(self) -> bool:
        """Take the machine from the watcher; False when somebody else has it, or all is over."""
        with self._lock:
            if self._serving or self._over:
                return False
            self._serving = True
            self._unwatch_locked()
            return True

    def _ready(self) -> None:
        """Give what has come to a thread.  By the watcher."""
        if not self._take():
            return
        try:
            self._start_thread(f"{self._port.name} {self._origin}", self._run)
        except NoThread as error:
            self._port.tell(self._origin, str(error))
            self._end_abruptly()

    def _limit(self) -> float | None:
        """Return when the wait for the next request, or for the rest of its head, is over; None during a request."""
        if self._head_since is not None:
            return self._head_since + HEAD_SECONDS
        return None if self._idle_since is None else self._idle_since + IDLE_SECONDS

    def _look(self) -> None:
        """End a connection on which no request has come for too long.  By the watcher."""
        if not self._take():
            return  # whoever serves sets the timer again
        limit = self._limit()
        if limit is None or time.monotonic() < limit:
            self._rest()
            return
        if self._head_since is not None:
            self._machine.too_late()
        else:
            self._machine.over = True
        self._follow(None)
        self._flush()
        self._finish()

    # --- while something comes: a thread ------------------------------------------------------------

    def _run(self) -> None:
        try:
            quiet = self._serve_loop()
        except Exception:
            self._fault()
            return
        if quiet:
            self._rest()

    def _serve_loop(self) -> bool:
        """Carry what comes until it is quiet (True), or this is over or somebody else's (False)."""
        while True:
            if not self._flush():
                self._end_abruptly()
                return False
            if self._machine.broken or self._closing:
                self._end_abruptly()
                return False
            if self._finished():
                self._finish()
                return False
            wanted = self._wanted()
            waits = any(events & _WRITE for _, events in wanted)
            ready = _wait(wanted, None if waits else QUIET_SECONDS)
            if not ready:
                return True
            for sock, events in ready:
                if events & _READ and not (self._read_application() if sock is self._sock else self._read_target(sock)):
                    return False

    def _wanted(self) -> list[tuple[socket.socket, int]]:
        """Return what is waited for on either socket."""
        machine, upstream = self._machine, self._upstream
        reads = not (self._application_ended or machine.full or machine.over) and len(self._to_target) < WAITING
        wanted = [(self._sock, _READ * reads | _WRITE * bool(self._to_application))]
        if upstream is not None:
            reads = not self._target_ended and len(self._to_application) < WAITING
            wanted.append((upstream.sock, _READ * reads | _WRITE * bool(self._to_target)))
        return [(sock, events) for sock, events in wanted if events]

    def _read_application(self) -> bool:
        """Take what the application sent; False when this is over or somebody else's."""
        try:
            data = self._sock.recv(READ)
        except BlockingIOError:
            return True
        except OSError:
            self._end_abruptly()
            return False
        self._application_ended = not data
        return self._follow(self._machine.receive(data))

    def _read_target(self, sock: socket.socket) -> bool:
        """Take what the target sent; False when this is over or somebody else's."""
        upstream = self._upstream
        if upstream is None or upstream.sock is not sock:
            return True  # closed since
        try:
            data = sock.recv(READ)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if data:
            return self._follow(self._machine.receive_from_server(data))
        self._target_ended = True
        if upstream.refusal is not None:
            self._to_application += self._machine.refused(*upstream.refusal)
            self._machine.problem = ""  # which is in the log already
            return self._follow(None)
        if upstream.was_reset:
            self._machine.lose_server()
            return self._follow(None)
        return self._follow(self._machine.receive_from_server(b""))

    def _follow(self, asked: Asked | None) -> bool:
        """Do what the machine has found; False when this is over or somebody else's."""
        machine = self._machine
        self._to_application += machine.take_output()
        if machine.take_dropped():
            self._close_upstream()
        data = machine.take_to_server()
        if asked is not None and asked.command is Command.REQUEST:
            try:
                self._upstream = _Upstream(self._origin, data[:MAX_EARLY])
            except OSError as error:
                self._to_application += machine.refused(Reason.LIMIT, error.strerror or "no more descriptors")
                return True
            self._target_ended = self._told_target = False
            self._to_target += data[MAX_EARLY:]
            self._port.ask(self._upstream, asked)
        elif asked is not None:
            return self._leave_to_connect(asked)
        elif self._upstream is not None:
            self._to_target += data
        now = time.monotonic()
        self._idle_since = (self._idle_since or now) if machine.idle else None
        self._head_since = (self._head_since or now) if machine.partial else None
        return True

    def _leave_to_connect(self, asked: Asked) -> bool:
        """Give the socket away: its user goes on with CONNECT.  Always False."""
        with self._lock:
            self._over = True
        self._close_upstream()
        self._on_over(self)
        connection = DynamicConnection(self._sock, self._origin, self._port, self._done, self._machine)
        connection.ask(asked)
        return False

    def _flush(self) -> bool:
        """Send what the kernel takes now; False when the application is gone."""
        upstream = self._upstream
        if upstream is not None and self._to_target and not _send(upstream.sock, self._to_target):
            self._to_target.clear()  # reading from it says why
        if self._to_application and not _send(self._sock, self._to_application):
            return False
        if self._machine.opaque:
            self._pass_ends(upstream)
        return True

    def _pass_ends(self, upstream: _Upstream | None) -> None:
        """Tell each side that the other has finished, once it has all that came before."""
        with contextlib.suppress(OSError):
            if self._application_ended and not self._to_target and not self._told_target and upstream is not None:
                self._told_target = True
                upstream.sock.shutdown(socket.SHUT_WR)
            if self._target_ended and not self._to_application and not self._told_application:
                self._told_application = True
                self._sock.shutdown(socket.SHUT_WR)

    def _finished(self) -> bool:
        if self._machine.opaque:
            return self._told_application and self._told_target
        if self._finishing and self._machine.idle:
            self._machine.over = True
        return self._machine.over and not self._to_application

    # --- the end ------------------------------------------------------------------------------------

    def _close_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if self._machine.opaque:
            orderly = self._told_target and self._told_application
        else:
            orderly = self._machine.whole and not self._to_target
        self._to_target.clear()
        if upstream is not None:
            upstream.close(orderly=orderly)

    def _finish(self) -> None:
        """End orderly: what was sent last must arrive."""
        if self._machine.problem:
            self._port.tell(self._origin, self._machine.problem)
        self._end()
        lingering = Lingering(self._sock, self._port.watcher, self._closed)
        with self._lock:
            self._lingering = lingering
            closing = self._closing
        lingering.start()
        if closing:
            lingering.close()

    def _end_abruptly(self) -> None:
        if self._machine.problem:
            self._port.tell(self._origin, self._machine.problem)
        self._end()
        self._sock.close()  # a RST, as the listener has set it
        self._closed()

    def _end(self) -> None:
        with self._lock:
            self._over = True
        self._timer.cancel()
        self._close_upstream()

    def _closed(self) -> None:
        self._on_over(self)
        self._done()

    def _fault(self) -> None:
        log_unexpected(f"{self._port.name}: a request of {self._origin} ended")
        self._end_abruptly()


def _wait(wanted: list[tuple[socket.socket, int]], seconds: float | None) -> list[tuple[socket.socket, int]]:
    """Block until a socket is ready, at most `seconds`; return those that are, and for what."""
    with _Selector() as selector:
        for sock, events in wanted:
            selector.register(sock, events)
        ready = {key.fileobj: events for key, events in selector.select(seconds)}
    return [(sock, ready[sock]) for sock, _ in wanted if sock in ready]


def _send(sock: socket.socket, waiting: bytearray) -> bool:
    """Send what the kernel takes now; False when the other end is gone."""
    try:
        with memoryview(waiting) as view:
            sent = sock.send(view)
    except BlockingIOError:
        return True
    except OSError:
        return False
    del waiting[:sent]
    return True
