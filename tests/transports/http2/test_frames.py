"""Finding frames and messages in bytes, however the network cut them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, Frame, HeadersFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.base.errors import ProtocolError
from qanat.transports.http2.dialect import Dialect
from qanat.transports.http2.frames import (
    MAX_CONTROL,
    MAX_FRAME,
    READ_SIZE,
    ControlFrame,
    DataPart,
    FrameReader,
    FrameType,
    Http2Error,
    data_frames,
    empty_data,
    write_data_header,
)
from qanat.transports.http2.grpc import GrpcDialect
from qanat.transports.http2.inbox import Inbox
from qanat.transports.pipe import MAX_MESSAGE, MAX_UNAUTHENTICATED
from tests.support.transports.http2_loopback import DIALECTS, frame, framed

Events = list[DataPart | ControlFrame]


def read_all(data: bytes, sizes: Iterator[int]) -> list[tuple[object, ...]]:
    """What the reader makes of `data` when it comes in pieces of these sizes; DATA's pieces joined."""
    reader = FrameReader()
    found: list[tuple[object, ...]] = []
    content, charged, opened = b"", 0, False
    while data:
        space = reader.space()
        size = min(next(sizes), len(space), len(data))
        space[:size] = data[:size]
        data = data[size:]
        reader.filled(size)
        while (event := reader.next()) is not None:
            if isinstance(event, ControlFrame):
                found.append((event.kind, event.flags, event.stream_id, bytes(event.payload)))
                continue
            if event.first:
                content, charged = b"", 0
                found.append(())
                opened = True
            assert opened
            content += event.data
            charged += event.charged
            found[-1] = (0, event.stream_id, content, charged, event.ended)
    return found


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, list[tuple[object, ...]]]:
    """Bytes of some frames, and what must be found in them."""
    data, expected = b"", []
    for _ in range(draw(st.integers(1, 6))):
        stream = draw(st.integers(1, 2**31 - 1))
        payload = draw(st.binary(max_size=300))
        if draw(st.booleans()):
            one = DataFrame(stream, payload, flags=["END_STREAM"] if draw(st.booleans()) else [])
            if draw(st.booleans()):
                one.flags.add("PADDED")
                one.pad_length = draw(st.integers(0, 255))
            expected.append((0, stream, payload, one.flow_controlled_length, "END_STREAM" in one.flags))
            data += one.serialize()
        else:
            kind = draw(st.sampled_from((2, 3, 4, 6, 7, 8, 10, 200)))
            flags = draw(st.integers(0, 255))
            expected.append((kind, flags, stream, payload))
            data += frame(kind, flags, stream, payload)
    return data, expected


@given(frames(), st.integers(0, 2**32), st.sampled_from((1, 9, 50, 5000)))
def test_frames_are_found_however_the_bytes_are_cut(
    made: tuple[bytes, list[tuple[object, ...]]], seed: int, most: int
) -> None:
    data, expected = made
    cuts = random.Random(seed)
    assert read_all(data, iter(lambda: cuts.randint(1, most), 0)) == expected


def test_a_large_frame_is_handed_out_before_its_end_has_come() -> None:
    reader = FrameReader(frame(FrameType.DATA, 0, 5, bytes(1000))[:500])
    part = reader.next()
    assert isinstance(part, DataPart)
    assert (part.stream_id, len(part.data), part.charged, part.first, part.ended) == (5, 491, 491, True, False)
    assert reader.next() is None


def test_a_connection_that_carries_no_bulk_keeps_a_small_buffer() -> None:
    reader = FrameReader()
    for _ in range(100):
        ping = frame(FrameType.PING, 0, 0, bytes(8))
        reader.space()[: len(ping)] = ping
        reader.filled(len(ping))
        assert reader.next() is not None
        assert reader.next() is None
    assert len(reader.space()) < READ_SIZE / 8
    reader.space()[:] = frame(FrameType.DATA, 0, 1, bytes(len(reader.space()) - 9))
    reader.filled(len(reader.space()))
    while reader.next():
        pass
    assert len(reader.space()) == READ_SIZE


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(FrameType.DATA, 0, 0, b"x"), ErrorCodes.PROTOCOL_ERROR),  # on stream 0
        (frame(FrameType.DATA, 0x8, 1, b""), ErrorCodes.FRAME_SIZE_ERROR),  # padded, without a length of padding
        (frame(FrameType.DATA, 0x8, 1, b"\x05abcd"), ErrorCodes.PROTOCOL_ERROR),  # more padding than there is
        ((MAX_FRAME + 1).to_bytes(3, "big") + bytes((0, 0, 0, 0, 0, 1)), ErrorCodes.FRAME_SIZE_ERROR),
        ((MAX_CONTROL + 1).to_bytes(3, "big") + bytes((1, 0, 0, 0, 0, 1)), ErrorCodes.ENHANCE_YOUR_CALM),
        (frame(FrameType.HEADERS, 0, 1, b"x") + frame(FrameType.DATA, 0, 1, b"x"), ErrorCodes.PROTOCOL_ERROR),
        (frame(FrameType.HEADERS, 0, 1, b"x") + frame(FrameType.PING, 0, 0, bytes(8)), ErrorCodes.PROTOCOL_ERROR),
        (frame(FrameType.HEADERS, 0, 1, bytes(9)) + frame(9, 0, 1, bytes(60000)) * 2, ErrorCodes.ENHANCE_YOUR_CALM),
    ],
)
def test_what_may_not_be_is_refused_by_its_header(data: bytes, code: ErrorCodes) -> None:
    with pytest.raises(Http2Error) as caught:
        read_all(data, iter(lambda: 5000, 0))
    assert caught.value.code == code


def test_the_headers_of_data_that_we_write_are_those_that_hyperframe_reads() -> None:
    payload = bytes(range(256)) * 300
    buffer = memoryview(bytearray(9) + payload)
    write_data_header(buffer, 0, len(payload), 7)
    for data, count in ((bytes(buffer), 1), (data_frames(7, memoryview(payload), 16384), 5)):
        content, seen = b"", 0
        while data:
            found, length = Frame.parse_frame_header(memoryview(data[:9]))
            assert isinstance(found, DataFrame)
            assert found.stream_id == 7
            found.parse_body(memoryview(data[9 : 9 + length]))
            content += found.data
            data = data[9 + length :]
            seen += 1
        assert (content, seen) == (payload, count)
    ending, length = Frame.parse_frame_header(memoryview(empty_data(3)))
    assert (ending.stream_id, length, ending.flags) == (3, 0, {"END_STREAM"})


def test_a_header_block_in_pieces_is_passed_on() -> None:
    head = HeadersFrame(1, b"abc").serialize()
    data = head + frame(9, 0, 1, b"de") + frame(9, 4, 1, b"f") + frame(6, 0, 0, bytes(8))
    assert len(read_all(data, iter(lambda: 7, 0))) == 4


# --- messages

DIALECT = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


@DIALECT
@given(
    sizes=st.lists(st.sampled_from((0, 1, 2, 127, 128, 300, 16383, 16384, 16385, 70000, MAX_MESSAGE)), max_size=12),
    most=st.sampled_from((1000, 70000, 300000)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_messages_are_put_together_however_they_are_cut(
    dialect: Dialect, sizes: list[int], most: int, seed: int
) -> None:
    chance = random.Random(seed)
    messages = [chance.randbytes(size) for size in sizes]
    data = memoryview(bytearray(b"".join(framed(dialect, message) for message in messages)))
    inbox = Inbox(dialect)
    taken = []
    position = 0
    while position < len(data):
        size = chance.randint(1, most)
        piece = memoryview(bytearray(data[position : position + size]))
        position += size
        inbox.feed(piece)
        piece[:] = bytes(len(piece))  # nothing may point into it any more
        while chance.random() < 0.7 and (message := inbox.take()) is not None:
            taken.append(bytes(message))
            message[:] = bytes(len(message))  # it is the taker's
    while (message := inbox.take()) is not None:
        taken.append(bytes(message))
    assert taken == messages
    assert not inbox.in_the_middle
    assert inbox.released == len(data), "every byte must be given back to the window, once"


@DIALECT
def test_bytes_count_as_held_until_their_message_is_taken(dialect: Dialect) -> None:
    inbox = Inbox(dialect)
    data = framed(dialect, bytes(50_000))
    inbox.feed(memoryview(data))
    assert inbox.released <= 4  # what gRPC puts round the message
    inbox.take()
    assert inbox.released == len(data)


@DIALECT
def test_a_million_messages_of_nothing_hold_little_memory(dialect: Dialect) -> None:
    inbox = Inbox(dialect)
    one = framed(dialect, b"") * 1000
    for _ in range(100):
        inbox.feed(memoryview(one))
    assert len(inbox._items) == 1
    assert inbox.released < len(one) * 100 / 2, "they must count against the window, too"


@DIALECT
def test_a_guard_holds_for_what_is_taken_and_not_for_what_comes_early(dialect: Dialect) -> None:
    """The first records may come with the last message of the handshake, before anyone has looked at that."""
    large = os.urandom(MAX_UNAUTHENTICATED + 5)  # more than gRPC adds
    data = b"".join(framed(dialect, message) for message in (b"handshake", large, b"after"))
    for cut in (1, 7, 20, 500):
        inbox = Inbox(dialect)
        inbox.set_unauthenticated(True)
        for at in range(0, len(data), cut):
            inbox.feed(memoryview(data)[at : at + cut])
        assert inbox.take() == b"handshake"
        inbox.set_unauthenticated(False)
        assert [inbox.take(), inbox.take()] == [large, b"after"]
        assert inbox.released == len(data)
        inbox = Inbox(dialect)
        inbox.set_unauthenticated(True)
        inbox.feed(memoryview(data))
        inbox.take()
        assert inbox.waiting
        with pytest.raises(ProtocolError, match="in the handshake"):
            inbox.take()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("http2", (MAX_MESSAGE + 1).to_bytes(4, "big")),
        ("grpc", b"\0" + (MAX_MESSAGE + 5).to_bytes(4, "big")),
        ("grpc", b"\1" + (7).to_bytes(4, "big")),  # compressed
        ("grpc", b"\0\0\0\0\2" + b"\x12\0"),  # another field
        ("grpc", b"\0\0\0\0\4" + b"\x0a\1ab"),  # something after the field
        ("grpc", b"\0\0\0\0\3" + b"\x0a\5a"),  # the field is longer than the message
        ("grpc", b"\0\0\0\0\2" + b"\x0a\x80"),  # a length that does not end
        ("grpc", b"\0\0\0\0\7" + b"\x0a\x80\x80\x80\x80\x80\1"),
        ("grpc", b"\0\0\0\0\1" + b"\x0a"),
    ],
)
def test_what_is_no_message_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Inbox(DIALECTS[name]).feed(memoryview(data))


def test_a_record_is_what_protobuf_would_write() -> None:
    for length, wire in ((1, "0a01"), (127, "0a7f"), (128, "0a8001"), (16384, "0a808001"), (MAX_MESSAGE, "0ac08010")):
        body = framed(GrpcDialect(), bytes(length))
        assert body[5:].hex().startswith(wire)
        assert body[:5] == b"\0" + (len(body) - 5).to_bytes(4, "big")
