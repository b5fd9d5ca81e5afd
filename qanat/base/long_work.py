"""Long work in one thread of a process that carries bytes: `long_work`, which keeps it from holding those up.

A thread that computes keeps the interpreter for 5 ms whenever another one wants it, and a byte on its way through this
process wants it several times, once after each system call: while this is in effect it waits half a millisecond each
time.  Long work also makes many objects and soon drops them; after some of it the collector would go through all
objects of the process, and nothing moves for as long.  What it makes has no cycles, so it does without.

Rejected: a short sleep now and then, which a busy machine makes a long one, and has to stand in every loop.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator

SWITCH = 0.0005
"""Seconds after which a thread that wants the interpreter gets it; `sys.setswitchinterval`."""
_lock = threading.Lock()  # guards what follows
_running = 0
_before: tuple[float, bool] = (0.005, True)


@contextlib.contextmanager
def long_work() -> Iterator[None]:
    """Make the interpreter change hands often, and collect nothing, while this or another such block runs."""
    global _running, _before
    with _lock:
        _running += 1
        if _running == 1:
            _before = sys.getswitchinterval(), gc.isenabled()
            sys.setswitchinterval(SWITCH)
            gc.disable()
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if not _running:
                interval, collects = _before
                sys.setswitchinterval(interval)
                if collects:
                    gc.enable()
