"""Snapshots made by hand, of ends that never ran: `made_snapshots` with something in every count, and clients."""

from __future__ import annotations

from collections.abc import Callable

from qanat.monitor.snapshot import (
    ClientSnapshot,
    ConnectionSnapshot,
    Failure,
    ForwardSnapshot,
    HandshakesSnapshot,
    LaneSnapshot,
    PeerTotals,
    ServerSnapshot,
    SessionSnapshot,
    Totals,
)
from qanat.monitor.sums import Look, Sums
from qanat.mux.figures import LaneFigures
from qanat.session.places import PastFailure, PipePlace, Tally
from tests.support import made_snapshots as quiet

NOW = quiet.START


def lane(**values: object) -> LaneSnapshot:
    counted = {"address": "192.0.2.1:4711", "queued_bytes": 10, "outbox_bytes": 100, "outbox_limit": 1000}
    return quiet.lane(**(counted | values))


def session(name: str, *lanes: LaneSnapshot, **values: object) -> SessionSnapshot:
    counted = {"lanes": lanes or (lane(),), "queued_bytes": 10, "open_streams": 3, "peer": name}
    return quiet.session(name, **(counted | values))


def totals(number: int) -> Totals:
    return Totals(number, number, 1000 * number, 100 * number, number, 10 * number)


def server(*sessions: SessionSnapshot, **values: object) -> ServerSnapshot:
    counted = {
        "node": "tunnel-1",
        "agent": "qanat 0.9",
        "threads": 5,
        "memory_bytes": 1 << 20,
        "forwards": (ForwardSnapshot("remote", "0.0.0.0:80", "", "office", "listening"),),
        "handshakes": HandshakesSnapshot(1, 64, 2, 3, 4096),
        "totals": totals(2 * len(sessions)),
        "peers": tuple(PeerTotals(each.name, totals(2)) for each in sessions),
    }
    return quiet.server(0, *sessions, **(counted | values))


def client(*sessions: SessionSnapshot, urls: tuple[str, ...], **values: object) -> ClientSnapshot:
    made = {
        "name": "office",
        "agent": "qanat 0.9",
        "pid": 1,
        "started_at": NOW,
        "taken_at": NOW,
        "config": None,
        "servers": tuple(
            ConnectionSnapshot(url, "waiting", "", NOW, Failure(NOW, "cannot connect"), NOW + 3, "") for url in urls
        ),
        "sessions": sessions,
        "forwards": (),
        "totals": totals(7),
        "threads": 5,
        "memory_bytes": 1 << 20,
        "peers": tuple(PeerTotals(url, totals(1)) for url in urls),
    }
    return ClientSnapshot(**(made | values))  # type: ignore[arg-type]


def summing(snapshot: ServerSnapshot | ClientSnapshot) -> Look:
    """Return what adds up a snapshot made by hand, as its end would itself."""

    def look(label_of: Callable[[str], str]) -> Sums:
        sums = Sums(
            snapshot.role,
            snapshot.node if isinstance(snapshot, ServerSnapshot) else snapshot.name,
            label_of,
            troubles=len(snapshot.troubles),
            sessions_begun=snapshot.totals.sessions,
            handshakes=snapshot.handshakes if isinstance(snapshot, ServerSnapshot) else None,
            servers=() if isinstance(snapshot, ServerSnapshot) else snapshot.servers,
            threads=snapshot.threads,
            version=snapshot.agent.rpartition(" ")[2],
        )
        sums.forwards.update(each.state for each in snapshot.forwards)
        for each in snapshot.peers:
            of = each.totals
            tally = Tally(of.bytes_received, of.bytes_sent, of.streams, of.recoveries, of.replayed_bytes)
            sums.of(each.name).add_tally(tally)
        for one in snapshot.sessions:
            peer = sums.of(one.peer)
            for shown in one.lanes:
                place = PipePlace(shown.transport, shown.address, shown.via)
                peer.add_lane(_figures(shown, 0 if shown.index else one.open_streams), place)
            failure = None if one.last_failure is None else PastFailure(one.last_failure.at, one.last_failure.text)
            peer.add_session(one.since, failure, one.round_trip_s, attached=one.state == "connected")
        return sums

    return look


def _figures(shown: LaneSnapshot, streams: int) -> LaneFigures:
    return LaneFigures(
        attached=shown.connected,
        changed_at=shown.since,
        round_trip=shown.round_trip_s or 0.0,
        received=0,
        sent=0,
        queued=shown.queued_bytes,
        outbox=shown.outbox_bytes,
        outbox_limit=shown.outbox_limit,
        pipes=shown.epochs,
        opened=0,
        recoveries=shown.recoveries,
        last_recovery=None,
        replayed=shown.replayed_bytes,
        ping_waits=shown.ping_waits_s,
        open=streams,
    )
