"""What this process needs of the system: its threads, its memory, since when it runs."""

from __future__ import annotations

import contextlib
import os
import threading
import time

STARTED_AT = time.time()
"""When this process began, in seconds of Unix time, near enough: when it loaded this."""


def count_threads() -> int:
    """Return how many threads there are."""
    return threading.active_count()


def resident_bytes() -> int | None:
    """Return the bytes of memory that this process occupies (RSS); None where the system does not say (proc(5))."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None
