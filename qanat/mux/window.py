"""How much a peer may send on one stream: a receive window that grows while its reader keeps up.

Credit is an absolute offset, so that a CREDIT frame may be lost with a pipe or sent twice.  Every
stream is guaranteed `initial`; what it holds above that is charged to a budget shared by the
session, so the memory that a peer can make us hold is at most streams x initial + budget.

The window doubles when half of it was consumed within two round trips (or within BUSY seconds,
where the round trip is shorter than a thread's turn): then it is the window that limits the stream.
It halves when that took IDLE_FACTOR times as long.  Pure; the receiver and the stream table call it.
"""

from __future__ import annotations

BUSY = 0.005
"""Seconds; below this a round trip says nothing, since threads take as long to get their turn."""
IDLE_FACTOR = 50
"""A window that lasts this many times longer than it would need to is given back by half."""


class WindowBudget:
    """Bytes that the windows of one session may exceed their guaranteed size by, together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class ReceiveWindow:
    """What one stream may still receive, in absolute byte offsets; `size`, `initial` and `limit` are bytes."""

    __slots__ = ("budget", "charged", "consumed", "granted", "initial", "limit", "received", "since", "size")

    def __init__(self, initial: int, limit: int, budget: WindowBudget, now: float) -> None:
        self.initial = initial
        self.limit = max(initial, limit)
        self.budget = budget
        self.size = initial
        self.received = 0
        self.consumed = 0
        self.granted = initial
        self.charged = 0
        self.since = now

    def consume(self, count: int, now: float, round_trip: float) -> bool:
        """Count `count` bytes handed on.  True when a CREDIT should now be sent."""
        self.consumed += count
        due = self.consumed + self.size - self.granted >= self.size // 2
        if due:
            self._tune(now - self.since, max(2 * round_trip, BUSY))
            self.since = now
        self._charge()
        return due

    def grant(self) -> int:
        """Return the absolute offset to put into a CREDIT sent now.  It never goes back."""
        self.granted = max(self.granted, self.consumed + self.size)
        self._charge()
        return self.granted

    def release(self) -> None:
        """Give everything back to the budget: the stream is over."""
        self.budget.used -= self.charged
        self.charged = 0

    def _tune(self, elapsed: float, busy: float) -> None:
        if elapsed < busy:
            # What is outstanding from before a shrink is already charged, so it is not free to grow into.
            room = self.budget.limit - self.budget.used + self.charged - (self.size - self.initial)
            self.size += max(0, min(self.size, self.limit - self.size, room))
        elif elapsed > busy * IDLE_FACTOR:
            self.size = max(self.initial, self.size // 2)

    def _charge(self) -> None:
        charge = max(self.size, self.granted - self.consumed) - self.initial
        self.budget.used += charge - self.charged
        self.charged = charge
