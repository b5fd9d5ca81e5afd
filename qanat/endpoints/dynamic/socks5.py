"""SOCKS5 as a server speaks it: RFC 1928, with the passwords of RFC 1929.

    greeting -> method [-> user and password -> status] -> request -> reply

A client that is sure of its way may send all of it at once, and bytes for the target behind it.  Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from qanat.base.addresses import parse_address
from qanat.endpoints.dynamic.asked import Asked, Command, split_address
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.mux.frames import Reason

VERSION = 5

_NO_AUTHENTICATION, _PASSWORD, _NO_ACCEPTABLE = 0, 2, 0xFF
_AUTH_VERSION = 1
_COMMANDS = {1: Command.CONNECT, 3: Command.ASSOCIATE}
_IPV4, _NAME, _IPV6 = 1, 3, 4

SUCCEEDED, GENERAL_FAILURE, NOT_ALLOWED, NETWORK_UNREACHABLE, HOST_UNREACHABLE, REFUSED, TTL_EXPIRED = range(7)
COMMAND_NOT_SUPPORTED, ADDRESS_TYPE_NOT_SUPPORTED = 7, 8
CODES = {
    Reason.REFUSED: REFUSED,
    Reason.UNREACHABLE: HOST_UNREACHABLE,
    Reason.NOT_ALLOWED: NOT_ALLOWED,
    Reason.TIMED_OUT: TTL_EXPIRED,
    Reason.NO_ROUTE: NETWORK_UNREACHABLE,
    Reason.SESSION_ENDED: NETWORK_UNREACHABLE,
}
"""What a user is told for the reason of a reset; GENERAL_FAILURE for any other."""


class Socks5:
    """One connection that began with the byte 5; see `qanat.endpoints.dynamic.asked.ProxyMachine`."""

    def __init__(self, passwords: Passwords | None = None) -> None:
        """Ask for a password where there are `passwords`.  Without them one that is given anyway is taken."""
        self.problem = ""
        self._passwords = passwords
        self._buffer = bytearray()
        self._output = bytearray()
        self._asked: Asked | None = None
        self._step: Callable[[], bool] = self._greeting

    def receive(self, data: bytes) -> Asked | None:
        """Take what came; return what is asked for once that is known."""
        self._buffer += data
        while self._asked is None and not self.problem and self._step():
            pass
        return self._asked

    def take_output(self) -> bytes:
        """Return what has to be sent now."""
        output, self._output = bytes(self._output), bytearray()
        return output

    def take_rest(self) -> bytes:
        """Return what came behind the request."""
        return bytes(self._buffer)

    def accepted(self, address: str) -> bytes:
        """Return the reply that the target was reached."""
        return reply(SUCCEEDED, address)

    def refused(self, reason: Reason, text: str) -> bytes:
        """Return the reply that it was not; `text` has no place in it."""
        return reply(CODES.get(reason, GENERAL_FAILURE))

    # --- steps: each returns whether it had enough, and has taken it from the buffer ----------------

    def _greeting(self) -> bool:
        buffer = self._buffer
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return False
        methods = buffer[2 : 2 + buffer[1]]
        del buffer[: 2 + len(methods)]
        if self._passwords is None and _NO_AUTHENTICATION in methods:
            self._output += bytes((VERSION, _NO_AUTHENTICATION))
            self._step = self._request
        elif _PASSWORD in methods:
            self._output += bytes((VERSION, _PASSWORD))
            self._step = self._authentication
        else:
            self._output += bytes((VERSION, _NO_ACCEPTABLE))
            self.problem = "offers no password" if self._passwords is not None else "offers no method that is known"
        return True

    def _authentication(self) -> bool:
        buffer = self._buffer
        if buffer and buffer[0] != _AUTH_VERSION:
            self.problem = "is no RFC 1929 where a password should be"
            return True
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return False
        password_at = 3 + buffer[1]
        end = password_at + buffer[password_at - 1]
        if len(buffer) < end:
            return False
        user, password = bytes(buffer[2 : password_at - 1]), bytes(buffer[password_at:end])
        del buffer[:end]
        allowed = self._passwords is None or self._passwords.allows(user, password)
        self._output += bytes((_AUTH_VERSION, not allowed))
        if not allowed:
            self.problem = "has a wrong user or password"
        self._step = self._request
        return True

    def _request(self) -> bool:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            self.problem = "is no SOCKS5 request"
            return True
        if len(buffer) < 5:
            return False
        address_type = buffer[3]
        size = _size_of(address_type, buffer[4])
        if size is None:
            return self._fail(ADDRESS_TYPE_NOT_SUPPORTED, "names an address of a type that is not known")
        if len(buffer) < 6 + size:
            return False
        command, address = buffer[1], bytes(buffer[4 : 4 + size])
        (port,) = struct.unpack_from("!H", buffer, 4 + size)
        del buffer[: 6 + size]
        if command not in _COMMANDS:
            return self._fail(COMMAND_NOT_SUPPORTED, "asks for a command that is not known")
        host = read_host(address_type, address)
        if not host and _COMMANDS[command] is Command.CONNECT:
            return self._fail(GENERAL_FAILURE, "names no host")
        self._asked = Asked(host, port, _COMMANDS[command])
        return True

    def _fail(self, code: int, problem: str) -> bool:
        self._output += reply(code)
        self.problem = problem
        return True


def read_host(address_type: int, address: bytes) -> str:
    """Return the host in an address field of this known type, a name's length included; "" for what is no text."""
    if address_type == _IPV4:
        return str(IPv4Address(address))
    if address_type == _IPV6:
        return str(IPv6Address(address))
    try:
        return address[1:].decode()
    except UnicodeDecodeError:
        return ""


def split_datagram(datagram: bytes) -> tuple[str, int, bytes] | None:
    """Return host, port and payload of a user's datagram; None for a fragment, and for what is no such datagram."""
    if len(datagram) < 5 or datagram[:3] != b"\0\0\0":
        return None
    size = _size_of(datagram[3], datagram[4])
    if size is None or len(datagram) < 6 + size:
        return None
    host = read_host(datagram[3], datagram[4 : 4 + size])
    (port,) = struct.unpack_from("!H", datagram, 4 + size)
    return (host, port, datagram[6 + size :]) if host else None


def _size_of(address_type: int, first_byte: int) -> int | None:
    """Return the bytes of an address field that begins with this byte; None for a type that is not known."""
    return {_IPV4: 4, _NAME: 1 + first_byte, _IPV6: 16}.get(address_type)


def reply(code: int, address: str = "") -> bytes:
    """Return a reply with the address that is bound; with 0.0.0.0:0 where `address` is none."""
    return bytes((VERSION, code, 0)) + pack_address(*split_address(address))


def pack_address(host: str, port: int) -> bytes:
    """Return type, address and port; a host that is no literal stands as 0.0.0.0."""
    literal = parse_address(host.partition("%")[0]) or IPv4Address(0)
    return bytes((_IPV4 if literal.version == 4 else _IPV6,)) + literal.packed + struct.pack("!H", port)
