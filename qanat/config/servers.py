"""Which servers a client goes to, in a configuration file: one by `url` and its token, or those in `servers`.

`qanat.config.client` calls this.  How each server is reached is in `qanat.config.route`.
"""

from __future__ import annotations

from qanat.base.errors import UsageError
from qanat.config.client_settings import ClientSettings, RemoteServer
from qanat.config.options import option_of, options_of
from qanat.config.reader import read_option
from qanat.config.section import Section
from qanat.config.texts import check_url
from qanat.config.tokens import read_tokens
from qanat.transports.dial.urls import TunnelUrl

ALL = "all"

_KEYS = tuple(key for option in options_of(RemoteServer) for key in option.keys)
"""What is said of a server: beside the client's `name` when there is one, else in each entry of `servers`."""
_OF_THE_CLIENT = {key: "`client:`" for option in options_of(ClientSettings) for key in option.keys}
_URL = option_of(RemoteServer, "urls")


def read_servers(s: Section) -> tuple[RemoteServer, ...]:
    """Return the servers in their order; none only when that was a fault."""
    if "servers" not in s:
        s.knows("servers")
        s.require("url", _URL.declared.required)
        return (_read_server(s, {}),)
    _refuse_the_other_form(s)
    s.not_empty("servers", "is empty, so there is no server to connect to")
    servers: list[RemoteServer] = []
    owners: dict[TunnelUrl, Section] = {}
    for entry in s.sections("servers"):
        entry.require("url", _URL.declared.required)
        servers.append(_read_server(entry, owners))
        entry.finish(_OF_THE_CLIENT)
    return tuple(servers)


def check_order(s: Section, settings: ClientSettings) -> None:
    """Note it when `connect` or `failover_after` says something of several servers where there is one."""
    if settings.connect == ALL:
        _need_several(s, "connect", settings.servers)
        if "failover_after" in s:
            s.refuse("failover_after", "has no effect with `connect: all`, which waits for no server; leave it out")
    elif "failover_after" in s:
        _need_several(s, "failover_after", settings.servers)


def _need_several(s: Section, key: str, servers: tuple[RemoteServer, ...]) -> None:
    """Refuse `key` where there is one server; where there is none, that was a fault of its own."""
    if len(servers) == 1:
        has = "`servers` has only one" if "servers" in s else "there is only the one that `url` names"
        s.refuse(key, f"is about several servers, and {has}; add another to `servers`, or leave it out")


def _refuse_the_other_form(s: Section) -> None:
    """Read what stands beside `servers`, too: its faults would go with it into an entry."""
    for key in _KEYS:
        if key in s:
            s.refuse(key, "stands beside `servers`; move it into an entry there, or leave `servers` out")
    _read_server(s, {}, token="token" in s or "token_file" in s)
    s.knows(*_KEYS)


def _read_server(s: Section, owners: dict[TunnelUrl, Section], *, token: bool = True) -> RemoteServer:
    """Read what is said of one server; `owners` has the sections of the URLs met so far."""
    tokens = read_tokens(s, most=1) if token else []
    own = {"urls": _read_urls(s, owners), "token": tokens[0][0] if tokens else b""}
    others = (option for option in options_of(RemoteServer) if option.field not in own)
    return RemoteServer(**own, **{option.field: read_option(s, option) for option in others})  # type: ignore[arg-type]


def _read_urls(s: Section, owners: dict[TunnelUrl, Section]) -> tuple[str, ...]:
    def parse(text: str) -> str:
        owner = owners.setdefault(TunnelUrl.parse(check_url(text)), s)
        if owner is not s:
            line = owner.place_of("url").line
            raise UsageError(
                f"is that of the server in line {line} too", hint="are they two servers, or one with several URLs?"
            )
        return text

    s.not_empty("url", _URL.declared.empty)
    return s.tuple_of("url", (), parse)
