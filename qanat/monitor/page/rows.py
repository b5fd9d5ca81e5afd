"""Rows of the page's tables: filtered, sorted, and cut into pages, so that a browser has 25 of 5,000 streams at a time.

Pure: a snapshot in, what becomes JSON out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qs

from qanat.base.untrusted import number
from qanat.monitor.snapshot import ClientSnapshot, Failure, ForwardSnapshot, SessionSnapshot, Snapshot, StreamSnapshot

SIZE = 25
"""Rows of a page at most, and in each state; the page's own script has the same number."""
FORWARDS = 200
"""Forwards that are shown at most."""
MAX_FILTER = 100
_MAX_OFFSET = 10_000_000
_MAX_FIELDS = 10

Rates = Mapping[str, tuple[float, float]]
"""Bytes a second that come and go, by a session's id."""
Rows = dict[str, Any]
Row = TypeVar("Row", SessionSnapshot, StreamSnapshot)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows somebody wants to see."""

    filter: str = ""
    sort: str = "rate"
    descending: bool = True
    offset: int = 0
    limit: int = SIZE


FIRST = Wanted()


def parse_wanted(query: str) -> tuple[str, Wanted]:
    """Return what a request's query asks for: "sessions", "streams" or "", and how; nonsense is left out."""
    try:
        fields = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        return "", FIRST
    values = {name: found[-1] for name, found in fields.items()}
    return values.get("of", ""), Wanted(
        filter=values.get("filter", "")[:MAX_FILTER],
        sort=values.get("sort", FIRST.sort),
        descending=values.get("descending", "1") != "0",
        offset=number(values.get("offset", "0"), _MAX_OFFSET) or 0,
        limit=number(values.get("limit", ""), SIZE) or SIZE,
    )


def session_rows(sessions: Sequence[SessionSnapshot], rates: Rates, wanted: Wanted) -> Rows:
    """Return the sessions that are wanted, without their streams."""
    orders: dict[str, Callable[[SessionSnapshot], Any]] = {
        "rate": lambda session: sum(rates.get(session.id, (0.0, 0.0))),
        "name": lambda session: session.name,
        "transport": lambda session: session.transport,
        "since": lambda session: session.since,
        "round_trip": lambda session: session.round_trip_s or 0.0,
        "streams": lambda session: len(session.streams),
        "bytes": lambda session: session.bytes_received + session.bytes_sent,
        "queued": _queued,
        "outbox": lambda session: max((lane.outbox_bytes for lane in session.lanes), default=0),
        "recoveries": lambda session: session.recoveries,
    }

    def text(session: SessionSnapshot) -> str:
        return "\n".join((session.name, session.state, session.transport, session.address, session.via, session.agent))

    return _page(sessions, wanted, text, orders, lambda session: _session_row(session, rates))


def stream_rows(streams: Sequence[StreamSnapshot], wanted: Wanted) -> Rows:
    """Return the streams that are wanted."""
    orders: dict[str, Callable[[StreamSnapshot], Any]] = {
        "rate": lambda stream: stream.rate_received + stream.rate_sent,
        "name": lambda stream: stream.id,
        "kind": lambda stream: stream.kind,
        "age": lambda stream: stream.age_s,
        "bytes": lambda stream: stream.bytes_received + stream.bytes_sent,
        "queued": lambda stream: stream.queued_bytes,
    }

    def text(stream: StreamSnapshot) -> str:
        return "\n".join((stream.id, stream.kind, stream.forward, stream.from_, stream.to))

    return _page(streams, wanted, text, orders, _stream_row)


def forward_rows(forwards: Sequence[ForwardSnapshot]) -> Rows:
    """Return the forwards, those that do not listen first."""
    shown = sorted(forwards, key=lambda forward: forward.state == "listening")[:FORWARDS]
    return {
        "total": len(forwards),
        "matched": len(forwards),
        "offset": 0,
        "rows": [
            {
                "key": f"{place} {forward.client} {forward.listen}",
                "name": forward.client,
                "kind": forward.kind,
                "listen": forward.listen,
                "target": forward.to,
                "state": f"{forward.state}: {forward.failure}" if forward.failure else forward.state,
                "bad": forward.state != "listening",
            }
            for place, forward in enumerate(shown)
        ],
    }


def server_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return what a client does about its servers; nothing for a server."""
    if not isinstance(snapshot, ClientSnapshot):
        return []
    return [
        {
            "url": server.url,
            "state": server.state,
            "transport": server.transport,
            "since": server.since,
            "last_failure": _failure(server.last_failure),
            "next_try_at": server.next_try_at,
            "proxy": server.proxy,
        }
        for server in snapshot.servers
    ]


def _page(
    rows: Sequence[Row],
    wanted: Wanted,
    text: Callable[[Row], str],
    orders: Mapping[str, Callable[[Row], Any]],
    shown: Callable[[Row], dict[str, Any]],
) -> Rows:
    words = wanted.filter.casefold().split()
    found = [row for row in rows if _matches(text(row), words)] if words else list(rows)
    found.sort(key=orders.get(wanted.sort, orders["rate"]), reverse=wanted.descending)
    offset = wanted.offset if wanted.offset < len(found) else 0
    page = found[offset : offset + wanted.limit]
    return {"total": len(rows), "matched": len(found), "offset": offset, "rows": [shown(row) for row in page]}


def _matches(text: str, words: Sequence[str]) -> bool:
    text = text.casefold()
    return all(word in text for word in words)


def _queued(session: SessionSnapshot) -> int:
    """Return what waits at this end: for the wire, and for applications."""
    return max(session.queued_bytes, sum(stream.queued_bytes for stream in session.streams))


def _session_row(session: SessionSnapshot, rates: Rates) -> dict[str, Any]:
    fullest = max(session.lanes, key=lambda lane: lane.outbox_bytes, default=None)
    received, sent = rates.get(session.id, (0.0, 0.0))
    return {
        "id": session.id,
        "name": session.name,
        "since": session.since,
        "state": session.state,
        "waits_until": session.waits_until,
        "transport": session.transport,
        "address": session.address,
        "via": session.via,
        "agent": session.agent,
        "round_trip_s": session.round_trip_s,
        "lanes": [{"connected": lane.connected} for lane in session.lanes],
        "streams": len(session.streams),
        "rate_received": received,
        "rate_sent": sent,
        "bytes_received": session.bytes_received,
        "bytes_sent": session.bytes_sent,
        "queued_bytes": _queued(session),
        "outbox_bytes": fullest.outbox_bytes if fullest is not None else 0,
        "outbox_limit": fullest.outbox_limit if fullest is not None else 0,
        "recoveries": session.recoveries,
        "last_recovery_s": session.last_recovery_s,
        "last_failure": _failure(session.last_failure),
    }


def _failure(failure: Failure | None) -> dict[str, Any] | None:
    return None if failure is None else {"at": failure.at, "text": failure.text}


def _stream_row(stream: StreamSnapshot) -> dict[str, Any]:
    return {
        "id": stream.id,
        "kind": stream.kind,
        "forward": stream.forward,
        "from": stream.from_,
        "to": stream.to,
        "age_s": stream.age_s,
        "rate_received": stream.rate_received,
        "rate_sent": stream.rate_sent,
        "bytes_received": stream.bytes_received,
        "bytes_sent": stream.bytes_sent,
        "queued_bytes": stream.queued_bytes,
    }
