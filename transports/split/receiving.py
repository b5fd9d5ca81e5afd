"""What both ends of a split pipe share: messages in order out of bytes, who waits for them, and how the pipe ends.

Bytes come in requests or answers, handled by other threads, which put them here; the pipe's reader, a thread or the
watcher, takes messages.  The watcher waits for a descriptor that stands for no connection: it is readable while there
is a message or the end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

from qanat.base.errors import PipeEnded
from qanat.base.lazy_waiting import LazyCondition
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import silent_for
from qanat.transports.split.sequence import Incoming

PEER_CLOSED = "the other end closed the pipe"
_HAS_EVENTFD = hasattr(os, "eventfd")


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
        self._signal: _Signal | None = None

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

    def receive(self, seconds: float | None, *, forever: bool = False) -> memoryview | None:
        """Return the next message, or None when nothing has come for `seconds`.

        With `forever`, blocks until there is one, and the read timeout ends the pipe.  Raises PipeEnded, and
        ProtocolError; the owner ends the pipe then.
        """
        with self._lock:
            if forever:
                self._await_locked()
            elif seconds and not self._ready_locked():
                self._readable.wait_for(self._ready_locked, seconds)
            if self._cause.text is not None:
                raise self._cause.error()
            message = self.incoming.take()
            if message is None and self.incoming.finished:
                raise PipeEnded(self.peer_gone or PEER_CLOSED)
            if self._signal is not None and not self._ready_locked():
                self._signal.clear()
            return message

    def _await_locked(self) -> None:
        while not self._ready_locked():
            remaining = None
            if self.read_timeout is not None:
                remaining = self.last_received + self.read_timeout - time.monotonic()
                if remaining <= 0:
                    raise PipeEnded(silent_for(self.read_timeout))
            self._readable.wait(remaining)

    def watch(self) -> int:
        """Return the descriptor that is readable while `receive` has something.  Raises PipeEnded, and OSError."""
        with self._lock:
            if self._cause.text is not None:
                raise self._cause.error()
            self._signal = _Signal()
            if self._ready_locked():
                self._signal.set()
            return self._signal.fd

    def unwatch(self) -> None:
        """Close that descriptor."""
        with self._lock:
            signal, self._signal = self._signal, None
        if signal is not None:
            signal.close()

    def _ready_locked(self) -> bool:
        return self.incoming.has_message or self._cause.text is not None or self.incoming.finished

    def _notify_locked(self) -> None:
        self._readable.notify_all()
        if self._signal is not None:
            self._signal.set()


class _Signal:
    """A descriptor that can be made readable."""

    def __init__(self) -> None:
        self._there: socket.socket | None = None
        if _HAS_EVENTFD:
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._there, self._here = socket.socketpair()
            self._there.setblocking(False)
            self._here.setblocking(False)
            self.fd = self._here.fileno()
        self._is_set = False

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            if self._there is None:
                os.eventfd_write(self.fd, 1)
            else:
                self._there.send(b"\0")

    def clear(self) -> None:
        if self._is_set:
            self._is_set = False
            with contextlib.suppress(BlockingIOError):
                if self._there is None:
                    os.eventfd_read(self.fd)
                else:
                    self._here.recv(64)

    def close(self) -> None:
        if self._there is None:
            os.close(self.fd)
        else:
            self._there.close()
            self._here.close()
