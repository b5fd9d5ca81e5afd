"""The last hour of a client or server, in memory: what the page plots.

One sample every INTERVAL seconds, of all sessions together and of each client's while there are at most CLIENTS of
them; SAMPLES of each are kept, so that it takes about two megabytes however long the process runs.  A client that
was not seen for as long as its samples last is forgotten.  Pure, and not thread-safe: its caller has a lock.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Mapping, Sequence

from qanat.monitor.snapshot import SessionSnapshot, Snapshot

INTERVAL = 5.0
"""Seconds between samples."""
SAMPLES = 720
CLIENTS = 50
ALL = ""
"""The name under which all sessions together are kept; no client has it."""
COLUMNS = ("at", "received", "sent", "round_trip", "round_trip_most", "streams", "sessions", "recoveries")
"""Of a sample: Unix time; bytes a second from and to the peers; seconds, the median of the sessions and the most of
their lanes; counts at that moment; and the recoveries since the sample before."""

Sample = Mapping[str, float | None]
"""By COLUMNS; None where nothing is known."""


class History:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {ALL: _Series()}
        self._before: dict[str, tuple[float, int, int, int]] = {}  # by session: when, received, sent, recoveries
        self.plotted: tuple[str, ...] = ()
        """The clients that have samples of their own, in their order."""

    def add(self, snapshot: Snapshot) -> dict[str, Sample]:
        """Add what `snapshot` shows; return it by the names of those who have samples, that of ALL included."""
        now = snapshot.taken_at
        changes = self._changes(now, snapshot.sessions)
        groups: dict[str, list[SessionSnapshot]] = {}
        for session in snapshot.sessions:
            groups.setdefault(session.name, []).append(session)
        samples = {ALL: _sample(now, snapshot.sessions, changes)}
        for name, sessions in groups.items():
            if name in self._series or len(self._series) <= CLIENTS:
                samples[name] = _sample(now, sessions, changes)
                self._series.setdefault(name, _Series())
        for name, sample in samples.items():
            self._series.setdefault(name, _Series()).add(sample)
        self._forget(now)
        return samples

    def columns(self, name: str) -> dict[str, list[float | None]]:
        """Return all samples of `name`, the oldest first, as lists by COLUMNS; empty ones when there are none."""
        series = self._series.get(name)
        return {column: [] for column in COLUMNS} if series is None else series.columns()

    def recoveries(self, now: float) -> int:
        """Return how many there were within the last hour."""
        series = self._series.get(ALL)
        return 0 if series is None else int(series.total("recoveries", now - INTERVAL * SAMPLES))

    def _changes(self, now: float, sessions: Sequence[SessionSnapshot]) -> dict[str, tuple[float, float, int]]:
        """Return by session what came and went a second since the sample before, and the recoveries."""
        changes = {}
        before, self._before = self._before, {}
        for session in sessions:
            totals = (session.bytes_received, session.bytes_sent, session.recoveries)
            self._before[session.id] = (now, *totals)
            at, received, sent, recoveries = before.get(session.id, (session.since, 0, 0, 0))
            seconds = max(now - at, 0.001)
            changes[session.id] = (
                max(0, totals[0] - received) / seconds,
                max(0, totals[1] - sent) / seconds,
                max(0, totals[2] - recoveries),
            )
        return changes

    def _forget(self, now: float) -> None:
        for name, series in list(self._series.items()):
            if name != ALL and not now - INTERVAL * SAMPLES <= series.last <= now:
                del self._series[name]
        self.plotted = tuple(sorted(name for name in self._series if name != ALL))


class _Series:
    """The samples of one name."""

    def __init__(self) -> None:
        self._columns = {column: array("d") for column in COLUMNS}

    @property
    def last(self) -> float:
        """When the last one was taken."""
        at = self._columns["at"]
        return at[-1] if at else -math.inf

    def add(self, sample: Sample) -> None:
        """Add one, and let go of the oldest."""
        for name, column in self._columns.items():
            value = sample[name]
            column.append(math.nan if value is None else value)
            if len(column) > SAMPLES:
                del column[0]

    def columns(self) -> dict[str, list[float | None]]:
        """Return them all."""
        return {
            name: [None if math.isnan(value) else value for value in column] for name, column in self._columns.items()
        }

    def total(self, name: str, since: float) -> float:
        """Return the sum of a column's values since that moment."""
        columns = self._columns
        return sum(value for at, value in zip(columns["at"], columns[name], strict=True) if at >= since)


def _sample(now: float, sessions: Sequence[SessionSnapshot], changes: Mapping[str, tuple[float, float, int]]) -> Sample:
    trips = [session.round_trip_s for session in sessions if session.round_trip_s is not None]
    longest = [lane.round_trip_s for session in sessions for lane in session.lanes if lane.round_trip_s is not None]
    return {
        "at": now,
        "received": sum(changes[session.id][0] for session in sessions),
        "sent": sum(changes[session.id][1] for session in sessions),
        "round_trip": statistics.median(trips) if trips else None,
        "round_trip_most": max([*trips, *longest], default=None),
        "streams": sum(len(session.streams) for session in sessions),
        "sessions": sum(session.state == "connected" for session in sessions),
        "recoveries": sum(changes[session.id][2] for session in sessions),
    }
