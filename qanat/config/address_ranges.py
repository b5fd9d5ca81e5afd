"""The address ranges that need more than an ordinary rule, as data.

`qanat.session.connect_rules` reads these tables; the reasons stand beside the numbers.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from qanat.base.addresses import IpAddress, IpNetwork

NEVER: tuple[IpNetwork, ...] = (
    IPv4Network("0.0.0.0/8"),  # "this host" (RFC 1122 §3.2.1.3): connecting to it reaches loopback
    IPv6Network("::/128"),  # likewise
    IPv4Network("224.0.0.0/4"),  # multicast
    IPv6Network("ff00::/8"),
    IPv4Network("255.255.255.255/32"),  # broadcast
)
"""No rule opens these."""

_LOOPBACK: tuple[IpNetwork, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_LINK_LOCAL: tuple[IpNetwork, ...] = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))
_METADATA: tuple[IpNetwork, ...] = (
    IPv4Network("169.254.169.254/32"),  # most clouds
    IPv4Network("169.254.170.2/32"),  # AWS, credentials of containers
    IPv4Network("169.254.170.23/32"),  # AWS, credentials of pods
    IPv6Network("fd00:ec2::254/128"),  # AWS
    IPv6Network("fd00:ec2::23/128"),  # AWS, credentials of pods
    IPv6Network("fd20:ce::254/128"),  # Google
    IPv6Network("fe80::a9fe:a9fe/128"),  # OpenStack
    IPv6Network("fd00:42::42/128"),  # Scaleway
    IPv4Network("100.100.100.200/32"),  # Alibaba
    IPv4Network("168.63.129.16/32"),  # Azure, the host's own services
    IPv4Network("192.0.0.192/32"),  # Oracle
)
# An IPv4 address inside an IPv6 one: whether anything takes it out again is not known here,
# so a rule about the IPv4 address says nothing about it, nor does a rule for all of IPv6.
_EMBEDDED: tuple[IpNetwork, ...] = (
    IPv6Network("64:ff9b::/96"),  # NAT64 (RFC 6052 §2.1)
    IPv6Network("64:ff9b:1::/48"),  # NAT64, local use (RFC 8215)
    IPv6Network("2002::/16"),  # 6to4 (RFC 3056)
    IPv6Network("2001::/32"),  # Teredo (RFC 4380)
    IPv6Network("::ffff:0:0:0/96"),  # stateless translation (RFC 2765 §2.1)
    IPv6Network("::/96"),  # IPv4-compatible (RFC 4291 §2.5.5.1); has ::1 inside, which is listed apart
)

ONLY_BY_A_RULE_INSIDE: tuple[IpNetwork, ...] = (*_LOOPBACK, *_LINK_LOCAL, *_METADATA, *_EMBEDDED)
"""An address in one of these, or in several, is open only by a rule whose network is inside all of those."""


def is_inside(network: IpNetwork, outer: IpNetwork) -> bool:
    """Return whether all of `network` lies in `outer`; false across IP versions."""
    if isinstance(network, IPv4Network):
        return isinstance(outer, IPv4Network) and network.subnet_of(outer)
    return isinstance(outer, IPv6Network) and network.subnet_of(outer)


def is_never(address: IpAddress) -> bool:
    """Return whether no rule at all can open `address`."""
    return any(address in network for network in NEVER)


def special_ranges(address: IpAddress) -> list[IpNetwork]:
    """Return the special ranges that `address` is in: usually none."""
    return [network for network in ONLY_BY_A_RULE_INSIDE if address in network]
