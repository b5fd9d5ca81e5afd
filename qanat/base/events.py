"""What happens, counted: how often, for which reason, and how long it took.  Plain numbers, read by whoever is asked.

A server and a client have one `Events` each and give it to what they are made of.  Nothing here is made for each
session or stream, and no label comes from a stranger, so it stays as small as it is.  To count is a lock and an
addition, about half a microsecond, for what happens now and then; bytes and frames are counted where they pass.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds, in seconds, for what takes a round trip or a connection."""
ABSENCES = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""The same for how long a lane is without a pipe."""
RESETS = (
    "canceled",
    "refused",
    "unreachable",
    "not allowed",
    "limit",
    "session ended",
    "internal",
    "timed out",
    "no route",
)
"""Why a stream is reset: the reasons of `qanat.mux.frames`, in words."""
REFUSALS = (
    "wrong name or token",
    "handshake failed",
    "cut in the handshake",
    "too many handshakes",
    "name in use",
    "busy",
    "stale",
    "session over",
    "measuring is off",
    "wrong path",
    "not found",
    "lost upgrade",
    "bad upgrade",
    "malformed",
    "quota",
)
"""Why somebody is turned away; there are a few more."""
CONNECT_FAILURES = ("refused", "protocol", "not reached")
"""What keeps a client from its server."""
HANDSHAKES = ("new", "resume", "join", "measure")
"""What comes of a handshake at a server."""
MOST_LABELS = 64
"""Labels of one tally; all further ones are OTHER."""
OTHER = "other"


class Histogram:
    """How many values there were, by size.  Safe to use from any thread; never blocks for long."""

    __slots__ = ("_counts", "_lock", "_sum", "bounds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds` are the upper bounds, in rising order, that a value may have itself; above the last is one more."""
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count a value."""
        with self._lock:
            self._counts[bisect_left(self.bounds, value)] += 1
            self._sum += value

    def read(self) -> tuple[list[int], float]:
        """Return how many values are within each bound, then how many there are; and their sum."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


class Tally:
    """How often something happened, by a word for it.  Safe to use from any thread; never blocks for long."""

    __slots__ = ("_counts", "_lock")

    def __init__(self, labels: tuple[str, ...] = ()) -> None:
        """Begin with 0 for each of `labels`: the first time that something happens is a change then, too."""
        self._counts: dict[str, int] = dict.fromkeys(labels, 0)
        self._lock = threading.Lock()

    def add(self, label: str) -> None:
        """Count it once."""
        with self._lock:
            if label not in self._counts and len(self._counts) >= MOST_LABELS:
                label = OTHER
            self._counts[label] = self._counts.get(label, 0) + 1

    def read(self) -> dict[str, int]:
        """Return how often each happened."""
        with self._lock:
            return dict(self._counts)


def _latencies() -> Histogram:
    return Histogram(LATENCIES)


@dataclass(frozen=True, slots=True)
class Events:
    """What one running end has counted.  It is an observer of its lanes (`qanat.mux.observer`)."""

    round_trips: Histogram = field(default_factory=_latencies)
    """Seconds that each sealed PING took."""
    stream_opens: Histogram = field(default_factory=_latencies)
    """Seconds from OPEN until the target was reached, as this end sees it."""
    recoveries: Histogram = field(default_factory=lambda: Histogram(ABSENCES))
    """Seconds that a lane was without a pipe before it went on."""
    stream_resets: Tally = field(default_factory=lambda: Tally(RESETS))
    """Streams that were reset, by the reason; those that this end did."""
    stream_resets_received: Tally = field(default_factory=lambda: Tally(RESETS))
    """The same, of those that the other end did."""
    refusals: Tally = field(default_factory=lambda: Tally(REFUSALS))
    """Connections, handshakes and visitors of forwards that were turned away, by the reason."""
    handshakes: Tally = field(default_factory=lambda: Tally(HANDSHAKES))
    """Handshakes that came to something: a session, or another pipe for one."""
    connect_failures: Tally = field(default_factory=lambda: Tally(CONNECT_FAILURES))
    """Tries to connect to a server that came to nothing, by what kept them."""
    rsa_operations: Histogram = field(default_factory=_latencies)
    """Seconds that each private-key operation took."""
    rsa_waits: Histogram = field(default_factory=_latencies)
    """Seconds that each waited for its turn before."""

    def answered(self, seconds: float) -> None:
        """Note the round trip of a PING."""
        self.round_trips.observe(seconds)

    def stream_opened(self, seconds: float) -> None:
        """Note that a stream's target was reached, so long after OPEN."""
        self.stream_opens.observe(seconds)

    def stream_reset(self, reason: str, *, by_peer: bool) -> None:
        """Note that a stream was reset."""
        (self.stream_resets_received if by_peer else self.stream_resets).add(reason)

    def recovered(self, seconds: float) -> None:
        """Note that a lane goes on after it was without a pipe."""
        self.recoveries.observe(seconds)

    def refused(self, reason: str) -> None:
        """Note that somebody was turned away; `reason` is one of a few words, none of them a stranger's."""
        self.refusals.add(reason)
