"""A pair of pipes inside one process, with the manners of real ones.

`memory_pair` is what the rooms above use in their tests and what `demo` may use: bounded, blocking,
the peer's last messages still readable after it closed.  No socket is involved, so there is
nothing that a network could do to it; what only a network does is tested with real sockets.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from qanat.base.errors import LocalError, PipeEnded
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import MAX_MESSAGE, Pipe

CAPACITY = 4 * MAX_MESSAGE
"""Bytes that one direction holds before `send` blocks: about what two kernel buffers hold on loopback."""

_HEADROOM = 14  # as WebSocket's, and overwritten as WebSocket does, so that its users cannot forget it
_PEER_CLOSED = "the other end closed the pipe"


class _Direction:
    """One direction: a queue bounded in bytes.  `changed` guards everything in it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: deque[bytearray] = deque()
        self.size = 0
        self.taken = 0  # messages, since the beginning
        self.sender_closed = False
        self.receiver_closed = False
        self.last_sent = time.monotonic()


class MemoryPipe(Pipe):
    """One end of a pair."""

    transport = "memory"
    headroom = _HEADROOM

    def __init__(self, peer: str, outgoing: _Direction, incoming: _Direction) -> None:
        self.peer = peer
        self._outgoing = outgoing
        self._incoming = incoming
        self._read_timeout: float | None = None
        self._write_timeout: float | None = None
        self._cause = FirstCause()

    def send(self, buffer: memoryview) -> None:
        message = bytearray(buffer[self.headroom :])
        if len(message) > self.max_message:
            raise LocalError(f"a message of {len(message)} bytes is above the limit of {self.max_message}")
        buffer[: self.headroom] = b"\xaa" * self.headroom
        way = self._outgoing
        if not self._await_room(len(message)):
            self.close(f"nothing could be sent for {self._write_timeout:g} s")
        with way.changed:
            if way.sender_closed:
                raise self._cause.error()
            if way.receiver_closed:
                raise PipeEnded(_PEER_CLOSED)
            way.messages.append(message)
            way.size += len(message)
            way.last_sent = time.monotonic()
            way.changed.notify_all()

    def _await_room(self, size: int) -> bool:
        """Block until a message of `size` bytes may be sent; False when nothing was taken for the write timeout.

        Only this thread adds messages, so what it finds stays true.
        """
        way = self._outgoing

        def ready() -> bool:
            return not way.messages or way.size + size <= CAPACITY or way.sender_closed or way.receiver_closed

        def moved() -> bool:
            return ready() or way.taken != before

        with way.changed:
            while not ready():
                before = way.taken
                if not way.changed.wait_for(moved, self._write_timeout):
                    return False
        return True

    def recv(self) -> memoryview:
        way = self._incoming
        with way.changed:
            timeout = self._read_timeout
            came = way.changed.wait_for(lambda: bool(way.messages) or way.sender_closed or way.receiver_closed, timeout)
            if came and way.messages and not way.receiver_closed:
                message = way.messages.popleft()
                way.size -= len(message)
                way.taken += 1
                way.changed.notify_all()
                return memoryview(message)
        self.close(_PEER_CLOSED if came else f"nothing received for {timeout:g} s")
        raise self._cause.error()

    def set_read_timeout(self, seconds: float | None) -> None:
        self._read_timeout = seconds

    def set_write_timeout(self, seconds: float | None) -> None:
        self._write_timeout = seconds

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """Nothing is ever pending here."""

    def flush(self) -> None:
        """Nothing is ever pending here."""

    def close(self, cause: str) -> None:
        self._cause.set(cause)
        with self._outgoing.changed:
            self._outgoing.sender_closed = True
            self._outgoing.changed.notify_all()
        with self._incoming.changed:
            self._incoming.receiver_closed = True
            self._incoming.messages.clear()
            self._incoming.size = 0
            self._incoming.changed.notify_all()

    @property
    def cause(self) -> str | None:
        return self._cause.text


def memory_pair() -> tuple[MemoryPipe, MemoryPipe]:
    """Two pipes joined to each other.  Both must be closed by their owners; closing one ends the other."""
    there, back = _Direction(), _Direction()
    return MemoryPipe("memory:2", there, back), MemoryPipe("memory:1", back, there)
