"""The bodies of answers: segments of the server's bytes, each with what the client must know of its own.

    answer to the request for a pipe:  id, secret, carriers, then segments
    every other answer:                segments

Pure, like `token`.  The layout is docs/PROTOCOL.md §6.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from qanat.base.errors import ProtocolError
from qanat.transports.split.token import ID_SIZE, SECRET_SIZE

_HEADER = struct.Struct("!BIQQQI")
HEADER_SIZE = _HEADER.size

MAX_SEGMENT = 4 * 1024 * 1024
"""Bytes of a segment's content."""

_WELCOME = struct.Struct(f"!{ID_SIZE}s{SECRET_SIZE}sB")
WELCOME_SIZE = _WELCOME.size

_ENDED = 1
_HELD = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """What stands in front of a segment's content.  Offsets are as in `Token`."""

    number: int  # of the request that this answers: an answer to another one comes from a cache
    acknowledged: int  # all bytes below it have come to the server
    limit: int  # the server takes bytes below it; with `ended`, where its own bytes end
    at: int = 0  # where the content belongs
    length: int = 0
    ended: bool = False  # the server has closed the pipe
    repeated: bool = False  # a request of this number has been served before

    def encode(self) -> bytes:
        """Return the header."""
        flags = (_ENDED if self.ended else 0) | (_HELD if self.repeated else 0)
        return _HEADER.pack(flags, self.number, self.acknowledged, self.limit, self.at, self.length)


@dataclass(frozen=True, slots=True)
class Welcome:
    """What only the answer to the request for a pipe has."""

    id: bytes
    secret: bytes
    carriers: int

    def encode(self) -> bytes:
        """Return the bytes in front of the first segment."""
        return _WELCOME.pack(self.id, self.secret, self.carriers)


def decode_welcome(body: bytes | bytearray | memoryview) -> Welcome:
    """Return what the beginning of a first answer says.  Raises ProtocolError."""
    if len(body) < WELCOME_SIZE:
        raise ProtocolError("an answer that is too short for a pipe")
    return Welcome(*_WELCOME.unpack_from(body))


class SegmentReader:
    """Cuts an answer's body into segments as it comes; content is handed on in the pieces that come."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._segment: Segment | None = None
        self._left = 0

    @property
    def in_the_middle(self) -> bool:
        """Whether an end now would cut a segment."""
        return bool(self._header) or self._left > 0

    def feed(self, data: memoryview) -> Iterator[tuple[Segment, int, memoryview]]:
        """Yield each segment that begins, and each piece of content: the segment, where it belongs, the bytes.

        A segment without content comes once, with no bytes.  Raises ProtocolError.
        """
        position = 0
        while position < len(data):
            if self._left:
                piece = data[position : position + self._left]
                segment = self._segment
                assert segment is not None
                at = segment.at + segment.length - self._left
                self._left -= len(piece)
                position += len(piece)
                yield segment, at, piece
                continue
            wanted = HEADER_SIZE - len(self._header)
            self._header += data[position : position + wanted]
            position += wanted
            if len(self._header) < HEADER_SIZE:
                return
            self._segment = _decode(bytes(self._header))
            self._header.clear()
            self._left = self._segment.length
            if not self._left:
                yield self._segment, self._segment.at, data[:0]


def _decode(header: bytes) -> Segment:
    flags, number, acknowledged, limit, at, length = _HEADER.unpack(header)
    if flags & ~(_ENDED | _HELD) or length > MAX_SEGMENT:
        raise ProtocolError("an answer that is no segment")
    return Segment(number, acknowledged, limit, at, length, bool(flags & _ENDED), bool(flags & _HELD))
