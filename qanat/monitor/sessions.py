"""Snapshots of sessions, at either end: `Looks`.

Each lane's lock is held for microseconds, once for its figures and once for the list of its streams; the streams are
read without.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice

from qanat.base.endpoint_addresses import UdpAddress, UnixAddress
from qanat.base.errors import ProtocolError
from qanat.monitor.rates import STALE, Rates
from qanat.monitor.snapshot import Counts, Failure, LaneSnapshot, SessionSnapshot, StreamSnapshot, Totals, is_telling
from qanat.mux.figures import LaneFigures
from qanat.mux.lane import Lane
from qanat.mux.stream import Stream
from qanat.session.messages import Connect, Measure, Through, decode_request
from qanat.session.places import Tally
from qanat.session.session import Session, tally_of


def public_id(session_id: bytes) -> str:
    """Return what people call a session: the same at both ends, and of no use to anybody who would resume it."""
    return hashlib.blake2s(session_id, digest_size=4, person=b"qanat id").hexdigest()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a look at many sessions has to show: with less it is cheaper, and so is whatever is made of it."""

    sessions: int | None = None
    """How many of a server's sessions to show, the first by name, beside those of the streams and lanes that are shown;
    None for all.  A client has few, and shows them always."""
    streams: int | None = None
    """How many streams to show, those of the highest rates; None for all."""
    names: frozenset[str] = frozenset()
    """Show the sessions of these clients alone, where there are any."""
    rates: bool = True
    """Whether to look at the streams at all; without it there are none, and no rates."""

    @property
    def all(self) -> bool:
        """Whether all sessions are to be shown."""
        return self.sessions is None and not self.names


EVERYTHING = Wanted()
SUMMARY = Wanted(sessions=0, streams=0)
"""What all come to: no object is made for each session or stream."""
BRIEF = Wanted(sessions=0, streams=0, rates=False)
"""Who this is, and what all have carried together."""


_CLIENTS: Mapping[Session, str] = {}


@dataclass(frozen=True, slots=True)
class Taken:
    """What a look has found."""

    shown: list[SessionSnapshot]
    """The sessions that are wanted, in their order."""
    counts: Counts
    """What all come to."""
    tallies: list[Tally]
    """What each session has carried, shown or not."""


class Looks:
    """Looks at an end's sessions, one at a time, since rates are those between two.  Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next, and every stream's sample
        self._rates = Rates()

    def sample(self, sessions: Iterable[Session]) -> bool:
        """Look at the streams' counts alone, so that `take` LEAST seconds later has rates.

        Return False, and do nothing, where somebody has looked not long ago.  Blocks as `take` does.
        """
        with self._lock:
            now, rates = time.monotonic(), self._rates
            if now - rates.looked_at < STALE:
                return False
            rates.begin(now)
            for session in sessions:
                for _, lane in session.look()[0]:
                    for stream in lane.streams:
                        rates.of(stream, *stream.traffic())
            return True

    def take(
        self, sessions: Sequence[Session], wanted: Wanted = EVERYTHING, peers: Mapping[Session, str] = _CLIENTS
    ) -> Taken:
        """Return how sessions are now; `peers` has what their other ends are called, where that is no client's name.

        Blocks while another thread looks; nothing that carries bytes waits for it.
        """
        found: list[_Found] = []
        with self._lock:
            clock, wall = time.monotonic(), time.time()
            rates = self._rates if wanted.rates else None
            if rates is not None:
                rates.begin(clock)
            looks = [_look(session, rates, found) for session in sessions]
        counts = _count(looks)
        for _, _, _, number, stream, look in found if wanted.streams is None else nsmallest(wanted.streams, found):
            look.streams.append((number, stream))
        shown = _choose_sessions(looks, wanted)
        made = [_session(look, peers.get(look.session, ""), clock, wall) for look in shown]
        return Taken(made, counts, [look.tally for look in looks])


_Found = tuple[float, float, int, int, Stream, "_Look"]
"""A stream, so that the busiest come first, and of those that are alike the oldest: less its rate, when it was opened,
a number that no other has; its lane's number."""


@dataclass(slots=True, eq=False)
class _Look:
    """One session, as it was."""

    session: Session
    lanes: list[tuple[int, Lane, LaneFigures]]
    tally: Tally
    attached: bool
    open: int
    telling: bool
    """Whether its lanes say more than it does itself."""
    received: float = 0.0
    sent: float = 0.0
    streams: list[tuple[int, Stream]] = field(default_factory=list)
    """Those to show, with their lanes' numbers."""


def _look(session: Session, rates: Rates | None, found: list[_Found]) -> _Look:
    """Look at a session, and with `rates` at its streams, which `found` gets."""
    lanes, tally = session.look()
    look = _Look(session, [], tally, False, 0, False)
    for number, lane in lanes:
        figures = lane.figures()
        look.lanes.append((number, lane, figures))
        look.tally = look.tally.plus(tally_of(figures))
        look.open += figures.open
        if figures.attached:
            look.attached = True
        if is_telling(number, figures.outbox, figures.outbox_limit):
            look.telling = True
        if rates is None:
            continue
        for stream in lane.streams:
            moved_in, moved_out, opened_at = stream.traffic()
            received, sent = rates.of(stream, moved_in, moved_out, opened_at)
            if received or sent:
                look.received += received
                look.sent += sent
            found.append((-received - sent, opened_at, len(found), number, stream, look))
    return look


def _count(looks: Sequence[_Look]) -> Counts:
    return Counts(
        sessions=len(looks),
        connected=sum(look.attached for look in looks),
        away=tuple(look.session.name for look in looks if not look.attached),
        streams=sum(look.open for look in looks),
        rate_received=sum(look.received for look in looks),
        rate_sent=sum(look.sent for look in looks),
        telling_lanes=sum(len(look.lanes) for look in looks if look.telling),
    )


def _choose_sessions(looks: list[_Look], wanted: Wanted) -> list[_Look]:
    if wanted.names:
        return [look for look in looks if look.session.name in wanted.names]
    if wanted.sessions is None:
        return looks
    chosen = {id(look) for look in nsmallest(wanted.sessions, looks, key=lambda look: look.session.name)}
    chosen.update(id(look) for look in islice((look for look in looks if look.telling), wanted.sessions))
    return [look for look in looks if look.streams or id(look) in chosen]


def _session(look: _Look, peer: str, clock: float, wall: float) -> SessionSnapshot:
    session, tally = look.session, look.tally
    lanes = tuple([_lane(session, number, figures, wall - clock) for number, _, figures in look.lanes])
    carrying = [lane for lane in lanes if lane.connected]
    shown = (carrying or lanes)[:1]
    lost_at = max((figures.changed_at for _, _, figures in look.lanes), default=clock)
    failure = session.last_failure
    recoveries = [figures.last_recovery for _, _, figures in look.lanes if figures.last_recovery is not None]
    return SessionSnapshot(
        id=public_id(session.id),
        name=session.name,
        since=session.since,
        state="connected" if carrying else "waiting",
        waits_until=None if carrying else wall + lost_at - clock + session.resume_for,
        transport=shown[0].transport if shown else "",
        address=shown[0].address if shown else "",
        via=shown[0].via if shown else "",
        agent=session.agent,
        round_trip_s=min((each.round_trip_s for each in carrying if each.round_trip_s is not None), default=None),
        lanes=lanes,
        streams=tuple([_stream(session.name, number, stream, clock, wall) for number, stream in look.streams]),
        bytes_received=tally.received,
        bytes_sent=tally.sent,
        queued_bytes=sum(lane.queued_bytes for lane in lanes),
        recoveries=tally.recoveries,
        last_recovery_s=max(recoveries, default=None),
        replayed_bytes=tally.replayed,
        last_failure=None if failure is None else Failure(failure.at, failure.text),
        streams_opened=tally.streams,
        measures=session.measures,
        open_streams=look.open,
        rate_received=look.received,
        rate_sent=look.sent,
        peer=peer or session.name,
    )


def totals_of(tally: Tally, *, sessions: int) -> Totals:
    """Return what so many sessions have carried together.  Pure."""
    return Totals(sessions, tally.streams, tally.received, tally.sent, tally.recoveries, tally.replayed)


def _lane(session: Session, number: int, figures: LaneFigures, offset: float) -> LaneSnapshot:
    place = session.place_of(number)
    return LaneSnapshot(
        index=number,
        connected=figures.attached,
        transport="" if place is None else place.transport,
        address="" if place is None else place.address,
        via="" if place is None else place.via,
        since=figures.changed_at + offset,
        round_trip_s=figures.round_trip or None,
        queued_bytes=figures.queued,
        outbox_bytes=figures.outbox,
        outbox_limit=figures.outbox_limit,
        epochs=figures.pipes,
        recoveries=figures.recoveries,
        replayed_bytes=figures.replayed,
        ping_waits_s=figures.ping_waits if figures.attached else None,
    )


def _stream(name: str, lane: int, stream: Stream, clock: float, wall: float) -> StreamSnapshot:
    figures, sample = stream.figures(), stream.sample
    kind, origin, to = _ends_of(stream)
    age = max(0.0, clock - figures.opened_at)
    return StreamSnapshot(
        id=f"{name}/{lane}/{stream.id}",
        kind=kind,
        forward=stream.forward,
        from_=origin,
        to=to,
        since=wall - age,
        age_s=age,
        bytes_received=figures.received,
        bytes_sent=figures.sent,
        rate_received=0.0 if sample is None else sample[2],
        rate_sent=0.0 if sample is None else sample[3],
        queued_bytes=figures.queued,
        inbox_bytes=figures.inbox,
        peer_takes_no_more=figures.peer_takes_no_more,
    )


def _ends_of(stream: Stream) -> tuple[str, str, str]:
    """Return its kind, who connected, and where it leads."""
    ends = stream.ends
    if ends is None:
        ends = stream.ends = _read_ends(stream.request)
    kind, origin, to = ends
    return stream.kind or kind, origin, to or stream.accepted or ""


def _read_ends(content: bytes) -> tuple[str, str, str]:
    try:
        request = decode_request(content)
    except ProtocolError:
        return "tcp", "", ""
    if isinstance(request, Measure):
        return "measure", "", request.what.name.lower()
    to = request.to
    kind = "udp" if isinstance(to, UdpAddress) else "unix" if isinstance(to, UnixAddress) else "tcp"
    if isinstance(request, Through) and to is not None and kind == "tcp":
        kind = "dynamic"
    assert isinstance(request, Connect | Through)
    return kind, request.origin, "" if to is None else str(to)
