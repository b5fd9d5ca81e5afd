"""How the C library keeps memory that this process has given back.

glibc gives each thread an arena of its own, up to eight for each processor, and what is freed stays with its arena.
Threads here come and go with connections, each with buffers of some hundred kilobytes, so that the same memory
would be kept several times over.  Python runs one thread at a time anyway; two arenas are as fast.
"""

from __future__ import annotations

import ctypes
import sys

ARENAS = 2
_M_ARENA_MAX = -8  # malloc.h


def limit_arenas() -> None:
    """Keep at most ARENAS arenas from now on (mallopt(3)); nothing where there is no glibc.  Before threads start."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, ARENAS)
