"""The buffers that bulk DATA lives in from `recv_into` until the peer's ACK.

A buffer is filled once and never copied: the frame header and whatever rides along are written in
front of the payload, so that the plaintext of a record is one contiguous view.  A pool hands out a
bounded number of buffers, makes them when first needed and keeps some for reuse, because pages that
are touched for the first time cost more than the copy that they save.

Pure, and not thread-safe: the lane's lock guards it.
"""

from __future__ import annotations

BUFFER_PAYLOAD = 128 * 1024
"""Bytes of payload a buffer holds."""
BUFFER_FRONT = 160
"""Bytes before the payload: the record's kind, frames that ride along, the DATA header."""
KEEP_FREE = 32
"""Free buffers kept for reuse; the rest goes back to the allocator."""


class Buffer:
    """BUFFER_FRONT bytes of room for headers, then `payload`, of which the first `length` bytes are used."""

    __slots__ = ("length", "payload", "storage", "view")

    def __init__(self) -> None:
        self.storage = bytearray(BUFFER_FRONT + BUFFER_PAYLOAD)
        self.view = memoryview(self.storage)
        self.payload = self.view[BUFFER_FRONT:]
        self.length = 0


class BufferPool:
    """At most `limit` bytes of buffers lent out at once, and always two."""

    def __init__(self, limit: int) -> None:
        self.capacity = max(2, limit // BUFFER_PAYLOAD)
        self.lent = 0
        self._keep = KEEP_FREE
        self._free: list[Buffer] = []
        self._unused = 0  # of these, how many were not needed since the last `shrink`

    @property
    def exhausted(self) -> bool:
        """Whether `take` has nothing to give."""
        return self.lent >= self.capacity

    def take(self) -> Buffer | None:
        """Return a buffer of the borrower's own, the latest that came back; None when all are lent."""
        if self.exhausted:
            return None
        self.lent += 1
        if not self._free:
            return Buffer()
        buffer = self._free.pop()
        self._unused = min(self._unused, len(self._free))
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """Take back a buffer that `take` gave; nobody may touch it afterwards."""
        self.lent -= 1
        buffer.length = 0
        if len(self._free) < self._keep:
            self._free.append(buffer)

    def shrink(self) -> bool:
        """Drop the free buffers that were not needed since the last call; return whether others are left to drop."""
        del self._free[: self._unused]
        self._unused = len(self._free)
        return bool(self._free)

    def clear(self) -> None:
        """Keep no free buffer, nor any that comes back: the lane is over."""
        self._keep = self._unused = 0
        self._free.clear()
