"""Frames: each comes back as it went, and nothing else is ever accepted quietly."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.base.errors import LocalError, ProtocolError
from qanat.mux import frames as wire
from qanat.mux.frames import Frame, parse_frames

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
BODY = st.binary(max_size=wire.MAX_TEXT)
TEXT = st.text(max_size=200)

SIMPLE = st.one_of(
    st.builds(wire.Open, U32, BODY),
    st.builds(wire.Fin, U32, U64),
    st.builds(wire.Reset, U32, U16, TEXT),
    st.builds(wire.Accept, U32, TEXT),
    st.builds(wire.Control, BODY),
    st.builds(wire.Ack, U64),
    st.builds(wire.Credit, U32, U64),
    st.builds(wire.Ping, U64),
    st.builds(wire.Pong, U64),
    st.builds(wire.Datagram, U32, BODY),
    st.builds(wire.Clock, U64),
)
DATA = st.builds(lambda stream, body: wire.Data(stream, memoryview(body)), U32, st.binary(min_size=1, max_size=3000))


def encode(frame: Frame) -> bytes:
    if isinstance(frame, wire.Data):
        return wire.data_header(frame.stream, len(frame.payload)) + bytes(frame.payload)
    return frame.encode()


def parse(content: bytes) -> list[Frame]:
    return list(parse_frames(memoryview(content)))


@given(st.lists(SIMPLE | DATA, min_size=1, max_size=8))
def test_a_record_of_frames_comes_back_as_it_went(frames: list[Frame]) -> None:
    assert parse(b"".join(map(encode, frames))) == frames


@given(SIMPLE | DATA)
@settings(max_examples=40)
def test_every_truncation_of_every_frame_is_refused(frame: Frame) -> None:
    content = encode(frame)
    for end in range(len(content)):
        with pytest.raises(ProtocolError):
            parse(content[:end])


@given(SIMPLE | DATA, st.binary(min_size=1, max_size=40))
def test_what_follows_a_frame_is_a_frame_or_refused(frame: Frame, tail: bytes) -> None:
    with contextlib.suppress(ProtocolError):  # What hypothesis appended is rarely a frame.
        assert parse(encode(frame) + tail)[0] == frame


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_the_parser_accepts_or_raises_the_one_error(content: bytes) -> None:
    try:
        frames = parse(content)
    except ProtocolError:
        return
    assert b"".join(map(encode, frames)) == content


@given(st.sampled_from([int(kind) for kind in wire.FrameType]), st.binary(max_size=60))
@settings(max_examples=500)
def test_noise_behind_a_known_type_is_accepted_or_raises_the_one_error(kind: int, content: bytes) -> None:
    try:
        parse(bytes((kind,)) + content)
    except ProtocolError:
        return


@pytest.mark.parametrize("kind", sorted(set(range(256)) - {int(kind) for kind in wire.FrameType}))
def test_an_unknown_type_is_refused(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown frame type {kind}"):
        parse(bytes((kind,)) + bytes(40))


def test_a_record_without_a_frame_is_refused() -> None:
    with pytest.raises(ProtocolError, match="without a frame"):
        parse(b"")


def test_data_of_no_bytes_is_refused() -> None:
    with pytest.raises(ProtocolError):
        parse(wire.data_header(1, 0))


@pytest.mark.parametrize("kind", [wire.FrameType.OPEN, wire.FrameType.ACCEPT])
def test_a_text_or_request_of_1024_bytes_is_the_longest(kind: wire.FrameType) -> None:
    def frame(size: int) -> bytes:
        return bytes((kind,)) + (1).to_bytes(4, "big") + size.to_bytes(2, "big") + b"a" * size

    assert len(parse(frame(1024))) == 1
    with pytest.raises(ProtocolError):
        parse(frame(1025))


def test_a_control_message_of_1024_bytes_is_the_longest() -> None:
    assert parse(wire.Control(b"x" * 1024).encode()) == [wire.Control(b"x" * 1024)]
    with pytest.raises(ProtocolError):
        parse(bytes((wire.FrameType.CONTROL,)) + (1025).to_bytes(2, "big") + bytes(1025))
    with pytest.raises(LocalError):
        wire.Control(bytes(1025)).encode()


@pytest.mark.parametrize("frame", [wire.Reset(1, 2, ""), wire.Accept(1, "")])
def test_a_text_that_is_not_utf_8_is_still_read(frame: wire.Reset | wire.Accept) -> None:
    content = bytearray(frame.encode() + b"\xffa\xc3")
    content[len(content) - 4] = 3
    assert parse(bytes(content)) == [replace(frame, text="\N{REPLACEMENT CHARACTER}a\N{REPLACEMENT CHARACTER}")]


def test_a_long_text_is_cut_between_characters() -> None:
    encoded = wire.encode_text("é" * 600 + "\udc80")
    assert len(encoded) <= 1024
    assert encoded.decode() == "é" * 512


def test_payload_is_a_view_into_the_record() -> None:
    content = bytearray(wire.data_header(1, 3) + b"abc")
    (frame,) = parse_frames(memoryview(content))
    assert isinstance(frame, wire.Data)
    content[-1] = ord("d")
    assert bytes(frame.payload) == b"abd"
