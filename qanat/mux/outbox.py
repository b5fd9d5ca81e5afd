"""Numbered frames kept until the peer has acknowledged them, so that a new pipe can replay them.

An entry's number is its place: `first` is the oldest one kept, and numbers only rise.  The bound
counts memory: a block counts whole, a small frame what it takes, and a control frame from when it is
queued, since those do not wait for room: only DATA does, and whoever opens a stream.  Pure, not
thread-safe: the lane's lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from qanat.base.errors import ProtocolError
from qanat.mux.slab import BLOCK_FRONT, BLOCK_PAYLOAD, Block, Slab

ENTRY_OVERHEAD = 128
"""Bytes that a small entry is counted for beyond its content."""


class Entry:
    """One numbered frame: `head` is the frame whole, or the header of DATA whose payload is in `block`."""

    __slots__ = ("block", "charge", "head")

    def __init__(self, head: bytes, block: Block | None = None) -> None:
        self.head = head
        self.block = block
        self.charge = len(head) + ENTRY_OVERHEAD + (BLOCK_FRONT + BLOCK_PAYLOAD if block else 0)


class Outbox:
    """The unacknowledged tail of one lane's direction."""

    def __init__(self, limit: int, slab: Slab) -> None:
        self.limit = limit
        self.charged = 0
        self.first = 0
        self._slab = slab
        self._entries: deque[Entry] = deque()

    @property
    def next_number(self) -> int:
        """The number that the next appended entry gets."""
        return self.first + len(self._entries)

    @property
    def full(self) -> bool:
        """Whether DATA, and who opens a stream, must wait for an ACK."""
        return self.charged >= self.limit

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, entry: Entry) -> None:
        """Count the memory of `entry`, which will be appended."""
        self.charged += entry.charge

    def append(self, entry: Entry) -> None:
        """Number `entry`, which has been reserved for, and keep it."""
        self._entries.append(entry)

    def acknowledge(self, expected: int) -> None:
        """Forget all below `expected`, which the caller has checked; nothing when that is done already."""
        while self.first < expected:
            entry = self._entries.popleft()
            self.first += 1
            self.charged -= entry.charge
            if entry.block is not None:
                self._slab.give(entry.block)

    def check_resume(self, expected: int) -> None:
        """Raise ProtocolError unless the frames from `expected` on can be replayed."""
        if not self.first <= expected <= self.next_number:
            raise ProtocolError(f"the peer expects frame {expected}; kept are {self.first} to {self.next_number}")

    def since(self, number: int) -> Iterator[Entry]:
        """The entries from `number` on, for replay."""
        start = number - self.first
        for index in range(start, len(self._entries)):
            yield self._entries[index]

    def clear(self) -> None:
        """Forget everything, what is only reserved too: the session is over."""
        self.acknowledge(self.next_number)
        self.charged = 0
