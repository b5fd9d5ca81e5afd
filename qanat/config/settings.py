"""The settings of one process, as frozen values with their defaults.

`qanat.config.load` fills these in from YAML, `tunnel.py` from a URL and options; the running client
and server read nothing else.  Units stand in each comment.  Every number is a configuration key of
the same name, and config.example.yaml documents each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qanat.transports.dial.proxies import NO_PROXIES, EnvironmentProxies, Proxy


@dataclass(frozen=True, slots=True)
class ServerTls:
    certificate: Path  # PEM chain; reloaded when the file changes
    key: Path  # PEM; refused when others can read it
    client_ca: Path | None = None  # PEM; when set, clients need a certificate of these authorities


@dataclass(frozen=True, slots=True)
class ClientAccount:
    """One client as the server knows it."""

    name: str
    tokens: tuple[bytes, ...] = field(repr=False)  # the 32-byte secrets; one or, during rotation, two
    allow_listen: tuple[str, ...] = ()  # "HOST:PORT" or "HOST:LOW-HIGH"; nothing unless said
    allow_connect: tuple[str, ...] = ()  # "CIDR:PORTS", "name:PORTS", "*" for all ports; nothing unless said
    shared_listen: tuple[str, ...] = ()  # as allow_listen, for ports that other clients with such a rule may have too


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds on what peers can make the server hold."""

    connections: int = 4096  # accepted connections at once, over all peers
    handshakes: int = 64  # unauthenticated connections in the handshake at once; above: 503
    handshake_rate: float = 50.0  # handshakes begun a second, beyond as many at once as `handshakes`; above: 503
    rsa_operations: int = 4  # RSA private-key operations at once
    header_bytes: int = 16384  # of one HTTP request, before authentication
    header_timeout: float = 10.0  # seconds for the TLS handshake and the HTTP request head
    handshake_timeout: float = 10.0  # seconds from the upgrade until READY
    per_address_rate: float = 20.0  # new connections a second from one address before they are slowed
    per_address_burst: int = 100  # connections from one address that are never slowed
    sessions: int = 1024  # sessions at once
    streams: int = 4096  # open streams a session, in each direction
    forwards: int = 256  # remote forwards a session
    lanes: int = 8  # connections a session may have side by side


@dataclass(frozen=True, slots=True)
class Keepalive:
    interval: float = 15.0  # seconds between sealed PINGs
    timeout: float = 45.0  # seconds without one raw byte until the link counts as dead


@dataclass(frozen=True, slots=True)
class Flow:
    """Windows and queues; bytes."""

    initial_window: int = 131072  # credit each stream starts with
    max_window: int = 16777216  # to which one stream's window may grow
    window_budget: int = 67108864  # that all streams of a session may grow by, together
    outbox: int = 16777216  # DATA kept until acknowledged, a lane and direction


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: str = "info"  # error | warning | info | debug
    format: str = "text"  # text | json
    file: Path | None = None  # stderr when None; reopened on SIGHUP


@dataclass(frozen=True, slots=True)
class ServerSettings:
    clients: tuple[ClientAccount, ...]
    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 8443),)
    path: str = "/tunnel"
    identity: Path = Path("server.key")
    tls: ServerTls | None = None
    trusted_proxies: tuple[str, ...] = ()  # CIDR networks whose X-Forwarded-For is believed
    node: str = ""  # this server's name in READY and logs; the host's name when empty
    connect_timeout: float = 10.0  # seconds to reach a target
    drain: float = 5.0  # seconds that open streams get to finish after SIGTERM
    resume_for: float = 300.0  # seconds a session waits for its client to come back; 0: it ends with its connection
    takeover_timeout: float = 3.0  # seconds a holder of a client name has to answer a PING
    limits: ServerLimits = ServerLimits()
    keepalive: Keepalive = Keepalive()
    flow: Flow = Flow()
    log: LogSettings = LogSettings()
    pid_file: Path | None = None
    state_dir: Path = Path(".")


@dataclass(frozen=True, slots=True)
class Forward:
    """One rule.  `kind` is "local" (listen here, connect there) or "remote" (listen there, connect here)."""

    kind: str
    listen: tuple[str, int]  # literal address and port; port 0 lets the system choose
    to: tuple[str, int]  # name or literal, resolved at the connecting end

    def __str__(self) -> str:
        return f"{self.kind} {_join(self.listen)} to {_join(self.to)}"


@dataclass(frozen=True, slots=True)
class ClientTls:
    ca_file: Path | None = None  # PEM; the system's authorities when None
    certificate: Path | None = None  # PEM chain, shown to a server that asks for one (mTLS)
    key: Path | None = None  # PEM; refused when others can read it
    server_name: str | None = None  # in SNI and in the certificate; the URL's host when None


@dataclass(frozen=True, slots=True)
class Reconnect:
    first: float = 0.1  # seconds within which, at random, the first try starts
    min: float = 1.0  # back-off after the first failure, full jitter
    max: float = 60.0  # its ceiling


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """One server as its client knows it.  All `urls` lead to this very server."""

    urls: tuple[str, ...]  # tried in turn
    token: bytes = field(repr=False)
    fingerprint: str | None = None  # "SHA256:…"; None: trust on first use, kept in known_hosts


@dataclass(frozen=True, slots=True)
class ClientSettings:
    name: str
    servers: tuple[RemoteServer, ...]
    forwards: tuple[Forward, ...] = ()
    connect: str = "first"  # "first": a later server only while no earlier one can be had; "all": a session to each
    failover_after: float = 5.0  # seconds without a connection to a server until the next one is tried
    transports: tuple[str, ...] = ("websocket",)  # tried in turn
    lanes: int = 1  # connections side by side to each server
    max_pipe_age: float | None = None  # seconds after which, less up to a fifth, a connection is replaced
    tls: ClientTls = ClientTls()
    proxy: Proxy | EnvironmentProxies | None = NO_PROXIES  # None goes straight to the server
    connect_to: tuple[str, int] | None = None  # dial this though the URL names another host
    host: str | None = None  # the Host header or :authority; the URL's when None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # in every request; may be secrets
    connect_timeout: float = 10.0  # seconds for TCP, proxy, TLS and HTTP together; and to reach a target
    handshake_timeout: float = 10.0  # seconds from the upgrade until READY
    drain: float = 5.0  # seconds that open streams get to finish after SIGTERM
    keepalive: Keepalive = Keepalive()
    reconnect: Reconnect = Reconnect()
    flow: Flow = Flow()
    log: LogSettings = LogSettings()
    pid_file: Path | None = None
    state_dir: Path | None = Path(".")  # None: nothing can be kept, and nothing has to be


def _join(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
