"""What is known about the path of one pipe, and how many bytes may be on it at once.

Whoever sends more than the path holds makes a queue, in a router, a proxy or a socket, and everything that is sent
later waits in it.  So the bytes in flight follow two measurements, as in BBR (draft-cardwell-iccrg-bbr-congestion-
control, sections 4.1 and 4.5): the most that was delivered a second in the last rounds, and the least round trip of
the last seconds.  Their product is what the path holds without a queue.  On top of it comes a cushion, so that the path
does not run empty while a thread is late, and finds out when it has become quicker.  A round is the time until what was
sent at its beginning has been acknowledged.

    STARTUP   the limit doubles each round, until three rounds have brought no more, or a queue stands
    CRUISE    what the path holds, and the cushion: it shrinks by a round in which every round trip was more than
              STANDING longer than the least, which is a queue that never empties (as in Copa, NSDI 2018), and grows
              otherwise
    DRAIN     half of what the path holds, for two rounds, when no round trip has been as short as the least one for
              LEAST_FOR seconds: the queue in which the path would otherwise be measured goes away

On a slow path bulk also leaves in small pieces and evenly, since a burst delays the acknowledgements of the other
direction, and with them its bytes (ACK compression).  On a quick one that would only cost time.  What is measured while
there was nothing more to send (app-limited) says nothing against the path.

Pure.  `Sender` calls it for what leaves and for each ACK, `PendingControl` for each PONG.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum

FIRST_LIMIT = 256 * 1024
"""Bytes in flight before anything is known."""
LEAST_LIMIT = 16 * 1024
"""Bytes that may always be in flight."""
STARTUP_GAIN = 2.0
FULL_GROWTH = 1.25
"""By so much a round of STARTUP must find the path quicker than before; after FULL_ROUNDS that do not, it is full."""
FULL_ROUNDS = 3
STANDING = 0.003
"""Seconds by which all round trips of a round may exceed the least one."""
LEAST_CUSHION, FIRST_CUSHION, MOST_CUSHION = 0.002, 0.005, 0.025
"""Seconds of the path's rate; on a long path the cushion may grow to a quarter of the round trip."""
FEW_STREAMS = 8
LATE, MOST_LATE = 0.0005, 0.1
"""Seconds that all of this is longer for each stream beyond FEW_STREAMS that has something to send, and at most: each
has a thread at both ends, and they take turns."""
CUSHION_MORE, CUSHION_LESS = 0.001, 0.8
"""It grows by seconds and shrinks by a factor, so that the two directions of a path come to equal ones (AIMD)."""
PROBE_GAIN = 1.15
PROBE_ROUNDS = 8
"""One round of so many has the limit raised by the gain: shorter than a rate counts, so that the limit does not sink
where round trips are longer for another reason than our queue."""
HUNGRY = 0.75
"""A rate below this part of the best of late is no reason to shrink: perhaps round trips are long for another reason
than our queue.  So there is a trial with a cushion that is larger by TRIAL of a round trip; if TRIAL_ROUNDS have not
brought TRIAL_PAYS times the rate, the path has become slower."""
TRIAL, TRIAL_ROUNDS, TRIAL_PAYS = 0.5, 4, 1.1
RATE_ROUNDS = 10
RATE_FOR = 0.25
"""A delivery rate counts for so many rounds, and so many seconds, whichever is longer."""
LEAST_FOR = 10.0
"""Seconds for which the least round trip counts."""
LONGER = 2.0
"""A drained path that is so many times as long is another one.  Less may be the queue of the other direction, which
does not drain at the same time; and where it is not, the cushion grows."""
LEAST_PIECE, FIRST_PIECE, MOST_PIECE = 4 * 1024, 16 * 1024, 128 * 1024
PIECE_TIME = 0.002
"""Bulk is cut in pieces that take the path so many seconds, within these bounds of bytes: nothing overtakes a piece."""
BURST = 0.02
"""Seconds by which what is paced may be late and catch up."""
ASK_TIME = 0.0015
"""Seconds of the path's rate after which an ACK is asked for; at the latest after a quarter of the limit."""
LEAST_MARK = 1024
"""Bytes below which what was sent is no measurement of its own."""


class PathPhase(Enum):
    """See the module's docstring."""

    STARTUP = "startup"
    CRUISE = "cruise"
    DRAIN = "drain"


class PathModel:
    """See the module's docstring.  `now` is in seconds, of any clock that only rises."""

    def __init__(self, now: float) -> None:
        self.limit = FIRST_LIMIT
        """Bytes of frames that may be in flight."""
        self.piece = FIRST_PIECE
        """Bytes of payload that one record should carry at most."""
        self.rate = 0.0
        """Bytes a second: the most that was delivered of late; 0 while unknown."""
        self.least_round_trip = 0.0
        """Seconds: the least of late; 0 while unknown."""
        self.phase = PathPhase.STARTUP
        self._least_at = now
        self._cushion = FIRST_CUSHION
        self._late = 0.0
        self._sent = 0
        self._delivered = 0
        self._number = 0
        self._marks: deque[tuple[int, int]] = deque()  # the number of a frame, and the bytes up to there
        self._app_limited_until = -1
        self._paced_until = now
        self._gain = 1.0
        self._asked_at = 0
        self._ask_after = FIRST_LIMIT // 4
        self._rates: deque[tuple[int, float, float]] = deque()  # round, when, rate: falling rates
        self._round = 0
        self._round_began = now
        self._round_delivered = self._round_ends = 0
        self._round_least = math.inf
        self._best = self._best_before = 0.0  # rates of the present LEAST_FOR seconds, and of those before
        self._best_since = now
        self._trial: tuple[float, float, int] | None = None  # the cushion and the rate before it, and its last round
        self._full_rate = 0.0
        self._full_rounds = 0
        self._drain_ends: int | None = None

    @property
    def in_flight(self) -> int:
        """Bytes sent and not known to be delivered."""
        return self._sent - self._delivered

    @property
    def full(self) -> bool:
        """Whether DATA must wait until something has been acknowledged."""
        return self._sent - self._delivered >= self.limit

    # --- what leaves ----------------------------------------------------------------------------

    def pause(self, now: float) -> float:
        """Return the seconds that bulk must wait so that it leaves evenly; 0 mostly, and always on a quick path."""
        if self.piece == MOST_PIECE or self.phase is PathPhase.STARTUP:
            return 0.0
        return max(0.0, self._paced_until - now)

    def asks(self) -> bool:
        """Return whether a PING should go with the next record, so that what is in flight is acknowledged in time."""
        if self._sent - self._asked_at < self._ask_after:
            return False
        self._asked_at = self._sent
        return True

    def sent(self, number: int, size: int, now: float, *, more: bool, streams: int = 1) -> None:
        """Note that `size` bytes leave, and `number` is the frame after them.

        `more` is whether others wait, and `streams` of how many streams.
        """
        self._late = min(MOST_LATE, LATE * max(0, streams - FEW_STREAMS))
        if self._sent == self._delivered:  # Nothing was on the way: the time until now says nothing.
            self._round_began, self._round_delivered, self._round_ends = now, self._delivered, self._sent + size
        self._sent += size
        self._number = number
        if self.piece < MOST_PIECE and self.phase is not PathPhase.STARTUP:
            self._paced_until = max(self._paced_until, now - BURST) + size / (self.rate * self._gain)
        if size >= LEAST_MARK:
            self._marks.append((number, self._sent))
        if not more:
            self._app_limited_until = self._sent

    # --- what comes back ------------------------------------------------------------------------

    def acknowledged(self, expected: int, now: float) -> None:
        """Note that everything below frame `expected` has arrived."""
        marks, delivered = self._marks, self._delivered
        while marks and marks[0][0] <= expected:
            delivered = marks.popleft()[1]
        if expected >= self._number:
            delivered = self._sent
        if delivered == self._delivered:
            return
        self._delivered = delivered
        took = now - self._round_began
        if delivered >= self._round_ends and took > 0 and took >= self.least_round_trip:
            self._end_round(now)

    def round_trip(self, sample: float, now: float) -> None:
        """Note that a PING took `sample` seconds; a clock that stood still says nothing."""
        if sample <= 0:
            return
        self._round_least = min(self._round_least, sample)
        least = self.least_round_trip
        if not least or sample <= least:
            self.least_round_trip, self._least_at = sample, now
        elif now - self._least_at > LEAST_FOR and self.phase is not PathPhase.DRAIN:
            if self.in_flight <= LEAST_LIMIT or not self.rate:  # A quiet path is measured as it is.
                self.least_round_trip, self._least_at = sample, now
            else:
                self.phase, self._drain_ends = PathPhase.DRAIN, None
        self._set_limit()

    # --- inside ---------------------------------------------------------------------------------

    def _end_round(self, now: float) -> None:
        """Draw the conclusions of a round, and begin the next."""
        rate = (self._delivered - self._round_delivered) / (now - self._round_began)
        app_limited = self._app_limited_until > self._round_delivered
        self._round += 1
        self._measured(rate, now, app_limited)
        if self.phase is PathPhase.DRAIN:
            self._look_whether_drained(now)
        elif not app_limited:
            if self.phase is PathPhase.STARTUP:
                self._look_whether_full()
            else:
                self._set_cushion(rate)
        self._round_began, self._round_delivered, self._round_ends = now, self._delivered, self._sent
        if self._drain_ends is None:
            self._round_least = math.inf
        self._set_limit()

    def _look_whether_full(self) -> None:
        queue = self._round_least - self.least_round_trip
        if STANDING + self._late + self.least_round_trip / 2 < queue < math.inf:
            self.phase = PathPhase.CRUISE
        elif self.rate >= self._full_rate * FULL_GROWTH:
            self._full_rate, self._full_rounds = self.rate, 0
        else:
            self._full_rounds += 1
            if self._full_rounds >= FULL_ROUNDS:
                self.phase = PathPhase.CRUISE

    def _set_cushion(self, round_rate: float) -> None:
        """Follow the queue that stood for the whole of the round that has ended."""
        if self._round_least == math.inf:
            return
        least, rate, cushion = self.least_round_trip, self.rate, self._cushion
        pieces, late = self._pieces, self._late
        if rate >= HUNGRY * max(self._best, self._best_before):
            self._trial = None
            if self._round_least > least + STANDING + late + pieces:
                cushion *= CUSHION_LESS
            else:
                cushion = min(max(MOST_CUSHION + late, least / 4), cushion + CUSHION_MORE)
        elif self._trial is None:
            self._trial = cushion, round_rate, self._round + TRIAL_ROUNDS
            cushion += LEAST_CUSHION + least * TRIAL
        elif self._round >= self._trial[2]:
            before, rate_before, _ = self._trial
            self._trial = None
            if round_rate < rate_before * TRIAL_PAYS:
                self._best, self._best_before, cushion = rate, 0.0, before
        self._cushion = max(cushion, LEAST_CUSHION + late + pieces)

    @property
    def _pieces(self) -> float:
        """Seconds that one piece of ours takes, and one of the peer's in front of its answer."""
        return 2 * self.piece / self.rate

    def _look_whether_drained(self, now: float) -> None:
        if self._drain_ends is None:
            if self.in_flight <= self.limit + self.piece:
                self._drain_ends, self._round_least = self._round + 2, math.inf
        elif self._round >= self._drain_ends and self._round_least < math.inf:
            self.phase, self._drain_ends, self._least_at = PathPhase.CRUISE, None, now
            if self._round_least > self.least_round_trip * LONGER + self._pieces:
                self.least_round_trip = self._round_least

    def _measured(self, rate: float, now: float, app_limited: bool) -> None:
        """Keep the highest rate of the last rounds."""
        if app_limited and rate < self.rate:
            return
        rates = self._rates
        while rates and rates[-1][2] <= rate:
            rates.pop()
        rates.append((self._round, now, rate))
        while rates[0][0] < self._round - RATE_ROUNDS and rates[0][1] < now - RATE_FOR:
            rates.popleft()
        self.rate = rates[0][2]
        if now - self._best_since > LEAST_FOR:
            self._best, self._best_before, self._best_since = 0.0, self._best, now
        self._best = max(self._best, rate)

    def _set_limit(self) -> None:
        self._find_limit()
        self._ask_after = min(self.limit >> 2, max(LEAST_PIECE, int(self.rate * ASK_TIME)))

    def _find_limit(self) -> None:
        rate, phase = self.rate, self.phase
        holds = rate * self.least_round_trip
        if not holds:
            return
        if phase is PathPhase.DRAIN:
            self.limit = max(LEAST_LIMIT, int(holds / 2))
            return
        cushion, piece = rate * self._cushion, int(rate * PIECE_TIME)
        if phase is PathPhase.STARTUP:
            self.limit = max(self.limit, int(holds * STARTUP_GAIN + cushion))
            self.piece = min(MOST_PIECE, max(self.piece, piece))
            return
        self.piece = min(MOST_PIECE, max(LEAST_PIECE, piece))
        self._gain = PROBE_GAIN if self._trial is not None or self._round % PROBE_ROUNDS == 0 else 1.0
        self.limit = max(LEAST_LIMIT, int((holds + cushion) * self._gain))
