"""The ways to one server, a URL over a transport each: which of them `transport: auto` starts first, and which next.

What lives here is what is known of them while this process runs, per network: which one works, which have failed and
when, and which one keeps losing its connections.  `qanat.client.race` asks for the order, `qanat.client.reconnector`
tells what became of connections, and asks when a better way is due.  What outlives the process is in
`qanat.client.remembered_ways`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qanat.client.remembered_ways import RememberedWays
from qanat.transports.dial.urls import TunnelUrl

log = logging.getLogger("qanat.client")

LOSSES = 3
"""How many connections over a way may be lost within LOSSES_WITHIN, each within SHORT_LIFE, before others go first."""
LOSSES_WITHIN = 300.0
SHORT_LIFE = 120.0
"""Seconds that a connection has to last not to count among these; a stall takes 45 s to be seen."""
AVOIDED_FOR = 300.0
"""Seconds for which such a way comes after the others that work; twice as long each further time."""
LONGEST = 3600.0
"""Seconds that neither this time nor the one between two looks at a better way goes beyond."""
LOOK_AFTER = 60.0
"""Seconds on a way until a better one is tried; twice as long after each time that none worked."""
JITTER = 0.2
"""The part of such a time by which it is shorter at random: not all clients at once."""
FAILURE_COUNTS = 600.0
"""Seconds for which a way that failed in a race comes last in the next one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to reach a server, tried when its turn comes: a URL, and the transport to use for it."""

    url: TunnelUrl
    transport: str

    def __str__(self) -> str:
        return f"{self.url} over {self.transport}"


@dataclass(slots=True)
class _Record:
    """What is known of one way on this network."""

    failed_at: float | None = None  # in a race, or in HELLO after it
    lost: deque[float] = field(default_factory=lambda: deque(maxlen=LOSSES))  # when connections ended soon
    avoided_until: float = 0.0
    avoided: int = 0  # how often in a row


class Ways:
    """What is known of the ways to one server.  Safe to use from any thread; never blocks but for the state file."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        memory: RememberedWays,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`candidates` are in the order of preference, those of one transport side by side."""
        self.candidates = tuple(candidates)
        self._memory = memory
        self._clock = clock
        self._uniform = uniform
        self._lock = threading.Lock()  # guards the rest; never held while calling out
        self._network = ""
        self._records: dict[Candidate, _Record] = {}
        self._current: Candidate | None = None  # the last that worked on this network
        self._look_at = 0.0  # when a better one is tried
        self._look_after = LOOK_AFTER
        self._looked_at = 0  # how many of the better ones were tried since then
        self._looking = False
        self._followers: list[Callable[[Candidate], None]] = []

    @property
    def current(self) -> Candidate | None:
        """The way that worked last on this network; None when none has."""
        with self._lock:
            return self._current

    def order(self) -> tuple[Candidate, ...]:
        """Return all ways in the order in which a race should start them: first what worked here last."""
        network = self._memory.network()
        remembered = self._memory.find(network, self.candidates)
        with self._lock:
            if network != self._network:
                # What failed, or worked, on another network says nothing about this one.
                self._network, self._records, self._current = network, {}, None
                self._look_after = LOOK_AFTER
            if self._current is None and remembered:
                self._current = remembered[0]
            now = self._clock()
            ranked = {candidate: rank for rank, candidate in enumerate(remembered, len(self.candidates) * -1)}

            def key(candidate: Candidate) -> tuple[bool, float, bool, bool, int]:
                record = self._record_locked(candidate)
                failed = record.failed_at
                fresh = failed is not None and now - failed < FAILURE_COUNTS
                rank = ranked.get(candidate, self.candidates.index(candidate))
                return (
                    fresh,
                    failed if fresh and failed is not None else 0.0,
                    record.avoided_until > now,
                    candidate != self._current,
                    rank,
                )

            return tuple(sorted(self.candidates, key=key))

    def worked(self, candidate: Candidate) -> None:
        """Note that a session runs over `candidate`: start with it next time, here and after a restart."""
        with self._lock:
            self._record_locked(candidate).failed_at = None
            moved = candidate != self._current
            self._current = candidate
            if moved:
                self._look_after, self._looked_at = LOOK_AFTER, 0
                self._set_look_locked()
            network, followers = self._network, list(self._followers) if moved else []
        self._memory.remember(network, candidate)
        for follower in followers:
            follower(candidate)

    def failed(self, candidate: Candidate) -> None:
        """Note that `candidate` came to nothing."""
        with self._lock:
            self._record_locked(candidate).failed_at = self._clock()

    def lost(self, candidate: Candidate, lived: float) -> None:
        """Note that a connection over `candidate` was cut, or fell silent, after `lived` seconds."""
        with self._lock:
            record, now = self._record_locked(candidate), self._clock()
            if lived >= SHORT_LIFE:
                record.avoided = 0
                return
            record.lost.append(now)
            if len(record.lost) < LOSSES or now - record.lost[0] > LOSSES_WITHIN or len(self.candidates) == 1:
                return
            record.lost.clear()
            avoided = min(LONGEST, AVOIDED_FOR * 2 ** min(record.avoided, 16))
            record.avoided += 1
            record.avoided_until = now + avoided
            self._set_look_locked(avoided)
        log.warning(
            "%s: %d connections in a row did not last: other ways are tried first for %.0f s",
            candidate,
            LOSSES,
            avoided,
        )

    def better_at(self, running: Candidate) -> float | None:
        """Return when a better way than `running` should be tried; None when there is none."""
        with self._lock:
            if not self._better_locked(running):
                return None
            if not self._look_at:
                self._set_look_locked()
            return self._clock() + self._look_after if self._looking else self._look_at

    def next_better(self, running: Candidate) -> Candidate | None:
        """Return the better way that is due, the best one first, and book the time for the next.

        Whoever gets one says `looked` afterwards: one lane looks at a time.
        """
        with self._lock:
            now = self._clock()
            if self._looking or self._look_at > now:
                return None
            better = self._better_locked(running)
            due = [c for c in better if self._record_locked(c).avoided_until <= now]
            if better and not due:
                self._set_look_locked(min(self._record_locked(c).avoided_until for c in better) - now)
                return None
            if self._looked_at >= len(due):
                self._looked_at = 0
                self._look_after = min(LONGEST, 2 * self._look_after)
                self._set_look_locked()
                return None
            self._looked_at += 1
            self._looking = True
            return due[self._looked_at - 1]

    def looked(self) -> None:
        """Note that the look at a better way is over."""
        with self._lock:
            self._looking = False

    def is_better(self, candidate: Candidate, running: Candidate) -> bool:
        """Return whether `candidate` comes before `running` by its transport."""
        with self._lock:
            return candidate in self._better_locked(running)

    def follow(self, follower: Callable[[Candidate], None]) -> None:
        """Have `follower` called, without a lock, with each other way that sessions have moved to."""
        with self._lock:
            self._followers.append(follower)

    def unfollow(self, follower: Callable[[Candidate], None]) -> None:
        """Undo `follow`."""
        with self._lock:
            self._followers.remove(follower)

    def _record_locked(self, candidate: Candidate) -> _Record:
        return self._records.setdefault(candidate, _Record())

    def _better_locked(self, running: Candidate) -> list[Candidate]:
        """Return the ways with a transport that comes before that of `running`."""
        transports = list(dict.fromkeys(candidate.transport for candidate in self.candidates))
        rank = transports.index(running.transport)
        return [c for c in self.candidates if transports.index(c.transport) < rank]

    def _set_look_locked(self, within: float | None = None) -> None:
        after = self._look_after if within is None else within
        self._look_at = self._clock() + after * self._uniform(1 - JITTER, 1)
