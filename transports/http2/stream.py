"""One stream of an HTTP/2 connection that carries, or will carry, a pipe: its state, and nothing that acts.

Everything here is guarded by the lock of the connection (`engine`), which also moves it.  Used by that and by `pipe`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qanat.base.errors import PipeEnded, ProtocolError
from qanat.transports.cause import FirstCause
from qanat.transports.http2.byte_inbox import ByteInbox
from qanat.transports.http2.dialect import Dialect, MessageDialect
from qanat.transports.http2.inbox import Inbox
from qanat.transports.http2.limits import STREAM_UPDATES, WINDOW


class Signal(threading.Condition):
    """A condition that costs next to nothing to notify while nobody waits."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self._waiting = 0
        self.listener: Callable[[], None] | None = None
        """Called whenever somebody who waits would be woken; with the lock, so it must not block."""

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Condition.wait`."""
        self._waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self._waiting -= 1

    def notify(self, n: int = 1) -> None:
        """See `threading.Condition.notify`."""
        if self._waiting:
            super().notify(n)
        if self.listener is not None:
            self.listener()


class Http2Stream:
    """See the module's docstring."""

    def __init__(self, stream_id: int, dialect: Dialect, lock: threading.Lock, window: int) -> None:
        """`window` is how much the peer may send before we say more."""
        self.id = stream_id
        self.dialect = dialect
        self.inbox: Inbox | ByteInbox = Inbox(dialect) if isinstance(dialect, MessageDialect) else ByteInbox()
        self.readable = Signal(lock)
        """A message is there, or bytes are, or the answer's head is, or the stream is over."""
        self.writable = Signal(lock)
        """The peer has opened a window, control frames are pending, or the stream is over."""
        self.cause = FirstCause()
        self.over = False
        """Whether the stream has ended."""
        self.fault: ProtocolError | None = None  # what the peer broke, for `recv` to raise once
        self.response: tuple[int, dict[str, str]] | None = None  # a client's: the answer's status and headers
        self.trailers = ""  # what the trailers said, in words
        self.answered = False  # a server's: the head of our answer was sent
        self.ended_here = False  # we have sent END_STREAM or RST_STREAM
        self.ended_there = False  # the peer has
        self.in_message = False  # part of a message has been sent, and not all of it
        self.final = b""  # what to send last, at an orderly end, if a window is open for it
        self.sent = 0  # bytes of DATA
        self.sending = False  # a thread is inside `send` or `flush_stream`
        self.left = b""  # what `send_now` took of a message and could not send; its sender's alone
        self.reads_alone = False  # a server's: its pipe may read the connection while that carries no other
        self.write_timeout: float | None = None  # seconds that a sender waits for a window; None is for ever
        self.window = window  # what the peer may still send
        self.full_window = window
        self._due = 0  # bytes that the peer may be told to send again
        self.last_received = time.monotonic()

    def end(self, cause: str, fault: ProtocolError | None = None) -> None:
        """Wake everybody; the first cause counts.  What has come can still be taken."""
        if self.cause.set(cause):
            self.fault = fault
            self.over = True
        self.readable.notify_all()
        self.writable.notify_all()

    def error(self) -> PipeEnded | ProtocolError:
        """Return what to raise now that it is over."""
        fault, self.fault = self.fault, None
        return fault if fault is not None else self.cause.error()

    @property
    def authenticated(self) -> bool:
        """Whether the peer is known, so that the window is whole."""
        return self.full_window == WINDOW

    def widen(self) -> None:
        """Open the whole window: the peer is authenticated.  The next `credit` says by how much."""
        self._due += WINDOW - self.full_window
        self.full_window = WINDOW

    def credit(self, released: int) -> int:
        """Count bytes that need no more room; return by how much to open the peer's window now, mostly 0."""
        self._due += released
        if self._due < self.full_window // STREAM_UPDATES or self.ended_there or self.over:
            return 0
        due, self._due = self._due, 0
        self.window += due
        return due
