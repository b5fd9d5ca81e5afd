"""What a client's other settings mean while it runs: which servers stay, and when each changed option counts.  Pure.

`qanat.client.client` puts it into effect; its forwards are `qanat.client.forward_changes`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qanat.config.changes import changes_between
from qanat.config.client_settings import ClientSettings, RemoteServer

AT_ONCE = "at once"
NEXT_CONNECTION = "with the next connection"
NEXT_SESSION = "with the next session"
MOVES = "the connections are replaced, and streams move along"
AT_START = "counts only at the start"
RESTART = "needs a restart"

_WHEN = {
    "allow_connect": f"{AT_ONCE}; open connections that it forbids are reset",
    "connect": AT_ONCE,
    "failover_after": AT_ONCE,
    "drain": AT_ONCE,
    "reconnect": AT_ONCE,
    "monitor": AT_ONCE,
    "max_pipe_age": NEXT_CONNECTION,
    "connect_timeout": NEXT_CONNECTION,
    "handshake_timeout": NEXT_CONNECTION,
    "keepalive.timeout": NEXT_CONNECTION,
    "keepalive.interval": NEXT_SESSION,
    "lanes": NEXT_SESSION,
    "flow": NEXT_SESSION,
    "application_keepalive": f"{NEXT_SESSION}, and for forwards that are bound from now on",
    "transport": MOVES,
    "tls": MOVES,
    "proxy": MOVES,
    "connect_to": MOVES,
    "host": MOVES,
    "headers": MOVES,
    "exit_on_forward_failure": AT_START,
}
"""When an option counts, by its key or that of its section; what is not here needs a restart."""
_ELSEWHERE = frozenset({"servers", "forwards", "log", "watch_config"})
"""What is reported by whoever puts it into effect."""
_STAY = ("name", "pid_file", "state_dir")
"""Fields that a running client keeps as it was started with."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The servers of two settings, one beside the other."""

    kept: tuple[tuple[int, int], ...]
    """Which stay: the index before, and the one after."""
    moved: tuple[int, int] | None
    """The only server before and the only one after, which may be one and the same or not: the server will tell."""
    removed: tuple[int, ...]
    added: tuple[int, ...]


def plan_servers(before: Sequence[RemoteServer], after: Sequence[RemoteServer]) -> ServerPlan:
    """Return which servers stay: those with the same URLs, else with one in common, else with the same key pinned."""
    left, kept = dict(enumerate(before)), dict[int, int]()
    for same in (_has_all_urls, _shares_url, _has_same_key):
        for index, server in enumerate(after):
            found = next((n for n, one in left.items() if same(one, server)), None) if index not in kept else None
            if found is not None:
                kept[index] = found
                del left[found]
    added = [index for index in range(len(after)) if index not in kept]
    moved = (0, 0) if len(before) == len(after) == 1 and added else None
    if moved is not None:
        left, added = {}, []
    return ServerPlan(tuple((n, index) for index, n in sorted(kept.items())), moved, tuple(left), tuple(added))


def _has_all_urls(one: RemoteServer, other: RemoteServer) -> bool:
    return one.urls == other.urls


def _shares_url(one: RemoteServer, other: RemoteServer) -> bool:
    return not set(one.urls).isdisjoint(other.urls)


def _has_same_key(one: RemoteServer, other: RemoteServer) -> bool:
    return one.fingerprint is not None and one.fingerprint == other.fingerprint


def describe_server_change(before: RemoteServer, after: RemoteServer) -> list[str]:
    """Return in words what is different about a server that stays, and when that counts."""
    name, said = after.urls[0], []
    if before.urls != after.urls:
        said.append(f"server {name}: other URLs, {NEXT_CONNECTION}; a connection over one that is gone is replaced")
    if before.token != after.token:
        said.append(f"server {name}: another token, {NEXT_CONNECTION}; the present session goes on")
    if before.fingerprint != after.fingerprint:
        said.append(f"server {name}: another server_fingerprint, {NEXT_CONNECTION}")
    return said


def describe_options(before: ClientSettings, after: ClientSettings) -> list[str]:
    """Return in words which other options are different, and when each counts."""
    said = []
    for change in changes_between(before, after):
        section = change.key.partition(".")[0]
        if section not in _ELSEWHERE:
            said.append(f"{change}: {_WHEN.get(change.key) or _WHEN.get(section, RESTART)}")
    return said


def effective(before: ClientSettings, after: ClientSettings) -> ClientSettings:
    """Return `after` with what only a restart can change left as it is."""
    return replace(after, **{field: getattr(before, field) for field in _STAY})
