"""WebSocket frames (RFC 6455 §5.2): finding them in a stream of bytes, and writing their headers.

Sans-IO.  `FrameReader` owns the one receive buffer of a pipe.  What it recognizes by itself is what bulk
is made of: a binary message in a single frame, unmasked in place and never copied.  It also refuses, before
any of the body is waited for, what is too long, wrongly masked or text.  Every other frame is cut out whole and
left to the library's protocol machine (`machine`).  Used by `pipe`.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from qanat.base.paged_buffer import PagedBuffer
from qanat.transports.websocket.mask import xor_mask

CLIENT_HEADROOM = 14
SERVER_HEADROOM = 10
"""The longest headers: 2 bytes, 8 of length and, from a client, 4 of mask."""

MAX_FRAGMENTS = 4096
"""Frames that one message may come in.  Joining fragments costs the square of their number."""

_BUFFER_SIZE = 1024 * 1024
"""Several whole messages, so that a partial one rarely has to be moved to the front.  Untouched pages cost nothing."""

_CHEAP_TO_MOVE = 4096
_WORTH_TRIMMING = 64 * 1024
_FIN = 0x80
_CONTROL = 0x08
_MAX_CONTROL = 125


class Opcode(IntEnum):
    """What a frame is (RFC 6455 §5.2)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """The codes that we send (RFC 6455 §7.4.1)."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    MESSAGE_TOO_BIG = 1009


_WHOLE_BINARY = _FIN | Opcode.BINARY

_SHORT = struct.Struct("!BB")
_MEDIUM = struct.Struct("!BBH")
_LONG = struct.Struct("!BBQ")


class FrameError(Exception):
    """The peer broke RFC 6455 or this program's limits; `code` is what a close frame says about it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Frame(NamedTuple):
    """One whole frame that is no message by itself.  The view is valid until the next call of the reader."""

    opcode: int
    raw: memoryview  # header and payload as they came


class FrameReader:
    """Bytes in, frames out.  For one thread."""

    def __init__(self, *, masked: bool, max_message: int, first: bytes = b"") -> None:
        """`masked` is whether the peer must mask, so true on a server.  `first` are bytes read too early."""
        size = max(_BUFFER_SIZE, 2 * (max_message + CLIENT_HEADROOM), 2 * len(first))
        self._pages = PagedBuffer(size)
        self._buffer = self._pages.view
        self._top = 0  # the highest byte that was written to since `trim`
        self._masked = masked
        self.max_message = max_message
        """May be changed at any time; holds for the frames that have not been returned."""
        self._start = 0  # of what has not been returned
        self._end = len(first)
        self._buffer[: self._end] = first
        self._needed = 2  # bytes from _start, so that `next` can get further
        self.starved = not first
        """Whether `next` would return None: it takes more bytes to get further.  Others only read it."""
        self._fragments = 0  # of the message that is coming in pieces; 0 when none is
        self._fragmented_bytes = 0

    def space(self) -> memoryview:
        """Where to receive the next bytes: at least as many as are needed, usually far more.

        Whatever frame was returned before is gone after this.
        """
        have = self._end - self._start
        if not have:
            self._start = self._end = 0
            return self._buffer
        if self._start and (have <= _CHEAP_TO_MOVE or self._start + self._needed > len(self._buffer)):
            self._buffer[:have] = self._buffer[self._start : self._end]
            self._start, self._end = 0, have
        return self._buffer[self._end :]

    def filled(self, count: int) -> None:
        """Say that `count` bytes have been put into `space`."""
        self._end += count
        self.starved = False
        if self._end > self._top:
            self._top = self._end

    def trim(self) -> None:
        """Give memory back that bulk has needed, if nothing is in the buffer.  What was returned before is gone."""
        if self._start == self._end and self._top > _WORTH_TRIMMING:
            self._start = self._end = self._top = 0
            self._pages.give_back()

    @property
    def in_the_middle(self) -> bool:
        """Whether an end now would cut a message."""
        return self._end > self._start or self._fragments > 0

    @property
    def holds_message(self) -> bool:
        """Whether `next` returns a message, unless it is at fault: a whole binary frame has come."""
        buffer, start = self._buffer, self._start
        have = self._end - start
        if have < 2 or buffer[start] != _WHOLE_BINARY:
            return False
        length, header = buffer[start + 1] & 0x7F, 2
        if length >= 126:
            header = 4 if length == 126 else 10
            length = int.from_bytes(buffer[start + 2 : start + header], "big")
        return have >= header + length + (4 if self._masked else 0)

    def next(self) -> memoryview | Frame | None:
        """Return the next message that is one frame, nearly all are, unmasked and valid until the next call.

        Or another whole frame, or None when more bytes are needed.  Raises FrameError.
        """
        self.starved = True  # unless a frame is found, and more behind it
        buffer, start = self._buffer, self._start
        have = self._end - start
        if have < 2:
            self._needed = 2
            return None
        first, second = buffer[start], buffer[start + 1]
        if second >> 7 != self._masked:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "a frame that should be masked is not, or the other way round")
        length = second & 0x7F
        header = 2
        if length >= 126:
            header = 4 if length == 126 else 10
            if have < header:
                self._needed = header
                return None
            length = self._long_length(start + 2, header - 2)
        if self._masked:
            header += 4
        is_message = first == _WHOLE_BINARY and not self._fragments
        if not is_message or length > self.max_message:
            self._check(first, length)
        total = header + length
        if have < total:
            self._needed = total
            return None
        self._start = start + total
        self.starved = have == total
        payload = buffer[start + header : start + total]
        if is_message:
            if self._masked:
                xor_mask(payload, bytes(buffer[start + header - 4 : start + header]))
            return payload
        self._count_fragment(first, length)
        return Frame(first & 0x0F, buffer[start : start + total])

    def _long_length(self, position: int, size: int) -> int:
        length = int.from_bytes(self._buffer[position : position + size], "big")
        if length <= (_MAX_CONTROL if size == 2 else 0xFFFF):
            raise FrameError(CloseCode.PROTOCOL_ERROR, "a frame's length is not in its shortest form")
        return length

    def _check(self, first: int, length: int) -> None:
        """Refuse by its header what must not be waited for."""
        if first & _CONTROL:
            if length > _MAX_CONTROL or not first & _FIN:
                raise FrameError(CloseCode.PROTOCOL_ERROR, "a control frame is fragmented or too long")
            return
        if first & 0x0F == Opcode.TEXT:
            raise FrameError(CloseCode.UNSUPPORTED_DATA, "a text message, where only binary ones are spoken")
        if self._fragmented_bytes + length > self.max_message or self._fragments >= MAX_FRAGMENTS:
            raise FrameError(
                CloseCode.MESSAGE_TOO_BIG,
                f"a message of more than {self.max_message} bytes or {MAX_FRAGMENTS} frames",
            )

    def _count_fragment(self, first: int, length: int) -> None:
        if first & _CONTROL:
            return
        if first & _FIN:
            self._fragments = self._fragmented_bytes = 0
        else:
            self._fragments += 1
            self._fragmented_bytes += length


def write_header(buffer: memoryview, headroom: int, key: bytes | None) -> int:
    """Write the header of the binary message `buffer[headroom:]` right in front of it; return where it begins.

    `key` is a client's mask, which is not applied here.
    """
    length = len(buffer) - headroom
    start = headroom
    masked = 0
    if key is not None:
        start -= 4
        buffer[start:headroom] = key
        masked = 0x80
    if length <= _MAX_CONTROL:
        start -= 2
        _SHORT.pack_into(buffer, start, _WHOLE_BINARY, masked | length)
    elif length <= 0xFFFF:
        start -= 4
        _MEDIUM.pack_into(buffer, start, _WHOLE_BINARY, masked | 126, length)
    else:
        start -= 10
        _LONG.pack_into(buffer, start, _WHOLE_BINARY, masked | 127, length)
    return start


def ping_frame(key: bytes) -> bytes:
    """Return a client's ping without content."""
    return bytes((_FIN | Opcode.PING, 0x80)) + key


def close_frame(code: int, key: bytes | None) -> bytes:
    """Return a close frame with `code` and no reason: what we know is for our own log (RFC 6455 §5.5.1)."""
    payload = bytearray(struct.pack("!H", code))
    if key is None:
        return bytes((_FIN | Opcode.CLOSE, len(payload))) + payload
    xor_mask(memoryview(payload), key)
    return bytes((_FIN | Opcode.CLOSE, 0x80 | len(payload))) + key + payload
