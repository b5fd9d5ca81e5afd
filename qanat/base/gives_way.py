"""Long work beside threads that carry bytes: it gives them the interpreter often, for moments.

A thread that computes keeps the interpreter for `sys.getswitchinterval`, 5 ms, whenever another one wants it; and a
byte on its way through this process wants it several times, once after each system call.  Who calls `GivesWay` between
pieces of his work makes that a millisecond.
"""

from __future__ import annotations

import time

WORK = 0.001
"""Seconds of work between two pauses."""
PAUSE = 0.00005
"""Seconds of a pause: enough for whoever waits to wake up and go on."""


class GivesWay:
    """To be called after each small piece of work, by one thread; pauses when it is time for that."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.monotonic()

    def __call__(self) -> None:
        """Block for a moment, or not at all."""
        if time.monotonic() - self._since >= WORK:
            time.sleep(PAUSE)
            self._since = time.monotonic()
