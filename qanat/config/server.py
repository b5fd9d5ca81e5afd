"""The `server:` section of a configuration file: its keys, their ranges, and what goes together.

Keys and defaults are the fields of `qanat.config.settings.ServerSettings`.  `qanat.config.load` calls `read_server`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qanat.base.addresses import parse_listen, parse_network
from qanat.base.errors import UsageError
from qanat.config.access_rules import parse_connect_rule, parse_listen_rule
from qanat.config.parts import (
    MAX_LANES,
    check_name,
    keys_of,
    read_flow,
    read_keepalive,
    read_log,
    read_state_dir,
    read_tokens,
)
from qanat.config.secret_files import check_private, check_readable
from qanat.config.section import Section
from qanat.config.settings import (
    ClientAccount,
    Flow,
    Keepalive,
    LogSettings,
    ServerLimits,
    ServerSettings,
    ServerTls,
)

MAX_TOKENS = 2
"""Tokens that one client may have, so that a new one can be brought out before the old one ends."""

_DEFAULT = ServerSettings(clients=())
_PATH = re.compile(r"/[A-Za-z0-9/%:@!$&'()*+,=~._-]*")  # what a client's URL can name without quoting
_ELSEWHERE = {
    **keys_of("limits", ServerLimits),
    **keys_of("keepalive", Keepalive),
    **keys_of("flow", Flow),
    **keys_of("log", LogSettings),
    **keys_of("tls", ServerTls),
    **dict.fromkeys(
        ("name", "token", "token_file", "allow_listen", "allow_connect", "shared_listen"), "an entry of `clients:`"
    ),
}


def read_server(s: Section) -> ServerSettings:
    """The server's settings; when faults were noted they are to be thrown away."""
    s.require("clients", "give at least one client, with its name and token")
    settings = ServerSettings(
        clients=_read_accounts(s),
        listen=_read_listen(s),
        path=s.text("path", _DEFAULT.path, _check_path),
        identity=_read_identity(s),
        tls=_read_tls(s),
        trusted_proxies=s.tuple_of("trusted_proxies", (), _check_network),
        node=s.text("node", _DEFAULT.node, check_name),
        connect_timeout=s.seconds("connect_timeout", _DEFAULT.connect_timeout, 0.1, 300),
        drain=s.seconds("drain", _DEFAULT.drain, 0, 3600),
        resume_for=s.seconds("resume_for", _DEFAULT.resume_for, 0, 86400),
        takeover_timeout=s.seconds("takeover_timeout", _DEFAULT.takeover_timeout, 0.1, 60),
        limits=_read_limits(s.section("limits")),
        keepalive=read_keepalive(s.section("keepalive")),
        flow=read_flow(s.section("flow")),
        log=read_log(s.section("log")),
        pid_file=s.path("pid_file"),
        state_dir=read_state_dir(s),
    )
    s.finish(_ELSEWHERE)
    return settings


def _read_accounts(s: Section) -> tuple[ClientAccount, ...]:
    accounts: list[ClientAccount] = []
    names: dict[str, int] = {}  # to their lines
    tokens: dict[bytes, tuple[int, int]] = {}  # to the client's number and the token's line
    s.not_empty("clients", "is empty, so nobody can connect")
    for number, c in enumerate(s.sections("clients")):
        c.require("name", "it is what the client calls itself")
        name = c.text("name", "", check_name)
        if name in names:
            c.refuse("name", f"is that of the client in line {names[name]} too; each needs a name of its own")
        elif name:
            names[name] = c.place_of("name").line
        secrets = read_tokens(c, most=MAX_TOKENS)
        for secret, place in secrets:
            owner, line = tokens.setdefault(secret, (number, -1))
            if line < 0:
                tokens[secret] = (number, place.line)
            elif owner != number:
                c.document.fault(place, f"this token is that of the client of line {line} too; each needs its own")
            else:
                c.document.fault(place, "this token is here twice; two are for an old one and a new one")
        accounts.append(
            ClientAccount(
                name=name,
                tokens=tuple(secret for secret, _ in secrets),
                allow_listen=c.tuple_of("allow_listen", (), _check_listen_rule),
                allow_connect=c.tuple_of("allow_connect", (), _check_connect_rule),
                shared_listen=c.tuple_of("shared_listen", (), _check_shared_rule),
            )
        )
        c.finish()
    return tuple(accounts)


def _read_listen(s: Section) -> tuple[tuple[str, int], ...]:
    seen: set[tuple[str, int]] = set()

    def parse(text: str) -> tuple[str, int]:
        address = parse_listen(text)
        if address[1] and address in seen:
            raise UsageError("has this address twice")
        seen.add(address)
        return address

    s.not_empty("listen", "is empty, so nobody can connect")
    return s.tuple_of("listen", _DEFAULT.listen, parse)


def _read_identity(s: Section) -> Path:
    """A key that is not there yet is made at the first start; one that is must be ours alone."""

    def check(path: Path) -> None:
        if os.path.lexists(path):
            check_private(path)

    named = s.path("identity", check)
    path = s.document.base / _DEFAULT.identity
    if named is not None or "identity" in s:
        return named or path
    try:
        check(path)
    except UsageError as error:
        s.refuse("identity", str(error))
    return path


def _read_tls(s: Section) -> ServerTls | None:
    tls = s.section("tls")
    if "tls" not in s:
        return None
    tls.require("certificate", "leave `tls` out behind a proxy that does TLS")
    tls.require("key", "leave `tls` out behind a proxy that does TLS")
    certificate, key = tls.path("certificate", check_readable), tls.path("key", check_private)
    client_ca = tls.path("client_ca", check_readable)
    tls.finish()
    return ServerTls(certificate, key, client_ca) if certificate is not None and key is not None else None


def _read_limits(s: Section) -> ServerLimits:
    default = ServerLimits()
    limits = ServerLimits(
        connections=s.integer("connections", default.connections, 1, 1_000_000),
        handshakes=s.integer("handshakes", default.handshakes, 1, 100_000),
        handshake_rate=s.number("handshake_rate", default.handshake_rate, 0.1, 100_000),
        rsa_operations=s.integer("rsa_operations", default.rsa_operations, 1, 1024),
        header_bytes=s.integer("header_bytes", default.header_bytes, 1024, 1_048_576),
        header_timeout=s.seconds("header_timeout", default.header_timeout, 0.1, 300),
        handshake_timeout=s.seconds("handshake_timeout", default.handshake_timeout, 0.1, 300),
        per_address_rate=s.number("per_address_rate", default.per_address_rate, 0.01, 1_000_000),
        per_address_burst=s.integer("per_address_burst", default.per_address_burst, 1, 1_000_000),
        sessions=s.integer("sessions", default.sessions, 1, 1_000_000),
        streams=s.integer("streams", default.streams, 1, 1_000_000),
        forwards=s.integer("forwards", default.forwards, 0, 65535),
        lanes=s.integer("lanes", default.lanes, 1, MAX_LANES),
    )
    s.finish()
    return limits


def _check_path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise UsageError(
            "must begin with / and have only characters that a URL's path can have", hint="for example /tunnel"
        )
    if text == "/healthz":
        raise UsageError("is taken: /healthz tells monitors that the server is alive", hint="for example /tunnel")
    return text


def _check_network(text: str) -> str:
    parse_network(text)
    return text


def _check_listen_rule(text: str) -> str:
    parse_listen_rule(text)
    return text


def _check_shared_rule(text: str) -> str:
    if 0 in parse_listen_rule(text).ports:
        raise UsageError(
            "has port 0, for which the system gives each client a port of its own", hint="put it into `allow_listen`"
        )
    return text


def _check_connect_rule(text: str) -> str:
    parse_connect_rule(text)
    return text
