"""Blocks of memory that bulk DATA lives in from `recv_into` until the peer's ACK.

A block is filled once and never copied: the frame header and whatever rides along are written in
front of the payload, so that the plaintext of a record is one contiguous view.  A slab hands out a
bounded number of blocks, makes them when first needed and keeps some for reuse, because pages that
are touched for the first time cost more than the copy that they save.

Not thread-safe: the lane's lock guards it.
"""

from __future__ import annotations

BLOCK_PAYLOAD = 128 * 1024
"""Bytes of payload a block holds."""
BLOCK_FRONT = 160
"""Bytes before the payload: the record's kind, frames that ride along, the DATA header."""
KEEP_FREE = 32
"""Free blocks kept for reuse; the rest goes back to the allocator."""


class Block:
    """One buffer: `front` bytes of scratch, then the payload of which `length` bytes are used."""

    __slots__ = ("buffer", "length", "payload", "view")

    def __init__(self) -> None:
        self.buffer = bytearray(BLOCK_FRONT + BLOCK_PAYLOAD)
        self.view = memoryview(self.buffer)
        self.payload = self.view[BLOCK_FRONT:]
        self.length = 0


class Slab:
    """At most `limit` bytes of blocks lent out at once."""

    def __init__(self, limit: int) -> None:
        self.capacity = max(2, limit // BLOCK_PAYLOAD)
        self.lent = 0
        self._keep = KEEP_FREE
        self._free: list[Block] = []

    @property
    def exhausted(self) -> bool:
        """Whether `take` has nothing to give."""
        return self.lent >= self.capacity

    def take(self) -> Block | None:
        """A block of the borrower's own, or None when all are lent.  The latest returned comes first."""
        if self.exhausted:
            return None
        self.lent += 1
        return self._free.pop() if self._free else Block()

    def clear(self) -> None:
        """Keep no free block, nor any that comes back: the lane is over."""
        self._keep = 0
        self._free.clear()

    def give(self, block: Block) -> None:
        """Take a block back; nobody may touch it afterwards."""
        self.lent -= 1
        block.length = 0
        if len(self._free) < self._keep:
            self._free.append(block)
