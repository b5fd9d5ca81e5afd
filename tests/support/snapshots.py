"""Snapshots made by hand, of ends that never ran."""

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

NOW = 1_800_000_000.0


def lane(**values: object) -> LaneSnapshot:
    made = {
        "index": 0,
        "connected": True,
        "transport": "websocket",
        "address": "192.0.2.1:4711",
        "via": "",
        "since": NOW,
        "round_trip_s": 0.02,
        "queued_bytes": 10,
        "outbox_bytes": 100,
        "outbox_limit": 1000,
        "epochs": 1,
    }
    return LaneSnapshot(**(made | values))  # type: ignore[arg-type]


def session(name: str, *lanes: LaneSnapshot, **values: object) -> SessionSnapshot:
    lanes = lanes or (lane(),)
    made = {
        "id": f"id of {name}",
        "name": name,
        "since": NOW,
        "state": "connected",
        "waits_until": None,
        "transport": "websocket",
        "address": "192.0.2.1:4711",
        "via": "",
        "agent": "qanat 1",
        "round_trip_s": 0.02,
        "lanes": lanes,
        "queued_bytes": 10,
        "open_streams": 3,
        "peer": name,
    }
    return SessionSnapshot(**(made | values))  # type: ignore[arg-type]


def totals(number: int) -> Totals:
    return Totals(number, number, 1000 * number, 100 * number, number, 10 * number)


def server(*sessions: SessionSnapshot, **values: object) -> ServerSnapshot:
    made = {
        "node": "tunnel-1",
        "agent": "qanat 0.9",
        "pid": 1,
        "started_at": NOW,
        "taken_at": NOW,
        "config": None,
        "fingerprint": "SHA256:A",
        "listening": ("127.0.0.1:8443",),
        "sessions": sessions,
        "forwards": (ForwardSnapshot("remote", "0.0.0.0:80", "", "office", "listening"),),
        "handshakes": HandshakesSnapshot(1, 64, 2, 3, 4096),
        "totals": totals(7),
        "threads": 5,
        "memory_bytes": 1 << 20,
        "peers": tuple(PeerTotals(each.name, totals(2)) for each in sessions),
    }
    return ServerSnapshot(**(made | values))  # type: ignore[arg-type]


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
