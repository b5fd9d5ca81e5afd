"""The live page's server side: it looks at this process now and then, keeps the last hour, and tells whoever watches.

    GET /          the page, and its files under /assets/
    GET /events    server-sent events: the present state, what is new of the last hour and of the log
    GET /rows      other rows of the tables than the first ones
    GET /history   the last hour of one client, or of all

One look serves everybody who watches: every WATCHED seconds while somebody does, every INTERVAL otherwise, and less
often where a look takes long, so that looking never takes more than a tenth of one core.  A look is made by a pooled
thread; in between the page has none.  What is sent is never queued here: a browser that does not take it is cut off by
the listener, and comes back by itself.  Nothing can be changed by this page.
"""

from __future__ import annotations

import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from qanat.base.errors import NoThread
from qanat.base.long_work import long_work
from qanat.base.request_head import RequestHead
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.monitor.findings import Findings
from qanat.monitor.history import INTERVAL, History, Sample
from qanat.monitor.http import EventStream, Handler, Response, failure
from qanat.monitor.page.assets import asset_routes
from qanat.monitor.page.rows import FIRST, Rates, forward_rows, parse_wanted, server_rows, session_rows, stream_rows
from qanat.monitor.snapshot import Finding, ServerSnapshot, Snapshot, plain, streams_of
from qanat.process.log_lines import Line, LogLines

log = logging.getLogger("qanat.monitor")

WATCHED = 2.0
"""Seconds between looks while somebody watches."""
SHARE = 10
"""Times as long as a look takes passes until the next one at least."""
FRESH = 1.0
"""Seconds for which a look is good enough for whoever comes new."""
LEAST_SPAN = 0.5
"""Seconds over which a rate is taken at least."""
WATCHERS = 16
"""Browsers that may watch at once."""
_JSON = "application/json"


class Page:
    """See the module's docstring.  Any thread may call its methods."""

    def __init__(self, take: Callable[[], Snapshot], watcher: Watcher) -> None:
        """`take` says how this process is; it is called by threads of this page, and by those that serve requests."""
        self._take = take
        self._watcher = watcher
        self._threads = ThreadGroup("page")
        self._timer = watcher.timer(self._look_is_due)
        self._due = 0.0
        self._closed = False
        self._guard = threading.Lock()  # guards the watchers, for moments
        self._watchers: set[EventStream] = set()
        self._lock = threading.Lock()  # guards what follows; held while looking
        self._history = History()
        self._findings = Findings()
        self._lines = LogLines()
        self._told_lines = 0
        self._looked_at = 0.0
        self._sampled_at = -INTERVAL
        self._before: tuple[float, dict[str, tuple[int, int]]] = (0.0, {})
        self._rates: Rates = {}
        self._found: tuple[Finding, ...] = ()
        self._seen: tuple[Snapshot, Rates] | None = None  # read without the lock
        self.routes: Mapping[str, Handler] = {
            **asset_routes(),
            "/events": self._events,
            "/rows": self._rows,
            "/history": self._hour,
        }
        """What answers for each path of the page."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the last look found wrong."""
        return self._found

    def start(self) -> None:
        """Keep log lines and history from now on.  Does not block."""
        self._lines.start()
        self._look_again(0.0)

    def close(self, timeout: float = 0.0) -> list[str]:
        """Look no more, and end what the watchers have.  Idempotent.

        Blocks at most `timeout` seconds for a look that has begun; returns the names of threads that still run.
        """
        self._closed = True
        self._timer.cancel()
        self._lines.close()
        with self._guard:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.close()
        return self._threads.join(timeout)

    # --- looking ----------------------------------------------------------------------------------

    def _look_again(self, seconds: float) -> None:
        self._due = time.monotonic() + seconds
        try:
            self._timer.set(self._due)
        except (NoThread, OSError):
            log.warning("the page stands still: the system gives no thread for its clock")

    def _look_is_due(self) -> None:
        """Have somebody look.  By the watcher; a time that was set before the present one counts no more."""
        if self._closed:
            return
        if time.monotonic() < self._due:
            self._timer.set(self._due)
            return
        try:
            self._threads.start("page", self._look_and_tell)
        except NoThread:
            self._look_again(INTERVAL)

    def _look_and_tell(self) -> None:
        began = time.monotonic()
        try:
            with self._lock, long_work():
                samples = self._look_locked()
                self._tell_locked(samples)
                with self._guard:
                    unseen = not self._watchers
                if unseen:  # what stays makes the collector go through everything, which takes long where this is much
                    self._seen = None
        except Exception:
            log_unexpected("looking at what the page shows failed")
        took = time.monotonic() - began
        with self._guard:
            wanted = WATCHED if self._watchers else INTERVAL
        if not self._closed:
            self._look_again(max(wanted, SHARE * took))

    def _look_locked(self) -> list[Mapping[str, Sample]]:
        """Look, and return the samples that were taken: one or none."""
        snapshot = self._take()
        at, before = self._before
        if snapshot.taken_at - at >= LEAST_SPAN or snapshot.taken_at < at:
            self._rates = {
                session.id: _rates(
                    session.bytes_received, session.bytes_sent, before[session.id], snapshot.taken_at - at
                )
                for session in snapshot.sessions
                if session.id in before
            }
            totals = {session.id: (session.bytes_received, session.bytes_sent) for session in snapshot.sessions}
            self._before = (snapshot.taken_at, totals)
            self._found = self._findings.look(snapshot)
        self._looked_at = time.monotonic()
        self._seen = (snapshot, self._rates)
        if self._looked_at - self._sampled_at < INTERVAL - 0.5:
            return []
        self._sampled_at = self._looked_at
        return [self._history.add(snapshot)]

    def _tell_locked(self, samples: list[Mapping[str, Sample]]) -> None:
        """Send everybody what is new."""
        self._told_lines, lines = self._lines.since(self._told_lines)
        with self._guard:
            watchers = list(self._watchers)
        if watchers:
            event = self._event_locked(samples, lines)
            for watcher in watchers:
                watcher.send(event)

    def _event_locked(self, samples: list[Mapping[str, Sample]], lines: list[Line], *, first: bool = False) -> bytes:
        assert self._seen is not None
        snapshot, rates = self._seen
        state = {
            "first": first,
            **_heading(snapshot),
            "findings": plain(self._found),
            "totals": self._totals_locked(snapshot),
            "servers": server_rows(snapshot),
            "sessions": session_rows(snapshot.sessions, rates, FIRST),
            "streams": stream_rows(list(streams_of(snapshot)), FIRST),
            "forwards": forward_rows(snapshot.forwards),
            "plotted": self._history.plotted,
            "samples": [{"by": sample} for sample in samples],
            "log": lines,
        }
        return f"event: state\ndata: {_json(state)}\n\n".encode()

    def _totals_locked(self, snapshot: Snapshot) -> dict[str, Any]:
        sessions = snapshot.sessions
        lanes = [lane for session in sessions for lane in session.lanes]
        trips = [session.round_trip_s for session in sessions if session.round_trip_s is not None]
        more = {}
        if isinstance(snapshot, ServerSnapshot):
            handshakes = snapshot.handshakes
            waiting = f", {handshakes.queued} wait" if handshakes.queued else ""
            more["Handshakes"] = f"{handshakes.running} of {handshakes.limit}{waiting}"
        return {
            "sessions_total": len(sessions),
            "sessions_connected": sum(session.state == "connected" for session in sessions),
            "streams_total": sum(len(session.streams) for session in sessions),
            "rate_received": sum(received for received, _ in self._rates.values()),
            "rate_sent": sum(sent for _, sent in self._rates.values()),
            "round_trip": statistics.median(trips) if trips else None,
            "round_trip_most": max(
                (lane.round_trip_s for lane in lanes if lane.round_trip_s is not None), default=None
            ),
            "queued_bytes": sum(session.queued_bytes for session in sessions),
            "outbox_bytes": sum(lane.outbox_bytes for lane in lanes),
            "recoveries_hour": self._history.recoveries(snapshot.taken_at),
            "threads": snapshot.threads,
            "memory_bytes": snapshot.memory_bytes,
            "more": more,
        }

    # --- answering ----------------------------------------------------------------------------------

    def _events(self, head: RequestHead) -> Response:
        with self._guard:
            full = self._closed or len(self._watchers) >= WATCHERS
        if full:
            return failure(503, f"{WATCHERS} pages are open already; close one of them.")
        return Response(content_type="text/event-stream", headers={"X-Accel-Buffering": "no"}, stream=self._watch)

    def _watch(self, watcher: EventStream) -> None:
        """Tell `watcher` how things are, and then what is new."""
        with self._lock:
            if self._seen is None or time.monotonic() - self._looked_at > FRESH:
                self._tell_locked(self._look_locked())
            with self._guard:
                # Several may have come at once while there was room for one: who is too many asks again, and hears why.
                full = len(self._watchers) >= WATCHERS
                if not self._closed and not full:
                    self._watchers.add(watcher)
            if full:
                watcher.close()
                return
            watcher.on_close(lambda: self._gone(watcher))
            count, lines = self._lines.since(0)
            told = len(lines) - (count - self._told_lines)  # the others come with the next look
            watcher.send(self._event_locked([], lines[: max(0, told)], first=True))
        if self._closed:
            watcher.close()
        self._look_again(WATCHED)

    def _gone(self, watcher: EventStream) -> None:
        with self._guard:
            self._watchers.discard(watcher)

    def _rows(self, head: RequestHead) -> Response:
        table, wanted = parse_wanted(head.query)
        seen = self._seen
        if seen is None:  # nobody watches
            with self._lock, long_work():
                self._tell_locked(self._look_locked())
                seen = self._seen
        assert seen is not None
        snapshot, rates = seen
        if table == "sessions":
            return _answer(session_rows(snapshot.sessions, rates, wanted))
        if table == "streams":
            return _answer(stream_rows(list(streams_of(snapshot)), wanted))
        return failure(400, "Ask with of=sessions or of=streams.")

    def _hour(self, head: RequestHead) -> Response:
        try:
            names = parse_qs(head.query, keep_blank_values=True, max_num_fields=1).get("of", [""])
        except ValueError:
            return failure(400, "Ask with of=CLIENT, or of= for all.")
        with self._lock:
            return _answer(self._history.columns(names[-1]))


def _heading(snapshot: Snapshot) -> dict[str, Any]:
    if isinstance(snapshot, ServerSnapshot):
        name, where = snapshot.node, f" on {', '.join(snapshot.listening)}"
    else:
        name, where = snapshot.name, ""
    config = f", {snapshot.config}" if snapshot.config else ""
    return {
        "now": snapshot.taken_at,
        "started_at": snapshot.started_at,
        "title": f"{name} ({snapshot.role})",
        "about": f"{snapshot.agent}{where}, process {snapshot.pid}{config}",
    }


def _rates(received: int, sent: int, before: tuple[int, int], seconds: float) -> tuple[float, float]:
    seconds = max(seconds, LEAST_SPAN)
    return max(0, received - before[0]) / seconds, max(0, sent - before[1]) / seconds


def _answer(content: object) -> Response:
    return Response(_json(content).encode(), _JSON)


def _json(content: object) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)
