"""Snapshots of sessions, at either end: `Looks`.

Each lane's lock is held for microseconds, once for its figures and once for the list of its streams; the streams are
read without.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from heapq import nlargest
from operator import attrgetter
from typing import NamedTuple

from qanat.base.endpoint_addresses import UdpAddress, UnixAddress
from qanat.base.errors import ProtocolError
from qanat.monitor.rates import STALE, rates_of
from qanat.monitor.snapshot import Failure, LaneSnapshot, SessionSnapshot, StreamSnapshot, Totals
from qanat.mux.figures import LaneFigures, StreamFigures
from qanat.mux.stream import Stream
from qanat.session.messages import Connect, Measure, Through, decode_request
from qanat.session.places import Tally
from qanat.session.session import Session

_FIGURES_OF_TOTALS = attrgetter(*(field.name for field in fields(Totals)))


def public_id(session_id: bytes) -> str:
    """Return what people call a session: the same at both ends, and of no use to anybody who would resume it."""
    return hashlib.blake2s(session_id, digest_size=4, person=b"qanat id").hexdigest()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a look at many sessions has to have: with fewer streams it is cheaper, and so is whatever is made of it."""

    sessions: bool = True
    """Whether a server's sessions are shown at all; a client has few, and shows them always."""
    rates: bool = True
    """Whether to look at the streams at all; without it there are none, and no rates."""
    streams: int | None = None
    """How many of them to show, those of the highest rates; None for all."""


EVERYTHING = Wanted()
BRIEF = Wanted(sessions=False, rates=False, streams=0)
"""Who this is, and what all have carried together."""
RATES = Wanted(streams=0)
"""Without the streams themselves."""
FIGURES = Wanted(rates=False, streams=0)
"""Without a look at them: cheap, however many there are."""


class Looks:
    """Looks at an end's sessions, one at a time, since rates are those between two.  Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next, and every stream's sample
        self._looked_at = -STALE

    def sample(self, sessions: Iterable[Session]) -> bool:
        """Look at the streams' counts alone, so that `take` LEAST seconds later has rates.

        Return False, and do nothing, where somebody has looked not long ago.  Blocks as `take` does.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < STALE:
                return False
            self._looked_at = now
            for session in sessions:
                for lane in session.lanes.values():
                    for stream in lane.streams:
                        rates_of(stream, stream.figures(), now)
            return True

    def take(self, sessions: Mapping[Session, str], wanted: Wanted = EVERYTHING) -> list[SessionSnapshot]:
        """Return how sessions are now; each comes with what its other end is called, "" for the client's name.

        Blocks while another thread looks; nothing that carries bytes waits for it.
        """
        with self._lock:
            clock, wall = time.monotonic(), time.time()
            if wanted.rates:
                self._looked_at = clock
            looks = [_look(session, wanted, clock) for session in sessions]
        if wanted.streams is not None:
            _keep_busiest(looks, wanted.streams)
        made = []
        for (session, peer), look in zip(sessions.items(), looks, strict=True):
            made.append(_session(session, look, peer, clock, wall))
        return made


class _Seen(NamedTuple):
    """One stream, as it was."""

    stream: Stream
    figures: StreamFigures
    lane: int
    received: float
    sent: float


def _activity(seen: _Seen) -> tuple[float, float]:
    """Return what the busiest has most of; of those that are alike the oldest comes first."""
    return seen.received + seen.sent, -seen.figures.opened_at


@dataclass(slots=True)
class _Look:
    """One session, as it was."""

    lanes: list[tuple[int, LaneFigures]]
    tally: Tally
    received: float
    sent: float
    streams: list[_Seen]


def _look(session: Session, wanted: Wanted, clock: float) -> _Look:
    found, tally = session.look()
    seen = []
    if wanted.rates:
        for number, lane, _ in found:
            for stream in lane.streams:
                figures = stream.figures()
                seen.append(_Seen(stream, figures, number, *rates_of(stream, figures, clock)))
    received, sent = sum(each.received for each in seen), sum(each.sent for each in seen)
    return _Look([(number, figures) for number, _, figures in found], tally, received, sent, seen)


def _keep_busiest(looks: Sequence[_Look], most: int) -> None:
    found = (seen for look in looks for seen in look.streams)
    shown = {id(seen.stream) for seen in nlargest(most, found, key=_activity)}
    for look in looks:
        look.streams = [seen for seen in look.streams if id(seen.stream) in shown]


def _session(session: Session, look: _Look, peer: str, clock: float, wall: float) -> SessionSnapshot:
    found, tally = look.lanes, look.tally
    lanes = tuple(_lane(session, number, figures, wall - clock) for number, figures in found)
    carrying = [lane for lane in lanes if lane.connected]
    shown = (carrying or lanes)[:1]
    lost_at = max((figures.changed_at for _, figures in found), default=clock)
    failure = session.last_failure
    recoveries = [figures.last_recovery for _, figures in found if figures.last_recovery is not None]
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
        streams=tuple(_stream(session.name, each, clock, wall) for each in look.streams),
        bytes_received=tally.received,
        bytes_sent=tally.sent,
        queued_bytes=sum(lane.queued_bytes for lane in lanes),
        recoveries=tally.recoveries,
        last_recovery_s=max(recoveries, default=None),
        replayed_bytes=tally.replayed,
        last_failure=None if failure is None else Failure(failure.at, failure.text),
        streams_opened=tally.streams,
        measures=session.measures,
        open_streams=sum(figures.open for _, figures in found),
        rate_received=look.received,
        rate_sent=look.sent,
        peer=peer or session.name,
    )


def totals_of(tally: Tally, *, sessions: int) -> Totals:
    """Return what so many sessions have carried together.  Pure."""
    return Totals(sessions, tally.streams, tally.received, tally.sent, tally.recoveries, tally.replayed)


def sum_of(several: Iterable[Totals]) -> Totals:
    """Return the sum.  Pure."""
    found = [_FIGURES_OF_TOTALS(totals) for totals in several]
    return Totals(*map(sum, zip(*found, strict=True))) if found else Totals()


def tally_of(shown: SessionSnapshot) -> Tally:
    """Return what a session has carried, as its snapshot says.  Pure."""
    return Tally(shown.bytes_received, shown.bytes_sent, shown.streams_opened, shown.recoveries, shown.replayed_bytes)


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


def _stream(name: str, seen: _Seen, clock: float, wall: float) -> StreamSnapshot:
    stream, figures, lane, received, sent = seen
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
        rate_received=received,
        rate_sent=sent,
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
