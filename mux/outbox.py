"""Numbered frames kept until the peer has acknowledged them, so that a new pipe can replay them.

An entry's number is its place: `first` is the oldest one kept, and numbers only rise.  The bound
counts memory: a block counts whole, a small frame what it takes.  Only DATA and OPEN wait for room;
FIN, RESET and ACCEPT are a few for each stream.  Pure, not thread-safe: the lane's lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from base.errors import ProtocolError

from .slab import BLOCK_FRONT, BLOCK_PAYLOAD, Block, Slab

ENTRY_OVERHEAD = 128
"""Bytes that a small entry is counted for beyond its content."""


class Entry:
    """One numbered frame: `head` is the frame whole, or the header of DATA whose payload is in `block`."""

    __slots__ = ("block", "charge", "head", "stream")

    def __init__(self, head: bytes, block: Block | None = None, stream: int = 0) -> None:
        self.head = head
        self.block = block
        self.stream = stream
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
        return self.charged >= self.limit

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.charged += entry.charge

    def acknowledge(self, expected: int) -> int:
        """Forget all below `expected`; return how many.  Raises ProtocolError for what was never sent."""
        if expected > self.next_number:
            raise ProtocolError(f"an ACK for frame {expected} when {self.next_number} is the next to be sent")
        freed = 0
        while self.first < expected:
            entry = self._entries.popleft()
            self.first += 1
            self.charged -= entry.charge
            freed += 1
            if entry.block is not None:
                self._slab.give(entry.block)
        return freed

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
        """Forget everything: the session is over."""
        self.acknowledge(self.next_number)
