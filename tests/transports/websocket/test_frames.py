"""The frame parser and writer, without any connection: RFC 6455 §5.2 and §5.7."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.transports.websocket.frames import (
    CLIENT_HEADROOM,
    SERVER_HEADROOM,
    Frame,
    FrameError,
    FrameReader,
    Opcode,
    close_frame,
    write_header,
)
from qanat.transports.websocket.mask import MaskKeys, xor_mask, xor_mask_with_integers
from tests.support.transports.loopback import encode_frame, slow_mask

LIMIT = 70_000


def feed(reader: FrameReader, data: bytes) -> None:
    space = reader.space()
    space[: len(data)] = data
    reader.filled(len(data))


def drain(reader: FrameReader) -> list[tuple[int, bool, bytes]]:
    """What has come whole; copied, since the views do not last."""
    frames = []
    while True:
        holds = reader.holds_message
        frame = reader.next()
        assert holds == isinstance(frame, memoryview)
        if frame is None:
            return frames
        if isinstance(frame, Frame):
            frames.append((frame.opcode, False, bytes(frame.raw)))
        else:
            frames.append((Opcode.BINARY, True, bytes(frame)))


def test_the_examples_of_the_rfc_are_understood() -> None:
    reader = FrameReader(masked=False, max_message=LIMIT)
    feed(reader, bytes.fromhex("8905 48656c6c6f"))  # an unmasked ping
    assert drain(reader) == [(Opcode.PING, False, bytes.fromhex("8905 48656c6c6f"))]
    feed(reader, bytes.fromhex("827e0100") + bytes(256))
    assert drain(reader) == [(Opcode.BINARY, True, bytes(256))]
    feed(reader, bytes.fromhex("827f0000000000010000") + bytes(65536))
    assert drain(reader) == [(Opcode.BINARY, True, bytes(65536))]
    reader = FrameReader(masked=True, max_message=LIMIT)
    feed(reader, bytes.fromhex("8285 37fa213d 7f9f4d5158"))
    assert drain(reader) == [(Opcode.BINARY, True, b"Hello")]


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536, 262208])
@pytest.mark.parametrize("key", [None, b"\x37\xfa\x21\x3d"])
def test_headers_are_written_in_their_shortest_form(length: int, key: bytes | None) -> None:
    headroom = SERVER_HEADROOM if key is None else CLIENT_HEADROOM
    payload = os.urandom(length)
    buffer = memoryview(bytearray(headroom) + payload)
    start = write_header(buffer, headroom, key)
    if key is not None:
        xor_mask(buffer[headroom:], key)
    assert buffer[start:] == encode_frame(Opcode.BINARY, payload, mask=key)


def test_close_frames_are_as_in_the_rfc() -> None:
    assert close_frame(1002, None) == bytes.fromhex("8802 03ea")
    assert close_frame(1002, b"\x01\x02\x03\x04") == encode_frame(Opcode.CLOSE, b"\x03\xea", mask=b"\x01\x02\x03\x04")


large = st.integers(60_000, LIMIT).map(lambda n: bytes([n % 251]) * n)
some_messages = st.lists(st.binary(max_size=300) | large, max_size=12)


@settings(max_examples=50)
@given(messages=some_messages, masked=st.booleans(), data=st.data())
def test_frames_are_the_same_however_the_bytes_are_cut(
    messages: list[bytes], masked: bool, data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(Opcode.BINARY, m, mask=os.urandom(4) if masked else None) for m in messages)
    reader = FrameReader(masked=masked, max_message=LIMIT)
    received: list[bytes] = []
    position = 0
    while position < len(stream):
        cut = data.draw(st.sampled_from([1, 2, 3, 7, 100, 5000, 200_000]))
        piece = stream[position : position + min(cut, len(reader.space()))]
        feed(reader, piece)
        position += len(piece)
        received += [payload for _, is_message, payload in drain(reader) if is_message]
    assert received == messages
    assert not reader.in_the_middle


@given(data=st.binary(max_size=300), masked=st.booleans())
def test_garbage_raises_nothing_but_a_frame_error(data: bytes, masked: bool) -> None:
    reader = FrameReader(masked=masked, max_message=LIMIT)
    with contextlib.suppress(FrameError):
        for byte in data:
            feed(reader, bytes([byte]))
            for _, is_message, content in drain(reader):
                assert len(content) <= len(data)
                assert is_message or content in data


def test_there_is_always_room_for_the_frame_that_is_coming() -> None:
    reader = FrameReader(masked=False, max_message=LIMIT)
    frame = encode_frame(Opcode.BINARY, bytes(LIMIT), mask=None)
    sent = 0
    for _ in range(200):
        while reader.next() is not None:
            pass
        space = reader.space()
        assert len(space) > 0
        piece = frame[sent % len(frame) :][: min(len(space), 9973)]
        feed(reader, piece)
        sent += len(piece)


def test_a_message_is_not_copied() -> None:
    reader = FrameReader(masked=False, max_message=LIMIT)
    space = reader.space()
    space[:4] = b"\x82\x02hi"
    reader.filled(4)
    message = reader.next()
    space[2:4] = b"HI"
    assert message == b"HI"


@given(data=st.binary(max_size=70) | st.integers(8000, 40_000).map(os.urandom), key=st.binary(min_size=4, max_size=4))
def test_masking_is_xor_with_the_key_repeated(data: bytes, key: bytes) -> None:
    for mask in (xor_mask, xor_mask_with_integers):
        buffer = bytearray(data)
        mask(memoryview(buffer), key)
        assert buffer == slow_mask(data, key)
        mask(memoryview(buffer), key)
        assert buffer == data


def test_mask_keys_do_not_repeat() -> None:
    keys = MaskKeys()
    assert len({keys.next() for _ in range(5000)}) > 4990  # 32 random bits: a few may meet


def test_what_bulk_needed_is_given_back_between_messages_only() -> None:
    message = os.urandom(200_000)
    whole = encode_frame(Opcode.BINARY, message, mask=None)
    reader = FrameReader(masked=False, max_message=2 * len(message))
    for part in (whole[:100_000], whole[100_000:]):
        reader.trim()  # in the middle of a message nothing is lost
        feed(reader, part)
    assert drain(reader) == [(Opcode.BINARY, True, message)]
    reader.trim()
    assert not any(reader.space()[:100_000])
    feed(reader, whole)
    assert drain(reader) == [(Opcode.BINARY, True, message)]
