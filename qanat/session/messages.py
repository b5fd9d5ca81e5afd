"""What client and server say to each other through the mux: stream requests and control messages.

Their layouts are in docs/PROTOCOL.md §4.  Frozen values with `encode`, and two strict parsers that
accept or raise ProtocolError.  Pure; used by the sessions of both ends.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from qanat.base.errors import ProtocolError
from qanat.base.text import decode_text, encode_cut, printable
from qanat.handshake.fields import FieldReader, lp16

MAX_NAME = 255
"""Bytes of UTF-8 in a host name (RFC 1035 §2.3.4), and in the text that says who connected."""
MAX_REASON = 512
"""Bytes of UTF-8 in the text that says why the server cannot listen."""


class MalformedListen(ProtocolError):
    """A LISTEN that cannot be understood, though it names its forward: only that is refused."""

    def __init__(self, forward: int, message: str) -> None:
        super().__init__(message)
        self.forward = forward


@dataclass(frozen=True, slots=True)
class ConnectTcp:
    """Client to server: connect this stream to `host` (a name, or a literal without brackets)."""

    host: str
    port: int
    origin: str = ""

    def encode(self) -> bytes:
        """Return the stream request; an origin that is too long is cut."""
        return struct.pack("!BH", 1, self.port) + lp16(self.host.encode()) + lp16(encode_cut(self.origin, MAX_NAME))


@dataclass(frozen=True, slots=True)
class ThroughForward:
    """Server to client: someone connected to this remote forward of yours."""

    forward: int
    origin: str = ""

    def encode(self) -> bytes:
        """Return the stream request; an origin that is too long is cut."""
        return struct.pack("!BI", 2, self.forward) + lp16(encode_cut(self.origin, MAX_NAME))


class Measurement(IntEnum):
    """What the server does with a stream that measures."""

    ECHO = 1
    """Sends back what comes."""
    SINK = 2
    """Drops what comes, and says how much came and how long that took."""
    SOURCE = 3
    """Sends until the client half-closes."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Client to server, in a session that is for measuring: join this stream to what measures it."""

    what: Measurement

    def encode(self) -> bytes:
        """Return the stream request."""
        return struct.pack("!BB", 3, self.what)


@dataclass(frozen=True, slots=True)
class Listen:
    """Client to server: listen here for my remote forward of this number."""

    forward: int
    host: str
    port: int

    def encode(self) -> bytes:
        """Return the control message."""
        return struct.pack("!BIH", 1, self.forward, self.port) + lp16(self.host.encode())


@dataclass(frozen=True, slots=True)
class Listening:
    """Server to client: it listens, on this port."""

    forward: int
    port: int

    def encode(self) -> bytes:
        """Return the control message."""
        return struct.pack("!BIH", 2, self.forward, self.port)


@dataclass(frozen=True, slots=True)
class ListenFailed:
    """Server to client: it cannot listen there; `reason` is a qanat.mux.frames.Reason."""

    forward: int
    reason: int
    text: str

    def encode(self) -> bytes:
        """Return the control message; a text that is too long is cut."""
        return struct.pack("!BIH", 3, self.forward, self.reason) + lp16(encode_cut(self.text, MAX_REASON))


@dataclass(frozen=True, slots=True)
class Unlisten:
    """Client to server: stop listening for this forward."""

    forward: int

    def encode(self) -> bytes:
        """Return the control message."""
        return struct.pack("!BI", 4, self.forward)


StreamRequest = ConnectTcp | ThroughForward | Measure
ControlMessage = Listen | Listening | ListenFailed | Unlisten


def decode_request(content: bytes) -> StreamRequest:
    """Parse the stream request of an OPEN frame.  Raises ProtocolError, which concerns this stream alone."""
    reader = FieldReader(content, "stream request")
    kind = reader.u8()
    request: StreamRequest
    if kind == 1:
        port = reader.u16()
        request = ConnectTcp(_text(reader), port, _text(reader))
    elif kind == 2:
        request = ThroughForward(reader.u32(), _text(reader))
    elif kind == 3:
        request = Measure(_measurement(reader.u8()))
    else:
        raise ProtocolError(f"unknown stream request {kind}")
    reader.end()
    return request


def decode_control(content: bytes) -> ControlMessage:
    """Parse the message of a CONTROL frame.  Raises MalformedListen, and ProtocolError for what no end may send.

    A text that is too long or not UTF-8 in LISTEN_FAILED, which is for people only, is made to fit.
    """
    reader = FieldReader(content, "control message")
    kind, forward = reader.u8(), reader.u32()
    message: ControlMessage
    if kind == 1:
        return _decode_listen(reader, forward)
    if kind == 2:
        message = Listening(forward, reader.u16())
    elif kind == 3:
        message = ListenFailed(forward, reader.u16(), _readable(reader.lp16()))
    elif kind == 4:
        message = Unlisten(forward)
    else:
        raise ProtocolError(f"unknown control message {kind}")
    reader.end()
    return message


def _decode_listen(reader: FieldReader, forward: int) -> Listen:
    try:
        port = reader.u16()
        message = Listen(forward, _text(reader), port)
        reader.end()
    except ProtocolError as error:
        raise MalformedListen(forward, error.message) from error
    return message


def _measurement(number: int) -> Measurement:
    try:
        return Measurement(number)
    except ValueError:
        raise ProtocolError(f"unknown measurement {number}") from None


def _readable(content: bytes) -> str:
    return printable(decode_text(content[:MAX_REASON]))


def _text(reader: FieldReader) -> str:
    content = reader.lp16()
    if len(content) > MAX_NAME:
        raise ProtocolError(f"a text of {len(content)} bytes where {MAX_NAME} are allowed")
    try:
        return printable(content.decode())
    except UnicodeDecodeError as error:
        raise ProtocolError("a text that is not UTF-8") from error
