"""What a client may reach and where it may listen: the rules, parsed and asked.

Rules for connecting are `CIDR:PORTS`, `ADDRESS:PORTS` and `name:PORTS`, IPv6 in brackets; PORTS is
a number, `LOW-HIGH` or `*`.  The name in a request is resolved once, every address is checked, and
those very addresses are handed back to be connected to, so that no second look-up can answer
otherwise (DNS rebinding).  Checks look at the address that the resolver gave, never at the text
that was asked for: `0x7f.1`, `localhost` and `::ffff:127.0.0.1` are all 127.0.0.1.

The server asks for every stream and every listener; `service.config` uses the parsers to find
faults.  The ranges that need more than an ordinary rule are in `service.ranges`, looking names up
is `service.lookup`.  An empty set of rules allows nothing.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Sequence

from attrs import frozen

from base.deadline import Deadline
from base.errors import EndpointError, UsageError
from base.sockets import format_address
from mux.frames import Reason
from service.addresses import (
    IpAddress,
    IpNetwork,
    check_bind_host,
    check_target_host,
    looks_numeric,
    normalise_name,
    parse_address,
    parse_network,
    parse_port,
    split_host_port,
    unmap,
)
from service.lookup import Address, Share, resolve
from service.ranges import NEVER, is_inside, is_never, special_ranges

log = logging.getLogger("qanat.access")

_NAME_RULE = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


@frozen
class Ports:
    """An inclusive range."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Ports:
        """`*` (1 to 65535), `N` or `LOW-HIGH`; port 0 only by itself.  Raises UsageError."""
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
        return self.low <= port <= self.high


@frozen
class NetworkRule:
    """Allows the addresses of one network."""

    network: IpNetwork
    ports: Ports


@frozen
class NameRule:
    """Allows what one name, or every name below `*.name`, resolves to, as long as that is not special."""

    name: str
    below: bool
    ports: Ports

    def matches(self, name: str) -> bool:
        return name.endswith("." + self.name) if self.below else name == self.name


ConnectRule = NetworkRule | NameRule


@frozen
class ListenRule:
    address: IpAddress
    ports: Ports


def parse_connect_rule(text: str) -> ConnectRule:
    """One rule of `allow_connect`.  Raises UsageError."""
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
        return NetworkRule(_checked_network(host), ports)
    return _parse_name_rule(host, ports)


def _checked_network(text: str) -> IpNetwork:
    network = parse_network(text)
    if any(is_inside(network, never) for never in NEVER):
        raise UsageError("names unspecified, multicast or broadcast addresses, which nothing can open")
    return network


def _parse_name_rule(text: str, ports: Ports) -> NameRule:
    below = text.startswith("*.")
    name = normalise_name(text.removeprefix("*."))
    if name is None or not _NAME_RULE.fullmatch(name):
        raise UsageError(
            "is neither a network nor a host name", hint="for example 10.0.0.0/8:5432 or *.example.com:443"
        )
    if looks_numeric(name):
        raise UsageError("has an address in a short or old spelling", hint="write all four numbers: 127.0.0.1")
    if name == "localhost" or name.endswith(".localhost"):
        raise UsageError("names this machine, which a name never opens", hint="write 127.0.0.1 or [::1] instead")
    return NameRule(name, below, ports)


def parse_listen_rule(text: str) -> ListenRule:
    """One rule of `allow_listen`: a literal address, and ports.  Raises UsageError."""
    host, port_text = split_host_port(text)
    ports = Ports.parse(port_text)
    address = parse_address(check_bind_host(host, ports.low))
    if address is None or "%" in host:
        raise UsageError("names an interface after %", hint="leave it out: the rule holds for every interface")
    return ListenRule(unmap(address), ports)


class ConnectRules:
    """What one client may reach.  Immutable, and safe to use from any thread."""

    def __init__(self, rules: Sequence[str]) -> None:
        """Raises UsageError for a rule that cannot be read."""
        parsed = [parse_connect_rule(rule) for rule in rules]
        self._networks = [rule for rule in parsed if isinstance(rule, NetworkRule)]
        self._names = [rule for rule in parsed if isinstance(rule, NameRule)]
        self._share = Share()

    def resolve(self, host: str, port: int, deadline: Deadline) -> list[Address]:
        """The addresses of `host` that are allowed, in the resolver's order, at least one; connect to these.

        Blocks until `deadline` at most.  Raises EndpointError: NOT_ALLOWED, UNREACHABLE when the
        name has no address, LIMIT when too many names are being looked up.  What is refused is not
        said in detail, since that would tell a client about names it may not reach; the log has it.
        """
        name = self._checked_name(host, port)
        if not self._may_match(name, port):
            raise self._not_allowed(host, port, "no rule has this port and name, nor this port and any address")
        allowed: list[Address] = []
        refused: list[str] = []
        for family, sockaddr in resolve(host, port, deadline, self._share):
            text = sockaddr[0]
            address = parse_address(text)
            if address is None or not self.allows(address, port, name):
                refused.append(text)
                continue
            plain = unmap(address)
            if plain.version != address.version:
                family, sockaddr = socket.AF_INET, (str(plain), port)
            allowed.append((family, sockaddr))
        if not allowed:
            raise self._not_allowed(host, port, f"no rule allows {', '.join(refused)}")
        return allowed

    def allows(self, address: IpAddress, port: int, name: str | None = None) -> bool:
        """Whether `address` may be connected to, asked for as `name` (normalised) or as itself.  Pure."""
        address = unmap(address)
        if is_never(address):
            return False
        special = special_ranges(address)
        for rule in self._networks:
            if port in rule.ports and address in rule.network and all(is_inside(rule.network, s) for s in special):
                return True
        return not special and name is not None and self._name_allowed(name, port)

    def _name_allowed(self, name: str, port: int) -> bool:
        return any(port in rule.ports and rule.matches(name) for rule in self._names)

    def _may_match(self, name: str | None, port: int) -> bool:
        """Whether looking the name up is worth it: a client must not use us to ask after names at will."""
        if any(port in rule.ports for rule in self._networks):
            return True
        return name is not None and self._name_allowed(name, port)

    def _checked_name(self, host: str, port: int) -> str | None:
        try:
            check_target_host(host)
        except UsageError as error:
            raise EndpointError(f"a target that {error.message}", code=Reason.NOT_ALLOWED) from error
        if not 1 <= port <= 65535:
            raise EndpointError(f"port {port} cannot be connected to", code=Reason.NOT_ALLOWED)
        return None if parse_address(host) is not None else normalise_name(host)

    @staticmethod
    def _not_allowed(host: str, port: int, why: str) -> EndpointError:
        what = format_address((host, port))
        log.info("%s is not allowed: %s", what, why)
        return EndpointError(
            f"{what} is not allowed", code=Reason.NOT_ALLOWED, hint="see this client's allow_connect on the server"
        )


class ListenRules:
    """Where one client's remote forwards may listen.  Immutable, and safe to use from any thread."""

    def __init__(self, rules: Sequence[str], shared: Sequence[str] = ()) -> None:
        """`shared` are those that allow to listen together with other clients.

        Raises UsageError for a rule that cannot be read.
        """
        self._shared = [parse_listen_rule(rule) for rule in shared]
        self._rules = [*(parse_listen_rule(rule) for rule in rules), *self._shared]

    def is_shared(self, host: str, port: int) -> bool:
        """Whether an address that `check` allows is to be shared with other clients who ask for it."""
        address = parse_address(host)
        return address is not None and any(
            unmap(address) == rule.address and port in rule.ports for rule in self._shared
        )

    def check(self, host: str, port: int) -> Address:
        """The address to bind for `host`, a literal, when a rule lists that very address.  Does not block.

        `0.0.0.0` in a rule allows `0.0.0.0` and not `127.0.0.1`; port 0 (any free one) is allowed
        only by a rule with port 0.  Raises EndpointError: NOT_ALLOWED, UNREACHABLE for an interface
        (`fe80::1%eth0`) that does not exist.
        """
        what = format_address((host, port))
        address = parse_address(host)
        if address is None:
            raise EndpointError(
                f"{what} cannot be listened on", code=Reason.NOT_ALLOWED, hint="it needs a literal address"
            )
        plain = unmap(address)
        if not any(plain == rule.address and port in rule.ports for rule in self._rules):
            log.info("listening on %s is not allowed: no rule has this very address and port", what)
            raise EndpointError(
                f"listening on {what} is not allowed",
                code=Reason.NOT_ALLOWED,
                hint="see this client's allow_listen and shared_listen on the server",
            )
        if plain.version != address.version:
            return socket.AF_INET, (str(plain), port)
        return resolve(host, port, Deadline(0), _NO_SHARE)[0]


_NO_SHARE = Share(1)  # never taken: a literal is not looked up
