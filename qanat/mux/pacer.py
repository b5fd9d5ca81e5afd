"""How fast bulk leaves this end for a slow path, so that what a burst of credit allows makes no burst in the path.

With bulk both ways CREDIT waits behind bulk and comes in bursts, and what it allows would leave in bursts as well: the
path's queue would be long and empty in turn ("ACK compression": Zhang, Shenker and Clark, SIGCOMM 1991).  So on a path
where PINGs have lately waited (`qanat.mux.path_queue`), and our own bulk as well, bulk leaves in small records, evenly,
a little faster than the path has brought it at best, and faster still while nothing waits in the path, as in BBR.  It
waits in its streams' queues, where whatever is small and rare goes past it, and there it stays while this end's kernel
has yet to send what it has.  How much may be in flight at all is the receiver's to say, by its windows.

The rate is taken where no thread of ours can be late: between two ACKs, by the peer's CLOCK that came with each.  So is
how long bulk has waited on its way.

Pure, and not thread-safe: the lane's lock guards it; the sender asks it, and the receiver tells it.
"""

from __future__ import annotations

import math
from collections import deque

from qanat.mux.datagrams import PathDelay
from qanat.mux.path_queue import PATH_TIME, SLOW, found_from

GAIN = 1.06
"""The pace, in terms of the rate that the path has brought at best."""
EMPTY_GAIN, EMPTY = 1.25, 0.002
"""The same while bulk waits less than that many seconds on its way, at the least of a while: a path that has become
faster is found within seconds."""
STANDING = 2
"""Rates in turn, after which a queue stands that bulk waits in: windows that grow make bursts, each of which waits."""
KNOWN_SECONDS = 30.0
"""Seconds after a queue stood for which EMPTY is enough for one: the peer's windows then leave no longer one."""
RECORD_TIME = 0.003
"""Seconds that the path takes for a record of bulk: it counts only when it has come whole, and others wait for it."""
UNSENT_PART, UNSENT_ROOM = 1.25, 512
"""See `Pacer.most_unsent`."""
LEAST_RECORD, MOST_RECORD = 2048, 16 * 1024
"""Bytes of bulk in one record, at least and at most."""
LEAST_RATE = 32 * 1024
"""Bytes a second that leave whatever the path has brought: one that stood still for seconds is found alive at once."""
LATE = 0.004
"""Seconds by which the writer's thread may be late: what it did not send in them it may send at once."""
RATE_SECONDS, PAUSE = 0.1, 1.0
"""Seconds over which a rate is taken at least, and at most."""
RATES_KEPT = 24
"""Rates of which the greatest counts."""
FRAMES_KEPT = 4096
"""Frames that are remembered until their ACK; more are in flight on no path that is slow."""
UNBOUNDED = 1 << 62
"""`Pacer.record` where bulk has no pace."""


class Pacer:
    """One pipe's; bytes are of streams' payload, times are seconds, of any clock that rises."""

    def __init__(self) -> None:
        self.rate = 0.0
        """Bytes a second that the path has brought to the peer lately, at best."""
        self.record = UNBOUNDED
        """Bytes of bulk in one record, about."""
        self._gain = GAIN
        self._rates: deque[float] = deque(maxlen=RATES_KEPT)
        # How many frames, and how many bytes, there were up to one, and when it was made.
        self._in_flight: deque[tuple[int, int, float]] = deque(maxlen=FRAMES_KEPT)
        self._total = self._acknowledged = 0  # bytes of bulk on this pipe
        self._delay = PathDelay()
        self._waited = math.inf  # the least since the last rate was taken
        self._told_since = -math.inf  # by the peer's clock
        self._told_before = 0
        self._free = -math.inf  # when the next record of bulk may leave
        self._until = -math.inf
        self._stood = 0  # rates in turn for which bulk has waited
        self._known_until = -math.inf  # by the peer's clock
        self._stands = False  # bulk has waited in the path, not only PINGs, which may have in the other direction
        self._held = False
        self._dry = False  # all was acknowledged: how fast it was is perhaps the application's doing

    def wait(self, now: float) -> float:
        """Return the seconds until the next record of bulk may leave; 0 where it may now."""
        if self.record == UNBOUNDED or self._free <= now:
            return 0.0
        if now >= self._until:
            self._until, self.record = -math.inf, UNBOUNDED
            return 0.0
        self._held = True
        return self._free - now

    def sent(self, number: int, size: int, now: float) -> None:
        """Note that `size` bytes are put into a record; `number` frames have left with them."""
        self._total += size
        self._in_flight.append((number, self._total, now))
        if self.record != UNBOUNDED:
            self._free = max(self._free, now - LATE) + size / max(self._gain * self.rate, LEAST_RATE)

    @property
    def most_unsent(self) -> int:
        """How many bytes this end's kernel may have to send without bulk having to `hold`.

        A little more than leaves while it does, so that the kernel always has some; and room for what is not payload.
        """
        return UNSENT_ROOM + int(max(self.record, RECORD_TIME * self.rate) * UNSENT_PART)

    def hold(self, now: float) -> None:
        """Have bulk wait for a moment: this end's kernel has yet to send what has left already.

        TCP takes less than the path has brought, as after a loss, or while BBR looks for the least round trip, 0.2 s
        each 10 s.  What is written meanwhile would wait in the kernel, and what is small and rare behind it.
        """
        self._free = max(self._free, now + RECORD_TIME)

    def loaded(self, until: float, least_round_trip: float) -> None:
        """Have bulk keep its pace until then, unless the path is fast; a time that has passed means no longer."""
        slow = least_round_trip >= PATH_TIME and self.rate * least_round_trip < SLOW
        self._until = until if slow else -math.inf
        if until == -math.inf:
            self._stood, self._stands = 0, False
        self._set_record()

    def acknowledged(self, expected: int, told: float, least_round_trip: float) -> None:
        """Note that the peer had accepted the frames below `expected` at the time `told`, by its own clock."""
        in_flight, made = self._in_flight, None
        while in_flight and in_flight[0][0] <= expected:
            _, self._acknowledged, made = in_flight.popleft()
        if made is not None:
            self._waited = min(self._waited, self._delay.excess(made, told))
        self._dry = self._dry or not in_flight
        elapsed = told - self._told_since
        if elapsed < RATE_SECONDS:
            return
        if elapsed < PAUSE:
            rate = (self._acknowledged - self._told_before) / elapsed
            if self._held or not self._dry or rate > self.rate:
                self._rates.append(rate)
                self.rate = max(self._rates)
                least = EMPTY if told < self._known_until else found_from(least_round_trip)
                self._stood = self._stood + 1 if least <= self._waited < math.inf and not self._dry else 0
                if self._stood >= STANDING:
                    self._stands, self._known_until = True, told + KNOWN_SECONDS
                self._gain = EMPTY_GAIN if self._waited < EMPTY else GAIN
                if self.rate * least_round_trip >= SLOW:
                    self._until = -math.inf
                self._set_record()
        self._told_since, self._told_before, self._waited = told, self._acknowledged, math.inf
        self._dry = self._held = False

    def _set_record(self) -> None:
        paced = self.rate and self._stands and self._until > -math.inf
        self.record = max(LEAST_RECORD, min(int(RECORD_TIME * self.rate), MOST_RECORD)) if paced else UNBOUNDED
