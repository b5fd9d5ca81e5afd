"""SOCKS4 as a server speaks it, and SOCKS4a, which has a name where the address is 0.0.0.x.

Both are known from their authors' texts alone (SOCKS: A protocol for TCP proxy across firewalls; SOCKS 4A).  Pure.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from qanat.base.addresses import parse_address
from qanat.endpoints.dynamic.asked import Asked, split_address
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.mux.frames import Reason

VERSION = 4

GRANTED, REJECTED = 90, 91
_CONNECT = 1
_HEAD = struct.Struct("!BBHI")
_MAX_TEXT = 255
"""Bytes of the user's name, and of the host, at most."""


class Socks4:
    """One connection that began with the byte 4; see `qanat.endpoints.dynamic.asked.ProxyMachine`."""

    def __init__(self, passwords: Passwords | None = None) -> None:
        """Refuse everybody where there are `passwords`: this protocol has none."""
        self.problem = ""
        self._passwords = passwords
        self._buffer = bytearray()
        self._output = b""

    def receive(self, data: bytes) -> Asked | None:
        """Take what came; return what is asked for once that is known."""
        self._buffer += data
        buffer = self._buffer
        if len(buffer) < _HEAD.size:
            return None
        _, command, port, address = _HEAD.unpack_from(buffer)
        user_end = self._text_end(_HEAD.size, "a user's name")
        if user_end is None:
            return None
        end, host = user_end + 1, str(IPv4Address(address))
        if 0 < address < 256:
            name_end = self._text_end(end, "a host's name")
            if name_end is None:
                return None
            host, end = bytes(buffer[end:name_end]).decode("utf-8", "replace"), name_end + 1
        del buffer[:end]
        if self._passwords is not None:
            self._fail("speaks SOCKS4, which has no passwords")
        elif command != _CONNECT:
            self._fail("asks for a command that is not known")
        elif not host or "\N{REPLACEMENT CHARACTER}" in host:
            self._fail("names no host")
        else:
            return Asked(host, port)
        return None

    def _text_end(self, start: int, what: str) -> int | None:
        """Return where the text that begins at `start` ends; None while it does not, or is too long."""
        end = self._buffer.find(0, start)
        if (end if end >= 0 else len(self._buffer)) - start > _MAX_TEXT:
            self._fail(f"has {what} of more than {_MAX_TEXT} bytes")
            return None
        return end if end >= 0 else None

    def _fail(self, problem: str) -> None:
        self._output, self.problem = _reply(REJECTED), problem

    def take_output(self) -> bytes:
        """Return what has to be sent now."""
        output, self._output = self._output, b""
        return output

    def take_rest(self) -> bytes:
        """Return what came behind the request."""
        return bytes(self._buffer)

    def accepted(self, address: str) -> bytes:
        """Return the reply that the target was reached."""
        return _reply(GRANTED, address)

    def refused(self, reason: Reason, text: str) -> bytes:
        """Return the reply that it was not; the protocol tells no reason."""
        return _reply(REJECTED)


def _reply(code: int, address: str = "") -> bytes:
    host, port = split_address(address)
    literal = parse_address(host)
    packed = literal.packed if isinstance(literal, IPv4Address) else bytes(4)
    return struct.pack("!BBH", 0, code, port) + packed
