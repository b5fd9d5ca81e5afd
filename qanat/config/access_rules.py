"""Access rules as people write them: `CIDR:PORTS`, `name:PORTS`, `unix:PATH`, and where one may listen.

Rules for connecting are `CIDR:PORTS`, `ADDRESS:PORTS` and `name:PORTS`, IPv6 in brackets; PORTS is
a number, `LOW-HIGH` or `*`.  Any such rule is for TCP, or with `/udp` behind it for UDP, never for both.  Parsing
alone: the configuration uses these parsers to find faults, and
`qanat.session.connect_rules` and `qanat.server.access.rules` judge with what they return.  Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qanat.base.addresses import (
    IpAddress,
    IpNetwork,
    check_bind_host,
    check_unix_path,
    looks_numeric,
    normalize_name,
    parse_address,
    parse_network,
    parse_port,
    split_host_port,
    unmap,
)
from qanat.base.errors import UsageError
from qanat.config.address_ranges import NEVER, is_inside

UDP = "/udp"
"""What a rule for UDP ends with."""
_NAME_RULE = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Ports:
    """An inclusive range."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Ports:
        """Return the range in `*` (1 to 65535), `N` or `LOW-HIGH`; port 0 only by itself.  Raises UsageError."""
        if text == "*":
            return cls(1, 65535)
        first, dash, last = text.partition("-")
        if not dash:
            port = parse_port(first, lowest=0)
            return cls(port, port)
        low, high = parse_port(first), parse_port(last)
        if low > high:
            raise UsageError("has a range of ports that ends before it begins")
        return cls(low, high)

    def __contains__(self, port: int) -> bool:
        """Return whether `port` is one of them."""
        return self.low <= port <= self.high


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """Allows the addresses of one network."""

    network: IpNetwork
    ports: Ports
    udp: bool = False


@dataclass(frozen=True, slots=True)
class NameRule:
    """Allows what one name, or every name below `*.name`, resolves to, as long as that is not special."""

    name: str
    below: bool
    ports: Ports
    udp: bool = False

    def matches(self, name: str) -> bool:
        """Return whether the rule is about `name`, in lower case and without a final dot."""
        return name.endswith("." + self.name) if self.below else name == self.name


@dataclass(frozen=True, slots=True)
class UnixRule:
    """Allows Unix sockets of one directory, or abstract ones, whose directory is `@`."""

    directory: str
    pattern: str
    """The name in there; each `*` stands for any characters, a dot at the beginning included."""

    def matches(self, name: str) -> bool:
        """Return whether the rule is about a socket of this name in its directory."""
        parts = map(re.escape, self.pattern.split("*"))
        return re.fullmatch(".*".join(parts), name, re.DOTALL) is not None


ConnectRule = NetworkRule | NameRule | UnixRule


@dataclass(frozen=True, slots=True)
class ListenRule:
    """Allows listening at one address."""

    address: IpAddress
    ports: Ports
    udp: bool = False


def parse_unix_rule(text: str) -> UnixRule | None:
    """Return the rule in `unix:PATH` or `unix:@NAME`, None when `text` is about something else.  Raises UsageError.

    The last part may have `*` in it.
    """
    kind, _, path = text.partition(":")
    if kind != "unix" or not path.startswith(("/", "@")):
        return None
    path = check_unix_path(path)
    if path.startswith("@"):
        return UnixRule("@", path[1:])
    directory, _, name = path.rpartition("/")
    if "*" in directory:
        raise UsageError("has * in a directory", hint="write one rule for each: unix:/run/app/*")
    return UnixRule(directory or "/", name)


def parse_connect_rule(text: str) -> ConnectRule:
    """Return one rule of `allow_connect`.  Raises UsageError."""
    unix = parse_unix_rule(text)
    if unix is not None:
        return unix
    text, udp = _split_network(text)
    host, port_text = split_host_port(text)
    ports = Ports.parse(port_text)
    if ports.low == 0:
        raise UsageError("has a port outside 1 to 65535")
    if not host or host == "*":
        raise UsageError(
            "does not say for which addresses",
            hint=f"write 0.0.0.0/0:{port_text} for all of IPv4, [::/0]:{port_text} for all of IPv6",
        )
    if "/" in host or ":" in host or parse_address(host) is not None:
        return NetworkRule(_checked_network(host), ports, udp)
    return _parse_name_rule(host, ports, udp)


def _split_network(text: str) -> tuple[str, bool]:
    """Return the rule without `/udp`, and whether it was there."""
    return text.removesuffix(UDP), text.endswith(UDP)


def _checked_network(text: str) -> IpNetwork:
    network = parse_network(text)
    if any(is_inside(network, never) for never in NEVER):
        raise UsageError("names unspecified, multicast or broadcast addresses, which nothing can open")
    return network


def _parse_name_rule(text: str, ports: Ports, udp: bool) -> NameRule:
    below = text.startswith("*.")
    name = normalize_name(text.removeprefix("*."))
    if name is None or not _NAME_RULE.fullmatch(name):
        raise UsageError(
            "is neither a network nor a host name", hint="for example 10.0.0.0/8:5432 or *.example.com:443"
        )
    if looks_numeric(name):
        raise UsageError("has an address in a short or old spelling", hint="write all four numbers: 127.0.0.1")
    if name == "localhost" or name.endswith(".localhost"):
        raise UsageError("names this machine, which a name never opens", hint="write 127.0.0.1 or [::1] instead")
    return NameRule(name, below, ports, udp)


def parse_listen_rule(text: str) -> ListenRule:
    """Return one rule for ports of `allow_listen`: a literal address, and ports.  Raises UsageError."""
    text, udp = _split_network(text)
    host, port_text = split_host_port(text)
    ports = Ports.parse(port_text)
    address = parse_address(check_bind_host(host, ports.low))
    if address is None or "%" in host:
        raise UsageError("names an interface after %", hint="leave it out: the rule holds for every interface")
    return ListenRule(unmap(address), ports, udp)
