"""Promises of the stream requests and control messages: what is sent is what is read, and nothing else is read."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import ProtocolError
from qanat.base.text import printable
from qanat.session.messages import (
    ConnectTcp,
    ControlMessage,
    Listen,
    ListenFailed,
    Listening,
    MalformedListen,
    Measure,
    Measurement,
    StreamRequest,
    ThroughForward,
    Unlisten,
    decode_control,
    decode_request,
)

LARGEST = 1024  # docs/PROTOCOL.md §5

ports = st.integers(0, 65535)
forwards = st.integers(0, 2**32 - 1)
hosts = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=255)
origins = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), max_size=60)

REQUESTS: list[tuple[StreamRequest, str]] = [
    (ConnectTcp("db.internal", 5432, "127.0.0.1:9"), "01 1538 000b 64622e696e7465726e616c 000b 3132372e302e302e313a39"),
    (ThroughForward(7, "[::1]:80"), "02 00000007 0008 5b3a3a315d3a3830"),
    (Measure(Measurement.ECHO), "03 01"),
    (Measure(Measurement.SINK), "03 02"),
    (Measure(Measurement.SOURCE), "03 03"),
]
CONTROL: list[tuple[ControlMessage, str]] = [
    (Listen(3, "0.0.0.0", 8080), "01 00000003 1f90 0007 302e302e302e30"),
    (Listening(3, 8080), "02 00000003 1f90"),
    (ListenFailed(3, 5, "in use"), "03 00000003 0005 0006 696e20757365"),
    (Unlisten(3), "04 00000003"),
]


@pytest.mark.parametrize(("message", "wire"), REQUESTS)
def test_a_stream_request_is_laid_out_as_the_protocol_says(message: StreamRequest, wire: str) -> None:
    assert message.encode().hex() == wire.replace(" ", "")
    assert decode_request(bytes.fromhex(wire)) == message


@pytest.mark.parametrize(("message", "wire"), CONTROL)
def test_a_control_message_is_laid_out_as_the_protocol_says(message: ControlMessage, wire: str) -> None:
    assert message.encode().hex() == wire.replace(" ", "")
    assert decode_control(bytes.fromhex(wire)) == message


@given(st.builds(ConnectTcp, hosts, ports, origins) | st.builds(ThroughForward, forwards, origins))
def test_every_stream_request_survives_the_way(message: StreamRequest) -> None:
    assert decode_request(message.encode()) == message
    assert len(message.encode()) <= LARGEST


@given(
    st.builds(Listen, forwards, hosts, ports)
    | st.builds(Listening, forwards, ports)
    | st.builds(ListenFailed, forwards, ports, origins)
    | st.builds(Unlisten, forwards)
)
def test_every_control_message_survives_the_way(message: ControlMessage) -> None:
    assert decode_control(message.encode()) == message
    assert len(message.encode()) <= LARGEST


@pytest.mark.parametrize(("message", "wire"), REQUESTS + CONTROL)
def test_a_message_cut_short_or_followed_by_more_is_refused(message: object, wire: str) -> None:
    content = bytes.fromhex(wire)
    decode = decode_request if isinstance(message, ConnectTcp | ThroughForward | Measure) else decode_control
    for length in range(len(content)):
        with pytest.raises(ProtocolError):
            decode(content[:length])
    with pytest.raises(ProtocolError):
        decode(content + b"\0")


@pytest.mark.parametrize("number", [0, 4, 255])
def test_an_unknown_measurement_is_refused(number: int) -> None:
    with pytest.raises(ProtocolError, match="unknown measurement"):
        decode_request(bytes([3, number]))


@given(st.binary(max_size=LARGEST))
def test_junk_is_read_or_refused_and_nothing_else(content: bytes) -> None:
    for decode in (decode_request, decode_control):
        with contextlib.suppress(ProtocolError):
            decode(content)


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_request(ConnectTcp("h" * 256, 1).encode())
    with pytest.raises(MalformedListen) as caught:
        decode_control(Listen(1, "h" * 256, 1).encode())
    assert caught.value.forward == 1


def test_a_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_request(bytes.fromhex("02 00000007 0001 ff"))


@pytest.mark.parametrize("message", [ThroughForward(1, "ü" * 300), ConnectTcp("h", 1, "ü" * 300)])
def test_an_origin_that_is_too_long_is_cut_between_characters(message: StreamRequest) -> None:
    decoded = decode_request(message.encode())
    assert isinstance(decoded, ConnectTcp | ThroughForward)
    assert decoded.origin == "ü" * 127


def test_a_reason_that_is_too_long_is_cut_between_characters() -> None:
    decoded = decode_control(ListenFailed(1, 5, "x" + "ü" * 600).encode())
    assert isinstance(decoded, ListenFailed)
    assert decoded.text == "x" + "ü" * 255


def test_what_the_other_end_says_cannot_move_the_cursor_or_begin_a_line() -> None:
    assert printable("a\x1b[2Jb\nc\u202ed") == "a�[2Jb�c�d"
    decoded = decode_request(ThroughForward(1, "evil\r\nlog line").encode())
    assert decoded.origin == "evil��log line"
