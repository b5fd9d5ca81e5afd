"""The name that a TLS client asks for, read from its first message before anything is decrypted.

A ClientHello (RFC 8446 §4.1.2) names the host in its extension server_name (RFC 6066 §3), in clear text; with Encrypted
ClientHello that is the outer name.  It may be cut into several records (RFC 8446 §5.1) and arrive byte by byte.  What
is not understood here, or is not TLS, has no name: it is for whoever does the TLS to judge.  Extensions, versions and
ciphers that nobody knows (GREASE, RFC 8701) are skipped.

Pure: bytes in, a name out.  `qanat.server.front_door.connection` asks.
"""

from __future__ import annotations

import re

from qanat.base.untrusted import header_text

MAX_HELLO = 16 * 1024
"""Bytes of a ClientHello that are looked at.  Real ones have 0.2 to 2 KiB, with post-quantum keys and ECH up to 4."""
MAX_BYTES = MAX_HELLO + 5 * 64
"""The same with the headers of the records that carry it, which may be that many."""
UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
"""A fatal alert unrecognized_name (RFC 6066 §3): there is nobody of that name here."""

_HANDSHAKE = b"\x16"
_MAJOR_VERSION = b"\x03"
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_MAX_RECORD = 16 * 1024 + 2048
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,255}")


class _NoName(Exception):
    """There is no name to be found, however much more comes."""


class _MoreNeeded(Exception):
    """What has come ends before it says."""


def find_server_name(data: bytes) -> str | None:
    """Return the host name, in lower case without a final dot, that the beginning of a connection asks for.

    "" when it asks for none, is not TLS, or is longer than MAX_HELLO; None while more has to come to tell.
    """
    try:
        return _name_in(_Reader(_first_message(data)))
    except _NoName:
        return ""
    except _MoreNeeded:
        return "" if len(data) >= MAX_BYTES else None


def _first_message(data: bytes) -> bytes:
    """Return the content of the first handshake message, put together from its records."""
    message = bytearray()
    position = 0
    while True:
        if message and message[0] != _CLIENT_HELLO:
            raise _NoName
        if len(message) >= 4:
            size = int.from_bytes(message[1:4], "big")
            if size > MAX_HELLO:
                raise _NoName
            if len(message) >= 4 + size:
                return bytes(message[4 : 4 + size])
        header = data[position : position + 5]
        if header[:1] not in (b"", _HANDSHAKE) or header[1:2] not in (b"", _MAJOR_VERSION):
            raise _NoName
        if len(header) < 5:
            raise _MoreNeeded
        length = int.from_bytes(header[3:5], "big")
        if not 0 < length <= _MAX_RECORD:
            raise _NoName
        message += data[position + 5 : position + 5 + length]
        position += 5 + length


class _Reader:
    """Reads fields of a message that is whole; what goes beyond its end means that there is no name."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._content) - self._position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _NoName
        self._position += count
        return self._content[self._position - count : self._position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Read a vector whose length stands before it in `size` bytes (RFC 8446 §3.4)."""
        return self.take(self.number(size))


def _name_in(hello: _Reader) -> str:
    hello.take(2 + 32)  # legacy_version and random
    hello.vector(1)  # legacy_session_id
    hello.vector(2)  # cipher_suites
    hello.vector(1)  # legacy_compression_methods
    if not hello.left:
        return ""
    extensions = _Reader(hello.vector(2))
    while extensions.left:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            return _host_name(_Reader(content))
    return ""


def _host_name(extension: _Reader) -> str:
    names = _Reader(extension.vector(2))
    while names.left:
        kind, name = names.number(1), names.vector(2)
        if kind == _HOST_NAME:
            return header_text(name).lower().removesuffix(".") if _NAME.fullmatch(name) else ""
    return ""
