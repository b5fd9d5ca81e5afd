"""What is examined, and what has been seen of it: filled by the checks, each of which has fields of its own."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields, replace

from qanat.base.cancel import Cancel
from qanat.base.resolve import Address
from qanat.config.client_settings import ClientSettings, RemoteServer
from qanat.doctor.conversation import Head
from qanat.doctor.products import Product
from qanat.doctor.report import Step
from qanat.measure.probes import Arrived
from qanat.transports.dial.proxies import Proxy
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl


@dataclass(frozen=True, slots=True)
class Subject:
    """One URL, and how the client goes there.  `settings` are those of the client, with the token if there is one."""

    url: TunnelUrl
    route: Route
    settings: ClientSettings
    server: RemoteServer
    has_token: bool
    cancel: Cancel

    @property
    def asked_for(self) -> tuple[str, ...]:
        """The transports that the configuration names; none where it leaves that to the program."""
        default = next(option.default for option in fields(ClientSettings) if option.name == "transports")
        return () if self.settings.transports == default else self.settings.transports

    @property
    def proxy(self) -> Proxy | None:
        """The proxy on the way out."""
        return self.route.proxy if isinstance(self.route.proxy, Proxy) else None

    def probing(self, probe: str) -> Route:
        """Return the route with the header that asks for a probe."""
        return replace(self.route, headers=(*self.route.headers, ("Qanat-Probe", probe)))


@dataclass(slots=True)
class Lookup:
    """What the name's addresses are, or why there are none."""

    addresses: list[Address] = field(default_factory=list)
    error: str = ""
    unknown: bool = False


@dataclass(slots=True)
class Connected:
    """What became of connecting to one address."""

    address: str
    seconds: float | None = None  # None: it failed
    error: str = ""
    number: int = 0  # errno


@dataclass(slots=True)
class TlsSeen:
    """What TLS showed."""

    version: str = ""
    alpn: str | None = None  # chosen when h2 and http/1.1 were offered
    error: str = ""
    hint: str = ""
    verify_code: int = 0  # OpenSSL's, 0 when it verifies or does not get so far
    issuer: str = ""
    subject: str = ""
    names: tuple[str, ...] = ()
    self_issued: bool = False
    days_left: float | None = None
    not_before: str = ""
    not_after: str = ""
    plain_answers: bool = False
    """Whether HTTP without TLS is answered on this port."""
    forged: bool = False
    """Whether a name that nobody has got a certificate too: somebody makes them as they are asked for."""


@dataclass(slots=True)
class Asked:
    """What became of a plain probe over one version of HTTP."""

    head: Head | None = None
    body: str = ""
    error: str = ""
    arrived: Arrived | None = None
    seconds: float | None = None

    @property
    def probed(self) -> bool:
        """Whether the server answers probes."""
        return self.arrived is not None


@dataclass(slots=True)
class Held:
    """What a path does to an answer."""

    first: float | None = None  # seconds until the first byte of it, by the client's clock
    until_end: bool = False
    seconds: float = 0.0  # how long it is collected at a time
    between: tuple[int, int] | None = None  # bytes: held at the first, not at the second
    complete: bool = False

    @property
    def is_held(self) -> bool:
        """Whether it is passed on later than it came."""
        return self.until_end or self.between is not None or self.seconds > 0


@dataclass(slots=True)
class Tried:
    """What became of opening one transport."""

    opened: bool = False
    spoke: bool = False  # the server's first message came
    probes: bool = False  # and it is a server that echoes
    echoed: bool = False  # bytes went both ways
    error: str = ""
    hint: str = ""
    seconds: float | None = None
    round_trips: list[float] = field(default_factory=list)
    cut: bool = False  # it ended while it was used

    @property
    def works(self) -> bool:
        """Whether the transport gets through, as far as this can tell."""
        return self.echoed or (self.spoke and not self.probes)


@dataclass(slots=True)
class Seen:
    """Everything that has been seen.  Each check writes what is its own; `add` may be called from any of them."""

    lookup: Lookup = field(default_factory=Lookup)
    connected: list[Connected] = field(default_factory=list)
    proxy_error: tuple[str, str] | None = None
    tls: TlsSeen | None = None
    speaks_tls: bool = False  # though the URL says that it does not
    asked: dict[int, Asked] = field(default_factory=dict)  # by version of HTTP
    upgrade: Asked | None = None
    settings: dict[str, int] | None = None  # of HTTP/2
    forbidden: tuple[str, ...] = ()
    clock: float | None = None  # seconds by which the answer's Date is ahead of us
    product: Product | None = None
    request_held: dict[int, bool] = field(default_factory=dict)
    answer_held: dict[int, Held] = field(default_factory=dict)
    largest: int | None = None  # bytes of a body that nobody refused
    refused_size: int | None = None  # and the smallest that somebody did
    cut_upload: int | None = None  # bytes after which an open request was cut, about
    one_at_a_time: bool | None = None
    tried: dict[str, Tried] = field(default_factory=dict)
    fingerprint: str = ""
    refused: tuple[str, str] | None = None  # by the server, in the handshake
    shook_hands: bool = False
    cut_after: dict[str, float] = field(default_factory=dict)  # seconds of silence, by transport
    survived: dict[str, float] = field(default_factory=dict)
    steps: list[tuple[int, Step]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, order: int, step: Step) -> None:
        """Note a step; those with a lower `order` are shown first."""
        with self._lock:
            self.steps.append((order, step))
