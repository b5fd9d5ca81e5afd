"""The PROXY protocol, versions 1 and 2: who really connected, in a header in front of the payload.

Its specification is haproxy's doc/proxy-protocol.txt, whose sections are named below.  `HeaderReader` takes a header
apart and never more than that: what follows belongs to somebody else.  `encode` makes one.  Pure.

The rest of the program knows who connected as text (`192.0.2.1:5555`, `uid 1000 pid 4711`), which is what the tunnel
carries, so that is what goes in and comes out here.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from qanat.base.addresses import IpAddress, format_host_port, parse_address, split_host_port, unmap
from qanat.base.errors import ProtocolError, UsageError

V1_BEGINNING = b"PROXY "
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""How a header begins, in its two versions (§2.1, §2.2)."""
VERSIONS = ("v1", "v2")

_V1_LONGEST = 107  # with CRLF (§2.1)
_V2_FIXED = 16  # signature, version and command, family and protocol, length
_V2_LONGEST = 4096
"""Bytes of addresses and TLVs that are taken; 216 for Unix sockets, and TLVs with a certificate's names.  §2.2 allows
65,535, which nobody sends."""
_V1_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [\x20-\x7e]*)?\r\n")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
_LENGTHS = {0x1: 12, 0x2: 36, 0x3: 216}  # bytes of addresses by family, the upper half of a byte (§2.2)
_CRC32C = 0x03
_UNIX_PATH = 108


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The two ends of a connection as a proxy saw it: where it comes from, and what it was made to."""

    source: str
    """As `host:port`; "" when the header does not say, and the connection stands for itself."""
    destination: str = ""
    """As `host:port`, or the path of a Unix socket."""

    @property
    def ip(self) -> str:
        """The address that it comes from, without its port; "" when there is none."""
        parsed = _parse(self.source)
        return "" if parsed is None else str(parsed[0])


LOCAL = Endpoints("")
"""A proxy that asks by itself whether we are there (§2.2, LOCAL), or does not say who came (§2.1, UNKNOWN)."""


class HeaderReader:
    """Reads one header from the beginning of a connection, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._header = bytearray()
        self.endpoints: Endpoints | None = None
        """What the header says, once it is whole."""

    @property
    def begun(self) -> bool:
        """Whether any of it has come."""
        return bool(self._header)

    def feed(self, data: bytes) -> int:
        """Take what belongs to the header from the front of `data`; return how many bytes those were.

        Feed it until `endpoints` is there; it takes none after that.  Raises ProtocolError for what is no header.
        """
        taken = 0
        while self.endpoints is None and taken < len(data):
            count = self._take(data[taken:])
            self._header += data[taken : taken + count]
            taken += count
            self.endpoints = self._parse_whole()
        return taken

    def _take(self, data: bytes) -> int:
        """Return how many bytes of `data` surely belong to the header, at least one."""
        header = self._header
        known = len(header)
        beginning = bytes(header[:_V2_FIXED]) + data[: max(0, _V2_FIXED - known)]
        if _agree(beginning, V2_SIGNATURE):
            if known < _V2_FIXED:
                return min(len(data), _V2_FIXED - known)
            return min(len(data), _V2_FIXED + _v2_length(header) - known)
        if _agree(beginning, V1_BEGINNING):
            end = (bytes(header[-1:]) + data).find(b"\r\n")
            count = len(data) if end < 0 else end + 2 - len(header[-1:])
            if known + count > _V1_LONGEST:
                raise ProtocolError(f"a PROXY protocol header of more than {_V1_LONGEST} bytes")
            return count
        raise ProtocolError("it does not begin with a PROXY protocol header")

    def _parse_whole(self) -> Endpoints | None:
        header = bytes(self._header)
        if header.startswith(V1_BEGINNING):
            return _parse_v1(header) if header.endswith(b"\r\n") else None
        if len(header) < _V2_FIXED or len(header) < _V2_FIXED + _v2_length(header):
            return None
        return _parse_v2(header)


def begins(first: bytes) -> bool | None:
    """Return whether `first` is how a header begins; None while it may still become one."""
    for beginning in (V1_BEGINNING, V2_SIGNATURE):
        if first.startswith(beginning):
            return True
    return None if any(beginning.startswith(first) for beginning in (V1_BEGINNING, V2_SIGNATURE)) else False


def encode(version: str, source: str, destination: str) -> bytes:
    """Return a header of `version`, one of VERSIONS, for a connection from `source` to `destination`.

    Both are texts as in Endpoints.  What is no address of TCP is UNKNOWN in version 1; in version 2 a Unix socket's
    path is told, and of whoever connected to it nothing.
    """
    ends = _ends(source, destination)
    if version == "v1":
        if ends is None:
            return b"PROXY UNKNOWN\r\n"
        (ip, port), (to_ip, to_port) = ends
        return f"PROXY TCP{ip.version} {ip} {to_ip} {port} {to_port}\r\n".encode()
    if ends is not None:
        (ip, port), (to_ip, to_port) = ends
        addresses = ip.packed + to_ip.packed + struct.pack("!HH", port, to_port)
        return _v2(_TCP4 if ip.version == 4 else _TCP6, addresses)
    path = destination.encode()
    if path.startswith((b"/", b"@")) and len(path) < _UNIX_PATH:
        path = b"\0" + path[1:] if path.startswith(b"@") else path
        return _v2(_UNIX_STREAM, bytes(_UNIX_PATH) + path.ljust(_UNIX_PATH, b"\0"))
    return _v2(_UNSPECIFIED, b"")


def _v2(family: int, addresses: bytes) -> bytes:
    return V2_SIGNATURE + struct.pack("!BBH", _PROXY, family, len(addresses)) + addresses


def _agree(one: bytes, other: bytes) -> bool:
    """Return whether one of them begins with the other."""
    size = min(len(one), len(other))
    return one[:size] == other[:size]


# --- reading


def _parse_v1(line: bytes) -> Endpoints:
    if _V1_UNKNOWN.fullmatch(line):
        return LOCAL
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError("a PROXY protocol header that cannot be understood")
    version = 4 if match[1] == b"TCP4" else 6
    ends = []
    for host, port in ((match[2], match[4]), (match[3], match[5])):
        address = parse_address(host.decode())
        if address is None or address.version != version or int(port) > 65535:
            raise ProtocolError("a PROXY protocol header with an address that is none")
        ends.append(_format(address, int(port)))
    return Endpoints(*ends)


def _v2_length(header: bytes | bytearray) -> int:
    length = int.from_bytes(header[14:16], "big")
    if length > _V2_LONGEST:
        raise ProtocolError(f"a PROXY protocol header of {length} bytes, more than {_V2_LONGEST}")
    return length


def _parse_v2(header: bytes) -> Endpoints:
    command, family = header[12], header[13]
    if command not in (_LOCAL, _PROXY):
        raise ProtocolError("a PROXY protocol header of an unknown version or command")
    length = _LENGTHS.get(family >> 4, 0)
    content = header[_V2_FIXED:]
    if command == _PROXY and len(content) < length:
        raise ProtocolError("a PROXY protocol header that is too short for its addresses")
    if command == _LOCAL or not length:  # whatever else it holds is to be ignored
        return LOCAL
    _check_tlvs(header, _V2_FIXED + length)
    if family == _UNIX_STREAM:
        return Endpoints("", _unix_path(content[_UNIX_PATH : 2 * _UNIX_PATH]))
    if family not in (_TCP4, _TCP6):
        raise ProtocolError("a PROXY protocol header for something else than a TCP connection")
    size = 4 if family == _TCP4 else 16
    kind: type[IPv4Address] | type[IPv6Address] = IPv4Address if family == _TCP4 else IPv6Address
    port, to_port = struct.unpack_from("!HH", content, 2 * size)
    return Endpoints(_format(kind(content[:size]), port), _format(kind(content[size : 2 * size]), to_port))


def _check_tlvs(header: bytes, position: int) -> None:
    """Skip what follows the addresses, but for a checksum, which must be right (§2.2.3)."""
    while position < len(header):
        if len(header) - position < 3:
            break
        kind, size = struct.unpack_from("!BH", header, position)
        value = position + 3
        if value + size > len(header):
            break
        if kind == _CRC32C:
            zeroed = header[:value] + bytes(size) + header[value + size :]
            if size != 4 or crc32c(zeroed) != int.from_bytes(header[value : value + 4], "big"):
                raise ProtocolError("a PROXY protocol header with a wrong checksum")
        position = value + size
    if position < len(header):
        raise ProtocolError("a PROXY protocol header whose last extension is cut off")


def _unix_path(field: bytes) -> str:
    name = field.rstrip(b"\0")
    if name.startswith(b"\0"):
        name = b"@" + name[1:]
    return name.decode(errors="replace")


def crc32c(data: bytes) -> int:
    """Return the CRC32c of `data` (RFC 4960 appendix B), with the Castagnoli polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(_crc_entry(byte) for byte in range(256))


# --- texts and addresses


def _format(address: IpAddress, port: int) -> str:
    return format_host_port(str(unmap(address)), port)


def _parse(text: str) -> tuple[IpAddress, int] | None:
    """Return the address and port in `text`, None when they are none."""
    try:
        host, port = split_host_port(text)
    except UsageError:
        return None
    address = parse_address(host.partition("%")[0])
    return (address, int(port)) if address is not None and port.isdecimal() and int(port) <= 65535 else None


def _ends(source: str, destination: str) -> tuple[tuple[IpAddress, int], tuple[IpAddress, int]] | None:
    """Return both ends in one family; None when `source` is no address.  An unknown destination is all zeros."""
    came = _parse(source)
    if came is None:
        return None
    to = _parse(destination) or (type(came[0])(0), 0)
    if came[0].version != to[0].version:
        return (_mapped(came[0]), came[1]), (_mapped(to[0]), to[1])
    return came, to


def _mapped(address: IpAddress) -> IPv6Address:
    """Return an IPv4 address as IPv6 has it (RFC 4291 §2.5.5.2)."""
    return IPv6Address(0xFFFF << 32 | int(address)) if isinstance(address, IPv4Address) else address
