"""One HTTP/2 stream as a `Wire`: its DATA as a stream of bytes, whatever is spoken in it.  Made by `pipes`."""

from __future__ import annotations

from collections.abc import Callable

from qanat.base.watcher import Watcher
from qanat.transports.http2.byte_inbox import ByteInbox
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.frames import HEADER_SIZE
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.http2.stream_handle import StreamHandle
from qanat.transports.pipe import Wire
from qanat.transports.readiness import Readiness

_CLOSED = "the connection was closed by this end"


class StreamWire(Wire):
    """See the module's docstring."""

    def __init__(self, engine: Http2Engine, stream: Http2Stream, end: Callable[[str], None], *, alone: bool) -> None:
        """Take over `stream`.  The rest is as for `StreamHandle`."""
        inbox = stream.inbox
        assert isinstance(inbox, ByteInbox)
        self.peer = engine.wire.peer
        self.addresses = engine.wire.addresses
        self.headroom = HEADER_SIZE
        self._engine = engine
        self._stream = stream
        self._handle = StreamHandle(engine, stream, end, alone=alone)
        self._inbox = inbox

    def recv_into(self, buffer: memoryview) -> int:
        """See `Wire.recv_into`; an end is raised, with what is known of it.  Raises ProtocolError too."""
        count = self._recv(buffer, None)
        assert count is not None
        return count

    def recv_within(self, buffer: memoryview, seconds: float) -> int | None:
        """See `Wire.recv_within`; needs no `watch`."""
        return self._recv(buffer, seconds)

    def _recv(self, buffer: memoryview, seconds: float | None) -> int | None:
        engine, inbox, stream = self._engine, self._inbox, self._stream
        self._handle.begin_reading()
        with engine.lock:
            count = inbox.take(buffer)
            if not count and seconds != 0:
                inbox.lend(buffer)
                try:
                    self._handle.wait_locked(inbox.has_come, seconds)
                finally:
                    count = inbox.take_back()
            if count:
                engine.core.credit(stream)
            pending = bool(engine.core.pending_control)
        if pending:
            engine.tell()
        if not count and stream.over:
            raise stream.error()
        return count or None

    def readiness(self, watcher: Watcher) -> Readiness | None:
        """See `Wire.readiness`."""
        return self._handle.readiness(watcher, self._inbox.is_kept)

    @property
    def buffered(self) -> bool:
        """See `Wire.buffered`."""
        return self._inbox.is_kept() or self._stream.over

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `Wire.send_all`."""
        self._engine.send(self._stream, _writable(data), HEADER_SIZE)

    @property
    def can_send_now(self) -> bool:
        """See `Wire.can_send_now`."""
        return self._engine.can_send_now(self._stream)

    @property
    def unsent(self) -> int:
        """See `Wire.unsent`."""
        return self._handle.unsent

    def send_now(self, data: bytes | bytearray | memoryview) -> bool:
        """See `Wire.send_now`."""
        return self._engine.send_now(self._stream, _writable(data), HEADER_SIZE)

    def set_read_timeout(self, seconds: float | None) -> None:
        """See `Wire.set_read_timeout`."""
        self._handle.set_read_timeout(seconds)

    def set_write_timeout(self, seconds: float | None) -> None:
        """Count the time without a window, too.  For what is below a shared connection, the last word counts."""
        self._handle.set_write_timeout(seconds)

    def set_unauthenticated(self, unauthenticated: bool) -> None:
        """While unauthenticated, a server's stream keeps the small window with which it began."""
        self._handle.set_unauthenticated(unauthenticated)

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """See `Wire.set_wakeup`."""
        self._handle.set_wakeup(wakeup)

    def set_on_leaving(self, callback: Callable[[], None]) -> None:
        """For GOAWAY without an error on a client's connection (RFC 9113 §6.8)."""
        self._handle.set_on_leaving(callback)

    def flush(self) -> None:
        """See `Wire.flush`."""
        self._engine.flush_stream(self._stream)

    def close(self, final: bytes = b"") -> None:
        """See `Wire.close`."""
        self._handle.close(_CLOSED, final)


def _writable(data: bytes | bytearray | memoryview) -> memoryview:
    """Return a view that the frame's header can be written to."""
    view = memoryview(data)
    return memoryview(bytearray(data)) if view.readonly else view
