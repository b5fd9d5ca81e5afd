"""How much a peer may send on one stream: a receive window that grows while its reader keeps up.

Credit is an absolute offset, so that a CREDIT frame may be lost with a pipe or sent twice.  Every
stream is guaranteed `initial`; what it holds above that is charged to a budget shared by the
session, so the memory that a peer can make us hold is at most streams x initial + budget.

The window grows to GAIN times what the reader consumes in one round trip: twice that doubles it each round trip while
it is the window that limits the stream, and stands still once the path holds no more.  The round trip is the least of
late, not the present one: that waits in the queue which the stream itself makes in proxies and kernels, and a window
that follows it grows until nothing else gets through.  The rate is the reader's own, and nothing shrinks when it falls,
since a thread that is late looks like a slower path; only one IDLE_FACTOR times too large is given back, by halves.
A CREDIT is due for each half of a window, and for each quarter from HALVES_TIME on, where half may be under way.

On a narrow path (`qanat.mux.path_queue` says which is, and how much all may have in flight there) the window is the
stream's share of that, as large as its share of what has come lately, and a little more, the same for each: so equal
streams come to equal windows, below `initial` too, and each keeps moving.  A CREDIT is due for each eighth, since what
comes in bursts waits.

Beside streams that carry little, of which each exchange waits for all bulk that is in flight, a window gives for a
moment less than its size: what its reader consumes in BESIDE_TIME, twice, and BESIDE_LEAST at least.  That rate is the
best of late, so one reader that was late once does not make the window smaller, and then itself slower.

Pure; the receiver and the stream table call it.
"""

from __future__ import annotations

import math

from qanat.mux.path_queue import PathQueue

GAIN = 2
"""See above."""
START_GAIN, GROWING = 4, 1.25
"""The same on a long path in which nothing waits, and the rate has grown by as much since it was last taken: what a
window grows by shows in the rate one round trip later, and would else double it in each third one alone.  And the same
on a long path where bytes and CREDIT wait for requests that carry them."""
LEAST_TIME = 0.0025
"""Seconds; a shorter round trip counts as this one, since threads take as long to get their turn."""
HALVES_TIME = LEAST_TIME / 2
"""Seconds: where a round trip takes less, half a window is more than is under way, and fewer CREDITs wake the peer."""
LARGE = 1024 * 1024
"""Bytes of a window for whose quarters CREDIT is due, too, while the round trip is unknown: the path may be long."""
RATE_TIME = 0.01
"""Seconds over which a rate is taken at least: bytes come in bursts."""
NARROW_LEAST, NARROW_TIME = 4096, 0.002
"""Bytes that each stream may have in flight beyond its share, and the seconds that the path takes for them at least:
pieces of a window may not become so small that their number is what holds back."""
NARROW_PERIOD = 3
"""Least round trips over which a share is taken: pieces of a window come in bursts."""
HELD = 0.6
"""The part of a narrow path's window that is given while credit is held back: less than the path holds."""
BESIDE_TIME, BESIDE_LEAST = 0.001, 256 * 1024
"""See above: seconds in the place of LEAST_TIME, and bytes: two records, or each would wait for its CREDIT."""
LITTLE, BESIDE_SECONDS = 4096, 0.3
"""Bytes that a stream whose window has not grown takes at once, and the seconds for which bulk heeds it after that."""
RATE_DECAY = 0.95
"""The part of the best rate that still counts after each RATE_TIME."""
IDLE_FACTOR = 100
"""A window that is this many times larger than it would need to be is given back by half."""


class WindowBudget:
    """Bytes that the windows of one session may exceed their guaranteed size by, together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.little_at = -math.inf
        """When one of its streams that carry little last handed something on."""


class ReceiveWindow:
    """What one stream may still receive, in absolute byte offsets; `size`, `initial` and `limit` are bytes."""

    __slots__ = (
        "allowed",
        "budget",
        "charged",
        "consumed",
        "consumed_before",
        "granted",
        "initial",
        "limit",
        "narrow",
        "part",
        "rate",
        "rate_before",
        "received",
        "received_before",
        "since",
        "size",
        "wide",
    )

    def __init__(self, initial: int, limit: int, budget: WindowBudget, now: float) -> None:
        self.initial = initial
        self.limit = max(initial, limit)
        self.budget = budget
        self.size = initial
        self.allowed = initial  # of it now: less while credit is held back
        self.part = initial >> (2 if initial >= LARGE else 1)  # of it, for which a CREDIT is due
        self.rate = 0.0  # bytes a second that the reader has lately consumed, at best
        self.rate_before = 0.0  # when it was last taken
        self.narrow = False
        self.wide = initial  # what `size` was before the path became narrow
        self.received = 0
        self.consumed = 0
        self.consumed_before = 0
        self.received_before = 0  # of all streams
        self.granted = initial
        self.charged = 0
        self.since = now

    def consume(self, count: int, now: float, least_round_trip: float, path: PathQueue | None = None) -> bool:
        """Count `count` bytes handed on.  True when a CREDIT should now be sent.

        `path` says whether windows may shrink; without one they do not.
        """
        self.consumed += count
        if count <= LITTLE and self.size <= self.initial:
            self.budget.little_at = now
        due = self.consumed + self.allowed - self.granted >= self.part
        if due:
            self._measure(now, least_round_trip, path)
            due = self.consumed + self.allowed - self.granted >= self.part
            self._charge()
        elif self.charged:  # else what it holds is within what it has been guaranteed, and stays so
            self._charge()
        return due

    def _measure(self, now: float, least_round_trip: float, path: PathQueue | None) -> None:
        if path is None or not path.narrow(least_round_trip, now):
            self.narrow = False
        elif not self.narrow:
            self.narrow, self.wide = True, max(self.size, self.initial)
        elapsed = now - self.since
        if elapsed >= (NARROW_PERIOD * least_round_trip if self.narrow else max(least_round_trip, RATE_TIME)):
            consumed = self.consumed - self.consumed_before
            if path is not None and self.narrow:
                share = consumed / max(consumed, path.received - self.received_before, 1)  # an empty DATA is nothing
                self._follow(int(path.window * share) + max(NARROW_LEAST, int(NARROW_TIME * path.rate)))
            else:
                rate = consumed / elapsed
                self.rate = max(rate, RATE_DECAY * self.rate)
                waits = path is not None and path.waits_for_requests(least_round_trip)
                growing = rate > GROWING * self.rate_before > 0 and path is not None and path.idle(least_round_trip)
                self.rate_before = rate
                wanted = int((START_GAIN if growing or waits else GAIN) * rate * max(least_round_trip, LEAST_TIME))
                self._tune(max(wanted, self.wide) if path is not None and path.shared(now) else wanted)
            self.since, self.consumed_before = now, self.consumed
            self.received_before = 0 if path is None else path.received
        self.allowed = self.size
        if self.narrow:
            if path is not None and path.holding(now):
                self.allowed = int(HELD * self.size)
        elif (
            least_round_trip < LEAST_TIME and self.size > BESIDE_LEAST and now - self.budget.little_at < BESIDE_SECONDS
        ):
            beside = int(GAIN * self.rate * max(least_round_trip, BESIDE_TIME))
            self.allowed = min(self.size, max(beside, BESIDE_LEAST))
        self.part = self.allowed >> (3 if self.narrow else 2 if self._by_quarters(least_round_trip) else 1)

    def _by_quarters(self, least_round_trip: float) -> bool:
        return least_round_trip >= HALVES_TIME or (not least_round_trip and self.allowed >= LARGE)

    @property
    def soon_due(self) -> bool:
        """Whether half as much has been consumed as makes a CREDIT due."""
        return 2 * (self.consumed + self.allowed - self.granted) >= self.part

    @property
    def pressing(self) -> bool:
        """Whether another quarter of the window has come beyond what makes a CREDIT due: the peer may soon stop."""
        return self.granted - self.received < self.allowed - self.part - self.allowed // 4

    def grant(self) -> int:
        """Return the absolute offset to put into a CREDIT sent now.  It never goes back."""
        self.granted = max(self.granted, self.consumed + self.allowed)
        self._charge()
        return self.granted

    def release(self) -> None:
        """Give everything back to the budget: the stream is over."""
        self.budget.used -= self.charged
        self.charged = 0

    def _tune(self, wanted: int) -> None:
        if wanted > self.size:
            self._grow(wanted)
        elif wanted * IDLE_FACTOR < self.size:
            self.size = max(min(self.initial, self.size), self.size // 2)

    def _follow(self, wanted: int) -> None:
        """Grow or shrink to what is wanted; a quarter at least is kept, since a share of a moment may be none."""
        if wanted > self.size:
            self._grow(wanted)
        else:
            self.size = max(wanted, self.size // 4)

    def _grow(self, wanted: int) -> None:
        # What is outstanding from before a shrink is already charged, so it is not free to grow into.
        room = self.budget.limit - self.budget.used + self.charged - (self.size - self.initial)
        self.size += max(0, min(wanted - self.size, self.limit - self.size, room))

    def _charge(self) -> None:
        charge = max(self.size, self.granted - self.consumed, self.initial) - self.initial
        self.budget.used += charge - self.charged
        self.charged = charge
