"""One HTTP/2 stream as a `Pipe`, whatever dialect is spoken on it.

A client's pipe has its connection for itself and ends with it; a server's shares it with other streams, and the
connection's owner (`server`) sends what is pending.  Made by `client` and `server`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from h2.errors import ErrorCodes

from qanat.base.errors import LocalError, ProtocolError, TransportError
from qanat.base.threads import start_thread
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.frames import HEADER_SIZE
from qanat.transports.http2.limits import WINDOW
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.pipe import MAX_MESSAGE, Pipe, silent_for


class Http2Pipe(Pipe):
    """See the module's docstring.  `end` ends what the pipe owns, with the cause that it is given."""

    def __init__(self, engine: Http2Engine, stream: Http2Stream, end: Callable[[str], None], *, alone: bool) -> None:
        """`alone` is whether the connection serves this pipe only, so that the lane's writer sends what is pending."""
        self.transport = stream.dialect.name
        self.peer = engine.wire.peer
        self.addresses = engine.wire.addresses
        self.headroom = HEADER_SIZE + stream.dialect.overhead
        self.max_message = MAX_MESSAGE
        self._engine = engine
        self._stream = stream
        self._end = end
        self._alone = alone
        if alone:
            engine.on_pending_control(self._start_writer)
        self._read_timeout: float | None = None
        self._unauthenticated = False

    @property
    def leaving(self) -> bool:
        """Whether the other end, or a proxy, has announced that the connection will not last (GOAWAY)."""
        return self._engine.core.leaving

    def send(self, buffer: memoryview) -> None:
        """See `Pipe.send`."""
        length = len(buffer) - self.headroom
        if not 0 <= length <= self.max_message:
            raise LocalError(f"a message of {length} bytes is outside the limit of {self.max_message}")
        self._engine.send(self._stream, buffer, self._stream.dialect.wrap(buffer, self.headroom))

    @property
    def can_send_now(self) -> bool:
        """See `Pipe.can_send_now`."""
        return self._engine.can_send_now(self._stream)

    def send_now(self, buffer: memoryview) -> bool:
        """See `Pipe.send_now`."""
        return self._engine.send_now(self._stream, buffer, self._stream.dialect.wrap(buffer, self.headroom))

    def recv(self) -> memoryview:
        """See `Pipe.recv`."""
        engine, stream = self._engine, self._stream
        if stream.full_window < WINDOW and not self._unauthenticated:
            self.set_unauthenticated(False)
        with engine.lock:
            message = self._next_locked()
            if message is not None:
                engine.core.credit(stream)
            pending = bool(engine.core.pending_control)
        if message is None:
            self._end("the pipe has ended")  # which keeps the cause that there is
            raise stream.error()
        if pending:
            engine.tell()
        return message

    def _next_locked(self) -> memoryview | None:
        """Block for a message; None when the pipe is over."""
        engine, stream = self._engine, self._stream
        began = time.monotonic()
        while True:
            try:
                message = stream.inbox.take()
            except ProtocolError as error:
                engine.core.fail_stream(stream, ErrorCodes.PROTOCOL_ERROR, error.message)
                return None
            if message is not None or stream.over:
                return message
            timeout = self._read_timeout
            remaining = None
            if timeout is not None:
                remaining = max(began, stream.last_received) + timeout - time.monotonic()
                if remaining <= 0:
                    stream.end(silent_for(timeout))
                    return None
            engine.wait_locked(stream, stream.readable, lambda: stream.inbox.waiting or stream.over, remaining)

    def set_read_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_read_timeout`."""
        self._read_timeout = seconds  # heeded from the next wait on

    def set_write_timeout(self, seconds: float | None) -> None:
        """Count the time without a window, too.  For what is below a shared connection, the last word counts."""
        self._stream.write_timeout = seconds
        with contextlib.suppress(TransportError):  # the connection is closed, and the next recv says why
            self._engine.wire.set_write_timeout(seconds)

    def set_unauthenticated(self, unauthenticated: bool) -> None:
        """While unauthenticated, a server's stream keeps the small window with which it began."""
        with self._engine.lock:
            self._unauthenticated = unauthenticated
            try:
                self._stream.inbox.set_unauthenticated(unauthenticated)
            except ProtocolError as error:
                self._engine.core.fail_stream(self._stream, ErrorCodes.PROTOCOL_ERROR, error.message)
            if not unauthenticated:
                self._engine.core.widen(self._stream)
                self._stream.reads_alone = not self._alone
        self._engine.tell()

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """See `Pipe.set_wakeup`."""
        if not self._alone:
            return  # the connection's own writer does it
        self._engine.wire.set_wakeup(wakeup)
        self._engine.on_pending_control(wakeup)

    def set_on_leaving(self, callback: Callable[[], None]) -> None:
        """For GOAWAY without an error on a client's connection (RFC 9113 §6.8)."""
        if self._alone:
            self._engine.on_leaving(callback)

    def flush(self) -> None:
        """See `Pipe.flush`."""
        self._engine.flush_stream(self._stream)

    def close(self, cause: str) -> None:
        """See `Pipe.close`."""
        with self._engine.lock:
            self._stream.end(cause)
            self._stream.inbox.clear()
        self._end(cause)

    def _start_writer(self) -> None:
        """Something is pending before anybody offered to flush: from now on a thread does it, until the end."""
        self._engine.on_pending_control(_nothing)
        start_thread(f"h2-writer {self.peer}", self._engine.writer_loop)

    @property
    def cause(self) -> str | None:
        """See `Pipe.cause`."""
        return self._stream.cause.text


def _nothing() -> None:
    """Do nothing: the connection has a writer of its own."""
