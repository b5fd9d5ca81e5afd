"""Snapshots made by hand: a server with as many sessions and streams as a test likes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qanat.monitor.snapshot import (
    HandshakesSnapshot,
    LaneSnapshot,
    ServerSnapshot,
    SessionSnapshot,
    StreamSnapshot,
    Totals,
)

START = 1_800_000_000.0
"""Unix time at which they begin."""
TRIP = 0.02


def lane(**changes: Any) -> LaneSnapshot:
    """One lane that is connected and quiet."""
    quiet = LaneSnapshot(0, True, "websocket", "192.0.2.1:1", "", START, TRIP, 0, 0, 8 << 20, 1)
    return quiet._replace(**changes)


def stream(name: str, number: int, **changes: Any) -> StreamSnapshot:
    """Stream `number` of lane 0 of the client `name`."""
    quiet = StreamSnapshot(f"{name}/0/{number}", "tcp", "127.0.0.1:5432", "127.0.0.1:50000", "db:5432", START, 0.0)
    return quiet._replace(**changes)


def session(name: str, *streams: StreamSnapshot, **changes: Any) -> SessionSnapshot:
    """A session of the client `name` that is connected and quiet."""
    quiet = SessionSnapshot(
        f"id-{name}",
        name,
        START,
        "connected",
        None,
        "websocket",
        "192.0.2.1:1",
        "",
        "qanat/1",
        TRIP,
        (lane(),),
        streams,
    )
    return quiet._replace(**changes)


def server(now: float, *sessions: SessionSnapshot, **changes: Any) -> ServerSnapshot:
    """A server with these sessions, `now` seconds after START."""
    quiet = ServerSnapshot(
        node="the-server",
        agent="qanat/1",
        pid=1,
        started_at=START,
        taken_at=START + now,
        config="/etc/qanat/server.yaml",
        fingerprint="",
        listening=("127.0.0.1:8443",),
        sessions=sessions,
        forwards=(),
        handshakes=HandshakesSnapshot(0, 32, 0, 0, 1000),
        totals=Totals(),
        threads=9,
        memory_bytes=50 << 20,
    )
    return replace(quiet, **changes)


def crowd(now: float, sessions: int, streams: int) -> ServerSnapshot:
    """A server with so many sessions, and so many streams shared among them."""
    each = streams // sessions
    return server(
        now,
        *(
            session(f"client-{number}", *(stream(f"client-{number}", 2 * place + 1) for place in range(each)))
            for number in range(sessions)
        ),
    )
