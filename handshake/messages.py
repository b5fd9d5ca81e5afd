"""The clear messages M1 to M4 and the refusal: layouts, limits and strict parsers (docs/PROTOCOL.md §1).

Pure: bytes in, frozen values out.  A parser accepts exactly what the page allows or raises
HandshakeError.  Which message is legal when, and what its fields mean, is known in `machine` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from qanat.base.errors import HandshakeError
from qanat.base.text import NAME
from qanat.handshake.fields import FieldReader, lp, lp8

M1_LIMIT: Final = 1024
M2_LIMIT: Final = 387
M3_LIMIT: Final = 515
M4_LIMIT: Final = 1024
REFUSED_LIMIT: Final = 36
LARGEST_MESSAGE: Final = 1024
"""Bytes, header included."""

MAX_VERSIONS: Final = 8
RANDOM_SIZE: Final = 32
PROOF_SIZE: Final = 32
SECRET_SIZE: Final = 32
AUTH_LABEL: Final = b"qanat/1 auth"
SESSION_LABEL: Final = b"qanat/1 session"

_HEADER_SIZE: Final = 3


class MessageType(IntEnum):
    """A message's first byte."""

    MSG_PUBKEY = 1
    MSG_AUTH = 2
    MSG_SESSION_KEY = 3
    MSG_REFUSED = 4


class RefusalCode(IntEnum):
    """Why a client was refused.  There is one code only: a refusal must not tell which check failed."""

    REFUSED = 1


@dataclass(frozen=True)
class ServerKey:
    """M1, the server's first message."""

    versions: tuple[int, ...]
    random: bytes
    spki: bytes

    def encode(self) -> bytes:
        """Return the whole message, header included."""
        versions = b"".join(version.to_bytes(2, "big") for version in self.versions)
        content = bytes([len(self.versions)]) + versions + self.random + lp(self.spki)
        return _message(MessageType.MSG_PUBKEY, content)

    @classmethod
    def decode(cls, message: bytes) -> ServerKey:
        """Parse a whole message.  Raises HandshakeError."""
        reader = _content(message, MessageType.MSG_PUBKEY, M1_LIMIT, "the server's MSG_PUBKEY")
        count = reader.u8()
        if not 1 <= count <= MAX_VERSIONS:
            raise HandshakeError(f"the server's MSG_PUBKEY lists {count} versions")
        versions = tuple(reader.u16() for _ in range(count))
        decoded = cls(versions=versions, random=reader.take(RANDOM_SIZE), spki=reader.lp())
        reader.end()
        return decoded


@dataclass(frozen=True)
class Auth:
    """M2, what the client says, encrypted to the server's key."""

    ciphertext: bytes

    def encode(self) -> bytes:
        """Return the whole message, header included."""
        return _message(MessageType.MSG_AUTH, self.ciphertext)

    @classmethod
    def decode(cls, message: bytes) -> Auth:
        """Parse a whole message.  Raises HandshakeError."""
        reader = _content(message, MessageType.MSG_AUTH, M2_LIMIT, "MSG_AUTH")
        # Exactly one block of the server's key: shorter or longer cannot be a ciphertext for it.
        ciphertext = reader.take(M2_LIMIT - _HEADER_SIZE)
        reader.end()
        return cls(ciphertext)


@dataclass(frozen=True)
class AuthPlaintext:
    """The inside of M2."""

    version: int
    name: str
    client_secret: bytes = field(repr=False)
    proof: bytes = field(repr=False)

    def before_proof(self) -> bytes:
        """Return the part that the proof covers."""
        return self.version.to_bytes(2, "big") + lp8(self.name.encode("ascii")) + self.client_secret

    def encode(self) -> bytes:
        """Return M2's plaintext."""
        return self.before_proof() + self.proof

    @classmethod
    def decode(cls, plaintext: bytes) -> AuthPlaintext:
        """Parse M2's plaintext.  Raises HandshakeError."""
        reader = FieldReader(plaintext, "what MSG_AUTH carries", HandshakeError)
        version = reader.u16()
        try:
            name = reader.lp8().decode("ascii")
        except UnicodeDecodeError:
            name = ""
        if not NAME.fullmatch(name):
            raise HandshakeError("the client's name in MSG_AUTH is not one that a client can have")
        decoded = cls(version, name, reader.take(SECRET_SIZE), reader.take(PROOF_SIZE))
        reader.end()
        return decoded


@dataclass(frozen=True)
class ClientKeyMessage:
    """M3, the client's ephemeral key."""

    spki: bytes

    def encode(self) -> bytes:
        """Return the whole message, header included."""
        return _message(MessageType.MSG_PUBKEY, lp(self.spki))

    @classmethod
    def decode(cls, message: bytes) -> ClientKeyMessage:
        """Parse a whole message.  Raises HandshakeError."""
        reader = _content(message, MessageType.MSG_PUBKEY, M3_LIMIT, "the client's MSG_PUBKEY")
        decoded = cls(reader.lp())
        reader.end()
        return decoded


@dataclass(frozen=True)
class SessionKey:
    """M4, the server's secret under the client's key, and its proof."""

    ciphertext: bytes
    proof: bytes

    def encode(self) -> bytes:
        """Return the whole message, header included."""
        return self.encode_before_proof() + self.proof

    def encode_before_proof(self) -> bytes:
        """Return what the transcript covers; the header's length counts the proof that follows."""
        content = lp(self.ciphertext)
        return _header(MessageType.MSG_SESSION_KEY, len(content) + PROOF_SIZE) + content

    @classmethod
    def decode(cls, message: bytes) -> SessionKey:
        """Parse a whole message.  Raises HandshakeError."""
        reader = _content(message, MessageType.MSG_SESSION_KEY, M4_LIMIT, "MSG_SESSION_KEY")
        decoded = cls(ciphertext=reader.lp(), proof=reader.take(PROOF_SIZE))
        reader.end()
        return decoded


@dataclass(frozen=True)
class Refusal:
    """R, instead of M4.  The machine checks the mac."""

    code: int
    mac: bytes

    def encode(self) -> bytes:
        """Return the whole message, header included."""
        return _message(MessageType.MSG_REFUSED, bytes([self.code]) + self.mac)

    @classmethod
    def decode(cls, message: bytes) -> Refusal:
        """Parse a whole message.  Raises HandshakeError."""
        reader = _content(message, MessageType.MSG_REFUSED, REFUSED_LIMIT, "MSG_REFUSED")
        decoded = cls(code=reader.u8(), mac=reader.take(PROOF_SIZE))
        reader.end()
        return decoded


def type_of(message: bytes) -> MessageType:
    """Return the type of a message whose outside is sound: known type, honest length.  Raises HandshakeError."""
    if len(message) < _HEADER_SIZE:
        raise HandshakeError("a handshake message is empty or shorter than its header")
    if message[0] not in MessageType.__members__.values():
        raise HandshakeError(f"a handshake message has the unknown type {message[0]}")
    if int.from_bytes(message[1:_HEADER_SIZE], "big") != len(message) - _HEADER_SIZE:
        raise HandshakeError("a handshake message is not as long as its header says")
    return MessageType(message[0])


def _header(kind: MessageType, length: int) -> bytes:
    return bytes([kind]) + length.to_bytes(2, "big")


def _message(kind: MessageType, content: bytes) -> bytes:
    return _header(kind, len(content)) + content


def _content(message: bytes, kind: MessageType, limit: int, what: str) -> FieldReader:
    if type_of(message) != kind:
        raise HandshakeError(f"another message came instead of {what}")
    if len(message) > limit:
        raise HandshakeError(f"{what} has {len(message)} bytes, more than {limit}")
    return FieldReader(message[_HEADER_SIZE:], what, HandshakeError)
