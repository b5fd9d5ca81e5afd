"""How much all streams may have in flight towards this end of a slow path, so that no queue stands in it.

The windows of a few streams can be a slow line's whole queue: eight initial ones are 1 MiB, half a second at 20 Mbit/s,
and everything else waits in it.  So on a path of PATH_TIME or more that holds less than SLOW, windows are shares of one
sum (`qanat.mux.window`), but only while a PING has lately taken much longer than the least: a stream that sends little
on an empty path keeps its window.

The sum begins with a little more than the path carries in its least round trip.  It is corrected by how long what comes
has waited on its way, which the peer's CLOCK tells (as in RFC 6817), and by whether the path brings as much as it has
brought at best.  The sender makes no bursts of what it may send (`qanat.mux.pacer`); an older peer does, needs more in
flight to fill the path, and gets it by that.

That holds where the queue is our own.  Where others fill it, smaller windows leave it as it is and only bring us less,
then less of that, and so on.  So where less comes than did at best, a burst of PINGs is sent, with our own credit held
back: if they still wait, the path is `shared`, and windows are for a while what they would be without any of this.

A PING cannot tell in which direction it has waited.  What fills one says nothing of how fast the other is: bulk that
begins there would look like all that its path carries, and have a window no larger than that.  So a direction's windows
are shares only while what comes by it has itself lately waited.

The least round trip must stay what it is: of a queue that always stands it would become a part, and the windows would
grow with it.  So PINGs come in bursts, and whoever sends or gets one on a loaded path holds back some credit for a
moment: the queues of both directions are gone when the last of a burst is on its way.  That costs about 1 % of the
line (BBR's PROBE_RTT costs 2 %).  With an older peer, which tells no time, windows are left alone.

What comes in requests (`split`) waits for one, and for the beginning of a TCP connection, whether there is a queue or
not: taken for one, that left 3 Mbit/s of a gigabit and 100 ms.  So nothing of this is done there.

Pure, and not thread-safe: the lane's lock guards it; the receiver calls it.
"""

from __future__ import annotations

import math
from collections import deque

PATH_TIME = 0.005
"""Seconds of least round trip from which on a long one is the path's doing, and not that of threads."""
SLOW = 1024 * 1024
"""Bytes that a path carries in its least round trip, from which on its windows are left alone: those of its streams are
not much more, and small ones would cost a frame for every few bytes."""
LOADED_FACTOR, LOADED_TIME = 1.25, 0.002
"""A PING that takes as many times the least round trip, and as many seconds more, has waited in a queue."""
LOADED_SECONDS = 11.0
"""Seconds for which that is believed: two bursts, the first of which may have found the queue empty for once."""
BURST = 3
"""PINGs of which each is sent when the one before has been answered: one that makes both ends hold back credit, one
that waits until the queues are gone, one that measures."""
BURST_EVERY, LOADED_BURST_EVERY = 1.0, 5.0
"""Seconds between bursts while bulk comes."""
BULK = 64 * 1024
"""Bytes sent since the last time, from which on an end pings because the other does."""
HOLD = 3.0
"""Least round trips for which a PING makes an end hold back credit."""
FIRST_GAIN, LEAST_GAIN, MOST_GAIN = 1.5, 0.95, 1.6
"""The sum at first, at least and at most, in terms of what the path carries in the least round trip.  The least is
below that by what streams may have beyond their shares; the most bounds the wait where bursts leave the path empty."""
TARGET = 0.005
"""Seconds that bytes should wait in the path's queue, at the least of a period: so it never runs dry."""
FULL = 0.9
"""The part of the rate that the path brought at best, below which too little is in flight."""
STANDING = 0.002
"""Seconds that all of a period has waited at least where a queue stands in the path, once one has been found there."""
IDLE_PART = 0.25
"""The part of the least round trip below which what has waited says of no queue: windows that grow make bursts, TCP
that begins takes round trips for a record, and threads are late.  Where windows, twice what a path holds, fill it, a
whole one is waited."""
PERIOD = 3
"""Least round trips of which the least wait is taken: a change shows after one or two."""
CORRECTION = 0.5
"""Which part of what is too much, or missing, is corrected after each."""
SHARED_PART, SHARED_PERIODS = 0.7, 3
"""The part of the rate that the path brought at best, below which, for so many periods in turn, others may be on it."""
SHARED_GRACE = 2.0
"""Seconds before that is asked, since windows became shares: until then the first windows' queue, in which the other
direction's CREDIT waits as well, may be our own."""
SHARED_FACTOR = 1.5
"""A burst whose quickest PING takes as many times the least round trip has waited in others' queue."""
SHARED_SECONDS, MOST_SHARED_SECONDS = 15.0, 120.0
"""Seconds for which that is believed at first, and at most: twice as long each time, while PINGs go on waiting."""
RATE_SECONDS, PAUSE = 0.1, 1.0
"""Seconds over which a rate is taken at least, and at most."""
RATES_KEPT = 24
"""Rates of which the greatest counts: that of a moment says what little has been sent."""


def found_from(least_round_trip: float) -> float:
    """Return the seconds that all that comes has to wait before a queue is found in a path that had none."""
    return max(STANDING, IDLE_PART * least_round_trip)


class PathQueue:
    """What one pipe's path is like, as seen from the end that receives; times are seconds, of any clock that rises."""

    def __init__(self, *, in_requests: bool = False) -> None:
        """See `Pipe.in_requests`: what comes waits for requests then, and no queue is looked for."""
        self._in_requests = in_requests
        self.received = 0
        """Bytes of payload that have come so far; the receiver counts them."""
        self.rate = 0.0
        """Bytes of payload a second that the path has brought lately, at best."""
        self.window = 0
        """Bytes that all streams together should have in flight, while the path is `narrow`."""
        self._rates: deque[float] = deque(maxlen=RATES_KEPT)
        self._rate_since = -math.inf
        self._rate_before = 0
        self._waited = math.inf  # the least of the period
        self._period_since = -math.inf
        self._period_before = 0
        self._told = False  # the peer tells its time
        self._last_wait = 0.0
        self._judged_from = -math.inf
        self._less = 0  # periods in turn that brought less than before
        self._shared_until, self._shared_for = -math.inf, SHARED_SECONDS
        self._loaded_until = -math.inf
        self._stands_until = -math.inf  # the queue is in this direction
        self._stood_least, self._stood_since = math.inf, -math.inf
        self._held_until = -math.inf
        self._burst_at = -math.inf
        self._burst_left = 0
        self._burst_least = math.inf  # the quickest of its PINGs
        self._sent_before = 0
        self._echo_at = -math.inf

    def narrow(self, least_round_trip: float, now: float) -> bool:
        """Return whether windows are shares of `window`."""
        loaded = now < self._loaded_until and now < self._stands_until
        slow = self.window > 0 and self.rate * least_round_trip < SLOW
        return loaded and slow and self._told and not self.shared(now)

    def idle(self, least_round_trip: float) -> bool:
        """Return whether this is a long path that has room: what came last has waited for little of a round trip."""
        return self._told and least_round_trip >= PATH_TIME and self._last_wait < IDLE_PART * least_round_trip

    def waits_for_requests(self, least_round_trip: float) -> bool:
        """Return whether this is a long path on which bytes and CREDIT wait for requests, up to a round trip each."""
        return self._in_requests and least_round_trip >= PATH_TIME

    def _may_queue(self, least_round_trip: float) -> bool:
        """Whether what waits on this path may wait in a queue that is to be found."""
        return least_round_trip >= PATH_TIME and not self._in_requests

    def shared(self, now: float) -> bool:
        """Return whether the queue in the path has lately been found to be others'."""
        return now < self._shared_until

    def paced_until(self, now: float) -> float:
        """Return until when what this end sends should keep a pace; a time that has passed means not at all."""
        return -math.inf if self.shared(now) or now >= self._loaded_until else self._loaded_until

    def holding(self, now: float) -> bool:
        """Return whether some credit is held back, for a PING that is on its way."""
        return now < self._held_until

    def bulk(self, least_round_trip: float, now: float, *, ping_waits: bool) -> bool:
        """Note that bulk comes; return whether a PING should be sent, unless one waits for its answer."""
        self._measure_rate(least_round_trip, now)
        if ping_waits or not self._may_queue(least_round_trip):
            return False
        if not self._burst_left:
            if now < self._burst_at:
                return False
            self._burst_left, self._burst_least = BURST, math.inf
            self._burst_at = now + (LOADED_BURST_EVERY if now < self._loaded_until else BURST_EVERY)
        self._burst_left -= 1
        self._hold(least_round_trip, now)
        return True

    def answered(self, round_trip: float, least_round_trip: float, now: float) -> None:
        """Note how long a PING of ours took."""
        if self._may_queue(least_round_trip) and round_trip > LOADED_FACTOR * least_round_trip + LOADED_TIME:
            if now >= self._loaded_until:  # begin anew
                self.window, self._shared_for = 0, SHARED_SECONDS
            self._loaded_until = now + LOADED_SECONDS
        self._burst_least = min(self._burst_least, round_trip)
        if not self._burst_left and self._less >= SHARED_PERIODS:
            self._less = 0
            if self._burst_least > SHARED_FACTOR * least_round_trip:
                self._shared_until = now + self._shared_for
                self._shared_for = min(2 * self._shared_for, MOST_SHARED_SECONDS)

    def ping_received(self, sent: int, least_round_trip: float, now: float) -> bool:
        """Note a PING of the peer's; return whether this end, which has `sent` that much payload, should ping as well.

        On a loaded path both measure at the same time.  An end that only sends bulk measures when the end that gets it
        does: one round trip that a late thread has made long is not what the path is like.
        """
        if now < self._loaded_until:
            self._hold(least_round_trip, now)
            if now >= self._burst_at - LOADED_BURST_EVERY / 2:
                self._burst_at = now
        if not self._may_queue(least_round_trip) or sent - self._sent_before < BULK or now < self._echo_at:
            return False
        self._sent_before, self._echo_at = sent, now + BURST_EVERY
        return True

    def waited(self, seconds: float, least_round_trip: float, now: float) -> None:
        """Note how long what comes now was on its way beyond the least, by the peer's clock."""
        self._told, self._last_wait = True, seconds
        self._stood_least = min(self._stood_least, seconds)
        # Credit held back or not: bursts take most of a very long path's time.
        if now - self._stood_since >= PERIOD * least_round_trip:
            if self._stood_least >= (STANDING if now < self._stands_until else found_from(least_round_trip)):
                self._stands_until = now + LOADED_SECONDS
            self._stood_least, self._stood_since = math.inf, now
        if now >= self._loaded_until or now < self._held_until + 2 * least_round_trip:
            self._begin_period(now)
            return
        self._waited = min(self._waited, seconds)
        elapsed = now - self._period_since
        if elapsed >= PERIOD * least_round_trip:
            rate = (self.received - self._period_before) / elapsed
            self._find_others(rate, least_round_trip, now)
            missing = FULL * self.rate - rate
            change = max(0.0, missing) * least_round_trip + self.rate * (TARGET - self._waited)
            if self.window:
                self._set_window(self.window + int(CORRECTION * change), least_round_trip)
            self._begin_period(now)

    def _find_others(self, rate: float, least_round_trip: float, now: float) -> None:
        """Have it measured whether the queue is others', where for some periods less has come than before."""
        if not self.narrow(least_round_trip, now):
            self._judged_from = now + SHARED_GRACE
        less = now >= self._judged_from and rate < SHARED_PART * self.rate
        self._less = self._less + 1 if less else 0
        if self._less == SHARED_PERIODS and not self._burst_left:
            self._burst_at = now

    def _begin_period(self, now: float) -> None:
        self._waited = math.inf
        self._period_since, self._period_before = now, self.received

    def _measure_rate(self, least_round_trip: float, now: float) -> None:
        elapsed = now - self._rate_since
        if elapsed < max(RATE_SECONDS, 2 * least_round_trip):
            return
        if elapsed < max(PAUSE, 4 * least_round_trip):
            self._rates.append((self.received - self._rate_before) / elapsed)
            self.rate = max(self._rates)
            self._set_window(self.window or int(FIRST_GAIN * self.rate * least_round_trip), least_round_trip)
        self._rate_since, self._rate_before = now, self.received

    def _set_window(self, window: int, least_round_trip: float) -> None:
        holds = self.rate * least_round_trip
        self.window = max(int(LEAST_GAIN * holds), min(int(MOST_GAIN * holds), window))

    def _hold(self, least_round_trip: float, now: float) -> None:
        if now < self._loaded_until:
            self._held_until = now + HOLD * least_round_trip
