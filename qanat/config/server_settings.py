"""The settings of a server; what both ends have is in `qanat.config.settings`, which says how to read this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qanat.base.text import NAME
from qanat.config.moments import MOMENT_PATTERN, parse_moment
from qanat.config.options import Conflict, declared, option
from qanat.config.published_names import MODE_PATTERN, check_mode, check_publish_rule
from qanat.config.schema_forms import one_or_several, text
from qanat.config.secret_files import check_private, check_readable
from qanat.config.settings import (
    IDLE_DOC,
    MAX_IDLE,
    MAX_LANES,
    MAX_RATE,
    MONITOR_DOC,
    NO_LIMIT,
    PID_FILE,
    RATE,
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
    PATH_PATTERN,
    check_connect_rule,
    check_listen_rule,
    check_name,
    check_network,
    check_path,
    check_shared_rule,
    parse_next_listen,
)
from qanat.endpoints.dynamic.passwords import Passwords

MAX_TOKENS = 2
"""Tokens that one client may have, so that a new one can be brought out before the old one ends."""


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
                "token": one_or_several(text(), least=1, most=MAX_TOKENS, doc=TOKEN_DOC),
                "token_file": one_or_several(text(), least=1, most=MAX_TOKENS, doc=TOKEN_FILE_DOC),
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
    rate_up: int = option(0, low=0, high=MAX_RATE, unit=RATE, doc=f"Bytes from the client to this server. {NO_LIMIT}")
    rate_down: int = option(0, low=0, high=MAX_RATE, unit=RATE, doc=f"Bytes from this server to it. {NO_LIMIT}")
    idle_timeout: float = option(0.0, low=0, high=MAX_IDLE, unit="seconds", doc=f"{IDLE_DOC} {NO_LIMIT}")
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
    monitor: MonitorSettings | None = option(None, doc=MONITOR_DOC, unset="nothing")
    pid_file: Path | None = option(None, doc="Holds the process's number while it runs.", unset="none", flag=PID_FILE)
    state_dir: Path = option(
        Path("."),
        doc="Where the server keeps what it must remember.",
        unset="$STATE_DIRECTORY, else this file's directory",
    )
    watch_config: bool = option(False, doc=WATCH_CONFIG_DOC)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.proxy_protocol and not self.trusted_proxies:
            yield Conflict(
                ("proxy_protocol",), "needs `trusted_proxies`: from nobody else is the PROXY protocol believed"
            )
