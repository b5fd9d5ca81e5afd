"""The settings of a client; what both ends have is in `qanat.config.settings`, which says how to read this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qanat.base.addresses import parse_target
from qanat.base.proxy_protocol import VERSIONS
from qanat.base.text import NAME
from qanat.config.fingerprints import FINGERPRINT_PATTERN, check_fingerprint
from qanat.config.forward_settings import Forward, ForwardLimits
from qanat.config.option_schemas import value_schemas
from qanat.config.options import Conflict, Flag, declared, option
from qanat.config.request_headers import HOST_PATTERN, check_host_header
from qanat.config.schema_forms import closed, described, list_of, one_or_several, text
from qanat.config.secret_files import check_private, check_readable
from qanat.config.settings import (
    MAX_LANES,
    MONITOR_DOC,
    PID_FILE,
    TOKEN_DOC,
    TOKEN_FILE_DOC,
    WATCH_CONFIG_DOC,
    ApplicationProbes,
    Flow,
    Keepalive,
    LogSettings,
    MonitorSettings,
)
from qanat.config.texts import (
    AUTO,
    TRANSPORTS,
    any_of,
    check_connect_rule,
    check_name,
    check_server_name,
    check_url,
    parse_transport,
)
from qanat.transports.dial.proxies import NO_PROXIES, EnvironmentProxies, Proxy

ANY_ORDINARY = ("0.0.0.0/0:*", "[::/0]:*", "0.0.0.0/0:*/udp", "[::/0]:*/udp")
"""Rules for all that needs no rule of its own (`qanat.config.address_ranges`)."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS on the way to the server."""

    ca_file: Path | None = option(
        None,
        doc="Authorities for wss:// and https://, PEM.",
        check=check_readable,
        unset="the system's",
        flag=Flag("--ca-file", metavar="FILE", help="authorities for TLS, PEM"),
    )
    certificate: Path | None = option(
        None,
        doc="The client's own certificate for TLS, PEM.",
        check=check_readable,
        flag=Flag("--cert", metavar="FILE"),
    )
    key: Path | None = option(
        None,
        doc="Its private key, PEM, which only you can read.",
        check=check_private,
        flag=Flag("--key", metavar="FILE"),
    )
    server_name: str | None = option(
        None,
        doc="The name that is sent (SNI) and that the certificate must have.",
        parse=check_server_name,
        unset="the URL's host",
    )


@dataclass(frozen=True, slots=True)
class Reconnect:
    """When to try again after the connection was lost; each wait is random, up to a bound that doubles."""

    first: float = option(
        0.1, low=0, high=60, unit="seconds", doc="Time within which, at random, the first try starts."
    )
    min: float = option(1.0, low=0.1, high=3600, unit="seconds", doc="The bound after the first failure.")
    max: float = option(60.0, low=0.1, high=86_400, unit="seconds", doc="The bound after many.")

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.min > self.max:
            yield Conflict(("min", "max"), "makes `min` larger than `max`")


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """One server as its client knows it.  All `urls` lead to this very server."""

    urls: tuple[str, ...] = field(
        metadata=declared(
            key="url",
            doc="The server, as wss://HOST[:PORT]/PATH; a list names several ways to the same server, tried in turn.",
            parse=check_url,
            required="for example wss://tunnel.example.com/tunnel",
            empty="is empty, so there is no server to connect to",
        )
    )
    token: bytes = field(  # the 32-byte secret
        repr=False,
        metadata=declared(
            doc="The token that the server has for this client's name.",
            own={"token": text(doc=TOKEN_DOC), "token_file": text(doc=TOKEN_FILE_DOC)},
            own_needed=True,
            flag=Flag("--token-file", metavar="FILE", help="the token's file, which only you can read"),
        ),
    )
    fingerprint: str | None = option(
        None,
        key="server_fingerprint",
        doc="The server's key, as `tunnel.py fingerprint` on the server prints it.",
        parse=check_fingerprint,
        pattern=FINGERPRINT_PATTERN,
        unset="trusted on first use, as ssh does",
        flag=Flag("--fingerprint", metavar="SHA256:..."),
    )


_FORWARD = closed(
    {
        "dynamic": one_or_several(
            text(),
            least=1,
            doc="Listen here for SOCKS and HTTP proxy, at ADDRESS:PORT or a list of them, as ssh -D.",
        ),
        "password_file": text(doc="USER:PASSWORD lines, for `dynamic`; a file that only you can read."),
        "local": one_or_several(
            text(),
            least=1,
            doc="Listen here, at ADDRESS:PORT, at the path of a Unix socket or at a list of them, and connect from the "
            "server, as ssh -L.  LOW-HIGH are several ports, and a port alone is that of localhost.",
        ),
        "remote": one_or_several(
            text(),
            least=1,
            doc="Listen on the server, likewise, and connect from here, as ssh -R.",
        ),
        "publish": text(doc="Publish the web service under this name at the server, as app.example.com or app."),
        "to": text(
            doc="HOST:PORT to connect to, or the path of a Unix socket; a name is looked up where the connection is "
            "made, and LOW-HIGH are as many ports as are listened on. With `remote`, `dynamic` leaves it to whoever "
            "connects, in SOCKS or as to an HTTP proxy."
        ),
        "udp": described({"type": "boolean"}, "Carry UDP, in place of TCP. Default: false."),
        **value_schemas(ForwardLimits),
        "mode": text(doc='Permissions of the Unix socket that is listened on; "0600" by default.'),
        "owner": text(doc="The user who gets that; for `remote` a number."),
        "group": text(doc="Its group, likewise."),
        "proxy_protocol": {
            "enum": [*VERSIONS],
            "description": "Tell the target who came, in a PROXY protocol header of this version.",
        },
        "accept_proxy_protocol": {
            "type": "boolean",
            "description": "Whether the server's `trusted_proxies` say, by the PROXY protocol, who came to `remote`.",
        },
    },
) | {"type": "object", "anyOf": [{"required": ["to"]}, {"required": ["dynamic"]}]}
_HEADERS = {
    "type": ["object", "null"],
    "additionalProperties": {
        "anyOf": [
            text(),
            closed({"value_file": text(doc="The file that holds the value.")}, required=("value_file",)),
        ]
    },
    "description": "Further headers of each HTTP request: NAME: VALUE, or NAME: {value_file: FILE}.",
}


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The end that dials."""

    name: str = field(
        metadata=declared(
            doc="What the server's `clients` list calls this client.",
            parse=check_name,
            pattern=NAME.pattern,
            required="it is what the server's `clients` list calls this client",
            flag=Flag("--name", help="this client's name, as the server knows it; see below"),
        )
    )
    servers: tuple[RemoteServer, ...] = field(
        metadata=declared(
            doc="Several servers, in place of the one that `url`, its token and `server_fingerprint` name.",
            own={"servers": {}},
            entries=RemoteServer,
            entry_may_stand_here=True,
        )
    )
    forwards: tuple[Forward, ...] = option(
        (),
        doc="What to carry.",
        own={"forwards": list_of(_FORWARD, doc="What to carry.")},
        flag=(
            Flag("-L", dest="local", metavar="FORWARD", help="as ssh -L; see below", repeated=True),
            Flag("--udp", dest="udp", metavar="FORWARD", help="the same over UDP; see below", repeated=True),
            Flag("--publish", dest="publish", metavar="NAME:PORT", help="publish a web service by name", repeated=True),
            Flag("-R", dest="remote", metavar="FORWARD", help="as ssh -R; see below", repeated=True),
            Flag(
                "-D", dest="dynamic", metavar="FORWARD", help="as ssh -D, and an HTTP proxy; see below", repeated=True
            ),
        ),
    )
    allow_connect: tuple[str, ...] = option(
        ANY_ORDINARY,
        doc="What users of a remote forward with `to: dynamic` may reach from here: NETWORK:PORTS, ADDRESS:PORTS or "
        "NAME:PORTS.",
        parse=check_connect_rule,
        unset="everything but this machine itself, link-local addresses and clouds' metadata",
        flag=Flag(
            "--allow-connect",
            metavar="RULES",
            help="what users of -R PORT may reach from here: NETWORK:PORTS or NAME:PORTS, with commas",
            repeated=True,
        ),
    )
    exit_on_forward_failure: bool = option(
        False,
        doc="End with exit code 1 when a local forward cannot listen at the start, or a server cannot listen for a "
        "remote one when it is first asked. Without it, the others go on, and that one is asked for again.",
        unset="false",
        flag=Flag("--exit-on-forward-failure", help="exit with 1 when a -L or -R cannot be had, as ssh's option"),
    )
    connect: str = option(
        "first",
        choices=("first", "all"),
        doc="With several servers: keep to the first that can be had, or hold a session to each at once.",
    )
    failover_after: float = option(
        5.0,
        low=0,
        high=3600,
        unit="seconds",
        doc="Time without a connection to a server until the next one is tried as well.",
    )
    transports: tuple[str, ...] = option(
        (AUTO,),
        key="transport",
        choices=tuple(TRANSPORTS),
        doc=f"How to carry the tunnel over HTTP: {any_of(TRANSPORTS)}; several are tried in turn.",
        parse_next=parse_transport,
        empty="is empty, so nothing could carry the tunnel",
        flag=Flag(
            "--transport",
            metavar="NAMES",
            help=f"{any_of(TRANSPORTS)}; several, with commas, are tried in turn",
            repeated=True,
        ),
    )
    lanes: int = option(
        1,
        low=1,
        high=MAX_LANES,
        unit="connections",
        doc="Connections side by side to each server, which streams are spread over.",
        flag=Flag("--lanes", metavar="N"),
    )
    max_pipe_age: float | None = option(
        None,
        low=1,
        high=7 * 86_400,  # what a week has not cut is not cut for its age
        unit="seconds",
        doc="Age at which, less up to a fifth at random, a connection is replaced by a fresh one.",
        unset="never",
    )
    tls: ClientTls = option(ClientTls(), doc="TLS on the way to the server.")
    proxy: Proxy | EnvironmentProxies | None = option(  # None goes straight to the server
        NO_PROXIES,
        doc="The proxy on the way out.",
        own={
            "proxy": text(doc="The proxy on the way out: `none`, `environment` (the default), or a URL."),
            "proxy_password_file": text(doc="The file that holds the password of the user in `proxy`."),
        },
        flag=(
            Flag(
                "--proxy", metavar="URL", help="http://, https:// or socks5h://[USER@]HOST:PORT, or `none`; see below"
            ),
            Flag("--proxy-password-file", metavar="FILE", help="the password of the USER in --proxy"),
        ),
    )
    connect_to: tuple[str, int] | None = option(
        None,
        doc="Connect to this HOST:PORT though the URL names another host.",
        parse=parse_target,
        port_alone="HOST:{}",
        unset="the URL's host and port",
        flag=Flag("--connect-to", metavar="HOST:PORT"),
    )
    host: str | None = option(
        None,
        doc="The Host header (HTTP/2: :authority).",
        parse=check_host_header,
        pattern=HOST_PATTERN,
        unset="the URL's",
    )
    headers: tuple[tuple[str, str], ...] = field(  # may be secrets
        default=(),
        repr=False,
        metadata=declared(
            doc="Further headers of each HTTP request.",
            own={"headers": _HEADERS},
            flag=(
                Flag("--header", metavar="NAME:VALUE", help="send this header too; may be repeated", repeated=True),
                Flag("--header-file", metavar="NAME:FILE", help="the same, with the value in a file", repeated=True),
            ),
        ),
    )
    connect_timeout: float = option(
        10.0,
        low=0.1,
        high=300,
        unit="seconds",
        doc="Time to reach the server (TCP, proxy, TLS and HTTP together), or a target of a remote forward.",
    )
    handshake_timeout: float = option(
        10.0,
        low=0.1,
        high=300,
        unit="seconds",
        doc="Time from the upgrade until both ends have authenticated each other.",
    )
    drain: float = option(
        5.0, low=0, high=3600, unit="seconds", doc="Time that open streams get to finish after SIGTERM."
    )
    keepalive: Keepalive = option(Keepalive(), doc="Sealed PINGs inside the tunnel, both ways.")
    application_keepalive: ApplicationProbes = option(
        ApplicationProbes(), doc="TCP keepalive of the connections with applications."
    )
    reconnect: Reconnect = option(Reconnect(), doc="When to try again after the connection was lost.")
    flow: Flow = option(Flow(), doc="Windows and queues.")
    log: LogSettings = option(LogSettings(), doc="What is logged, how, and where.")
    monitor: MonitorSettings | None = option(None, doc=MONITOR_DOC, unset="nothing")
    pid_file: Path | None = option(None, doc="Holds the process's number while it runs.", unset="none", flag=PID_FILE)
    state_dir: Path | None = option(  # None: nothing can be kept, and nothing has to be
        Path("."),
        doc="Where known hosts are kept.",
        unset="$STATE_DIRECTORY, else this file's directory",
    )
    watch_config: bool = option(False, doc=WATCH_CONFIG_DOC)
