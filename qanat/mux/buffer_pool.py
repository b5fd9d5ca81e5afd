"""The buffers that bulk DATA lives in from `recv_into` until the peer's ACK.

A buffer is filled once and never copied: the frame header and whatever rides along are written in
front of the payload, so that the plaintext of a record is one contiguous view.  A pool hands out a
bounded number of buffers, makes them when first needed and keeps some for reuse, because pages that
are touched for the first time cost more than the copy that they save.  There are two sizes: what a record
costs beside its bytes is half with the large one, and a small exchange waits twice as long for it.

Pure, and not thread-safe: the lane's lock guards it.
"""

from __future__ import annotations

BUFFER_PAYLOAD = 128 * 1024
"""Bytes of payload a buffer holds."""
LARGE_PAYLOAD = 255 * 1024
"""The same for a large one: with what goes before it, as much as one record holds."""
BUFFER_FRONT = 160
"""Bytes before the payload: the record's kind, frames that ride along, the DATA header."""
KEEP_FREE = 32
"""Places of free buffers kept for reuse; the rest goes back to the allocator."""


class Buffer:
    """BUFFER_FRONT bytes of room for headers, then `payload`, of which the first `length` bytes are used."""

    __slots__ = ("length", "payload", "places", "storage", "view")

    def __init__(self, size: int = BUFFER_PAYLOAD) -> None:
        self.storage = bytearray(BUFFER_FRONT + size)
        self.view = memoryview(self.storage)
        self.payload = self.view[BUFFER_FRONT:]
        self.length = 0
        self.places = 1 if size <= BUFFER_PAYLOAD else 2
        """It takes so many of its pool's."""


class _Shelf:
    """Free buffers of one size; the latest that came back is the next to go."""

    def __init__(self) -> None:
        self.free: list[Buffer] = []
        self._unused = 0  # of these, how many were not needed since the last `shrink`

    def take(self) -> Buffer:
        buffer = self.free.pop()
        if self._unused > len(self.free):
            self._unused = len(self.free)
        return buffer

    def drop(self) -> None:
        """Leave the oldest buffer to the allocator."""
        self._unused = max(0, self._unused - 1)
        del self.free[0]

    def shrink(self) -> None:
        """Leave those that were not needed since the last call to the allocator."""
        del self.free[: self._unused]
        self._unused = len(self.free)


class BufferPool:
    """At most `limit` bytes of buffers at once, lent out or free, and always two; what is counted are places."""

    def __init__(self, limit: int) -> None:
        self.capacity = max(2, limit // BUFFER_PAYLOAD)
        self.lent = 0
        self._keep = KEEP_FREE
        self._usual, self._large = _Shelf(), _Shelf()

    @property
    def _free(self) -> int:
        return len(self._usual.free) + 2 * len(self._large.free)

    @property
    def exhausted(self) -> bool:
        """Whether `take` has nothing to give."""
        return self.lent >= self.capacity

    def take(self, *, large: bool = False) -> Buffer | None:
        """Return a buffer of the borrower's own, the latest that came back; None when all are lent.

        A `large` one takes two places, and is of the usual size where one alone is left.
        """
        left = self.capacity - self.lent
        if left <= 0:
            return None
        shelf, other, size = self._usual, self._large, BUFFER_PAYLOAD
        if large and left > 1:
            shelf, other, size = self._large, self._usual, LARGE_PAYLOAD
        if shelf.free:
            buffer = shelf.take()
        else:
            buffer = Buffer(size)
            while other.free and self.lent + self._free + buffer.places > self.capacity:
                other.drop()
        self.lent += buffer.places
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """Take back a buffer that `take` gave; nobody may touch it afterwards."""
        self.lent -= buffer.places
        buffer.length = 0
        shelf, other = (self._large, self._usual) if buffer.places > 1 else (self._usual, self._large)
        while other.free and self._free + buffer.places > self._keep:
            other.drop()  # what is needed now is this size
        if self._free + buffer.places <= self._keep:
            shelf.free.append(buffer)

    def shrink(self) -> bool:
        """Drop the free buffers that were not needed since the last call; return whether others are left to drop."""
        self._usual.shrink()
        self._large.shrink()
        return self._free > 0

    def clear(self) -> None:
        """Keep no free buffer, nor any that comes back: the lane is over."""
        self._keep = 0
        self._usual, self._large = _Shelf(), _Shelf()
