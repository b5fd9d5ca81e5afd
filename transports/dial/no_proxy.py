"""Which hosts NO_PROXY exempts: curl's rules, and a port where one is written.

Pure.  Used by `proxies`.  Commas and spaces separate the entries:

    *                   alone: every host
    example.com         the host, and all below it; a dot in front changes nothing
    192.0.2.1, ::1      the address, however it is spelled
    10.0.0.0/8          all addresses of the network; a name is never looked up for this
    example.com:8443    this port alone (curl has no such rule; Go's and Python's programs do)

Nothing is exempt unless it is listed, not even loopback.
"""

from __future__ import annotations

import ipaddress
import re

from qanat.base.untrusted import number

_SEPARATORS = re.compile(r"[,\s]+")
_WITH_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]*):(?P<port>[0-9]{1,5})")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether `host` (a name, or an address without brackets) is reached without a proxy."""
    if no_proxy.strip() == "*":
        return True
    address = _address(host)
    name = host.removesuffix(".").lower()
    for entry in filter(None, _SEPARATORS.split(no_proxy)):
        with_port = _WITH_PORT.fullmatch(entry)
        if with_port is not None:
            if number(with_port["port"], 65535) != port:
                continue
            entry = with_port["host"]
        entry = entry.removeprefix("[").removesuffix("]")
        if _matches_address(address, entry) if address is not None else _matches_name(name, entry):
            return True
    return False


def _matches_name(name: str, entry: str) -> bool:
    domain = entry.lower().removesuffix(".").removeprefix(".")
    return bool(domain) and (name == domain or name.endswith("." + domain))


def _matches_address(address: _Address, entry: str) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
