"""How much a peer may send on one stream: a receive window that grows while its reader keeps up.

Credit is an absolute offset, so that a CREDIT frame may be lost with a pipe or sent twice.  Every
stream is guaranteed `initial`; what it holds above that is charged to a budget shared by the
session, so the memory that a peer can make us hold is at most streams x initial + budget.

The window grows to GAIN times what the reader consumes in one round trip: twice that doubles it each round trip while
it is the window that limits the stream, and stands still once the path holds no more.  The round trip is the least of
late, not the present one: that waits in the queue which the stream itself makes in proxies and kernels, and a window
that follows it grows until nothing else gets through.  The rate is the reader's own, and nothing shrinks when it falls,
since a thread that is late looks like a slower path; only one IDLE_FACTOR times too large is given back, by halves.

Pure; the receiver and the stream table call it.
"""

from __future__ import annotations

GAIN = 2
"""See above."""
LEAST_TIME = 0.0025
"""Seconds; a shorter round trip counts as this one, since threads take as long to get their turn."""
RATE_TIME = 0.01
"""Seconds over which a rate is taken at least: bytes come in bursts."""
IDLE_FACTOR = 100
"""A window that is this many times larger than it would need to be is given back by half."""
LARGE = 1024 * 1024
"""Bytes from which on a CREDIT is due for each quarter of the window, so that a long path is filled; else half."""


class WindowBudget:
    """Bytes that the windows of one session may exceed their guaranteed size by, together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class ReceiveWindow:
    """What one stream may still receive, in absolute byte offsets; `size`, `initial` and `limit` are bytes."""

    __slots__ = (
        "budget",
        "charged",
        "consumed",
        "consumed_before",
        "granted",
        "initial",
        "limit",
        "received",
        "since",
        "size",
    )

    def __init__(self, initial: int, limit: int, budget: WindowBudget, now: float) -> None:
        self.initial = initial
        self.limit = max(initial, limit)
        self.budget = budget
        self.size = initial
        self.received = 0
        self.consumed = 0
        self.consumed_before = 0
        self.granted = initial
        self.charged = 0
        self.since = now

    def consume(self, count: int, now: float, least_round_trip: float) -> bool:
        """Count `count` bytes handed on.  True when a CREDIT should now be sent."""
        self.consumed += count
        size = self.size
        due = self.consumed + size - self.granted >= (size // 4 if size >= LARGE else size // 2)
        if due:
            elapsed = now - self.since
            if elapsed >= max(least_round_trip, RATE_TIME):
                rate = (self.consumed - self.consumed_before) / elapsed
                self._tune(int(GAIN * rate * max(least_round_trip, LEAST_TIME)))
                self.since, self.consumed_before = now, self.consumed
        if due or self.charged:  # else what it holds is within what it has been guaranteed, and stays so
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

    def _tune(self, wanted: int) -> None:
        if wanted > self.size:
            # What is outstanding from before a shrink is already charged, so it is not free to grow into.
            room = self.budget.limit - self.budget.used + self.charged - (self.size - self.initial)
            self.size += max(0, min(wanted - self.size, self.limit - self.size, room))
        elif wanted * IDLE_FACTOR < self.size:
            self.size = max(self.initial, self.size // 2)

    def _charge(self) -> None:
        charge = max(self.size, self.granted - self.consumed) - self.initial
        self.budget.used += charge - self.charged
        self.charged = charge
