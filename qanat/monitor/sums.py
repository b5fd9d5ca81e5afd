"""What a scrape needs of an end: sums by client or server, and over all, added up session by session.

No object is made for a session or a stream, and no stream is looked at, so that a scrape costs little however many
there are.  `qanat.monitor.metrics` makes metrics of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from qanat.base.version import __version__
from qanat.monitor.process import count_threads
from qanat.monitor.snapshot import ConnectionSnapshot, HandshakesSnapshot
from qanat.mux.figures import LaneFigures
from qanat.session.places import NOTHING, PastFailure, PipePlace, Tally
from qanat.session.session import Session, tally_of

Way = tuple[str, str]
"""What carries a lane: the transport, and "yes" where a proxy is known to be on the way.  Its address would be one more
label for each of a CDN's thousands."""


@dataclass(slots=True)
class PeerSums:
    """A client of a server, or a server of a client; or several that have one label together."""

    connected: int = 0
    waiting: int = 0
    detached: int = 0
    """Lanes that wait for a connection."""
    streams: int = 0
    queued: int = 0
    outbox: int = 0
    outbox_limit: int = 0
    opened: int = 0
    received: int = 0
    sent: int = 0
    recoveries: int = 0
    replayed: int = 0
    fullest: float = 0.0
    """How full the fullest outbox is."""
    round_trip: float | None = None
    """The longest of the sessions, each of which has that of its quickest lane."""
    since: float | None = None
    last_failure: float | None = None
    lanes: Counter[Way] = field(default_factory=Counter)

    def add_tally(self, tally: Tally) -> None:
        """Count in what a lane, or several, have carried."""
        self.opened += tally.streams
        self.received += tally.received
        self.sent += tally.sent
        self.recoveries += tally.recoveries
        self.replayed += tally.replayed

    def add_lane(self, lane: LaneFigures, place: PipePlace | None) -> None:
        """Count in how a lane is now."""
        self.streams += lane.open
        self.queued += lane.queued
        self.outbox += lane.outbox
        self.outbox_limit += lane.outbox_limit
        if lane.outbox and lane.outbox_limit:
            self.fullest = max(self.fullest, lane.outbox / lane.outbox_limit)
        if lane.attached and place is not None:
            self.lanes[place.transport, "yes" if place.via else "no"] += 1
        elif not lane.attached:
            self.detached += 1

    def add_session(
        self, since: float, failure: PastFailure | None, round_trip: float | None, *, attached: bool
    ) -> None:
        """Count in how a session is beside its lanes."""
        if attached:
            self.connected += 1
        else:
            self.waiting += 1
        if round_trip is not None and (self.round_trip is None or round_trip > self.round_trip):
            self.round_trip = round_trip
        if self.since is None or since < self.since:
            self.since = since
        if failure is not None:
            self.last_failure = max(self.last_failure or 0.0, failure.at)


@dataclass(slots=True)
class Sums:
    """One end as it is now."""

    role: str
    name: str
    label_of: Callable[[str], str]
    """Gives the label of a client's name, or of a server's URL."""
    troubles: int
    sessions_begun: int
    handshakes: HandshakesSnapshot | None = None
    """Of a server."""
    servers: tuple[ConnectionSnapshot, ...] = ()
    """Of a client."""
    forwards: Counter[str] = field(default_factory=Counter)
    """By state."""
    threads: int = field(default_factory=count_threads)
    peers: dict[str, PeerSums] = field(default_factory=dict)
    """By label."""
    version: str = __version__

    def of(self, peer: str) -> PeerSums:
        """Return what belongs to a client's name, or to a server's URL."""
        label = self.label_of(peer)
        found = self.peers.get(label)
        if found is None:
            found = self.peers[label] = PeerSums()
        return found

    def add_session(self, session: Session, peer: str, *, counted: bool) -> None:
        """Count a session in; without `counted` what it has carried is in some tally already."""
        found = self.of(peer)
        lanes, past = session.look()
        if counted and past is not NOTHING:
            found.add_tally(past)
        attached, round_trip = False, None
        for number, lane in lanes:
            figures = lane.figures()
            found.add_lane(figures, session.place_of(number))
            if counted:
                found.add_tally(tally_of(figures))
            if figures.attached:
                attached = True
                trip = figures.round_trip
                if trip and (round_trip is None or trip < round_trip):
                    round_trip = trip
        found.add_session(session.since, session.last_failure, round_trip, attached=attached)

    @property
    def lanes(self) -> Counter[Way]:
        """How many lanes each way carries."""
        ways: Counter[Way] = Counter()
        for peer in self.peers.values():
            ways.update(peer.lanes)
        return ways

    def total(self, figure: Callable[[PeerSums], int]) -> int:
        """Return the sum of a figure over all."""
        return sum(map(figure, self.peers.values()))


Look = Callable[[Callable[[str], str]], Sums]
"""Adds one end up, given what gives the label of a client's name, or of a server's URL."""
