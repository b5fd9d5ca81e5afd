"""The settings of one process, as frozen values, each declared with its default, its bounds and its documentation.

This is the one place where an option stands: `qanat.config.options` says what a declaration holds and what is made
from it.  `qanat.config.load` fills these in from YAML, `qanat.config.command_line` from a URL and flags; the running
client and server read nothing else.  config.example.yaml documents each key at length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from qanat.base.addresses import parse_target
from qanat.base.endpoint_addresses import (
    ListenPlace,
    PublishedName,
    TargetPlace,
    TcpAddress,
    UdpAddress,
    listen_in_one_place,
)
from qanat.base.proxy_protocol import VERSIONS
from qanat.base.text import NAME
from qanat.config.fingerprints import FINGERPRINT_PATTERN, check_fingerprint
from qanat.config.moments import MOMENT_PATTERN, parse_moment
from qanat.config.monitoring import check_monitor_listen, check_monitor_token, is_open_to_others, is_unix_listen
from qanat.config.option_schemas import value_schemas
from qanat.config.options import Conflict, Flag, declared, option
from qanat.config.published_names import MODE_PATTERN, check_mode, check_publish_rule
from qanat.config.request_headers import HOST_PATTERN, check_host_header
from qanat.config.schema_forms import closed, described, list_of, one_or_several, text
from qanat.config.secret_files import check_private, check_readable
from qanat.config.texts import (
    AUTO,
    PATH_PATTERN,
    TRANSPORTS,
    any_of,
    check_connect_rule,
    check_listen_rule,
    check_name,
    check_network,
    check_path,
    check_server_name,
    check_shared_rule,
    check_url,
    parse_next_listen,
    parse_transport,
)
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.unix import OURS_ALONE, Permissions
from qanat.handshake.hello import MAX_INITIAL_WINDOW
from qanat.transports.dial.proxies import NO_PROXIES, EnvironmentProxies, Proxy

P = TypeVar("P")

MAX_LANES = 16
"""Connections side by side that a client may ask for, and a server grant."""
MAX_TOKENS = 2
"""Tokens that one client may have, so that a new one can be brought out before the old one ends."""

MAX_RATE = 100_000_000_000
"""Bytes a second beyond which nothing is limited."""
MAX_IDLE = 7 * 86_400
_RATE = "bytes a second"
_NO_LIMIT = "0 is no limit."
_IDLE = "Time without a byte either way after which a stream is reset."

ANY_ORDINARY = ("0.0.0.0/0:*", "[::/0]:*", "0.0.0.0/0:*/udp", "[::/0]:*/udp")
"""Rules for all that needs no rule of its own (`qanat.config.address_ranges`)."""

_TOKEN = "The token, as ${NAME} from the environment, or written out in a file that only you can read."
_TOKEN_FILE = "The file that holds the token, which only you can read."


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The certificates of a server that does TLS itself."""

    certificate: Path = field(
        metadata=declared(
            doc="The certificate chain, PEM; read again when the file changes.",
            check=check_readable,
            required="leave `tls` out behind a proxy that does TLS",
        )
    )
    key: Path = field(
        metadata=declared(
            doc="Its private key, PEM, which only you can read.",
            check=check_private,
            required="leave `tls` out behind a proxy that does TLS",
        )
    )
    client_ca: Path | None = option(
        None, doc="Authorities, PEM; clients need a certificate of theirs then.", check=check_readable
    )


@dataclass(frozen=True, slots=True)
class ClientAccount:
    """One client as the server knows it."""

    name: str = field(
        metadata=declared(
            doc="What the client calls itself.",
            parse=check_name,
            pattern=NAME.pattern,
            required="it is what the client calls itself",
        )
    )
    tokens: tuple[bytes, ...] = field(  # the 32-byte secrets
        repr=False,
        metadata=declared(
            doc="The token, or an old one and a new one.",
            own={
                "token": one_or_several(text(), least=1, most=MAX_TOKENS, doc=_TOKEN),
                "token_file": one_or_several(text(), least=1, most=MAX_TOKENS, doc=_TOKEN_FILE),
            },
            own_needed=True,
        ),
    )
    allow_listen: tuple[str, ...] = option(
        (),
        doc="Where the client's remote forwards may listen on this server: ADDRESS:PORTS.",
        parse=check_listen_rule,
        unset="nowhere",
    )
    allow_connect: tuple[str, ...] = option(
        (),
        doc="What the client's local forwards may reach: NETWORK:PORTS, ADDRESS:PORTS or NAME:PORTS.",
        parse=check_connect_rule,
        unset="nothing",
    )
    shared_listen: tuple[str, ...] = option(
        (),
        doc="Where they may listen together with those of other clients: ADDRESS:PORTS.",
        parse=check_shared_rule,
        unset="nowhere",
    )
    allow_publish: tuple[str, ...] = option(
        (),
        doc="Names under which it may publish web services: NAME, or *.NAME for all names below it.",
        parse=check_publish_rule,
        unset="none",
    )
    dynamic_passwords: Passwords | None = field(
        default=None,
        repr=False,
        metadata=declared(
            doc="Users and passwords that its remote dynamic ports ask for.",
            own={
                "dynamic_password_file": text(
                    doc="USER:PASSWORD lines that the client's remote dynamic ports on this server ask for."
                )
            },
        ),
    )
    rate_up: int = option(0, low=0, high=MAX_RATE, unit=_RATE, doc=f"Bytes from the client to this server. {_NO_LIMIT}")
    rate_down: int = option(0, low=0, high=MAX_RATE, unit=_RATE, doc=f"Bytes from this server to it. {_NO_LIMIT}")
    idle_timeout: float = option(0.0, low=0, high=MAX_IDLE, unit="seconds", doc=f"{_IDLE} {_NO_LIMIT}")
    not_after: tuple[float, ...] = option(
        (),
        doc="When the token ends, or each of a list in the same order: a date and time with its zone, or never. It is "
        "refused from then on, and its sessions end.",
        parse=parse_moment,
        pattern=MOMENT_PATTERN,
        unset="never",
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if len(self.not_after) > len(self.tokens):
            yield Conflict(("not_after",), f"has {len(self.not_after)} moments for {len(self.tokens)} tokens")


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Who was here and what they did, in a file of its own."""

    file: Path = field(
        metadata=declared(
            doc="The file, which only you can read; JSON, one event a line.",
            required="leave `audit` out for no audit log",
        )
    )
    max_bytes: int = option(
        10_485_760, low=65_536, high=1 << 34, unit="bytes", doc="Bytes at which it is put aside as FILE.1."
    )
    keep: int = option(5, low=0, high=1000, unit="files", doc="How many that were put aside are kept.")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds on what peers can make the server hold."""

    connections: int = option(
        4096, low=1, high=1_000_000, unit="connections", doc="Connections at once, over all clients."
    )
    handshakes: int = option(
        64,
        low=1,
        high=100_000,
        unit="connections",
        doc="Connections not yet authenticated, at once; above that who has most gives way, or gets 503.",
    )
    handshake_rate: float = option(
        50.0,
        low=0.1,
        high=100_000,
        unit="handshakes a second",
        doc="Handshakes begun a second, after a burst of `handshakes`; above that 503 as well.",
    )
    rsa_operations: int = option(
        4, low=1, high=1024, unit="operations", doc="Private-key operations at once: what a handshake costs in CPU."
    )
    header_bytes: int = option(16_384, low=1024, high=1_048_576, unit="bytes", doc="Bytes of one HTTP request's head.")
    header_timeout: float = option(
        10.0, low=0.1, high=300, unit="seconds", doc="Time for the TLS handshake and the request's head, together."
    )
    handshake_timeout: float = option(
        10.0, low=0.1, high=300, unit="seconds", doc="Time from the upgrade until the client is authenticated."
    )
    per_address_rate: float = option(
        20.0,
        low=0.01,
        high=1_000_000,
        unit="connections a second",
        doc="New connections a second from one address before they are slowed.",
    )
    per_address_burst: int = option(
        100, low=1, high=1_000_000, unit="connections", doc="Connections from one address that are never slowed."
    )
    sessions: int = option(1024, low=1, high=1_000_000, unit="clients", doc="Clients connected at once.")
    streams: int = option(
        4096, low=1, high=1_000_000, unit="streams", doc="Open streams of one client, in each direction."
    )
    forwards: int = option(256, low=0, high=65_535, unit="forwards", doc="Remote forwards of one client.")
    lanes: int = option(
        8, low=1, high=MAX_LANES, unit="connections", doc="Connections that one client may have side by side."
    )


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Sealed PINGs inside the tunnel, both ways."""

    interval: float = option(15.0, low=1, high=3600, unit="seconds", doc="Time between PINGs.")
    timeout: float = option(
        45.0, low=2, high=86_400, unit="seconds", doc="Time without one byte until the link counts as dead."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.timeout <= self.interval:
            yield Conflict(
                ("timeout", "interval"),
                "leaves `timeout` no longer than `interval`, so that a quiet link would count as dead",
            )


@dataclass(frozen=True, slots=True)
class ApplicationProbes:
    """When an application's machine that is silent has vanished, so that its stream is reset."""

    idle: float = option(
        DEFAULT_KEEPALIVE.idle, low=0, high=32_767, unit="seconds", doc="Silence until the first probe; 0 never asks."
    )
    interval: float = option(DEFAULT_KEEPALIVE.interval, low=1, high=32_767, unit="seconds", doc="Time between probes.")
    count: int = option(
        DEFAULT_KEEPALIVE.count,
        low=1,
        high=127,
        unit="probes",
        doc="Probes without an answer until it counts as vanished.",
    )
    unacknowledged: float = option(
        DEFAULT_KEEPALIVE.unacknowledged,
        low=0,
        high=86_400,
        unit="seconds",
        doc="Time without an acknowledgment of what was sent until it counts as vanished; 0 leaves that to the system. "
        "An application that pauses is left alone, since its machine answers.",
    )


@dataclass(frozen=True, slots=True)
class Flow:
    """Windows and queues."""

    initial_window: int = option(
        131_072,
        low=16_384,
        high=MAX_INITIAL_WINDOW,
        unit="bytes",
        doc="Bytes that each stream may receive unread from the start.",
    )
    max_window: int = option(
        16_777_216,
        low=16_384,
        high=1 << 30,
        unit="bytes",
        doc="Bytes to which one stream's window may grow on a long, fast path.",
    )
    window_budget: int = option(
        67_108_864,
        low=0,
        high=1 << 40,
        unit="bytes",
        doc="Bytes by which all windows of a session may grow, together.",
    )
    outbox: int = option(
        16_777_216,
        low=1 << 20,
        high=1 << 30,
        unit="bytes",
        doc="Bytes kept until the other end has acknowledged them, for each connection and direction.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.initial_window > self.max_window:
            yield Conflict(("initial_window", "max_window"), "makes `initial_window` larger than `max_window`")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, how, and where."""

    level: str = option(
        "info",
        choices=("error", "warning", "info", "debug"),
        doc="How much is logged; debug shows frames.",
        flag=Flag("-v", "--verbose", const="debug", help="log frames and other details", beside_file=True),
    )
    format: str = option(
        "text",
        choices=("text", "json"),
        doc="Text for people, or json: one object a line.",
        flag=Flag("--log-format", help="how to log", beside_file=True),
    )
    file: Path | None = option(
        None,
        doc="The log's file, opened again on SIGHUP for logrotate; a symbolic link is not followed.",
        unset="stderr",
        flag=Flag("--log-file", metavar="FILE", help="where to log; SIGHUP opens it again", beside_file=True),
    )


_WATCH_CONFIG = "Whether to reload when this file changes, as on SIGHUP and with `tunnel.py reload`."


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """What others can see of this end, over HTTP."""

    listen: str = field(
        metadata=declared(
            doc="Where metrics are served: ADDRESS:PORT, or the absolute path of a Unix socket.",
            parse=check_monitor_listen,
            required="for example 127.0.0.1:9480",
        )
    )
    token_file: Path | None = option(
        None,
        doc="The file of the token that must be sent, as a bearer token or as a password; only you can read it.",
        check=check_monitor_token,
        unset="none, on loopback and Unix sockets",
    )
    mode: str = option(
        "0600", doc="Permission bits of the Unix socket, in octal.", parse=check_mode, pattern=MODE_PATTERN
    )
    group: str | None = option(None, doc="Its group, as www-data: the proxy's.", unset="this user's")
    max_clients: int = option(
        50,
        low=0,
        high=10_000,
        unit="clients",
        doc="Clients that have metrics of their own, the first of the configuration; the others are one together.",
    )

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket that is listened on."""
        return is_unix_listen(self.listen)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.listen and self.token_file is None and is_open_to_others(self.listen):  # "" for a faulty one
            yield Conflict(
                ("listen",),
                "is open to other machines, so it needs `token_file`; or listen on 127.0.0.1 or a Unix socket, behind "
                "a proxy that asks for a password",
            )


_MONITOR_DOC = "What others can see of this end, over HTTP: a live page, and metrics for Prometheus."
_PID_FILE = Flag("--pid-file", metavar="FILE", help="holds the process number while it runs", beside_file=True)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The end that accepts connections."""

    clients: tuple[ClientAccount, ...] = field(
        metadata=declared(
            doc="Who may connect.",
            required="give at least one client, with its name and token",
            own={"clients": {}},
            entries=ClientAccount,
        )
    )
    listen: tuple[tuple[str, int], ...] = option(
        (("127.0.0.1", 8443),),
        doc="Where to accept connections: ADDRESS:PORT, or a list of them; port 0 lets the system choose.",
        parse_next=parse_next_listen,
        port_alone="127.0.0.1:{}",
        empty="is empty, so nobody can connect",
        unset="127.0.0.1:8443",
    )
    path: str = option(
        "/tunnel",
        doc="The path of the tunnel in the URL; others are answered with 404.",
        parse=check_path,
        pattern=PATH_PATTERN,
    )
    identity: Path = option(
        Path("server.key"), doc="The server's private key, which only you can read; made at the first start."
    )
    tls: ServerTls | None = option(
        None, doc="Certificates, for a server that does TLS itself.", unset="plain HTTP, as behind a proxy"
    )
    publish_dir: Path | None = option(
        None,
        doc="A directory with a Unix socket for each published name, which a proxy in front connects to.",
        unset="none: by TLS alone, where this server does it",
    )
    publish_mode: str = option(
        "0660", doc="Permission bits of these sockets, in octal.", parse=check_mode, pattern=MODE_PATTERN
    )
    publish_group: str | None = option(
        None, doc="The group of these sockets, as www-data: the proxy's.", unset="this user's"
    )
    trusted_proxies: tuple[str, ...] = option(
        (),
        doc="Networks of proxies whose X-Forwarded-For header is believed, in logs and for the limits on one address.",
        parse=check_network,
        unset="none",
    )
    proxy_protocol: bool = option(
        False,
        doc="Whether each connection of `trusted_proxies` begins with a PROXY protocol header (version 1 or 2), which "
        "says who came; from others it is refused.",
        unset="false",
    )
    node: str = option(
        "",
        doc="What this server calls itself to clients and in logs.",
        parse=check_name,
        pattern=NAME.pattern,
        unset="the host's name",
    )
    connect_timeout: float = option(
        10.0, low=0.1, high=300, unit="seconds", doc="Time to reach a target, looking up its name included."
    )
    drain: float = option(
        5.0, low=0, high=3600, unit="seconds", doc="Time that open streams get to finish after SIGTERM."
    )
    resume_for: float = option(
        300.0,
        low=0,
        high=86_400,
        unit="seconds",
        doc="Time that a session waits for its client to come back; with 0 it ends with its connection.",
    )
    takeover_timeout: float = option(
        3.0,
        low=0.1,
        high=60,
        unit="seconds",
        doc="Time that a client has to answer when another one comes under its name.",
    )
    bench: bool = option(True, doc="Whether clients may measure their way to this server, with `tunnel.py bench`.")
    doctor: bool = option(
        True, doc="Whether `tunnel.py doctor` may ask this server what the path does to requests, answers and silence."
    )
    limits: ServerLimits = option(ServerLimits(), doc="Bounds on what the other ends can make this server hold.")
    keepalive: Keepalive = option(Keepalive(), doc="Sealed PINGs inside the tunnel, both ways.")
    application_keepalive: ApplicationProbes = option(
        ApplicationProbes(), doc="TCP keepalive of the connections with applications."
    )
    flow: Flow = option(Flow(), doc="Windows and queues.")
    log: LogSettings = option(LogSettings(), doc="What is logged, how, and where.")
    audit: AuditSettings | None = option(
        None, doc="A log of who connected, with which token, and what was opened and refused.", unset="none"
    )
    monitor: MonitorSettings | None = option(None, doc=_MONITOR_DOC, unset="nothing")
    pid_file: Path | None = option(None, doc="Holds the process's number while it runs.", unset="none", flag=_PID_FILE)
    state_dir: Path = option(
        Path("."),
        doc="Where the server keeps what it must remember.",
        unset="$STATE_DIRECTORY, else this file's directory",
    )
    watch_config: bool = option(False, doc=_WATCH_CONFIG)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.proxy_protocol and not self.trusted_proxies:
            yield Conflict(
                ("proxy_protocol",), "needs `trusted_proxies`: from nobody else is the PROXY protocol believed"
            )


@dataclass(frozen=True, slots=True)
class ForwardLimits:
    """What those who come to a forward may use of it; 0 is no limit.  Addresses are counted as in ARCHITECTURE.md."""

    rate_up: int = option(
        0,
        low=0,
        high=MAX_RATE,
        unit=_RATE,
        doc=f"Bytes from the client to the server, all together. {_NO_LIMIT}",
    )
    rate_down: int = option(
        0, low=0, high=MAX_RATE, unit=_RATE, doc=f"Bytes from the server to the client, likewise. {_NO_LIMIT}"
    )
    max_streams: int = option(0, low=0, high=1_000_000, unit="streams", doc=f"Streams at once. {_NO_LIMIT}")
    streams_per_second: float = option(
        0.0, low=0, high=1_000_000, unit="streams a second", doc=f"New streams, after one second's at once. {_NO_LIMIT}"
    )
    max_streams_per_address: int = option(
        0, low=0, high=1_000_000, unit="streams", doc=f"Streams at once from one address. {_NO_LIMIT}"
    )
    streams_per_second_per_address: float = option(
        0.0, low=0, high=1_000_000, unit="streams a second", doc=f"New streams from one address. {_NO_LIMIT}"
    )
    idle_timeout: float = option(0.0, low=0, high=MAX_IDLE, unit="seconds", doc=f"{_IDLE} {_NO_LIMIT}")


@dataclass(frozen=True, slots=True)
class Forward:
    """One rule.  `kind` is "local" (listen here, connect there) or "remote" (listen there, connect here)."""

    kind: str
    listen: ListenPlace
    to: TargetPlace  # a name in it is resolved at the connecting end
    limits: ForwardLimits = ForwardLimits()
    passwords: Passwords | None = None
    """Whom a dynamic forward lets in; None for everybody who reaches it."""
    ports: int = 1
    """How many ports in turn, from that of `listen` on, lead to as many from that of `to` on."""
    permissions: Permissions = OURS_ALONE
    """Of the file of a Unix socket that is listened on."""
    proxy_protocol: str = ""
    """The version in which the target is told who came, by the PROXY protocol: v1, v2, or "" for not at all."""
    accept_proxy_protocol: bool = False
    """Whether each connection of a trusted proxy begins with a PROXY protocol header, where a remote one listens."""

    def __str__(self) -> str:
        kind = "publish" if isinstance(self.listen, PublishedName) else self.kind
        return f"{kind} {_ports_of(self.listen, self.ports)} to {self.target}"

    @property
    def target(self) -> str:
        """Where it leads, with all its ports, for people."""
        return _ports_of(self.to, self.ports)

    def meets(self, other: Forward) -> bool:
        """Return whether both listen in one place, as far as that is known: not where the system chooses the port."""
        one, two = self.listen, other.listen
        ports = TcpAddress | UdpAddress
        if isinstance(one, ports) and isinstance(two, ports) and one.port and two.port:
            port = max(one.port, two.port)
            if port >= min(one.port + self.ports, two.port + other.ports):
                return False
            one, two = replace(one, port=port), replace(two, port=port)
        return self.kind == other.kind and listen_in_one_place(one, two)

    def parts(self) -> tuple[Forward, ...]:
        """Return a forward for each of its ports; itself when it has one."""
        if self.ports == 1:
            return (self,)
        return tuple(
            replace(
                self,
                listen=_port_at(self.listen, n),
                to=_port_at(self.to, n),
                ports=1,
            )
            for n in range(self.ports)
        )


def _port_at(place: P, n: int) -> P:
    """Return the place whose port is the `n`th after that of `place`; itself where there are no ports."""
    return replace(place, port=place.port + n) if isinstance(place, TcpAddress | UdpAddress) else place


def _ports_of(place: ListenPlace | TargetPlace, ports: int) -> str:
    if ports == 1 or not isinstance(place, TcpAddress | UdpAddress):
        return str(place)
    first, dash, network = str(place).partition("/")
    return f"{first}-{place.port + ports - 1}{dash}{network}"


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
            own={"token": text(doc=_TOKEN), "token_file": text(doc=_TOKEN_FILE)},
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
    monitor: MonitorSettings | None = option(None, doc=_MONITOR_DOC, unset="nothing")
    pid_file: Path | None = option(None, doc="Holds the process's number while it runs.", unset="none", flag=_PID_FILE)
    state_dir: Path | None = option(  # None: nothing can be kept, and nothing has to be
        Path("."),
        doc="Where known hosts are kept.",
        unset="$STATE_DIRECTORY, else this file's directory",
    )
    watch_config: bool = option(False, doc=_WATCH_CONFIG)
