"""The server's side of split requests on streams of HTTP/2: their bodies, and answers that nobody waits to give.

A request for bytes has no thread while it waits: the connection's reader hands it to its pipe (`Http2Server` asks the
dialect), and whoever has bytes answers it inline.  Used by the front door, which knows what the requests mean.
"""

from __future__ import annotations

import email.utils
import threading
from collections.abc import Callable, Mapping

from qanat.base.errors import NoThread, QanatError, TransportError
from qanat.base.threads import ThreadGroup
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2.dialect import Headers, MessageDialect
from qanat.transports.http2.frames import HEADER_SIZE
from qanat.transports.http2.server import Exchange
from qanat.transports.split.server import Asker, ServerPipe
from qanat.transports.split.token import Kind, Token

CONTENT_TYPE = "application/octet-stream"


class SplitRequest(MessageDialect):
    """A request whose body has `size` bytes, and whose answer may come long after it has ended.

    `found` is the pipe that it belongs to and what it says; None for one that asks for a pipe.
    """

    name = "split"
    prefix_size = 0
    overhead = 0
    half_closes = True

    def __init__(self, size: int, found: tuple[ServerPipe, Token] | None) -> None:
        self.size = size
        self.found = found
        self.needs_no_thread = found is not None and (found[1].kind is not Kind.UP or not size)

    def body_size(self, prefix: bytes | memoryview) -> int:
        """See `Dialect.body_size`."""
        return max(1, self.size)

    def unwrap(self, body: memoryview) -> memoryview:
        """See `Dialect.unwrap`."""
        return body

    def wrap(self, buffer: memoryview, at: int) -> int:
        """See `Dialect.wrap`."""
        return at

    def request_headers(self) -> Headers:
        """See `Dialect.request_headers`."""
        return []

    def response_headers(self) -> Headers:
        """See `Dialect.response_headers`."""
        return _headers(None)

    def check_response(self, status: int, headers: Mapping[str, str], url: TunnelUrl) -> TransportError | None:
        """See `Dialect.check_response`."""
        return None


class Http2Asker(Asker):
    """A request that waits for bytes, or for the end of its answer."""

    def __init__(self, exchange: Exchange, threads: ThreadGroup, pipe: ServerPipe, over: Callable[[], None]) -> None:
        """`over` is called once, when the answer has ended or nobody wants it any more."""
        self._exchange = exchange
        self._threads = threads
        self._pipe = pipe
        self._on_over: Callable[[], None] | None = over
        self._lock = threading.Lock()  # guards the rest
        self._backlog: bytearray | None = None  # what could not be sent at once: a thread sends it
        self._last = False  # what is sent now, or waits, ends the answer

    def respond(self, body: bytes) -> None:
        """See `Asker.respond`."""
        self._exchange.open_answer(_headers(len(body)))
        self._send(body, last=True)

    def begin(self) -> None:
        """See `Asker.begin`."""
        self._exchange.open_answer(_headers(None))

    def write(self, data: bytes) -> bool:
        """See `Asker.write`."""
        return self._send(data, last=False)

    def finish(self) -> None:
        """See `Asker.finish`."""
        self._send(b"", last=True)

    def _send(self, data: bytes, *, last: bool) -> bool:
        with self._lock:
            if self._last:
                return True
            self._last = last
            if self._backlog is not None:
                self._backlog += data
                return False
            try:
                taken = not data or self._exchange.send_now(_with_room(data))
            except QanatError:
                taken = last = True
            if taken is None:  # nothing could be begun
                self._backlog = bytearray(data)
            elif not taken:
                self._backlog = bytearray()
        if taken:
            if last:
                self._over()
            return True
        try:
            self._threads.start(f"h2 {self._pipe.peer}", self._flush_loop)
        except NoThread:
            self._over()
        return False

    def _flush_loop(self) -> None:
        """Send what could not be sent at once."""
        try:
            while True:
                with self._lock:
                    data, self._backlog = self._backlog, bytearray()
                self._exchange.send(_with_room(bytes(data or b"")))
                with self._lock:
                    if self._backlog:
                        continue
                    self._backlog = None
                    last = self._last
                    break
        except QanatError:
            last = True
        if last:
            self._over()
        else:
            self._pipe.stream_free(self)

    def _over(self) -> None:
        with self._lock:
            over, self._on_over = self._on_over, None
        self._pipe.give_up(self)
        if over is not None:
            over()


def answer_up(exchange: Exchange, body: bytes) -> None:
    """Give the whole answer to a request that has brought bytes.  Does not block."""
    exchange.answer(_headers(len(body)), body)


def _headers(length: int | None) -> Headers:
    headers = [
        (":status", "200"),
        ("date", email.utils.formatdate(usegmt=True)),
        ("content-type", CONTENT_TYPE),
        ("cache-control", "no-store, no-transform"),
        ("x-accel-buffering", "no"),
    ]
    return headers if length is None else [*headers, ("content-length", str(length))]


def _with_room(data: bytes) -> memoryview:
    """Return the data behind room for a frame's header."""
    return memoryview(bytearray(HEADER_SIZE) + data)
