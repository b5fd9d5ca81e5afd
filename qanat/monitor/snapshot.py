"""What a running client or server looks like at one moment: frozen values, and their JSON (docs/CONTROL.md).

`Server.snapshot` and `Client.snapshot` make them; `tunnel.py status`, the metrics and the page show them, and nobody
else asks a lane or a session how it is.  Times `since`, `…_at` and `…_until` are seconds of Unix time, ages and round
trips are seconds, sizes are bytes, rates are bytes a second.  "Received" is what came from the other end of the tunnel,
"sent" what went there.

A field is added, never renamed or given another sense while `version` stays 1.  Pure.

The parts, of which there may be thousands, are named tuples: made in a fifth of the time that a frozen dataclass takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

VERSION = 1

_LEAVES = frozenset({str, int, float, bool, NoneType})
"""What JSON has too."""


class Failure(NamedTuple):
    """What went wrong last, and when."""

    at: float
    text: str


class StreamSnapshot(NamedTuple):
    """One forwarded connection, or one flow of datagrams."""

    id: str
    """NAME/LANE/NUMBER, which `kick` takes."""
    kind: str
    """tcp, udp, unix, dynamic, stdio or measure."""
    forward: str
    """The forward that it came to, where this end knows that; else empty."""
    from_: str
    """Who connected."""
    to: str
    """Where it leads, as far as this end knows."""
    since: float
    age_s: float
    bytes_received: int = 0
    bytes_sent: int = 0
    rate_received: float = 0.0
    rate_sent: float = 0.0
    queued_bytes: int = 0
    """What waits here: for the wire, and for the application."""
    inbox_bytes: int = 0
    """The part of it that has come and waits for the application."""
    peer_takes_no_more: bool = False
    """Whether the other end has taken so little that nothing more may be sent."""


class LaneSnapshot(NamedTuple):
    """One lane of a session, and the pipe that carries it."""

    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody calls
    connected: bool
    transport: str
    """That of its pipe, or of the last one it had."""
    address: str
    """The other end: a client's address at a server, the URL at a client."""
    via: str
    """The proxy on the way: the one that a server was reached from, the one that a client dials through; else empty."""
    since: float
    """When its pipe began, or when it lost the last one."""
    round_trip_s: float | None
    queued_bytes: int
    """Payload of its streams that no record has yet."""
    outbox_bytes: int
    """What the retransmit buffer holds, and its limit: at the limit streams wait for an ACK."""
    outbox_limit: int
    epochs: int
    """How many pipes it has had."""
    recoveries: int = 0
    replayed_bytes: int = 0
    ping_waits_s: float | None = None
    """For how long the last PING has had no answer; None once it has one."""


class SessionSnapshot(NamedTuple):
    """One session: at a server one client's, at a client the one with a server."""

    id: str
    """Short, public and the same at both ends; it proves nothing."""
    name: str
    since: float
    state: str
    """connected, or waiting for its client (or for a connection to the server)."""
    waits_until: float | None
    """When a session that waits is given up."""
    transport: str
    address: str
    via: str
    agent: str
    """What the other end calls itself."""
    round_trip_s: float | None
    lanes: tuple[LaneSnapshot, ...] = ()
    streams: tuple[StreamSnapshot, ...] = ()
    bytes_received: int = 0
    """Payload since the session began, that of streams that are over included."""
    bytes_sent: int = 0
    queued_bytes: int = 0
    recoveries: int = 0
    last_recovery_s: float | None = None
    """How long the last recovery took."""
    replayed_bytes: int = 0
    last_failure: Failure | None = None
    streams_opened: int = 0
    """How many there have been."""
    measures: bool = False
    """Whether it is for measuring alone (`bench`)."""
    open_streams: int = 0
    """How many streams are open on the wire, also where not all, or none, of `streams` were asked for."""
    rate_received: float = 0.0
    """Those of its streams together, likewise."""
    rate_sent: float = 0.0
    peer: str = ""
    """Who is at the other end, as in `PeerTotals`."""


class ForwardSnapshot(NamedTuple):
    """One forward: a local or dynamic one of a client, or what a server listens on for one of its clients."""

    kind: str
    """local, remote or dynamic."""
    listen: str
    to: str
    client: str
    """The client whose forward it is."""
    state: str
    """listening, waiting (for a session, or for the server's answer) or failed."""
    failure: str = ""


class HandshakesSnapshot(NamedTuple):
    """What strangers cost a server now, beside the limits of that."""

    running: int
    limit: int
    queued: int
    """Places that were promised in an answer 503."""
    unfinished: int
    """Connections that are not pipes yet."""
    connections_limit: int


class Totals(NamedTuple):
    """Since this process began, sessions that are over included."""

    sessions: int = 0
    streams: int = 0
    """Those of live sessions and of ended ones."""
    bytes_received: int = 0
    bytes_sent: int = 0
    recoveries: int = 0
    replayed_bytes: int = 0


class Counts(NamedTuple):
    """What all sessions of a server come to, where a snapshot shows some of them."""

    sessions: int
    connected: int
    away: tuple[str, ...]
    """The names of those that have no connection."""
    streams: int
    """How many are open on the wire."""
    rate_received: float
    rate_sent: float
    telling_lanes: int
    """How many lanes there are in sessions of which one is telling (`is_telling`)."""
    forwards: int = 0


def is_telling(index: int, outbox: int, limit: int) -> bool:
    """Return whether a lane says more than its session does: there are several, or its retransmit buffer is full."""
    return index > 0 or outbox >= limit > 0


class PeerTotals(NamedTuple):
    """The same for one client of a server, which may have no session now, or one server of a client."""

    name: str
    """A client's name, or a server's first URL."""
    totals: Totals


class ConnectionSnapshot(NamedTuple):
    """What a client does about one of its servers."""

    url: str
    state: str
    """connected, reconnecting, connecting, waiting, refused, or standby while another server serves."""
    transport: str
    since: float
    """Since when it is in that state."""
    last_failure: Failure | None
    next_try_at: float | None
    proxy: str


class Finding(NamedTuple):
    """One thing that is wrong, in words (`qanat.monitor.findings`)."""

    severity: str
    """error, warning or note."""
    code: str
    subject: str
    """The client, stream, target or address that it is about."""
    title: str
    text: str
    next: str
    """What to look at, or do, next."""


class _Whole:
    """What a whole process's snapshot can do, whichever end it is of."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as what `json.dumps` takes."""
        found: dict[str, Any] = plain(self)
        return found


@dataclass(frozen=True, slots=True)
class ServerSnapshot(_Whole):
    """A server."""

    node: str
    agent: str
    pid: int
    started_at: float
    taken_at: float
    config: str | None
    """The configuration file's path, absolute."""
    fingerprint: str
    listening: tuple[str, ...]
    sessions: tuple[SessionSnapshot, ...]
    forwards: tuple[ForwardSnapshot, ...]
    handshakes: HandshakesSnapshot
    totals: Totals
    threads: int
    memory_bytes: int | None
    """The resident set; None where the system does not say."""
    troubles: tuple[str, ...] = ()
    """What does not move though it should; empty while all lanes do."""
    peers: tuple[PeerTotals, ...] = ()
    """What each client has carried, in the configuration's order; empty where not all sessions were asked for."""
    findings: tuple[Finding, ...] = ()
    """What is wrong, the worst first; known to an end that has `monitor:` alone."""
    counts: Counts | None = None
    """What all sessions come to, where not all were asked for."""
    version: int = VERSION
    role: str = "server"


@dataclass(frozen=True, slots=True)
class ClientSnapshot(_Whole):
    """A client."""

    name: str
    agent: str
    pid: int
    started_at: float
    taken_at: float
    config: str | None
    """As for a server; None for a client that was started with a URL."""
    servers: tuple[ConnectionSnapshot, ...]
    sessions: tuple[SessionSnapshot, ...]
    forwards: tuple[ForwardSnapshot, ...]
    totals: Totals
    threads: int
    memory_bytes: int | None
    troubles: tuple[str, ...] = ()
    peers: tuple[PeerTotals, ...] = ()
    """What each server has carried, likewise."""
    findings: tuple[Finding, ...] = ()
    """What is wrong, the worst first; known to an end that has `monitor:` alone."""
    version: int = VERSION
    role: str = "client"


Snapshot = ServerSnapshot | ClientSnapshot


def streams_of(snapshot: Snapshot) -> Iterator[StreamSnapshot]:
    """Yield every stream of every session."""
    for session in snapshot.sessions:
        yield from session.streams


@cache
def _form(kind: type) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]], tuple[str, ...]] | None:
    """Return a class's keys, what takes its values, and which of the keys have more below; None for what is no part."""
    take: Callable[[Any], tuple[Any, ...]]
    if is_dataclass(kind):
        names = tuple(each.name for each in fields(kind))
        take = attrgetter(*names)
    elif hasattr(kind, "_fields"):
        names, take = kind._fields, tuple  # it is one
    else:
        return None
    keys = tuple(name.rstrip("_") for name in names)
    hints = get_type_hints(kind).values()
    deep = tuple(
        key for key, hint in zip(keys, hints, strict=True) if not _LEAVES.issuperset(get_args(hint) or (hint,))
    )
    return keys, take, deep


def plain(value: Any) -> Any:
    """Return a snapshot, or a part of one, as dictionaries and lists; far cheaper than `dataclasses.asdict`."""
    if type(value) is tuple:
        return [plain(each) for each in value]
    kind: Any = type(value)
    form = _form(kind)
    if form is None:
        return value
    keys, take, deep = form
    made = dict(zip(keys, take(value), strict=True))
    for key in deep:
        made[key] = plain(made[key])
    return made
