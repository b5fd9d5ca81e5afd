"""A snapshot as tables of text: what `tunnel.py status` shows, in whatever way it is drawn.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qanat.base.text import format_count
from qanat.monitor.snapshot import (
    ClientSnapshot,
    ConnectionSnapshot,
    Failure,
    ForwardSnapshot,
    LaneSnapshot,
    ServerSnapshot,
    SessionSnapshot,
    Snapshot,
    StreamSnapshot,
    streams_of,
)
from qanat.monitor.summary import (
    count_streams,
    counts_of,
    format_bytes,
    format_moment,
    format_round_trip,
    format_seconds,
    is_telling_session,
    name_of,
)

MOST_ROWS = 50
"""Rows of a table, unless all are wanted."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under their headings; those of `right` are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()
    more: str = ""
    """What to say below it: that there is more."""


def heading_of(snapshot: Snapshot) -> list[str]:
    """Return the lines about the process itself."""
    memory = "" if snapshot.memory_bytes is None else f", {format_bytes(snapshot.memory_bytes)} of memory"
    up = format_seconds(snapshot.taken_at - snapshot.started_at)
    lines = [
        f"{name_of(snapshot)}: {snapshot.agent}, process {snapshot.pid}, up {up}, {snapshot.threads} threads{memory}"
    ]
    if snapshot.config:
        lines.append(f"configuration {snapshot.config}")
    if isinstance(snapshot, ServerSnapshot):
        shaking = snapshot.handshakes
        lines.append(f"listening on {', '.join(snapshot.listening) or 'nothing'}, key {snapshot.fingerprint}")
        lines.append(
            f"handshakes: {shaking.running} of {shaking.limit} running, {shaking.queued} told to come back; "
            f"{shaking.unfinished} of {shaking.connections_limit} connections are not authenticated"
        )
    totals = snapshot.totals
    lines.append(
        f"since its start: {format_count(totals.sessions, 'session')}, {format_count(totals.streams, 'stream')}, "
        f"{format_bytes(totals.bytes_received)} received, {format_bytes(totals.bytes_sent)} sent, "
        f"{format_count(totals.recoveries, 'recovery', 'recoveries')}, {format_bytes(totals.replayed_bytes)} sent again"
    )
    lines += (f"{found.severity}: {found.title}. {found.text} {found.next}" for found in snapshot.findings)
    return lines


def tables_of(snapshot: Snapshot, *, everything: bool = False) -> list[Table]:
    """Return the tables that have rows; the busiest streams first, and not all of very many unless `everything`."""
    now, most = snapshot.taken_at, None if everything else MOST_ROWS
    counts = counts_of(snapshot)  # the answer may have some of them
    sessions = sorted(snapshot.sessions, key=lambda session: session.name)
    lanes = [(each.name, lane) for each in snapshot.sessions if is_telling_session(each) for lane in each.lanes]
    streams = sorted(streams_of(snapshot), key=lambda each: (-(each.rate_received + each.rate_sent), -each.age_s))
    tables = [
        _cut(_sessions(sessions[:most], now), counts.sessions),
        _cut(_lanes(lanes[:most], now), counts.telling_lanes),
        _cut(_streams(streams[:most]), len(streams) if everything else counts.streams),
        _cut(_forwards(snapshot.forwards[:most]), counts.forwards),
    ]
    if isinstance(snapshot, ClientSnapshot):
        trips = {each.address: each.round_trip_s for each in snapshot.sessions}
        tables.insert(0, _cut(_servers(snapshot.servers[:most], trips, now), len(snapshot.servers)))
    return [table for table in tables if table.rows]


def _cut(table: Table, number: int) -> Table:
    """Return the table of the first of so many rows, with what it says of the others."""
    left = number - len(table.rows)
    return replace(table, more=f"and {left} more: --all shows them") if left > 0 else table


def _servers(servers: Sequence[ConnectionSnapshot], trips: dict[str, float | None], now: float) -> Table:
    return Table(
        "Servers",
        ("URL", "State", "Since", "Transport", "Proxy", "Round trip", "Last failure", "Next try"),
        tuple(
            (
                each.url,
                each.state,
                format_seconds(now - each.since),
                each.transport or "-",
                each.proxy or "none",
                format_round_trip(trips.get(each.url)),
                _failure(each.last_failure, now),
                "-" if each.next_try_at is None else f"in {format_seconds(each.next_try_at - now)}",
            )
            for each in servers
        ),
        frozenset({"Since", "Round trip", "Next try"}),
    )


def _sessions(sessions: Sequence[SessionSnapshot], now: float) -> Table:
    return Table(
        "Sessions",
        (
            *("Name", "Id", "State", "Since", "Transport", "With", "Through", "Round trip", "Lanes", "Streams"),
            *("Received", "Sent", "Queued", "Recoveries", "Other end", "Last failure", "Given up"),
        ),
        tuple(
            (
                each.name + (" (bench)" if each.measures else ""),
                each.id,
                each.state,
                format_seconds(now - each.since),
                each.transport or "-",
                each.address or "-",
                each.via or "none",
                format_round_trip(each.round_trip_s),
                f"{sum(lane.connected for lane in each.lanes)}/{len(each.lanes)}",
                str(count_streams(each)),
                format_bytes(each.bytes_received),
                format_bytes(each.bytes_sent),
                format_bytes(each.queued_bytes),
                _recoveries(each),
                each.agent or "-",
                _failure(each.last_failure, now),
                "-" if each.waits_until is None else f"in {format_seconds(each.waits_until - now)}",
            )
            for each in sessions
        ),
        frozenset({"Since", "Round trip", "Lanes", "Streams", "Received", "Sent", "Queued", "Given up"}),
    )


def _recoveries(session: SessionSnapshot) -> str:
    if not session.recoveries or session.last_recovery_s is None:
        return str(session.recoveries)
    return f"{session.recoveries}, last {session.last_recovery_s:.2f} s"


def _lanes(lanes: Sequence[tuple[str, LaneSnapshot]], now: float) -> Table:
    return Table(
        "Lanes",
        ("Lane", "State", "Since", "Transport", "With", "Round trip", "Queued", "Outbox", "Pipes"),
        tuple(
            (
                f"{name}/{lane.index}",
                "connected" if lane.connected else "waiting",
                format_seconds(now - lane.since),
                lane.transport or "-",
                lane.address or "-",
                format_round_trip(lane.round_trip_s),
                format_bytes(lane.queued_bytes),
                f"{format_bytes(lane.outbox_bytes)} of {format_bytes(lane.outbox_limit)}",
                str(lane.epochs),
            )
            for name, lane in lanes
        ),
        frozenset({"Since", "Round trip", "Queued", "Outbox", "Pipes"}),
    )


def _streams(streams: Sequence[StreamSnapshot]) -> Table:
    return Table(
        "Streams",
        ("Stream", "Kind", "From", "To", "Age", "Received", "Sent", "Receiving", "Sending", "Queued", "Forward"),
        tuple(
            (
                each.id,
                each.kind,
                each.from_ or "-",
                each.to or "-",
                format_seconds(each.age_s),
                format_bytes(each.bytes_received),
                format_bytes(each.bytes_sent),
                f"{format_bytes(each.rate_received)}/s",
                f"{format_bytes(each.rate_sent)}/s",
                format_bytes(each.queued_bytes),
                each.forward or "-",
            )
            for each in streams
        ),
        frozenset({"Age", "Received", "Sent", "Receiving", "Sending", "Queued"}),
    )


def _forwards(forwards: Sequence[ForwardSnapshot]) -> Table:
    return Table(
        "Forwards",
        ("Kind", "Listens on", "Leads to", "Client", "State"),
        tuple(
            (each.kind, each.listen, each.to or "-", each.client, each.state + (each.failure and f": {each.failure}"))
            for each in forwards
        ),
    )


def _failure(failure: Failure | None, now: float) -> str:
    return "none" if failure is None else f"{format_moment(failure.at, now)} {failure.text}"
