"""What a forward listens on and leads to: a TCP or UDP port, a Unix socket, a published name, or wherever is asked for.

Values alone, each with its form as people write it in `str`.  Parsers are in `qanat.base.addresses` and in
`qanat.config`; what each kind does is in `qanat.endpoints`.  Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from qanat.base.addresses import format_host_port, listen_addresses


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port of a host: a name or a literal; where it is listened on, a literal, `localhost` or `*`."""

    host: str
    port: int
    """0 where it is listened on and the system shall choose."""

    def __str__(self) -> str:
        return format_host_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class UdpAddress:
    """A UDP port of a host; otherwise as TcpAddress."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{format_host_port(self.host, self.port)}/udp"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix stream socket by its path; one that begins with @ is in Linux's abstract namespace (unix(7))."""

    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def is_abstract(self) -> bool:
        """Whether it has no file."""
        return self.path.startswith("@")


@dataclass(frozen=True, slots=True)
class PublishedName:
    """A web service's host name, under which a server offers it."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Anywhere:
    """The target of a dynamic forward: whoever connects says where to, in SOCKS or as to an HTTP proxy."""

    def __str__(self) -> str:
        return "anywhere"


ANYWHERE = Anywhere()

ListenPlace = TcpAddress | UdpAddress | UnixAddress | PublishedName
TargetPlace = TcpAddress | UdpAddress | UnixAddress | Anywhere


def listen_in_one_place(one: ListenPlace, other: ListenPlace) -> bool:
    """Return whether two forwards would listen in one place; those whose port the system chooses would not."""
    if isinstance(one, TcpAddress | UdpAddress):
        if type(one) is not type(other) or one.port != other.port or not one.port:
            return False
        hosts = [{address.host for address in listen_addresses(where.host, where.port)} for where in (one, other)]
        return bool(hosts[0] & hosts[1])
    return one == other
