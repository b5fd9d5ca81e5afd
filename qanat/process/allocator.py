"""How the C library keeps memory that this process has given back, and when it is told to return it to the system.

glibc gives each thread an arena of its own, up to eight for each processor, and what is freed stays with its arena.
Threads here come and go with connections, each with buffers of some hundred kilobytes, so that the same memory
would be kept several times over.  Python runs one thread at a time anyway; two arenas are as fast.

What a process has by the time it is up, modules and types mostly, is touched after each sleep, and the processor finds
it in more pages than it remembers.  `use_large_pages` puts it into a few large ones.

What many streams or connections needed at once would stay, too: glibc returns by itself only what lies at the end of an
arena.  `MemoryReturn` has it return the rest.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

log = logging.getLogger("qanat.process")

ARENAS = 2
_M_ARENA_MAX = -8  # malloc.h

_NEEDED_LATER = "mallinfo2", "malloc_trim"
"""Functions of the C library that `MemoryReturn` calls."""

LARGE_PAGE = 2 * 1024 * 1024
"""Bytes of a large page, which takes one place where the processor remembers pages, as one of 4 KiB does."""
FILLED = 0.75
"""The part of a mapping that has to be in memory to be moved into large pages."""
_MADV_COLLAPSE = 25  # madvise(2), Linux 6.1
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(?:\[heap\])?$")
WORTH = 4 * 1024 * 1024
"""Bytes that must have come free before they are returned: the pages have to be cleared when they are used again, about
a millisecond for this much, once a look.  Less than what 5,000 idle streams leave, of whose 20 MB malloc has 6."""
REST = WORTH // 4
"""The same at the look after one that returned memory: many streams do not end all at once."""
WORTH_BLOCKS = 20_000
"""Python's own blocks, of some hundred bytes each, that must have come free in place of that: 600 idle streams have as
many."""
WORTH_ASKING = 100
"""Sockets more or fewer, from which on Python is asked for its blocks: it counts them pool by pool, a millisecond for
50 MB, ten for 300, in which nobody else runs."""
LOOKS_UNASKED = 11
"""Looks in turn without that, whatever the number of sockets: a minute."""


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@cache
def _libc(name: str) -> Any:
    """Return a function of the C library, or None.

    What ctypes makes of each is kept, and should be there before the first stream: among what streams leave free, it
    would keep that from the system.
    """
    return getattr(_library(), name, None)


def limit_arenas() -> None:
    """Keep at most ARENAS arenas from now on (mallopt(3)); nothing where there is no glibc.  Before threads start."""
    if sys.platform == "linux":
        mallopt = _libc("mallopt")
        for later in _NEEDED_LATER:
            _libc(later)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, ARENAS)


def use_large_pages() -> int:
    """Move what this process has in memory now into pages of LARGE_PAGE bytes; return how many bytes were tried.

    Once, when it is up.  Only what is in memory nearly whole: nothing grows by it, and what comes later, or is given
    back, is as before.  Blocks for about a millisecond a page.  Nothing where the system cannot (Linux before 6.1).
    """
    madvise = _libc("madvise") if sys.platform == "linux" else None
    if madvise is None:
        return 0
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    tried = 0
    for start, end in _filled_mappings():
        start, end = -(-start // LARGE_PAGE) * LARGE_PAGE, end // LARGE_PAGE * LARGE_PAGE
        if start < end:
            madvise(start, end - start, _MADV_COLLAPSE)  # may fail, for want of a free page or as a whole
            tried += end - start
    return tried


def _filled_mappings() -> list[tuple[int, int]]:
    """Return where the heap and anonymous mappings are that are in memory nearly whole (proc_pid_smaps(5))."""
    found: list[tuple[int, int]] = []
    start = end = 0
    try:
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
            for line in file:
                if match := _MAPPING.match(line):
                    start, end = (int(part, 16) for part in match.groups())
                elif line.startswith("VmFlags:"):
                    start = end = 0
                elif start < end and line.startswith("Rss:") and int(line.split()[1]) << 10 >= (end - start) * FILLED:
                    found.append((start, end))
    except OSError:
        pass
    return found


class MemoryReturn:
    """Returns free memory to the system where much has come free: now and then `look` has to be called.

    What is asked is how much is free, not how many streams have ended, so that it holds for whatever needed it.  That
    costs little but for Python's own blocks, which count at every look only while the number of sockets changes.
    Nothing where there is no glibc.  For one thread at a time.
    """

    def __init__(
        self,
        sockets: Callable[[], int],
        free: Callable[[], int | None] | None = None,
        resident: Callable[[], int] | None = None,
        trim: Callable[[], None] | None = None,
        blocks: Callable[[], int] = sys.getallocatedblocks,
    ) -> None:
        """Take what tells how many sockets there are, the bytes that are free and resident, and what returns them.

        `blocks` tells how many blocks Python has allocated.  All but the first are by default the system's.
        """
        self._sockets = sockets
        self._free = free or free_bytes
        self._resident = resident or resident_bytes
        self._trim = trim or return_memory
        self._least_free = 0  # since memory was returned: what is free need not be resident any more
        self._least_resident = 0
        self._worth = WORTH
        self._blocks = blocks
        self._most_blocks = 0  # likewise, at any time that they were asked for
        self._asked_at = 0  # sockets that there were then
        self._unasked = 0  # looks since then

    def look(self) -> bool:
        """Return memory if much of it has come free; whether to be called again though nothing may have happened.

        So once after it returned much, for the rest of what was about to come free then.
        Takes some milliseconds for each 100 MB that it returns, in which another thread may wait for memory.
        """
        free = self._free()
        if free is None:
            return False
        resident = self._resident()
        self._least_free = min(self._least_free, free)
        self._least_resident = min(self._least_resident, resident)
        worth, self._worth = self._worth, WORTH
        much = free >= worth and (free - self._least_free >= worth or resident - self._least_resident >= worth)
        if self._blocks_fell() or much:
            self._trim()
            self._most_blocks = self._blocks()
            self._unasked = LOOKS_UNASKED  # the last sockets went before what belonged to them, perhaps
            self._least_free, self._least_resident = self._free() or 0, self._resident()
            log.debug("memory: %d MB were resident, %d MB are", resident >> 20, self._least_resident >> 20)
            if worth == WORTH:
                self._worth = REST
                return True
        return False

    def _blocks_fell(self) -> bool:
        """Whether Python has WORTH_BLOCKS fewer than it had."""
        sockets = self._sockets()
        if abs(sockets - self._asked_at) < WORTH_ASKING and self._unasked < LOOKS_UNASKED:
            self._unasked += 1
            return False
        self._asked_at, self._unasked = sockets, 0
        blocks = self._blocks()
        self._most_blocks = max(self._most_blocks, blocks)
        return self._most_blocks - blocks >= WORTH_BLOCKS


class _Mallinfo2(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")
    ] + [("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)]


def free_bytes() -> int | None:
    """Return how many bytes malloc has and nobody uses; None where that cannot be asked (glibc before 2.33)."""
    if sys.platform != "linux":
        return None
    mallinfo2 = _libc("mallinfo2")
    if mallinfo2 is None:
        return None
    mallinfo2.restype = _Mallinfo2
    return int(mallinfo2().fordblks)


def return_memory() -> None:
    """Have Python and malloc return to the system what nobody uses (malloc_trim(3))."""
    _clear_free_lists()
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def _clear_free_lists() -> None:
    """Have Python free the tuples, lists, dicts and floats that it keeps for reuse, thousands of them.

    They lie wherever those were that were given back last, and each keeps an arena of a megabyte in memory.  A full
    collection clears them; with everything frozen it looks at no object, which would take 100 ms for a million.  (The
    next full one by itself comes sooner for it: Python counts how many objects the last one has looked at.)
    """
    gc.freeze()
    try:
        gc.collect()
    finally:
        gc.unfreeze()


def resident_bytes() -> int:
    """Return how many bytes of this process are in memory (proc_pid_statm(5))."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
