"""A session's snapshot, at either end: `snapshot_of_session`.

Each lane's lock is held for microseconds, once for its figures and once for the list of its streams; the streams are
read without.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter

from qanat.base.endpoint_addresses import UdpAddress, UnixAddress
from qanat.base.errors import ProtocolError
from qanat.monitor.rates import rates_of
from qanat.monitor.snapshot import Failure, LaneSnapshot, SessionSnapshot, StreamSnapshot, Totals
from qanat.mux.figures import LaneFigures
from qanat.mux.stream import Stream
from qanat.session.messages import Connect, Measure, Through, decode_request
from qanat.session.places import Tally
from qanat.session.session import Session

_FIGURES_OF_TOTALS = attrgetter(*(field.name for field in fields(Totals)))


def public_id(session_id: bytes) -> str:
    """Return what people call a session: the same at both ends, and of no use to anybody who would resume it."""
    return hashlib.blake2s(session_id, digest_size=4, person=b"qanat id").hexdigest()


def snapshot_of_session(session: Session, *, peer: str = "", with_streams: bool = True) -> SessionSnapshot:
    """Return how a session is now.  Does not block.  Of several threads one at a time may ask for the streams.

    `peer` is what the other end is called, by default the client's name.
    """
    clock, wall = time.monotonic(), time.time()
    found, tally = session.look()
    lanes = tuple(_lane(session, number, figures, wall - clock) for number, _, figures in found)
    streams: list[StreamSnapshot] = []
    if with_streams:
        for number, lane, _ in found:
            prefix = f"{session.name}/{number}/"
            streams += (_stream(prefix, stream, clock, wall) for stream in lane.streams)
    carrying = [lane for lane in lanes if lane.connected]
    shown = (carrying or lanes)[:1]
    lost_at = max((figures.changed_at for _, _, figures in found), default=clock)
    failure = session.last_failure
    recoveries = [figures.last_recovery for _, _, figures in found if figures.last_recovery is not None]
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
        streams=tuple(streams),
        bytes_received=tally.received,
        bytes_sent=tally.sent,
        queued_bytes=sum(lane.queued_bytes for lane in lanes),
        recoveries=tally.recoveries,
        last_recovery_s=max(recoveries, default=None),
        replayed_bytes=tally.replayed,
        last_failure=None if failure is None else Failure(failure.at, failure.text),
        streams_opened=tally.streams,
        measures=session.measures,
        open_streams=sum(figures.open for _, _, figures in found),
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


def sample_rates(session: Session) -> None:
    """Look at the streams' counts alone, so that a snapshot a moment later has rates.  As `snapshot_of_session`."""
    now = time.monotonic()
    for lane in session.lanes.values():
        for stream in lane.streams:
            rates_of(stream, stream.figures(), now)


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


def _stream(prefix: str, stream: Stream, clock: float, wall: float) -> StreamSnapshot:
    figures = stream.figures()
    kind, origin, to = _ends_of(stream)
    received, sent = rates_of(stream, figures, clock)
    age = max(0.0, clock - figures.opened_at)
    return StreamSnapshot(
        id=f"{prefix}{stream.id}",
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
