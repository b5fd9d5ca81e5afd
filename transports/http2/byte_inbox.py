"""The bytes of a stream that is read as a Wire, until they are taken.

Whoever waits for them lends its own buffer (`lend`), and what comes is copied there at once; what comes meanwhile, or
does not fit, is kept.  The stream's window bounds that.  Sans-IO.  Used by `core`, `stream` and `stream_wire`.
"""

from __future__ import annotations


class ByteInbox:
    """Bytes that have come and are not yet taken.  Not thread-safe: the connection's lock is held around it."""

    in_the_middle = False
    """Whether an end now would cut a message: only who reads them can say."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._lent: memoryview | None = None
        self._filled = 0  # bytes of that
        self.released = 0
        """Bytes that need no more room here since its owner last set this to 0."""

    def feed(self, data: memoryview, *, borrow: bool = False) -> bool:
        """Take the next bytes, which are copied; return True: there is something to read."""
        if self._lent is not None and not self._kept:
            count = min(len(data), len(self._lent) - self._filled)
            self._lent[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
        self._kept += data
        return True

    def return_borrowed(self) -> bool:
        """Return True: nothing is ever borrowed."""
        return True

    def take(self, buffer: memoryview) -> int:
        """Move what is kept into `buffer`, as much as fits; return how many bytes that was."""
        count = min(len(buffer), len(self._kept))
        if count:
            buffer[:count] = memoryview(self._kept)[:count]
            del self._kept[:count]
            self.released += count
        return count

    def lend(self, buffer: memoryview) -> None:
        """Have what comes next copied into `buffer`, until `take_back`.  Only while nothing is kept."""
        self._lent, self._filled = buffer, 0

    def has_come(self) -> bool:
        """Return whether something is in the buffer that was lent."""
        return self._filled > 0

    def take_back(self) -> int:
        """Return how many bytes were put into the buffer that was lent, which is the caller's again."""
        count, self._filled, self._lent = self._filled, 0, None
        self.released += count
        return count

    def is_kept(self) -> bool:
        """Return whether `take` has something."""
        return bool(self._kept)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
