"""What a request of the split transport says about itself, in one token, and where in the request that travels.

    token = the pipe's id, what the request is and where its bytes belong, a digest of its body, a MAC over all that

The id alone is of no use: the key of the MAC is at first a secret that only the creating request's answer has, and then
comes from the handshake.  So whoever reads a log with tokens in it can neither send nor fetch anything with them that
was not sent or fetched before.  Pure: bytes in, values out.  The layout is docs/PROTOCOL.md §6.5.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

ID_SIZE = 16
SECRET_SIZE = 32
"""Bytes of a pipe's id, and of the key with which its first requests are authenticated."""

COOKIE = "sid"
"""The name of the cookie, and of the query's field, that have the token where the path drops our header."""

OPENING = b"qanat/1 split"
"""How the body of the request begins that asks for a new pipe."""
NONCE_SIZE = 16
OPENING_SIZE = len(OPENING) + NONCE_SIZE
"""Bytes of that whole body: with it goes a random value, which the carriers have too."""

_LAYOUT = struct.Struct(f"!{ID_SIZE}sBBIIQQQII16s")
_MAC_SIZE = 16
TOKEN_SIZE = _LAYOUT.size + _MAC_SIZE
_TEXT_SIZE = -(-TOKEN_SIZE // 3) * 4
_NONCE_TEXT_SIZE = 22
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\Z")
_BEARER = re.compile(r"(?i)bearer +([A-Za-z0-9_-]+) *\Z")
_IN_COOKIE = re.compile(rf"(?:\A|;)\s*{COOKIE}=([A-Za-z0-9_-]+)\s*(?:;|\Z)")
_IN_QUERY = re.compile(rf"(?:\A|&){COOKIE}=([A-Za-z0-9_-]+)(?:&|\Z)")

_EARLY = 1
_ENDED = 2
_STREAMS = 4


class Kind(enum.IntEnum):
    """What a request is for."""

    UP = 1  # its body has bytes for the server; answered at once
    PACKET = 2  # asks for bytes; answered when there are some, or after a time, and ended then
    STREAM = 3  # asks for bytes; answered at once, and the answer goes on


class Carrier(enum.IntEnum):
    """Where a token travels, best first; the numbers are bits."""

    HEADER = 1  # Authorization: Bearer, which logs and caches leave out
    COOKIE = 2
    QUERY = 4


@dataclass(frozen=True, slots=True)
class Token:
    """One request.  Offsets count the bytes of a direction from its beginning."""

    id: bytes = field(repr=False)
    kind: Kind
    number: int  # of this request, from 1; each is served once
    acknowledged: int  # all bytes below it have come to the client
    limit: int  # the client takes bytes below it; with `ended`, where its own bytes end
    oldest: int = 0  # of the client's requests for bytes that run, this one included
    at: int = 0  # where the body's bytes belong
    size: int = 0  # bytes of the body; of a request for bytes, how many the answer may have
    wait: int = 0  # milliseconds after which an answer without bytes is due
    digest: bytes = bytes(16)  # of the body
    early: bool = False  # the MAC's key is that of before the handshake
    ended: bool = False  # the client has closed the pipe
    streams: bool = False  # what goes into a streamed answer arrives at once

    def encode(self, key: bytes) -> str:
        """Return the text that travels, authenticated with `key`."""
        flags = (_EARLY if self.early else 0) | (_ENDED if self.ended else 0) | (_STREAMS if self.streams else 0)
        plain = _LAYOUT.pack(
            self.id,
            self.kind,
            flags,
            self.number,
            self.oldest,
            self.acknowledged,
            self.limit,
            self.at,
            self.size,
            self.wait,
            self.digest,
        )
        return _text(plain + _mac(key, plain))


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token as it came, of which only the id may be looked at before `verify`."""

    id: bytes = field(repr=False)
    early: bool
    raw: bytes = field(repr=False)

    def verify(self, key: bytes) -> Token | None:
        """Return the token if it was made with `key`; compares in constant time."""
        plain = self.raw[: _LAYOUT.size]
        if not hmac.compare_digest(_mac(key, plain), self.raw[_LAYOUT.size :]):
            return None
        id_, kind, flags, number, oldest, acknowledged, limit, at, size, wait, digest = _LAYOUT.unpack(plain)
        if kind not in (Kind.UP, Kind.PACKET, Kind.STREAM):
            return None
        return Token(
            id=id_,
            kind=Kind(kind),
            number=number,
            acknowledged=acknowledged,
            limit=limit,
            oldest=oldest,
            at=at,
            size=size,
            wait=wait,
            digest=digest,
            early=bool(flags & _EARLY),
            ended=bool(flags & _ENDED),
            streams=bool(flags & _STREAMS),
        )


def parse(text: str) -> Unverified | None:
    """Return what may be a token; None for what has not the form of one."""
    if len(text) != _TEXT_SIZE or not _TOKEN.match(text):
        return None
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    return Unverified(raw[:ID_SIZE], bool(raw[ID_SIZE + 1] & _EARLY), raw)


def digest_of(body: bytes | bytearray | memoryview) -> bytes:
    """Return what a token says about its request's body."""
    return hashlib.sha256(body).digest()[:16]


def nonce_text(nonce: bytes) -> str:
    """Return what travels instead of a token in the request that asks for a pipe."""
    return _text(nonce)


def found_in(headers: Iterable[tuple[str, str]], query: str) -> dict[Carrier, str]:
    """Return the texts that may be tokens, or nonces, by what carried them; names of headers are in lower case."""
    found: dict[Carrier, str] = {}
    for name, value in headers:
        if name == "authorization" and (match := _BEARER.match(value)):
            found[Carrier.HEADER] = match[1]
        elif name == "cookie" and (match := _IN_COOKIE.search(value)):
            found[Carrier.COOKIE] = match[1]
    if match := _IN_QUERY.search(query):
        found[Carrier.QUERY] = match[1]
    return found


def request_token(headers: Iterable[tuple[str, str]], query: str) -> Unverified | None:
    """Return the token of a request; None for one without."""
    for text in found_in(headers, query).values():
        token = parse(text)
        if token is not None:
            return token
    return None


def carriers_of(headers: Iterable[tuple[str, str]], query: str, nonce: bytes) -> int:
    """Return the bits of the carriers that have brought `nonce`."""
    expected = nonce_text(nonce)
    return sum(carrier for carrier, text in found_in(headers, query).items() if text == expected)


def opening_nonce(body: bytes | bytearray) -> bytes | None:
    """Return the nonce in the body of a request that asks for a pipe; None for another body."""
    if len(body) != OPENING_SIZE or not body.startswith(OPENING):
        return None
    return bytes(body[len(OPENING) :])


def _text(data: bytes) -> str:
    return str(base64.urlsafe_b64encode(data), "ascii").rstrip("=")


def _mac(key: bytes, plain: bytes) -> bytes:
    return hmac.digest(key, plain, "sha256")[:_MAC_SIZE]
