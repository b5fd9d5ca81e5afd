"""What a stream may reach: the rules of `allow_connect`, parsed and asked.

The name in a request is resolved once, every address is checked, and
those very addresses are handed back to be connected to, so that no second look-up can answer
otherwise (DNS rebinding).  Checks look at the address that the resolver gave, never at the text
that was asked for: `0x7f.1`, `localhost` and `::ffff:127.0.0.1` are all 127.0.0.1.

The server asks for every stream, the client for those whose target the far end's user has named;
`qanat.config.texts` uses the parsers to find faults.  The ranges that need more than an ordinary rule are in
`qanat.config.address_ranges`, looking names up is `qanat.endpoints.tcp`.  An empty set of rules allows nothing.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from functools import lru_cache

from qanat.base.addresses import (
    IpAddress,
    check_target_host,
    format_host_port,
    normalize_name,
    parse_address,
    split_host_port,
    unmap,
)
from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import EndpointError, UsageError
from qanat.base.resolve import Address, LookupShare
from qanat.config.access_rules import UDP, NameRule, NetworkRule, UnixRule, parse_connect_rule
from qanat.config.address_ranges import is_inside, is_never, special_ranges
from qanat.endpoints.tcp import resolve
from qanat.mux.frames import Reason
from qanat.mux.stream import Stream
from qanat.session.unix_rules import UnixRules

log = logging.getLogger("qanat.session")

SERVER_KEY = "this client's allow_connect"
"""Where a server has the rules of each client."""
REMEMBERED = 1024
"""Literal targets, of each set of rules, for which it is remembered that they are allowed."""


class ConnectRules:
    """What may be reached for one client.  Immutable, and safe to use from any thread."""

    def __init__(self, rules: Sequence[str], *, key: str = SERVER_KEY, place: str = " on the server") -> None:
        """Read the rules of `allow_connect`.  Raises UsageError for one that cannot be understood.

        A refusal names the `key` to add a rule to, and says to the other end in which `place` that is.
        """
        self._key, self._place = key, place
        parsed = [parse_connect_rule(rule) for rule in rules]
        self._networks = [rule for rule in parsed if isinstance(rule, NetworkRule)]
        self._names = [rule for rule in parsed if isinstance(rule, NameRule)]
        self.unix = UnixRules([rule for rule in parsed if isinstance(rule, UnixRule)], key)
        """Which Unix sockets may be reached."""
        self._share = LookupShare()
        self._resolve_literal = lru_cache(REMEMBERED)(self._resolve_allowed)
        self._check_reached_once = lru_cache(REMEMBERED)(self._check_reached_at)  # many streams go to the same place

    def resolve(
        self, host: str, port: int, deadline: Deadline, cancel: Cancel | None = None, *, udp: bool = False
    ) -> list[Address]:
        """Return the addresses of `host` that are allowed, in the resolver's order, at least one; connect to these.

        Blocks until `deadline` at most, or until `cancel`.  Raises EndpointError: NOT_ALLOWED, UNREACHABLE when the
        name has no address, LIMIT when too many names are being looked up.  The client is not told the refused
        addresses, since that would tell it about names that it may not reach; the log has them.
        """
        if parse_address(host) is not None:
            return self._resolve_literal(host, port, udp=udp)
        return self._resolve_allowed(host, port, deadline, cancel, udp=udp)

    def _resolve_allowed(
        self, host: str, port: int, deadline: Deadline | None = None, cancel: Cancel | None = None, *, udp: bool
    ) -> list[Address]:
        name = self._checked_name(host, port)
        if not self._may_match(name, port, udp):
            raise self._not_allowed(host, port, udp=udp)
        allowed: list[Address] = []
        refused: list[str] = []
        for family, sockaddr in resolve(host, port, deadline or Deadline(None), self._share, cancel):
            address = parse_address(sockaddr[0])
            if address is None or not self.allows(address, port, name, udp=udp):
                refused.append(sockaddr[0] if address is None else str(unmap(address)).partition("%")[0])
                continue
            plain = unmap(address)
            if plain.version != address.version:
                family, sockaddr = socket.AF_INET, (str(plain), port)
            allowed.append((family, sockaddr))
        if not allowed:
            raise self._not_allowed(host, port, refused, udp=udp)
        return allowed

    def allows(self, address: IpAddress, port: int, name: str | None = None, *, udp: bool = False) -> bool:
        """Return whether `address` may be connected to, asked for as `name` (normalized) or as itself.  Pure.

        Over TCP, or with `udp` over UDP: rules are for one of them.
        """
        address = unmap(address)
        if is_never(address):
            return False
        special = special_ranges(address)
        for rule in self._networks:
            if (
                rule.udp == udp
                and port in rule.ports
                and address in rule.network
                and all(is_inside(rule.network, s) for s in special)
            ):
                return True
        return not special and name is not None and self._name_allowed(name, port, udp)

    def check_reached(self, host: str, port: int, address: IpAddress, *, udp: bool = False) -> None:
        """Raise EndpointError (NOT_ALLOWED) unless `address`, at which `host` was reached, may be connected to for it.

        For what was connected to under other rules.  Does not block.
        """
        name = None if parse_address(host) is not None else normalize_name(host)
        if not self.allows(address, port, name, udp=udp):
            raise self._not_allowed(host, port, [str(unmap(address)).partition("%")[0]], udp=udp)

    def judge(self, stream: Stream, to: TcpAddress | UdpAddress | UnixAddress) -> str:
        """Reset an open stream to `to` that is not allowed any more; return what was done, in words, or "".

        One whose target has yet to be reached is judged then.  Does not block.
        """
        try:
            self._check_open(to, stream.accepted)
        except EndpointError as error:
            log.info("%s: reset: %s", stream.label, error.log_text)
            stream.reset(Reason.NOT_ALLOWED, f"not allowed any more: {error.message}")
            return f"stream {stream.label} to {to} reset: no rule allows it any more"
        return ""

    def _check_open(self, to: TcpAddress | UdpAddress | UnixAddress, reached: str | None) -> None:
        if isinstance(to, UnixAddress):
            self.unix.connectable(to.path)
        elif reached is not None:
            self._check_reached_once(to.host, to.port, split_host_port(reached)[0], isinstance(to, UdpAddress))

    def _check_reached_at(self, host: str, port: int, reached: str, udp: bool) -> None:
        address = parse_address(reached)
        if address is not None:
            self.check_reached(host, port, address, udp=udp)

    def _name_allowed(self, name: str, port: int, udp: bool) -> bool:
        return any(rule.udp == udp and port in rule.ports and rule.matches(name) for rule in self._names)

    def _may_match(self, name: str | None, port: int, udp: bool) -> bool:
        """Return whether to look the name up: a client must not use this server to look up names at will."""
        if any(rule.udp == udp and port in rule.ports for rule in self._networks):
            return True
        return name is not None and self._name_allowed(name, port, udp)

    def _checked_name(self, host: str, port: int) -> str | None:
        try:
            check_target_host(host)
        except UsageError as error:
            raise EndpointError(f"a target that {error.message}", code=Reason.NOT_ALLOWED) from error
        if not 1 <= port <= 65535:
            raise EndpointError(f"port {port} cannot be connected to", code=Reason.NOT_ALLOWED)
        return None if parse_address(host) is not None else normalize_name(host)

    def _not_allowed(self, host: str, port: int, addresses: Sequence[str] = (), *, udp: bool) -> EndpointError:
        """Return the refusal of a target; `addresses` are what a name has, for the log here alone."""
        network = UDP if udp else ""
        asked = format_host_port(host, port) + network
        found = [format_host_port(address, port) + network for address in addresses] or [asked]
        return EndpointError(
            f"no rule allows {asked} ({_remedy(asked, self._key)}{self._place})",
            code=Reason.NOT_ALLOWED,
            log_text=f"no rule allows {', '.join(found)} ({_remedy(found[0], self._key)})",
        )


def _remedy(target: str, key: str) -> str:
    try:
        parse_connect_rule(target)
    except UsageError:  # an address that nothing opens, or a name that no rule may have
        return f"see {key}"
    return f"add {target} to {key}"
