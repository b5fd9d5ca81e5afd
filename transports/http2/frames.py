"""HTTP/2 frames (RFC 9113 §4.1): finding them in a stream of bytes, and writing the headers of DATA.

Sans-IO.  `FrameReader` owns the one receive buffer of a connection.  DATA, which is what bulk is made of, is
handed out as views without its padding, piece by piece as it comes, or `whole`; h2 alone would copy each byte four
times.  Every other frame is cut out whole, after its size was checked, and left to h2's state
machine.  Used by `core` and `engine`.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from h2.errors import ErrorCodes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113 §3.4)."""

HEADER_SIZE = 9
MAX_FRAME = 272 * 1024
"""SETTINGS_MAX_FRAME_SIZE as we announce it: a whole message and its framing fit into one frame."""

READ_SIZE = 256 * 1024
"""The receive buffer's size, as soon as a connection has shown that it carries bulk."""

_WHOLE_SIZE = 2 * MAX_FRAME  # the same where frames are kept until they are whole

MAX_CONTROL = 64 * 1024
"""Bytes of any frame but DATA, and of one header block before decompression, CONTINUATIONs included."""

_FIRST_SIZE = 16 * 1024  # a connection that never carries bulk costs no more than this
_CHEAP_TO_MOVE = 4096
_USUAL_FRAME = 16384  # the largest frame of a peer that was not told otherwise (RFC 9113 §4.2)


class FrameType(IntEnum):
    """The types of frames (RFC 9113 §6)."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8

_DATA: int = FrameType.DATA.value
_HEADER = struct.Struct("!HBBBI")  # length in 16 + 8 bits, type, flags, stream
_BLOCK_STARTS = (FrameType.HEADERS, FrameType.PUSH_PROMISE)


class Http2Error(Exception):
    """The peer broke RFC 9113 or this program's limits; `code` is what GOAWAY says about it (§7)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class DataPart(NamedTuple):
    """What came of a DATA frame since the last part.  `data` is valid until the next call of `space`."""

    stream_id: int
    data: memoryview
    charged: int  # bytes of flow control, padding included (RFC 9113 §6.1)
    first: bool  # the frame begins here
    ended: bool  # the frame ends here, and has END_STREAM
    empty: bool  # the whole frame came at once, and carries nothing but padding


class ControlFrame(NamedTuple):
    """Any other frame, whole.  `raw` is valid until the next call of `space`."""

    kind: int
    flags: int
    stream_id: int
    raw: memoryview

    @property
    def payload(self) -> memoryview:
        """The frame's payload."""
        return self.raw[HEADER_SIZE:]


def write_data_header(buffer: memoryview, at: int, length: int, stream_id: int) -> None:
    """Put the header of a DATA frame with `length` bytes into `buffer`, from `at` on."""
    _HEADER.pack_into(buffer, at, length >> 8, length & 0xFF, _DATA, 0, stream_id)


def data_frames(stream_id: int, data: memoryview, frame_size: int) -> bytes:
    """Return `data` as DATA frames of at most `frame_size` bytes each, ready to be sent in one go."""
    pack = _HEADER.pack
    parts: list[bytes | memoryview] = []
    for position in range(0, len(data), frame_size):
        part = data[position : position + frame_size]
        parts.append(pack(len(part) >> 8, len(part) & 0xFF, _DATA, 0, stream_id))
        parts.append(part)
    return b"".join(parts)


def empty_data(stream_id: int) -> bytes:
    """Return an empty DATA frame with END_STREAM."""
    return last_data(stream_id, b"")


def last_data(stream_id: int, data: bytes) -> bytes:
    """Return a DATA frame with `data`, a few bytes, and END_STREAM."""
    return _HEADER.pack(0, len(data), _DATA, END_STREAM, stream_id) + data


class FrameReader:
    """Bytes in, frames out.  For one thread at a time."""

    def __init__(self, first: bytes = b"") -> None:
        """`first` are bytes that were read together with what came before."""
        self.whole = False
        """Whether a large DATA frame is handed out when it is whole, in one piece.  May be changed at any time.

        Smaller ones, as proxies make them, have to be put together again anyhow.
        """
        self.awaited = 0
        """After `next` has returned None: the stream of the DATA frame that will be handed out whole, or 0."""
        self._buffer = memoryview(bytearray(max(_FIRST_SIZE, 2 * len(first))))
        self._buffer[: len(first)] = first
        self._start = 0  # of what has not been returned
        self._end = len(first)
        self._wanted = HEADER_SIZE  # bytes from _start, so that `next` can get further
        self._data_stream = 0  # whose DATA frame is coming; 0 when none is
        self._data_left = 0
        self._padding_left = 0
        self._data_ended = False  # the frame has END_STREAM
        self._data_first = False
        self._block = 0  # bytes of the header block that is coming; 0 when none is
        self._in_block = False

    def space(self) -> memoryview:
        """Where to receive the next bytes; all views that were returned before are void after this."""
        start, end, size = self._start, self._end, len(self._buffer)
        have = end - start
        if not have and end < size:  # nearly always
            self._start = self._end = 0
            return self._buffer
        most = _WHOLE_SIZE if self.whole else READ_SIZE
        if (end == size or self._wanted > size) and size < most:
            self._move_to(memoryview(bytearray(most)))
        elif start and (have <= _CHEAP_TO_MOVE or end == size or start + self._wanted > size):
            self._move_to(self._buffer)
        return self._buffer[self._end :]

    def trim(self) -> None:
        """Go on with a small buffer, if nothing is in the large one; views that were returned stay valid."""
        if self._start == self._end and len(self._buffer) > _FIRST_SIZE:
            self._buffer = memoryview(bytearray(_FIRST_SIZE))
            self._start = self._end = 0

    def leave_buffer(self) -> None:
        """Go on with another buffer: the views that were returned stay valid, and nothing is written to them."""
        self._move_to(memoryview(bytearray(len(self._buffer))))

    def _move_to(self, buffer: memoryview) -> None:
        have = self._end - self._start
        buffer[:have] = self._buffer[self._start : self._end]
        self._buffer = buffer
        self._start, self._end = 0, have

    def filled(self, count: int) -> None:
        """Say that `count` bytes have been put into `space`."""
        self._end += count

    def peek(self, count: int) -> bytes:
        """Return the next bytes, at most `count`, which stay where they are."""
        return bytes(self._buffer[self._start : min(self._end, self._start + count)])

    def next(self) -> DataPart | ControlFrame | None:
        """Return the next part or frame, or None when more bytes are needed.  Raises Http2Error."""
        if self._data_stream:
            return self._next_data()
        start = self._start
        have = self._end - start
        self.awaited = 0
        if have < HEADER_SIZE:
            self._wanted = HEADER_SIZE
            return None
        high, low, kind, flags, stream_id = _HEADER.unpack_from(self._buffer, start)
        length = high << 8 | low
        stream_id &= 0x7FFF_FFFF
        if length > MAX_FRAME:
            raise Http2Error(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {length} bytes, above the limit of {MAX_FRAME}")
        if kind == _DATA:
            whole = have >= HEADER_SIZE + length
            if whole and length and not flags and stream_id and not self._in_block:  # nearly all
                end = self._start = start + HEADER_SIZE + length
                return DataPart(stream_id, self._buffer[start + HEADER_SIZE : end], length, True, False, False)
            if self.whole and not whole and length > _USUAL_FRAME:
                self._wanted = HEADER_SIZE + length
                self.awaited = stream_id
                return None
            return self._begin_data(length, flags, stream_id, have)
        if length > MAX_CONTROL:
            raise Http2Error(ErrorCodes.ENHANCE_YOUR_CALM, f"a frame of type {kind} with {length} bytes")
        total = HEADER_SIZE + length
        if have < total:
            self._wanted = total
            return None
        self._follow_block(kind, flags, length)
        self._start = start + total
        return ControlFrame(kind, flags, stream_id, self._buffer[start : start + total])

    def _begin_data(self, length: int, flags: int, stream_id: int, have: int) -> DataPart | None:
        if stream_id == 0 or self._in_block:
            raise Http2Error(ErrorCodes.PROTOCOL_ERROR, "DATA where none may be")
        header, padding = HEADER_SIZE, 0
        if flags & PADDED:
            header += 1
            if length == 0:
                raise Http2Error(ErrorCodes.FRAME_SIZE_ERROR, "a padded frame without room for padding")
            if have < header:
                self._wanted = header
                return None
            padding = self._buffer[self._start + HEADER_SIZE]
            if padding >= length:
                raise Http2Error(ErrorCodes.PROTOCOL_ERROR, "a frame with more padding than content")
        self._start += header
        self._data_stream = stream_id
        self._data_left = length - padding - (header - HEADER_SIZE)
        self._padding_left = padding
        self._data_ended = bool(flags & END_STREAM)
        self._data_first = True
        if length == 0:
            self._data_stream = 0
            return DataPart(stream_id, self._buffer[:0], 0, True, self._data_ended, True)
        return self._next_data(header - HEADER_SIZE)

    def _next_data(self, charged: int = 0) -> DataPart | None:
        """Return what is there of the frame; `charged` is its length of padding, which counts too."""
        have = self._end - self._start
        size = min(have, self._data_left)
        data = self._buffer[self._start : self._start + size]
        padding = min(have - size, self._padding_left)
        self._start += size + padding
        self._data_left -= size
        self._padding_left -= padding
        over = not self._data_left and not self._padding_left
        if not size and not padding and not charged and not over:
            self._wanted = 1
            return None
        stream_id, first = self._data_stream, self._data_first
        self._data_first = False
        if over:
            self._data_stream = 0
        return DataPart(
            stream_id, data, size + padding + charged, first, over and self._data_ended, first and over and not size
        )

    def _follow_block(self, kind: int, flags: int, length: int) -> None:
        """Bound a header block, and let nothing else into it (RFC 9113 §4.3)."""
        if self._in_block and kind != FrameType.CONTINUATION:
            raise Http2Error(ErrorCodes.PROTOCOL_ERROR, "a frame in the middle of a header block")
        if kind in _BLOCK_STARTS:
            self._block = length
        elif kind == FrameType.CONTINUATION:
            self._block += length
        else:
            return
        self._in_block = not flags & END_HEADERS
        if self._block > MAX_CONTROL:
            raise Http2Error(ErrorCodes.ENHANCE_YOUR_CALM, f"a header block of more than {MAX_CONTROL} bytes")
