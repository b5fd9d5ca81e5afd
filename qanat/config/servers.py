"""Which servers a client goes to, in a configuration file: one by `url` and its token, or those in `servers`.

`qanat.config.client` calls this.  How each server is reached is in `qanat.config.route`.
"""

from __future__ import annotations

from qanat.base.errors import UsageError
from qanat.config.fingerprints import check_fingerprint
from qanat.config.parts import check_url, keys_of, read_tokens
from qanat.config.section import Section
from qanat.config.settings import ClientSettings, RemoteServer
from qanat.transports.dial.urls import TunnelUrl

FIRST, ALL = "first", "all"

_DEFAULT = ClientSettings(name="", servers=())
_KEYS = ("url", "token_file", "token", "server_fingerprint")
"""What is said of a server: beside the client's `name` when there is one, else in each entry of `servers`."""

_ELSEWHERE = {**keys_of("client", ClientSettings), "transport": "`client:`"}
_EXAMPLE = "for example wss://tunnel.example.com/tunnel"


def read_servers(s: Section) -> tuple[RemoteServer, ...]:
    """The servers in their order; none only when that was a fault."""
    if "servers" not in s:
        s.knows("servers")
        s.require("url", _EXAMPLE)
        return (RemoteServer(_read_urls(s, {}), _read_token(s), _read_fingerprint(s)),)
    _refuse_the_other_form(s)
    s.not_empty("servers", "is empty, so there is no server to connect to")
    servers: list[RemoteServer] = []
    owners: dict[TunnelUrl, Section] = {}
    for entry in s.sections("servers"):
        entry.require("url", _EXAMPLE)
        servers.append(RemoteServer(_read_urls(entry, owners), _read_token(entry), _read_fingerprint(entry)))
        entry.finish(_ELSEWHERE)
    return tuple(servers)


def read_connect(s: Section, servers: tuple[RemoteServer, ...]) -> str:
    """`connect`; going to all of one server is a fault."""
    connect = s.choice("connect", _DEFAULT.connect, (FIRST, ALL))
    if connect == ALL:
        _need_several(s, "connect", servers)
    return connect


def read_failover_after(s: Section, servers: tuple[RemoteServer, ...], connect: str) -> float:
    """`failover_after`, which means something only where one server follows another."""
    if "failover_after" in s:
        if connect == ALL:
            s.refuse("failover_after", "has no effect with `connect: all`, which waits for no server; leave it out")
        else:
            _need_several(s, "failover_after", servers)
    return s.seconds("failover_after", _DEFAULT.failover_after, 0, 3600)


def _need_several(s: Section, key: str, servers: tuple[RemoteServer, ...]) -> None:
    """Refuse `key` where there is one server; where there is none, that was a fault of its own."""
    if len(servers) == 1:
        has = "`servers` has only one" if "servers" in s else "there is only the one that `url` names"
        s.refuse(key, f"is about several servers, and {has}; add another to `servers`, or leave it out")


def _refuse_the_other_form(s: Section) -> None:
    """What stands beside `servers` is read too: its faults would go with it into an entry."""
    for key in _KEYS:
        if key in s:
            s.refuse(key, "stands beside `servers`; move it into an entry there, or leave `servers` out")
    _read_urls(s, {})
    _read_fingerprint(s)
    if "token" in s or "token_file" in s:
        _read_token(s)
    s.knows(*_KEYS)


def _read_urls(s: Section, owners: dict[TunnelUrl, Section]) -> tuple[str, ...]:
    """`url`; `owners` has the sections of the URLs met so far."""

    def parse(text: str) -> str:
        owner = owners.setdefault(TunnelUrl.parse(check_url(text)), s)
        if owner is not s:
            line = owner.place_of("url").line
            raise UsageError(
                f"is that of the server in line {line} too", hint="are they two servers, or one with several URLs?"
            )
        return text

    s.not_empty("url", "is empty, so there is no server to connect to")
    return s.tuple_of("url", (), parse)


def _read_token(s: Section) -> bytes:
    tokens = read_tokens(s, most=1)
    return tokens[0][0] if tokens else b""


def _read_fingerprint(s: Section) -> str | None:
    return s.text("server_fingerprint", None, check_fingerprint)
