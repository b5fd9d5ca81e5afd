"""What is wrong, in words: rules over one snapshot after another, for whoever sees only the page or `status`.

Each rule names the client, stream or path, says by which figures it was found, and where to look next.  A rule waits
until a state has lasted, so that nothing is told of what passes by itself; what ends is told no more at the next look.

    slow-target    what came for an application waits here, or the other end takes no more of a stream
    no-answer      a target was sent something and has not answered
    held-back      round trips are long though little moves, or bodies are held back: a proxy keeps bytes
    full-outbox    a retransmit buffer is full: what was sent is not acknowledged
    cut            connections are lost again and again
    flood          one client opens or moves most of what this end carries
    away           a session has no connection; a client does not reach its server
    silent         no answer to a ping, or nothing of what was sent is acknowledged
    handshakes     who wants in waits
    forward        a forward does not listen
    stuck          this process itself does not move

Pure, and not thread-safe: `look` has its clock from the snapshot.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from qanat.base.text import printable
from qanat.monitor.snapshot import (
    ClientSnapshot,
    Finding,
    LaneSnapshot,
    ServerSnapshot,
    SessionSnapshot,
    Snapshot,
    StreamSnapshot,
)

MOST = 50
"""Findings at most, the worst first."""
SEVERITIES = ("error", "warning", "note")

LASTS = 4.0
"""Seconds that most states must last."""
WAITING = 2.0
"""Seconds that bytes wait for an application at its present rate, from which on it is slow."""
LEAST_INBOX = 4096
SLOW_RATE = 256 * 1024
"""Bytes a second; whoever takes more is not called slow however much waits for it."""
NO_ANSWER = 3.0
ANSWER_FORGOTTEN = 300.0
"""Seconds after which nobody waits for that answer any more, as on an idle connection."""
LONG_TRIP = 1.0
LONGER_TRIP = 0.25
"""Seconds that are long for a path that is LONGER times faster at its best."""
LONGER = 5
IDLE_RATE = 64 * 1024
"""Bytes a second up to which a path is not made slow by what it carries."""
SILENT = 6.0
STILL = 100
"""Bytes a second up to which nothing moves."""
LEAST_OUTBOX = 4096
FULL = 0.95
"""Part of the retransmit buffer."""
CUTS_MINUTE = 3
CUTS_WINDOW = 60.0
CUTS_KEPT = 256
SHORTEST_LIMIT = 2.0
"""Seconds from which on a regular cut is called a time limit: of more frequent ones several fall between two looks,
and nobody sees how regular they are."""
FLOOD_RATE = 4 * 1024 * 1024
FLOOD_OPENS = 10.0
"""Streams a second."""
FLOOD_LASTS = 8.0
"""Seconds: a browser's page opens as many for a moment."""
FLOOD_SHARE = 0.8
AWAY = 3.0


@dataclass(slots=True)
class _LaneMemory:
    """What was seen of one lane of a session before."""

    recoveries: int = 0
    cuts: list[float] = field(default_factory=list)
    """When it got its next pipe after each cut."""

    def note(self, lane: LaneSnapshot, before: float, now: float) -> None:
        """Note the cuts since `before`, the last look.  The last of them has its moment from the lane's present pipe.

        Where there are several, the others are spread evenly between the one before them and it.
        """
        count = min(max(0, lane.recoveries - self.recoveries), CUTS_KEPT)
        self.recoveries = lane.recoveries
        self.cuts = [at for at in self.cuts if now - at <= CUTS_WINDOW]
        if count:
            last = lane.since if before < lane.since <= now else now
            start = self.cuts[-1] if self.cuts else before
            if start + (last - start) / count < before:
                start = before  # it was quiet in between
            self.cuts += [start + (last - start) * part / count for part in range(1, count + 1)]
            del self.cuts[:-CUTS_KEPT]


@dataclass(slots=True)
class _SessionMemory:
    """What was seen of one client's session before, or of the one that it had before that."""

    id: str
    at: float
    received: int
    sent: int
    opened: int
    least_trip: float | None = None
    rate: float = 0.0
    opens: float = 0.0
    ends: list[float] = field(default_factory=list)
    """When a session followed one that could not go on."""
    lanes: dict[int, _LaneMemory] = field(default_factory=dict)

    @property
    def cuts(self) -> list[float]:
        """When it was cut, in order.  What cuts all lanes at once is one cut: the lane with the most of them counts."""
        most = max((lane.cuts for lane in self.lanes.values()), key=len, default=[])
        return sorted([*self.ends, *most])


@dataclass(slots=True)
class _StreamMemory:
    """What was seen of one stream before."""

    at: float
    received: int
    sent: int
    received_at: float
    sent_at: float
    taken_rate: float = 0.0
    sent_rate: float = 0.0
    inbox: int = 0


class Findings:
    """Finds them, from one look to the next.  A look every few seconds is enough."""

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}
        self._seen: dict[Hashable, float] = {}
        self._sessions: dict[str, _SessionMemory] = {}
        self._streams: dict[str, _StreamMemory] = {}

    def look(self, snapshot: Snapshot) -> tuple[Finding, ...]:
        """Return what is wrong now, the worst first."""
        now = snapshot.taken_at
        self._seen = {}
        self._remember_sessions(now, snapshot)
        self._remember_streams(now, snapshot)
        found = [*self._of_process(snapshot), *self._of_sessions(now, snapshot), *self._of_streams(now, snapshot)]
        self._since = self._seen
        found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        return tuple(found[:MOST])

    def _lasted(self, key: Hashable, holds: bool, now: float) -> float:
        """Return for how many seconds `holds` has been so at each look; negative while it is not."""
        if not holds:
            return -1.0
        since = self._seen[key] = min(self._since.get(key, now), now)
        return now - since

    # --- what is remembered -----------------------------------------------------------------------

    def _remember_sessions(self, now: float, snapshot: Snapshot) -> None:
        before, self._sessions = self._sessions, {}
        for session in snapshot.sessions:
            if session.measures:
                continue
            key = f"{session.name} {session.address}" if isinstance(snapshot, ClientSnapshot) else session.name
            memory = before.get(key)
            if memory is None:
                memory = _SessionMemory(session.id, now, 0, 0, session.streams_opened)
                memory.received, memory.sent = session.bytes_received, session.bytes_sent
                if now - session.since > CUTS_WINDOW:  # else all its cuts were within the window
                    memory.lanes = {lane.index: _LaneMemory(lane.recoveries) for lane in session.lanes}
            elif memory.id != session.id:  # it could not go on with the one before
                began = session.since if memory.at < session.since <= now else now
                memory.ends = [*(at for at in memory.ends if now - at <= CUTS_WINDOW), began][-CUTS_KEPT:]
                memory.id, memory.received, memory.sent, memory.opened = session.id, 0, 0, 0
                for former in memory.lanes.values():
                    former.recoveries = 0
            seconds = now - memory.at
            if seconds > 0:
                moved = session.bytes_received + session.bytes_sent - memory.received - memory.sent
                memory.rate = max(0, moved) / seconds
                memory.opens = max(0, session.streams_opened - memory.opened) / seconds
            before_it = memory.at if memory.at < now else session.since
            for lane in session.lanes:
                if lane.recoveries or lane.index in memory.lanes:
                    memory.lanes.setdefault(lane.index, _LaneMemory()).note(lane, before_it, now)
            if len(memory.lanes) > len(session.lanes):  # some are over
                present = {lane.index for lane in session.lanes}
                memory.lanes = {index: lane for index, lane in memory.lanes.items() if lane.cuts or index in present}
            memory.at, memory.received, memory.sent = now, session.bytes_received, session.bytes_sent
            memory.opened = session.streams_opened
            if session.round_trip_s is not None:
                memory.least_trip = min(memory.least_trip or session.round_trip_s, session.round_trip_s)
            self._sessions[key] = memory
        for key, memory in before.items():  # a client between two sessions is still the one that was cut
            if key not in self._sessions and now - memory.at < CUTS_WINDOW:
                self._sessions[key] = memory

    def _remember_streams(self, now: float, snapshot: Snapshot) -> None:
        before, self._streams = self._streams, {}
        for session in snapshot.sessions:
            for stream in session.streams:
                memory = before.get(stream.id)
                if memory is None or memory.received > stream.bytes_received or memory.sent > stream.bytes_sent:
                    memory = _StreamMemory(now, 0, 0, stream.since, stream.since)
                    memory.received, memory.sent = stream.bytes_received, stream.bytes_sent
                    if stream.bytes_received:
                        memory.received_at = now
                    if stream.bytes_sent:
                        memory.sent_at = now
                else:
                    _update(memory, stream, now)
                memory.at, memory.inbox = now, stream.inbox_bytes
                self._streams[stream.id] = memory

    # --- the process, its connections and forwards --------------------------------------------------

    def _of_process(self, snapshot: Snapshot) -> Iterator[Finding]:
        now = snapshot.taken_at
        for trouble in snapshot.troubles:
            yield Finding(
                "error",
                "stuck",
                "",
                "This process does not move",
                f"{trouble}.",
                "Look at its CPU and the log; if it stays so, keep a `status --json` and restart it.",
            )
        if isinstance(snapshot, ServerSnapshot):
            yield from self._of_handshakes(now, snapshot)
        else:
            for server in snapshot.servers:
                if server.state in ("connected", "standby") or now - server.since < AWAY:
                    continue
                failure = server.last_failure
                why = f" Last failure: {_words(failure.text)}" if failure is not None else ""
                yield Finding(
                    "error",
                    "away",
                    server.url,
                    f"Not connected to {_words(server.url)}",
                    f"{server.state.capitalize()} for {_seconds(now - server.since)}.{why}",
                    "Run `tunnel.py doctor` with this configuration: it examines the way to the server step by step.",
                )
        for forward in snapshot.forwards:
            if forward.state == "failed":
                yield Finding(
                    "warning",
                    "forward",
                    forward.listen,
                    f"A forward of {_words(forward.client)} does not listen on {_words(forward.listen)}",
                    f"{_words(forward.failure) or 'It failed'}.",
                    "See who else has that address, and whether the server's rules allow it.",
                )

    def _of_handshakes(self, now: float, snapshot: ServerSnapshot) -> Iterator[Finding]:
        handshakes = snapshot.handshakes
        crowded = handshakes.queued > 0 or handshakes.running >= handshakes.limit > 0
        if self._lasted("handshakes", crowded, now) >= LASTS:
            yield Finding(
                "warning",
                "handshakes",
                "",
                "Whoever wants in has to wait",
                f"{handshakes.running} handshakes run of at most {handshakes.limit}, {handshakes.queued} more wait: "
                "many clients come back at once, or somebody without a token keeps asking.",
                "The log names the addresses that are refused; limit them in the proxy or firewall.",
            )

    # --- sessions -----------------------------------------------------------------------------------

    def _of_sessions(self, now: float, snapshot: Snapshot) -> Iterator[Finding]:
        client = isinstance(snapshot, ClientSnapshot)
        shown = [session for session in snapshot.sessions if not session.measures]
        for session in shown:
            memory = self._sessions[f"{session.name} {session.address}" if client else session.name]
            yield from self._cut(now, session, memory)
            yield from self._held_back(now, session, memory)
            for lane in session.lanes:
                yield from self._of_lane(now, session, lane, memory)
            if session.state != "connected" and not client:
                yield from self._away(now, session)
        if not client:
            yield from self._floods(now, shown)

    def _away(self, now: float, session: SessionSnapshot) -> Iterator[Finding]:
        lasted = self._lasted(("away", session.id), True, now)
        if lasted < AWAY:
            return
        until = "" if session.waits_until is None else f" It is given up in {_seconds(session.waits_until - now)}."
        failure = session.last_failure
        why = f" Its connection ended: {_words(failure.text)}." if failure is not None else ""
        yield Finding(
            "warning",
            "away",
            session.name,
            f"{_words(session.name)} has no connection",
            f"Streams that wait for it: {len(session.streams)}.{why}{until}",
            f"Look at that client's own page, status or log{_via(session.via)}.",
        )

    def _cut(self, now: float, session: SessionSnapshot, memory: _SessionMemory) -> Iterator[Finding]:
        cuts = [at for at in memory.cuts if now - at <= CUTS_WINDOW]
        if len(cuts) < CUTS_MINUTE:
            return
        distances = [after - before for before, after in itertools.pairwise(cuts)]
        every = (cuts[-1] - cuts[0]) / (len(cuts) - 1)
        regular = len(cuts) >= 4 and every >= SHORTEST_LIMIT and statistics.pstdev(distances) < 0.5 * every
        failure = session.last_failure
        why = f" The last time: {_words(failure.text)}." if failure is not None else ""
        yield Finding(
            "error",
            "cut",
            session.name,
            f"{_words(session.name)} is cut again and again, about every {_seconds(every)}",
            f"{len(cuts)} times in {_seconds(CUTS_WINDOW)}; its streams go on each time, but stall.{why}",
            ("So regular a cut is a time limit on the way: look" if regular else "Look")
            + f" at the timeouts and the log of the proxy{_via(session.via)}, and run `tunnel.py doctor` at the "
            "client.",
        )

    def _held_back(self, now: float, session: SessionSnapshot, memory: _SessionMemory) -> Iterator[Finding]:
        trip, least = session.round_trip_s, memory.least_trip
        connected = session.state == "connected"
        if trip is not None and least is not None:
            long = trip >= LONG_TRIP or (trip >= LONGER_TRIP and trip >= LONGER * least)
            idle = memory.rate < IDLE_RATE
            if self._lasted(("held", session.id), connected and long and idle, now) >= LASTS:
                best = f", {_seconds(least)} at its best" if least < trip / 2 else ""
                yield Finding(
                    "warning",
                    "held-back",
                    session.name,
                    f"Bytes are held back on the way to {_words(session.name)}",
                    f"A round trip takes {_seconds(trip)}{best}, though only {_rate(memory.rate)} are carried: not a "
                    f"full path, but something that keeps bytes, as a proxy that buffers{_via(session.via)}.",
                    "Switch buffering off there (nginx: proxy_buffering and proxy_request_buffering off), or try "
                    "another `transport`; `tunnel.py doctor` at the client finds which one passes.",
                )
            elif self._lasted(("full path", session.id), connected and trip >= LONG_TRIP and not idle, now) >= LASTS:
                yield Finding(
                    "note",
                    "held-back",
                    session.name,
                    f"The path to {_words(session.name)} is full",
                    f"A round trip takes {_seconds(trip)} while {_rate(memory.rate)} are carried.",
                    "A limit on that client's bulk (`rate_up`, `rate_down`) would give the others their answers back.",
                )
        if connected and session.transport.startswith("split"):
            yield Finding(
                "note",
                "held-back",
                session.name,
                f"{_words(session.name)} comes by plain requests ({_words(session.transport)})",
                f"Some proxy on its way{_via(session.via)} holds back or refuses what is open both ways, so what it "
                "sends waits for requests and answers"
                + (f"; a round trip takes {_seconds(trip)}." if trip is not None else "."),
                "If that proxy is yours, let WebSocket through (docs/PROXIES.md); the client's log says what failed.",
            )

    def _of_lane(
        self, now: float, session: SessionSnapshot, lane: LaneSnapshot, memory: _SessionMemory
    ) -> Iterator[Finding]:
        full = lane.outbox_limit > 0 and lane.outbox_bytes >= FULL * lane.outbox_limit
        lasted = self._lasted(("outbox", session.id, lane.index), full, now)
        if lasted >= LASTS:
            why = (
                f"The other end acknowledges too little of it: {_rate(memory.rate)} get through."
                if lane.connected
                else "It has no connection, and keeps what the other end has not acknowledged."
            )
            yield Finding(
                "error",
                "full-outbox",
                f"{session.name}/{lane.index}",
                f"Full outbox: nothing more can be sent to {_words(session.name)} (lane {lane.index})",
                f"{_bytes(lane.outbox_bytes)} of {_bytes(lane.outbox_limit)} have been unacknowledged for "
                f"{_seconds(lasted)}, so each of its streams waits. {why}",
                f"Look at the path{_via(lane.via or session.via)}: a stalled or slow link, a proxy that stopped "
                "reading. Only on a long, fast path is `flow.outbox` itself too small.",
            )
        unacknowledged = self._unacknowledged(now, session, lane, memory)
        silent = max(unacknowledged, lane.ping_waits_s or 0.0)
        if not full and lane.connected and silent >= max(SILENT, 4 * (lane.round_trip_s or 0.0)):
            yield Finding(
                "warning",
                "silent",
                f"{session.name}/{lane.index}",
                f"No answer from {_words(session.name)} (lane {lane.index})",
                f"Nothing that was sent to it for {_seconds(silent)} is acknowledged, though its connection is open: "
                f"something on the way{_via(lane.via or session.via)} swallows or holds back bytes, or its machine is "
                "gone.",
                "The connection is replaced when that lasts; if it comes again, look at the proxy or firewall there.",
            )

    def _unacknowledged(
        self, now: float, session: SessionSnapshot, lane: LaneSnapshot, memory: _SessionMemory
    ) -> float:
        """Return for how many seconds nothing has moved on `lane` though it has sent what is not acknowledged."""
        stands_still = lane.connected and lane.outbox_bytes >= LEAST_OUTBOX and memory.rate < STILL
        return self._lasted(("unacknowledged", session.id, lane.index), stands_still, now)

    def _floods(self, now: float, sessions: list[SessionSnapshot]) -> Iterator[Finding]:
        memories = [(session, self._sessions[session.name]) for session in sessions]
        rate = sum(memory.rate for _, memory in memories)
        opens = sum(memory.opens for _, memory in memories)
        for session, memory in memories:
            many = memory.opens >= FLOOD_OPENS and memory.opens >= FLOOD_SHARE * opens
            if self._lasted(("opens", session.id), many, now) >= FLOOD_LASTS:
                yield Finding(
                    "warning",
                    "flood",
                    session.name,
                    f"{_words(session.name)} floods: {memory.opens:.0f} new streams a second",
                    f"That is {100 * memory.opens / opens:.0f} % of all that are opened here; it has "
                    f"{len(session.streams)} open now.",
                    f"See where its streams lead (filter the streams for {_words(session.name)}/); bound it with "
                    "`limits` of that client, or take it out with `tunnel.py revoke`.",
                )
            much = len(memories) > 1 and memory.rate >= FLOOD_RATE and memory.rate >= FLOOD_SHARE * rate
            if self._lasted(("bytes", session.id), much, now) >= LASTS:
                yield Finding(
                    "warning",
                    "flood",
                    session.name,
                    f"{_words(session.name)} floods: {_rate(memory.rate)}",
                    f"That is {100 * memory.rate / rate:.0f} % of what is carried for {len(memories)} clients.",
                    f"See which of its streams that is (filter the streams for {_words(session.name)}/); bound it with "
                    "`rate_up` and `rate_down` of that client.",
                )

    # --- streams --------------------------------------------------------------------------------------

    def _of_streams(self, now: float, snapshot: Snapshot) -> Iterator[Finding]:
        client = isinstance(snapshot, ClientSnapshot)
        slow: dict[str, list[tuple[StreamSnapshot, str]]] = {}
        answers: dict[str, list[tuple[StreamSnapshot, float]]] = {}
        for session in snapshot.sessions:
            if session.measures:
                continue
            connected = session.state == "connected"
            stuck = {lane.index for lane in session.lanes if ("unacknowledged", session.id, lane.index) in self._seen}
            for stream in session.streams:
                passes = connected and _lane_of(stream.id) not in stuck
                memory = self._streams[stream.id]
                opened_here = _is_odd(stream.id) == client
                here, there = (stream.from_, stream.to) if opened_here else (stream.to, stream.from_)
                if (words := self._slow_here(now, stream, memory)) is not None:
                    slow.setdefault(here, []).append((stream, words))
                if passes and (words := self._slow_there(now, stream, memory)) is not None:
                    slow.setdefault(there, []).append((stream, words))
                elif passes and (seconds := _unanswered(now, stream, memory, opened_here)) is not None:
                    answers.setdefault(stream.to, []).append((stream, seconds))
        for name, found in slow.items():
            stream, words = found[0]
            is_target = stream.to == name
            yield Finding(
                "warning",
                "slow-target",
                name,
                f"Slow {'target' if is_target else 'application'}: {_words(name)}",
                f"{_streams(found)}: {words}. That holds up nothing but streams of its own.",
                "Look at that program and its machine (busy, stopped, waiting for a disk or a lock); the tunnel waits "
                "for it.",
            )
        for name, waiting in answers.items():
            if name not in slow:
                seconds = max(each for _, each in waiting)
                yield Finding(
                    "note",
                    "no-answer",
                    name,
                    f"Slow target? {_words(name)} has not answered for {_seconds(seconds)}",
                    f"{_streams(waiting)}: it was sent something and nothing has come back since.",
                    "If an answer is due, look at that program; where nobody waits for one, this is as it should be.",
                )

    def _slow_here(self, now: float, stream: StreamSnapshot, memory: _StreamMemory) -> str | None:
        """Return how slowly the application at this end takes what came for it, or None."""
        waits = stream.inbox_bytes
        is_slow = waits >= LEAST_INBOX and memory.taken_rate < SLOW_RATE and waits >= WAITING * memory.taken_rate
        lasted = self._lasted(("inbox", stream.id), is_slow, now)
        if lasted < LASTS:
            return None
        return (
            f"{_bytes(waits)} have waited for it for {_seconds(lasted)}, of which it takes {_rate(memory.taken_rate)}"
        )

    def _slow_there(self, now: float, stream: StreamSnapshot, memory: _StreamMemory) -> str | None:
        """Return how slowly the other end takes what goes there, or None."""
        is_slow = stream.peer_takes_no_more and memory.sent_rate < SLOW_RATE
        lasted = self._lasted(("credit", stream.id), is_slow, now)
        if lasted < LASTS:
            return None
        return (
            f"the other end has taken no more of what goes there for {_seconds(lasted)} ({_rate(memory.sent_rate)}), "
            f"and {_bytes(stream.queued_bytes)} wait here"
        )


def _update(memory: _StreamMemory, stream: StreamSnapshot, now: float) -> None:
    seconds = max(now - memory.at, 0.001)
    received, sent = stream.bytes_received - memory.received, stream.bytes_sent - memory.sent
    memory.taken_rate = max(0, received + memory.inbox - stream.inbox_bytes) / seconds
    memory.sent_rate = sent / seconds
    if received:
        memory.received, memory.received_at = stream.bytes_received, now
    if sent:
        memory.sent, memory.sent_at = stream.bytes_sent, now


def _unanswered(now: float, stream: StreamSnapshot, memory: _StreamMemory, opened_here: bool) -> float | None:
    """Return for how long the stream's target has owed an answer, as far as one can tell from outside, or None."""
    asked, answered = (memory.sent_at, memory.received_at) if opened_here else (memory.received_at, memory.sent_at)
    has_asked = bool(stream.bytes_sent if opened_here else stream.bytes_received)
    waits = now - asked
    return waits if has_asked and asked > answered and NO_ANSWER <= waits <= ANSWER_FORGOTTEN else None


def _lane_of(stream_id: str) -> int:
    """Return the lane of a stream's id (NAME/LANE/NUMBER)."""
    parts = stream_id.rsplit("/", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


def _is_odd(stream_id: str) -> bool:
    """Return whether a stream's number is odd: the client opened it (PROTOCOL.md)."""
    return stream_id[-1:] in "13579"


def _streams(found: list[tuple[StreamSnapshot, str]] | list[tuple[StreamSnapshot, float]]) -> str:
    first = found[0][0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"Stream {_words(first.id)}{more}, {_words(first.from_)} → {_words(first.to)}"


def _via(via: str) -> str:
    return f" ({_words(via)})" if via else ""


def _words(text: str) -> str:
    return printable(text, 200)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _rate(rate: float) -> str:
    return f"{_bytes(rate)}/s"


def _seconds(seconds: float) -> str:
    if seconds < 0.995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s".replace(".0 ", " ")
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
