"""Which address a connection is charged to: its other end's, or what a trusted proxy says in X-Forwarded-For.

Each proxy appends the address that it was reached from, so the header is read from the right, and
only while the one who wrote the entry is trusted itself; everything further left may have been made up by
anybody.  The result is for logs and limits, never for authorization.  The front door asks for each connection, and
for each stream of one over HTTP/2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from qanat.base.addresses import IpAddress, IpNetwork, parse_address, parse_network, unmap

MAX_ENTRIES = 32
"""Entries looked at, counted from the right; no honest chain of proxies is that long."""

_WITH_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](:[0-9]+)?|(?P<v4>[0-9.]+):[0-9]+")


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Where a connection comes from: for logs and limits, never for authorization."""

    peer: str  # `host:port` of the socket's other end
    client: str  # the IP address that it is charged to; behind a trusted proxy, as that proxy says
    via_proxy: bool  # whether the socket's other end is one of `trusted_proxies`

    def __str__(self) -> str:
        return f"{self.client} via {self.peer}" if self.via_proxy else self.peer


def client_address(peer_ip: str, xff_header_values: Sequence[str], trusted: Sequence[str]) -> tuple[str, bool]:
    """Return the address nearest to the client that can be believed, and whether `peer_ip` is a trusted proxy.

    `peer_ip` is the other end of the TCP connection; `xff_header_values` the values of every
    X-Forwarded-For header, in order; `trusted` the CIDR networks of `trusted_proxies`.  An entry
    that is no address ends the reading there.  The address comes in its canonical spelling.  Raises
    nothing, whatever a header holds.
    """
    peer = parse_address(peer_ip)
    if peer is None:
        return peer_ip, False
    believed = unmap(peer)
    networks = _parse_networks(tuple(trusted))
    via_proxy = _is_in(believed, networks)
    entries = [entry for value in reversed(xff_header_values) for entry in reversed(value.split(","))]
    for entry in entries[:MAX_ENTRIES]:
        if not _is_in(believed, networks):
            break
        address = _parse_entry(entry)
        if address is None:
            break
        believed = address
    return str(believed), via_proxy


def is_internal(address: str) -> bool:
    """Return whether this is a loopback, private or link-local address, as a proxy's in front of this server is."""
    parsed = parse_address(address)
    if parsed is None:
        return False
    plain = unmap(parsed)
    return plain.is_loopback or plain.is_private or plain.is_link_local


def _is_in(address: IpAddress, networks: Sequence[IpNetwork]) -> bool:
    return any(address in network for network in networks)


@lru_cache(maxsize=8)
def _parse_networks(trusted: tuple[str, ...]) -> tuple[IpNetwork, ...]:
    return tuple(parse_network(text) for text in trusted)


def _parse_entry(entry: str) -> IpAddress | None:
    """`1.2.3.4`, `::1`, and, as some proxies write it, `1.2.3.4:567`, `[::1]:567` or either in quotes."""
    text = entry.strip().strip('"')
    match = _WITH_PORT.fullmatch(text)
    if match:
        text = match["v6"] or match["v4"] or ""
    address = parse_address(text)
    return None if address is None else unmap(address)
