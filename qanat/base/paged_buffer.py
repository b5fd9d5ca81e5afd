"""A large buffer of which only what is in use costs memory.

`bytearray` writes zeros into all of its pages; here a page is there once something has been written to it, and can be
given back.
"""

from __future__ import annotations

import contextlib
import mmap

_PRIVATE = getattr(mmap, "MAP_PRIVATE", None)
_NO_HUGE_PAGES = getattr(mmap, "MADV_NOHUGEPAGE", None)
_NOT_NEEDED = getattr(mmap, "MADV_DONTNEED", None)


class PagedBuffer:
    """`size` zero bytes.  One thread at a time."""

    def __init__(self, size: int) -> None:
        """Reserve the address space.  Raises OSError (ENOMEM) where there is none left."""
        if _PRIVATE is None:  # Windows
            self._map = mmap.mmap(-1, size)
        else:
            # Shared memory, which is mmap's default, cannot be given back.
            self._map = mmap.mmap(-1, size, flags=_PRIVATE | mmap.MAP_ANONYMOUS)
        if _NO_HUGE_PAGES is not None:
            # A huge page is there as a whole.  A kernel that has none at all refuses the wish.
            with contextlib.suppress(OSError):
                self._map.madvise(_NO_HUGE_PAGES)
        self.view = memoryview(self._map)
        """All of it."""

    def give_back(self) -> None:
        """Return its pages to the system: it is zero bytes again, or on some systems undefined.  Does not block."""
        if _NOT_NEEDED is not None:
            self._map.madvise(_NOT_NEEDED)
