"""One HTTP/2 stream as a `Pipe`, in a dialect that cuts DATA into messages itself.  Made by `pipes`."""

from __future__ import annotations

from collections.abc import Callable

from h2.errors import ErrorCodes

from qanat.base.errors import LocalError, ProtocolError
from qanat.base.watcher import Watcher
from qanat.transports.http2.dialect import MessageDialect
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.frames import HEADER_SIZE
from qanat.transports.http2.inbox import Inbox
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.http2.stream_handle import StreamHandle
from qanat.transports.pipe import MAX_MESSAGE, Pipe
from qanat.transports.readiness import Readiness


class Http2Pipe(Pipe):
    """See the module's docstring."""

    def __init__(self, engine: Http2Engine, stream: Http2Stream, end: Callable[[str], None], *, alone: bool) -> None:
        """Take over `stream`.  The rest is as for `StreamHandle`."""
        dialect, inbox = stream.dialect, stream.inbox
        assert isinstance(dialect, MessageDialect)
        assert isinstance(inbox, Inbox)
        self.transport = dialect.name
        self.peer = engine.wire.peer
        self.addresses = engine.wire.addresses
        self.headroom = HEADER_SIZE + dialect.overhead
        self.max_message = MAX_MESSAGE
        self._engine = engine
        self._stream = stream
        self._handle = StreamHandle(engine, stream, end, alone=alone)
        self._dialect = dialect
        self._inbox = inbox

    @property
    def leaving(self) -> bool:
        """Whether the other end, or a proxy, has announced that the connection will not last (GOAWAY)."""
        return self._engine.core.leaving

    def send(self, buffer: memoryview) -> None:
        """See `Pipe.send`."""
        length = len(buffer) - self.headroom
        if not 0 <= length <= self.max_message:
            raise LocalError(f"a message of {length} bytes is outside the limit of {self.max_message}")
        self._engine.send(self._stream, buffer, self._dialect.wrap(buffer, self.headroom))

    @property
    def can_send_now(self) -> bool:
        """See `Pipe.can_send_now`."""
        return self._engine.can_send_now(self._stream)

    @property
    def unsent(self) -> int:
        """See `Pipe.unsent`."""
        return self._handle.unsent

    def send_now(self, buffer: memoryview) -> bool:
        """See `Pipe.send_now`."""
        return self._engine.send_now(self._stream, buffer, self._dialect.wrap(buffer, self.headroom))

    def recv(self) -> memoryview:
        """See `Pipe.recv`."""
        message = self._recv(None)
        assert message is not None  # the end is raised
        return message

    def recv_within(self, seconds: float) -> memoryview | None:
        """See `Pipe.recv_within`."""
        return self._recv(seconds)

    def _recv(self, seconds: float | None) -> memoryview | None:
        engine = self._engine
        self._handle.begin_reading()
        with engine.lock:
            message = self._next_locked(seconds)
            if message is not None:
                engine.core.credit(self._stream)
            pending = bool(engine.core.pending_control)
            over = self._stream.over
        if message is None and over:
            self._handle.close("the pipe has ended")  # which keeps the cause that there is
            raise self._stream.error()
        if pending:
            engine.tell()
        return message

    def _next_locked(self, seconds: float | None) -> memoryview | None:
        """Block for a message, for `seconds` at most; None when there is none, or the pipe is over."""
        waited = seconds == 0
        while True:
            try:
                message = self._inbox.take()
            except ProtocolError as error:
                self._engine.core.fail_stream(self._stream, ErrorCodes.PROTOCOL_ERROR, error.message)
                return None
            if message is not None or self._stream.over or waited:
                return message
            self._handle.wait_locked(self._has_message, seconds)
            waited = seconds is not None

    def _has_message(self) -> bool:
        return self._inbox.waiting

    def readiness(self, watcher: Watcher) -> Readiness | None:
        """See `Pipe.readiness`."""
        return self._handle.readiness(watcher, self._has_message)

    @property
    def buffered(self) -> bool:
        """See `Pipe.buffered`."""
        return self._inbox.waiting or self._stream.over

    def trim(self) -> None:
        """See `Pipe.trim`."""
        with self._engine.lock:
            self._inbox.trim()

    def set_read_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_read_timeout`."""
        self._handle.set_read_timeout(seconds)

    def set_write_timeout(self, seconds: float | None) -> None:
        """Count the time without a window, too.  For what is below a shared connection, the last word counts."""
        self._handle.set_write_timeout(seconds)

    def set_unauthenticated(self, unauthenticated: bool) -> None:
        """While unauthenticated, a server's stream keeps the small window with which it began."""
        with self._engine.lock:
            try:
                self._inbox.set_unauthenticated(unauthenticated)
            except ProtocolError as error:
                self._engine.core.fail_stream(self._stream, ErrorCodes.PROTOCOL_ERROR, error.message)
        self._handle.set_unauthenticated(unauthenticated)

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """See `Pipe.set_wakeup`."""
        self._handle.set_wakeup(wakeup)

    def set_on_leaving(self, callback: Callable[[], None]) -> None:
        """For GOAWAY without an error on a client's connection (RFC 9113 §6.8)."""
        self._handle.set_on_leaving(callback)

    def flush(self) -> None:
        """See `Pipe.flush`."""
        self._engine.flush_stream(self._stream)

    def close(self, cause: str) -> None:
        """See `Pipe.close`."""
        self._handle.close(cause)

    @property
    def cause(self) -> str | None:
        """See `Pipe.cause`."""
        return self._stream.cause.text
