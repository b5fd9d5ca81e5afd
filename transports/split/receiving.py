"""What both ends of a split pipe share: messages in order out of bytes, who waits for them, and how the pipe ends.

Bytes come in requests or answers, handled by other threads or by the watcher, which put them here; the pipe's reader, a
thread or the watcher, takes messages.  The watcher is told by whoever puts the bytes here that make a message whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qanat.base.errors import PipeEnded
from qanat.base.lazy_waiting import LazyCondition
from qanat.base.watcher import Flushable, Ready, Watcher
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import silent_for
from qanat.transports.readiness import PostedReadiness
from qanat.transports.split.sequence import Incoming

PEER_CLOSED = "the other end closed the pipe"


class Receiving:
    """One pipe's bytes to receive.  `lock` is the pipe's; methods that end in `_locked` need it, the others take it."""

    def __init__(self, lock: threading.Lock, incoming: Incoming, cause: FirstCause) -> None:
        self.incoming = incoming
        self.last_received = time.monotonic()
        """When something came last from the other end that nobody else can have sent."""
        self.read_timeout: float | None = None
        self.peer_gone: str | None = None
        """Why the other end sends nothing after what has come, once that is so."""
        self._lock = lock
        self._cause = cause
        self._readable = LazyCondition(lock)
        self._listener: Callable[[], None] | None = None

    def add_locked(self, at: int, data: memoryview) -> None:
        """Keep bytes, which belong to the caller no more.  Raises ProtocolError."""
        if self._cause.text is None and self.incoming.add(at, data) and self.incoming.has_message:
            self._notify_locked()

    def end_locked(self, at: int, why: str) -> None:
        """Note that the other end has closed, and sends nothing from offset `at` on."""
        if self.incoming.end is None:
            self.incoming.end = at
            self.peer_gone = why
        self._notify_locked()

    def wake_locked(self) -> None:
        """Wake the reader: the pipe has ended."""
        self.incoming.clear()
        self._notify_locked()

    def receive(self, seconds: float | None) -> memoryview | None:
        """Return the next message, or None when nothing has come for `seconds`.

        Without a time, blocks until there is one, and the read timeout ends the pipe.  Raises PipeEnded, and
        ProtocolError; the owner ends the pipe then.
        """
        with self._lock:
            if seconds is None:
                self._await_locked()
            elif seconds and not self._ready_locked():
                self._readable.wait_for(self._ready_locked, seconds)
            if self._cause.text is not None:
                raise self._cause.error()
            message = self.incoming.take()
            if message is None and self.incoming.finished:
                raise PipeEnded(self.peer_gone or PEER_CLOSED)
            return message

    def _await_locked(self) -> None:
        while not self._ready_locked():
            remaining = None
            if self.read_timeout is not None:
                remaining = self.last_received + self.read_timeout - time.monotonic()
                if remaining <= 0:
                    raise PipeEnded(silent_for(self.read_timeout))
            self._readable.wait(remaining)

    def has_come(self) -> bool:
        """Return whether `receive` has something."""
        with self._lock:
            return self._ready_locked()

    @property
    def silent(self) -> bool:
        """Whether nothing has come for the read timeout, and the time for that is over.  Needs no lock."""
        return self.read_timeout is not None and time.monotonic() - self.last_received >= self.read_timeout

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called whenever something comes, and now if something has; it is called with the lock."""
        with self._lock:
            self._listener = listener
            if listener is not None and self._ready_locked():
                listener()

    def _ready_locked(self) -> bool:
        return self.incoming.has_message or self._cause.text is not None or self.incoming.finished

    def _notify_locked(self) -> None:
        self._readable.notify_all()
        if self._listener is not None:
            self._listener()


class ReceivingReadiness(PostedReadiness):
    """What tells a watcher that a split pipe has something to receive."""

    def __init__(self, receiving: Receiving, watcher: Watcher) -> None:
        super().__init__(watcher)
        self._receiving = receiving

    def add(self, ready: Ready) -> None:
        """See `Readiness.add`."""
        self._watcher.start()  # or nothing can be posted to it
        self._ready = ready
        self._receiving.listen(self._tell)

    def remove(self) -> None:
        """See `Readiness.remove`."""
        self._ready = None
        self._receiving.listen(None)

    def has_come(self) -> bool:
        """See `Readiness.has_come`."""
        return self._receiving.has_come()

    def close(self) -> None:
        """See `Readiness.close`."""
        self.remove()

    def _call(self) -> Flushable | None:
        """Call back while there is something, as for a descriptor: a pipe is asked for one message at a time."""
        flushable = super()._call()
        if self._ready is not None and self._receiving.has_come():
            self._tell()
        return flushable
