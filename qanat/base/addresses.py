"""Addresses as people write them: `HOST:PORT`, with IPv6 in brackets.

Pure parsers.  What they refuse they refuse with a UsageError whose message never repeats the
text itself, since that may have come from the environment; whoever asked knows where it stood.
`qanat.config.texts`, `qanat.config.command_line` and the access rules call this; nothing here resolves a name.
"""

from __future__ import annotations

import encodings.idna
import os
import posixpath
import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from qanat.base.errors import UsageError

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

MAX_NAME = 253
"""Bytes in a host name at most (RFC 1035 §2.3.4, without the final dot)."""

MAX_UNIX_PATH = 107
"""Bytes in a Unix socket's path at most: `sun_path` has 108, with a zero byte at the end (unix(7))."""

BOTH_FAMILIES = {"localhost": ("127.0.0.1", "::1"), "*": ("0.0.0.0", "::")}
"""What is listened on over IPv4 and, where there is that, over IPv6."""

_PORT = re.compile(r"[0-9]+")
_DIGITS = len("65535")
_NOT_IN_A_NAME = re.compile(r"""[\x00-\x20\x7f/\\@\[\]:*?#%,;"'<>|{}$]""")
_DOTS = re.compile("[.\u3002\uff0e\uff61]")  # RFC 3490 §3.1
_DEVIATIONS = re.compile("([\u00df\u03c2\u200c\u200d])")  # ß, ς and the two joiners: UTS #46 §4
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_MAX_LABEL = 63
_LOOKS_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def format_host_port(host: str, port: int) -> str:
    """Return `HOST:PORT`, with an IPv6 address in brackets.  Pure."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A literal address and a port to listen on."""

    host: str
    port: int
    optional: bool = False
    """Whether it is left out, without a word, on a machine that does not have it."""


def listen_addresses(host: str, port: int) -> tuple[ListenAddress, ...]:
    """Return the addresses that `host` stands for where it is listened on.  Pure.

    `localhost` is 127.0.0.1 and ::1, `*` is 0.0.0.0 and ::, where this machine has the second; anything else is itself.
    """
    if host in BOTH_FAMILIES:
        first, second = BOTH_FAMILIES[host]
        return ListenAddress(first, port), ListenAddress(second, port, optional=True)
    return (ListenAddress(host, port),)


def split_host_port(text: str) -> tuple[str, str]:
    """Cut `HOST:PORT` or `[IPV6]:PORT` in two, without looking at either.  Raises UsageError."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise UsageError("is not [ADDRESS]:PORT")
        if ":" not in host:
            raise UsageError("has brackets around something that is not an IPv6 address")
        return host, rest[1:]
    host, colon, port = text.rpartition(":")
    if not colon:
        raise UsageError("has no port", hint="write HOST:PORT")
    if ":" in host:
        raise UsageError("has too many colons", hint="write an IPv6 address in brackets: [::1]:8443")
    return host, port


def parse_port(text: str, *, lowest: int = 1) -> int:
    """Return a decimal port from `lowest` to 65535.  Raises UsageError."""
    if not _PORT.fullmatch(text):
        hint = "a service's name is not looked up: write its number" if text.isalpha() else ""
        raise UsageError("has a port that is not a number", hint=hint)
    if len(text) > _DIGITS or not lowest <= int(text) <= 65535:
        raise UsageError(f"has a port outside {lowest} to 65535")
    return int(text)


@lru_cache(256)
def parse_address(text: str) -> IpAddress | None:
    """Return the IP literal in `text`, in its one canonical spelling, or None when it is anything else.  Remembered."""
    try:
        return ip_address(text)
    except ValueError:
        return None


@lru_cache(256)
def is_loopback(text: str) -> bool:
    """Return whether `text` is the literal of a loopback address: nobody but this machine reaches it.  Remembered."""
    address = parse_address(text)
    return address is not None and address.is_loopback


def parse_network(text: str) -> IpNetwork:
    """`10.0.0.0/8`, `fd00::/8`, or one address.  IPv4 mapped into IPv6 becomes IPv4.  Raises UsageError."""
    if "%" in text:
        raise UsageError("names an interface after %", hint="leave it out: a network has none")
    try:
        network = ip_network(text)
    except ValueError:
        try:
            meant = ip_network(text, strict=False)
        except ValueError:
            raise UsageError("is not a network in CIDR form", hint="for example 10.0.0.0/8 or fd00::/8") from None
        raise UsageError("has bits set behind its prefix length", hint=f"did you mean {meant}?") from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


def unmap(address: IpAddress) -> IpAddress:
    """Return the IPv4 address that an address in ::ffff:0:0/96 stands for; any other as it is, without its scope."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


@lru_cache(1024)
def bucket_key(address: str) -> str:
    """Return what addresses are counted by: themselves, or the /64 of an IPv6 address, which one customer has whole."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((parsed, 64), strict=False))


def parse_listen(text: str) -> tuple[str, int]:
    """Where to listen: a literal address and a port, 0 for one that the system chooses.  Raises UsageError."""
    host, port_text = split_host_port(text)
    port = parse_port(port_text, lowest=0)
    return check_bind_host(host, port), port


def check_listen_host(host: str, port: int) -> str:
    """Return `host`, when a forward can listen there, `*` for an empty one.  Raises UsageError."""
    if host in ("", "*"):
        return "*"
    return host if host in BOTH_FAMILIES else check_bind_host(host, port)


def check_bind_host(host: str, port: int) -> str:
    """`host` as it was, when it is a literal address that can be bound.  Raises UsageError."""
    if host in ("", "*"):
        raise UsageError(
            "does not say on which address",
            hint=f"write 0.0.0.0:{port} for every IPv4 address, [::]:{port} for every IPv6 address",
        )
    if parse_address(host) is None:
        hint = f"write 127.0.0.1:{port} or [::1]:{port}" if host == "localhost" else "write the address itself"
        raise UsageError("needs a literal address, not a name", hint=hint)
    return host


def parse_target(text: str) -> tuple[str, int]:
    """Where to connect: a name or a literal address, and a port from 1.  Raises UsageError."""
    host, port = split_host_port(text)
    return check_target_host(host), parse_port(port)


def check_target_host(host: str) -> str:
    """`host` as it was, when it may be a host's name or is an address.  Raises UsageError."""
    if not host:
        raise UsageError("names no host")
    if parse_address(host) is not None:
        return host
    if len(host.encode()) > MAX_NAME:
        raise UsageError(f"has a host name of more than {MAX_NAME} bytes")
    if _NOT_IN_A_NAME.search(host):
        raise UsageError("has a character in its host that no host name can have")
    return host


def check_unix_path(text: str) -> str:
    """Return the path of a Unix socket, without doubled slashes, or @NAME of an abstract one.  Raises UsageError."""
    if len(os.fsencode(text)) > MAX_UNIX_PATH:
        raise UsageError(
            f"is {len(os.fsencode(text))} bytes long, and a Unix socket's path has {MAX_UNIX_PATH} at most",
            hint="the system's own limit; choose a shorter directory, such as one below /run",
        )
    if _CONTROL.search(text):
        raise UsageError("has a control character in a Unix socket's path")
    if text.startswith("@"):
        if len(text) == 1:
            raise UsageError("names no abstract socket", hint="write @NAME")
        return text
    if not text.startswith("/"):
        raise UsageError("is not the absolute path of a Unix socket", hint="write it from the root on: /run/app.sock")
    if ".." in text.split("/"):
        raise UsageError("has .. in a Unix socket's path", hint="write where that leads")
    if text.endswith("/"):
        raise UsageError("is a directory, not a Unix socket", hint="add the socket's name")
    return "/" + posixpath.normpath(text).lstrip("/")


def split_zone(literal: str) -> tuple[str, str]:
    """Return the IPv6 address in a URL, and the interface behind its %, "" without one.  Pure.

    The % may be written %25 (RFC 6874 §2).  The interface means something on this machine alone, so it goes into no
    header and no certificate has it (§4).
    """
    address, percent, zone = literal.partition("%")
    if zone.startswith("25") and len(zone) > 2:
        zone = zone[2:]
    return address, zone if percent else ""


def ascii_name(name: str) -> str:
    """Return a host name in its ASCII form, as browsers and curl have it.  Raises UnicodeError.  Pure.

    Python's codec is of IDNA 2003, which makes strasse.example out of straße.example: another host, whose owner may be
    anybody.  Since IDNA 2008 the four characters that differ stand for themselves.
    """
    if name.isascii() or not _DEVIATIONS.search(name.replace("\u1e9e", "\u00df")):
        return str(name.encode("idna"), "ascii")
    return ".".join(_ascii_label(label) for label in _DOTS.split(name))


def _ascii_label(label: str) -> str:
    label = label.replace("\u1e9e", "\u00df")
    if not _DEVIATIONS.search(label):
        return str(label.encode("idna"), "ascii")
    parts = _DEVIATIONS.split(label)  # every second one is a character that stays as it is
    parts[::2] = [encodings.idna.nameprep(part) for part in parts[::2]]
    encoded = "xn--" + str("".join(parts).encode("punycode"), "ascii")
    if len(encoded) > _MAX_LABEL:
        raise UnicodeError("label too long")
    return encoded


def normalize_name(name: str) -> str | None:
    """Return a host name in lower case, in IDNA's ASCII form and without its final dot; None when it is no name."""
    try:
        plain = ascii_name(name.removesuffix(".")).lower()
    except UnicodeError:
        return None
    return plain if plain and not _NOT_IN_A_NAME.search(plain) else None


def looks_numeric(name: str) -> bool:
    """Whether resolvers would take `name` for an IPv4 address in an old spelling: 127.1, 0x7f.1, 2130706433."""
    return _LOOKS_NUMERIC.fullmatch(name.removesuffix(".").rpartition(".")[2]) is not None
