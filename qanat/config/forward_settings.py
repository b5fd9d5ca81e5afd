"""The settings of one forward, and what those who come to it may use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from qanat.base.endpoint_addresses import (
    ListenPlace,
    PublishedName,
    TargetPlace,
    TcpAddress,
    UdpAddress,
    listen_in_one_place,
)
from qanat.config.options import option
from qanat.config.settings import IDLE_DOC, MAX_IDLE, MAX_RATE, NO_LIMIT, RATE
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.unix import OURS_ALONE, Permissions

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class ForwardLimits:
    """What those who come to a forward may use of it; 0 is no limit.  Addresses are counted as in ARCHITECTURE.md."""

    rate_up: int = option(
        0,
        low=0,
        high=MAX_RATE,
        unit=RATE,
        doc=f"Bytes from the client to the server, all together. {NO_LIMIT}",
    )
    rate_down: int = option(
        0, low=0, high=MAX_RATE, unit=RATE, doc=f"Bytes from the server to the client, likewise. {NO_LIMIT}"
    )
    max_streams: int = option(0, low=0, high=1_000_000, unit="streams", doc=f"Streams at once. {NO_LIMIT}")
    streams_per_second: float = option(
        0.0, low=0, high=1_000_000, unit="streams a second", doc=f"New streams, after one second's at once. {NO_LIMIT}"
    )
    max_streams_per_address: int = option(
        0, low=0, high=1_000_000, unit="streams", doc=f"Streams at once from one address. {NO_LIMIT}"
    )
    streams_per_second_per_address: float = option(
        0.0, low=0, high=1_000_000, unit="streams a second", doc=f"New streams from one address. {NO_LIMIT}"
    )
    idle_timeout: float = option(0.0, low=0, high=MAX_IDLE, unit="seconds", doc=f"{IDLE_DOC} {NO_LIMIT}")


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
