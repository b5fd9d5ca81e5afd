"""The `client:` section of a configuration file: its keys, their ranges, and what goes together.

Keys and defaults are the fields of `qanat.config.settings.ClientSettings`.  `qanat.config.load` calls `read_client`.
"""

from __future__ import annotations

from qanat.base.addresses import parse_listen, parse_target
from qanat.config.parts import (
    MAX_LANES,
    check_name,
    keys_of,
    read_flow,
    read_keepalive,
    read_log,
    read_state_dir,
)
from qanat.config.request_headers import check_host_header
from qanat.config.route import read_client_tls, read_headers, read_proxy, read_transports
from qanat.config.section import Section
from qanat.config.servers import read_connect, read_failover_after, read_servers
from qanat.config.settings import ClientSettings, ClientTls, Flow, Forward, Keepalive, LogSettings, Reconnect

_DEFAULT = ClientSettings(name="", servers=())
_MAX_PIPE_AGE = 7 * 86400.0  # seconds; what a week has not cut is not cut for its age
_ELSEWHERE = {
    **keys_of("keepalive", Keepalive),
    **keys_of("flow", Flow),
    **keys_of("log", LogSettings),
    **keys_of("tls", ClientTls),
    **keys_of("reconnect", Reconnect),
    **dict.fromkeys(("local", "remote", "to"), "an entry of `forwards:`"),
}


def read_client(s: Section) -> ClientSettings:
    """The client's settings; when faults were noted they are to be thrown away."""
    s.require("name", "it is what the server's `clients` list calls this client")
    servers = read_servers(s)
    urls = tuple(url for server in servers for url in server.urls)
    proxy = read_proxy(s, urls)
    connect = read_connect(s, servers)
    settings = ClientSettings(
        name=s.text("name", "", check_name),
        servers=servers,
        forwards=_read_forwards(s),
        connect=connect,
        failover_after=read_failover_after(s, servers, connect),
        transports=read_transports(s, _DEFAULT.transports),
        lanes=s.integer("lanes", _DEFAULT.lanes, 1, MAX_LANES),
        max_pipe_age=s.seconds("max_pipe_age", _DEFAULT.max_pipe_age, 1, _MAX_PIPE_AGE),
        tls=read_client_tls(s, urls, proxy),
        proxy=proxy,
        connect_to=s.text("connect_to", None, parse_target),
        host=s.text("host", None, check_host_header),
        headers=read_headers(s),
        connect_timeout=s.seconds("connect_timeout", _DEFAULT.connect_timeout, 0.1, 300),
        handshake_timeout=s.seconds("handshake_timeout", _DEFAULT.handshake_timeout, 0.1, 300),
        drain=s.seconds("drain", _DEFAULT.drain, 0, 3600),
        keepalive=read_keepalive(s.section("keepalive")),
        reconnect=_read_reconnect(s.section("reconnect")),
        flow=read_flow(s.section("flow")),
        log=read_log(s.section("log")),
        pid_file=s.path("pid_file"),
        state_dir=read_state_dir(s),
    )
    s.finish(_ELSEWHERE)
    return settings


def _read_forwards(s: Section) -> tuple[Forward, ...]:
    forwards: list[Forward] = []
    lines: dict[tuple[str, tuple[str, int]], int] = {}
    for f in s.sections("forwards"):
        later = f.unavailable("dynamic", "use `local` and `to` for each target")
        kinds = [kind for kind in ("local", "remote") if kind in f]
        listens = {kind: f.text(kind, None, parse_listen) for kind in ("local", "remote")}
        to = f.text("to", None, parse_target)
        if len(kinds) > 1:
            f.refuse("remote", "and `local` are both in one forward; make two of it")
        elif not kinds and not later:
            f.lacks("a forward needs `local` or `remote`: on which side, and where, to listen")
        if not later:
            f.require("to", "it is where to connect: HOST:PORT")
        f.finish()
        for kind in kinds:
            listen = listens[kind]
            if listen is None or to is None:
                continue
            line = lines.setdefault((kind, listen), f.place_of(kind).line)
            if listen[1] and any(known.kind == kind and known.listen == listen for known in forwards):
                f.refuse(kind, f"is what the forward in line {line} listens on already")
            forwards.append(Forward(kind, listen, to))
    return tuple(forwards)


def _read_reconnect(s: Section) -> Reconnect:
    default = Reconnect()
    reconnect = Reconnect(
        first=s.seconds("first", default.first, 0, 60),
        min=s.seconds("min", default.min, 0.1, 3600),
        max=s.seconds("max", default.max, 0.1, 86400),
    )
    if reconnect.min > reconnect.max:
        s.refuse("min" if "min" in s else "max", "makes `min` larger than `max`")
    s.finish()
    return reconnect
