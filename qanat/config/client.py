"""The `client:` section of a configuration file: what has a form of its own in it, and what goes together.

All else is read as `qanat.config.settings.ClientSettings` declares it.  `qanat.config.load` calls `read_client`.
"""

from __future__ import annotations

import itertools

from qanat.base.addresses import parse_forward_listen, parse_target
from qanat.base.endpoint_addresses import TcpAddress, listen_in_one_place
from qanat.config.reader import read_options
from qanat.config.route import read_client_tls, read_headers, read_proxy
from qanat.config.section import Section
from qanat.config.servers import check_order, read_servers
from qanat.config.settings import ClientSettings, Forward
from qanat.config.state import read_state_dir

_ELSEWHERE = dict.fromkeys(("local", "remote", "to"), "an entry of `forwards:`")


def read_client(s: Section) -> ClientSettings:
    """Return the client's settings; they mean nothing when a fault was noted."""
    servers = read_servers(s)
    urls = tuple(url for server in servers for url in server.urls)
    proxy = read_proxy(s, urls)
    settings = read_options(
        s,
        ClientSettings,
        elsewhere=_ELSEWHERE,
        servers=servers,
        forwards=_read_forwards(s),
        tls=read_client_tls(s, urls, proxy),
        proxy=proxy,
        headers=read_headers(s),
        state_dir=read_state_dir(s),
    )
    check_order(s, settings)
    return settings


def _read_forwards(s: Section) -> tuple[Forward, ...]:
    forwards: list[Forward] = []
    lines: list[int] = []  # of each in `forwards`
    for f in s.sections("forwards"):
        later = f.unavailable("dynamic", "use `local` and `to` for each target")
        kinds = [kind for kind in ("local", "remote") if kind in f]
        listens = {
            kind: f.tuple_of(kind, (), parse_forward_listen, port_alone="127.0.0.1:{}") for kind in ("local", "remote")
        }
        to = f.text("to", None, parse_target, port_alone="HOST:{}")
        if len(kinds) > 1:
            f.refuse("remote", "and `local` are both in one forward; make two of it")
        elif not kinds and not later:
            f.lacks("a forward needs `local` or `remote`: on which side, and where, to listen")
        if not later:
            f.require("to", "it is where to connect: HOST:PORT")
        f.finish()
        for kind in kinds:
            f.not_empty(kind, "is empty, so nothing would listen; give one address at least")
            if to is None:
                continue
            for listen in itertools.starmap(TcpAddress, listens[kind]):
                for known, line in zip(forwards, lines, strict=True):
                    if known.kind == kind and listen_in_one_place(known.listen, listen):
                        f.refuse(kind, f"is what the forward in line {line} listens on already")
                        break
                forwards.append(Forward(kind, listen, TcpAddress(*to)))
                lines.append(f.place_of(kind).line)
    return tuple(forwards)
