"""Snapshots made by hand, of ends that never ran: `made_snapshots` with something in every count, and clients."""

from __future__ import annotations

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
        "totals": totals(7),
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
