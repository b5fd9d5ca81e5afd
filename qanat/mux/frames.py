"""The frames inside a FRAMES record: their layout, and a strict parser (docs/PROTOCOL.md §4).

Pure: bytes in, values out.  Nothing here knows what a stream or a lane is.  `qanat.mux.receiver` calls the parser,
`qanat.mux.sender` encodes.  The parser gives a value for each frame or raises ProtocolError; it never copies DATA,
whose payload is a view into the record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from qanat.base.errors import LocalError, ProtocolError
from qanat.base.text import decode_text, encode_cut

MAX_TEXT = 1024
"""Bytes in a stream request, a text or a control message at most."""
MAX_PLAINTEXT = 262_144
"""Bytes in one record's plaintext at most, its kind byte included."""
MAX_DATAGRAM = 65_535
"""Bytes in a datagram at most, which is more than UDP carries: 65,507 over IPv4, 65,527 over IPv6."""


class FrameType(IntEnum):
    """The first byte of each frame.  Those below 16 are numbered, acknowledged and replayed; the others are not."""

    OPEN = 1
    DATA = 2
    FIN = 3
    RESET = 4
    ACCEPT = 5
    CONTROL = 6
    ACK = 16
    CREDIT = 17
    PING = 18
    PONG = 19
    DATAGRAM = 20
    CLOCK = 21


class Reason(IntEnum):
    """Why a stream was reset, or a remote forward could not be bound."""

    CANCELED = 1
    REFUSED = 2
    UNREACHABLE = 3
    NOT_ALLOWED = 4
    LIMIT = 5
    SESSION_ENDED = 6
    INTERNAL = 7
    TIMED_OUT = 8
    NO_ROUTE = 9


def reason_name(code: int) -> str:
    """Return the reason in words; a number for one that this version does not know."""
    try:
        return Reason(code).name.lower().replace("_", " ")
    except ValueError:
        return f"reason {code}"


_DATA_HEADER = struct.Struct("!BII")
_OPEN_HEADER = struct.Struct("!BIH")
_FIN = struct.Struct("!BIQ")
_RESET_HEADER = struct.Struct("!BIHH")
_CONTROL_HEADER = struct.Struct("!BH")
_VALUE = struct.Struct("!BQ")

DATA_HEADER_SIZE = _DATA_HEADER.size
DATAGRAM_HEADER_SIZE = _OPEN_HEADER.size
ACK_SIZE = CLOCK_SIZE = _VALUE.size

DATA = int(FrameType.DATA)
"""As a plain number: comparing with a member of an enumeration costs as much as all the rest of the comparison."""
DATAGRAM = int(FrameType.DATAGRAM)
ACK = int(FrameType.ACK)
CREDIT = int(FrameType.CREDIT)
OPEN = int(FrameType.OPEN)
FIN = int(FrameType.FIN)
ACCEPT = int(FrameType.ACCEPT)
UNNUMBERED = int(FrameType.ACK)
"""The first of those that are not numbered."""
EMPTY = "a FRAMES record without a frame"
CUT_HEADER = "a frame ends in the middle of its header"


@dataclass(frozen=True, slots=True)
class Open:
    """A stream begins; `request` says where it should lead, in at most MAX_TEXT bytes."""

    stream: int
    request: bytes

    def encode(self) -> bytes:
        """Return the frame's bytes.  Raises LocalError for a request above MAX_TEXT bytes."""
        return open_stream(self.stream, self.request)


@dataclass(frozen=True, slots=True)
class Data:
    """Payload of a stream, at least one byte: a view into the record."""

    stream: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Fin:
    """The sender has finished the stream, after `offset` bytes of payload."""

    stream: int
    offset: int

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        return fin(self.stream, self.offset)


@dataclass(frozen=True, slots=True)
class Reset:
    """Both directions of the stream are over; `reason` is a Reason or one that this version does not know."""

    stream: int
    reason: int
    text: str

    def encode(self) -> bytes:
        """Return the frame's bytes, the text cut to MAX_TEXT bytes."""
        text = encode_text(self.text)
        return _RESET_HEADER.pack(FrameType.RESET, self.stream, self.reason, len(text)) + text


@dataclass(frozen=True, slots=True)
class Accept:
    """The stream's target was reached; `text` is its address."""

    stream: int
    text: str

    def encode(self) -> bytes:
        """Return the frame's bytes, the text cut to MAX_TEXT bytes."""
        return accept(self.stream, self.text)


@dataclass(frozen=True, slots=True)
class Control:
    """A message for the session above, of at most MAX_TEXT bytes."""

    message: bytes

    def encode(self) -> bytes:
        """Return the frame's bytes.  Raises LocalError for a message above MAX_TEXT bytes."""
        return _CONTROL_HEADER.pack(FrameType.CONTROL, _size(self.message)) + self.message


@dataclass(frozen=True, slots=True)
class Ack:
    """Every numbered frame below `expected` has been accepted."""

    expected: int

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        return ack(self.expected)


@dataclass(frozen=True, slots=True)
class Credit:
    """The sender takes payload of the stream up to byte `offset`, counted from the stream's beginning."""

    stream: int
    offset: int

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        return credit(self.stream, self.offset)


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with PONG of the same value."""

    value: int

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        return _VALUE.pack(FrameType.PING, self.value)


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to PING."""

    value: int

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        return _VALUE.pack(FrameType.PONG, self.value)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One datagram of a stream, of at most MAX_DATAGRAM bytes, perhaps none; it may be lost."""

    stream: int
    payload: bytes

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        return datagram(self.stream, self.payload)


@dataclass(frozen=True, slots=True)
class Clock:
    """What the sender's clock said when it made the record: milliseconds since a moment of its own."""

    value: int

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        return _VALUE.pack(FrameType.CLOCK, self.value)


SmallFrame = Open | Fin | Reset | Accept | Control | Ack | Credit | Ping | Pong | Datagram | Clock
Frame = SmallFrame | Data


def encode_text(text: str) -> bytes:
    """Return `text` in UTF-8, cut at a character so that it fits into MAX_TEXT."""
    return encode_cut(text, MAX_TEXT)


data_header = partial(_DATA_HEADER.pack, DATA)
"""Returns the header of a DATA frame from its stream and length; the payload follows it."""
ack = partial(_VALUE.pack, ACK)
"""Returns an ACK from the number that is expected, as `Ack.encode` does, without an object."""
credit = partial(_FIN.pack, CREDIT)
"""Returns a CREDIT from its stream and offset, as `Credit.encode` does, without an object."""


def open_stream(stream: int, request: bytes) -> bytes:
    """Return an OPEN, as `Open.encode` does, without an object.  Raises LocalError likewise."""
    return _OPEN_HEADER.pack(OPEN, stream, _size(request)) + request


def fin(stream: int, offset: int) -> bytes:
    """Return a FIN, as `Fin.encode` does, without an object."""
    return _FIN.pack(FIN, stream, offset)


def accept(stream: int, text: str) -> bytes:
    """Return an ACCEPT, as `Accept.encode` does, without an object."""
    body = encode_text(text)
    return _OPEN_HEADER.pack(ACCEPT, stream, len(body)) + body


def datagram(stream: int, payload: bytes) -> bytes:
    """Return a DATAGRAM frame, of at most MAX_DATAGRAM bytes of payload."""
    return _OPEN_HEADER.pack(FrameType.DATAGRAM, stream, len(payload)) + payload


def parse_frames(content: memoryview) -> Iterator[Frame]:
    """Yield the frames of one FRAMES record, in order.  Raises ProtocolError at the first fault.

    Frames before a fault have been yielded by then; the fault ends the pipe, so that they took
    effect is harmless: the sender's ACK state covers exactly them.
    """
    position, end = 0, len(content)
    if not end:
        raise ProtocolError(EMPTY)
    while position < end:
        if content[position] == DATA:
            stream, position, after = parse_data(content, position)
            yield Data(stream, content[position:after])
            position = after
        else:
            frame, position = parse_frame(content, position)
            yield frame


def parse_data(content: memoryview, position: int) -> tuple[int, int, int]:
    """Return the stream of the DATA frame at `position`, and where its payload begins and ends.

    The fast path of who receives bulk: no object is made.  Raises ProtocolError.
    """
    try:
        _, stream, length = _DATA_HEADER.unpack_from(content, position)
    except struct.error as error:
        raise ProtocolError(CUT_HEADER) from error
    position += DATA_HEADER_SIZE
    after = position + length
    if not length or after > len(content):
        raise ProtocolError(f"DATA of {length} bytes where {len(content) - position} are left")
    return stream, position, after


def parse_ack(content: memoryview, position: int) -> tuple[int, int]:
    """Return what the ACK at `position` expects, and where the next frame begins.  Raises ProtocolError."""
    try:
        return _VALUE.unpack_from(content, position)[1], position + _VALUE.size
    except struct.error as error:
        raise ProtocolError(CUT_HEADER) from error


def parse_credit(content: memoryview, position: int) -> tuple[int, int, int]:
    """Return stream and offset of the CREDIT at `position`, and where the next frame begins.  Raises ProtocolError."""
    try:
        _, stream, offset = _FIN.unpack_from(content, position)
    except struct.error as error:
        raise ProtocolError(CUT_HEADER) from error
    return stream, offset, position + _FIN.size


parse_fin = parse_credit
"""The same for FIN, which is laid out alike."""


def parse_text(content: memoryview, position: int) -> tuple[int, bytes, int]:
    """Return stream and body of the OPEN or ACCEPT at `position`, and where the next frame begins.

    Raises ProtocolError.
    """
    try:
        _, stream, length = _OPEN_HEADER.unpack_from(content, position)
    except struct.error as error:
        raise ProtocolError(CUT_HEADER) from error
    body, position = _take(content, position + _OPEN_HEADER.size, length, MAX_TEXT)
    return stream, body, position


def parse_datagram(content: memoryview, position: int) -> tuple[int, bytes, int]:
    """Return stream and payload of the DATAGRAM frame at `position`, and where the next frame begins.

    For who receives many: no object is made but the payload.  Raises ProtocolError.
    """
    try:
        _, stream, length = _OPEN_HEADER.unpack_from(content, position)
    except struct.error as error:
        raise ProtocolError(CUT_HEADER) from error
    payload, position = _take(content, position + DATAGRAM_HEADER_SIZE, length, MAX_DATAGRAM)
    return stream, payload, position


def parse_frame(content: memoryview, position: int) -> tuple[SmallFrame, int]:
    """Return the frame at `position`, which is no DATA, and where the next one begins.  Raises ProtocolError."""
    kind = content[position]
    try:
        if kind in _VALUE_FRAMES:
            _, value = _VALUE.unpack_from(content, position)
            return _VALUE_FRAMES[kind](value), position + _VALUE.size
        if kind in _OFFSET_FRAMES:
            _, stream, offset = _FIN.unpack_from(content, position)
            return _OFFSET_FRAMES[kind](stream, offset), position + _FIN.size
        if kind == OPEN:
            stream, body, position = parse_text(content, position)
            return Open(stream, body), position
        if kind == ACCEPT:
            stream, body, position = parse_text(content, position)
            return Accept(stream, decode_text(body)), position
        if kind == DATAGRAM:
            stream, body, position = parse_datagram(content, position)
            return Datagram(stream, body), position
        if kind == FrameType.RESET:
            _, stream, reason, length = _RESET_HEADER.unpack_from(content, position)
            body, position = _take(content, position + _RESET_HEADER.size, length, MAX_TEXT)
            return Reset(stream, reason, decode_text(body)), position
        if kind == FrameType.CONTROL:
            _, length = _CONTROL_HEADER.unpack_from(content, position)
            body, position = _take(content, position + _CONTROL_HEADER.size, length, MAX_TEXT)
            return Control(body), position
    except struct.error as error:
        raise ProtocolError(CUT_HEADER) from error
    raise ProtocolError(f"unknown frame type {kind}")


_VALUE_FRAMES: dict[int, type[Ack] | type[Ping] | type[Pong] | type[Clock]] = {
    FrameType.ACK: Ack,
    FrameType.PING: Ping,
    FrameType.PONG: Pong,
    FrameType.CLOCK: Clock,
}
_OFFSET_FRAMES: dict[int, type[Fin] | type[Credit]] = {FrameType.FIN: Fin, FrameType.CREDIT: Credit}


def _take(content: memoryview, position: int, length: int, limit: int) -> tuple[bytes, int]:
    end = position + length
    if length > limit or end > len(content):
        raise ProtocolError(f"a frame of {length} bytes where {len(content) - position} are left")
    return bytes(content[position:end]), end


def _size(body: bytes) -> int:
    if len(body) > MAX_TEXT:
        raise LocalError(f"{len(body)} bytes in a frame that takes {MAX_TEXT}")
    return len(body)
