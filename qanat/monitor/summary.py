"""What a snapshot comes to: one line for people, and what is not as it should be.  Pure."""

from __future__ import annotations

import time

from qanat.base.text import format_count
from qanat.monitor.snapshot import (
    ClientSnapshot,
    ConnectionSnapshot,
    Counts,
    ServerSnapshot,
    SessionSnapshot,
    Snapshot,
    is_telling,
)

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_CONNECTED = frozenset({"connected", "standby"})
_TOLD_ANYHOW = frozenset({"stuck", "away"})
"""Codes of findings that are of what `problems_of` sees by itself."""


def format_bytes(count: float) -> str:
    """Return so many bytes in a unit that suits: 512 B, 1.5 kB, 23 MB."""
    for unit in _UNITS[:-1]:
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def format_seconds(seconds: float) -> str:
    """Return a span in its two largest units: 12 s, 3 min 5 s, 2 h 10 min, 5 d 3 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def format_round_trip(seconds: float | None) -> str:
    """Return a round trip in milliseconds; a dash for one that is not known."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def format_moment(at: float, now: float) -> str:
    """Return a moment of Unix time as the clock shows it here, with its date unless that is today's."""
    moment = time.localtime(at)
    today = moment[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M", moment)


def counts_of(snapshot: Snapshot) -> Counts:
    """Return what all sessions come to, of which the snapshot may show some."""
    if isinstance(snapshot, ServerSnapshot) and snapshot.counts is not None:
        return snapshot.counts
    sessions = snapshot.sessions
    received, sent = (sum(rates) for rates in zip((0.0, 0.0), *map(_rates_of, sessions), strict=True))
    away = tuple(each.name for each in sessions if each.state != "connected")
    return Counts(
        sessions=len(sessions),
        connected=len(sessions) - len(away),
        away=away,
        streams=sum(map(count_streams, sessions)),
        rate_received=received,
        rate_sent=sent,
        telling_lanes=sum(len(each.lanes) for each in sessions if is_telling_session(each)),
        forwards=len(snapshot.forwards),
    )


def is_telling_session(session: SessionSnapshot) -> bool:
    """Return whether its lanes say more than it does itself."""
    return any(is_telling(lane.index, lane.outbox_bytes, lane.outbox_limit) for lane in session.lanes)


def problems_of(snapshot: Snapshot) -> tuple[str, ...]:
    """Return what is not as it should be, a phrase for each; empty when all is well."""
    found = [*snapshot.troubles]
    if isinstance(snapshot, ServerSnapshot):
        found += (f"{name} is away" for name in counts_of(snapshot).away)
    else:
        found += (_of_connection(each, snapshot.taken_at) for each in snapshot.servers if each.state not in _CONNECTED)
    found += (f"{each.listen}: {each.failure or each.state}" for each in snapshot.forwards if each.state == "failed")
    found += (each.title for each in snapshot.findings if each.severity == "error" and each.code not in _TOLD_ANYHOW)
    return tuple(found)


def summary_of(snapshot: Snapshot) -> str:
    """Return how it is in one line, for `systemctl status` and for who has many to look at."""
    counts = counts_of(snapshot)
    if isinstance(snapshot, ServerSnapshot):
        parts = [f"{format_count(counts.connected, 'client')} connected"]
        if counts.away:
            parts.append(f"{len(counts.away)} away")
    else:
        parts = [_of_connection(each, snapshot.taken_at) for each in snapshot.servers if each.state != "standby"]
    parts.append(format_count(counts.streams, "stream"))
    if counts.rate_received or counts.rate_sent:
        parts.append(f"{format_bytes(counts.rate_received)}/s received, {format_bytes(counts.rate_sent)}/s sent")
    parts += snapshot.troubles
    return "; ".join(parts)


def count_streams(session: SessionSnapshot) -> int:
    """Return how many streams a session has, of which its snapshot may show some."""
    return max(session.open_streams, len(session.streams))


def _rates_of(session: SessionSnapshot) -> tuple[float, float]:
    if len(session.streams) < session.open_streams:
        return session.rate_received, session.rate_sent
    return sum(each.rate_received for each in session.streams), sum(each.rate_sent for each in session.streams)


def _of_connection(each: ConnectionSnapshot, now: float) -> str:
    if each.state == "connected":
        return f"connected to {each.url} over {each.transport}" + (f" through {each.proxy}" if each.proxy else "")
    words = {"waiting": "not connected to", "refused": "refused by", "standby": "not using"}
    text = f"{words.get(each.state, each.state)} {each.url}"
    if each.state == "connecting":
        text = f"connecting to {each.url}"
    if each.next_try_at is not None and each.next_try_at > now:
        text += f", next try in {format_seconds(each.next_try_at - now)}"
    return text


def name_of(snapshot: Snapshot) -> str:
    """Return what people call this process."""
    return f"client {snapshot.name}" if isinstance(snapshot, ClientSnapshot) else f"server {snapshot.node}"
