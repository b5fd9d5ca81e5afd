"""Promises of the stream requests and control messages: what is sent is what is read, and nothing else is read."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.endpoint_addresses import PublishedName, TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import EndpointError, ProtocolError
from qanat.base.text import printable
from qanat.handshake.hello import Features
from qanat.session.messages import (
    Connect,
    ControlMessage,
    Listen,
    ListenAgain,
    ListenEnded,
    ListenFailed,
    Listening,
    ListenOption,
    MalformedListen,
    Measure,
    Measurement,
    Published,
    StreamRequest,
    Through,
    Unlisten,
    check_known,
    decode_control,
    decode_request,
)

LARGEST = 1024  # docs/PROTOCOL.md §5

ports = st.integers(0, 65535)
forwards = st.integers(0, 2**32 - 1)
hosts = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=255)
tcp_addresses = st.builds(TcpAddress, hosts, ports)
udp_addresses = st.builds(UdpAddress, hosts, ports)
targets = tcp_addresses | udp_addresses | st.builds(UnixAddress, hosts)
places = targets | st.builds(PublishedName, hosts)
options = st.dictionaries(st.integers(0, 255), st.integers(0, 2**32 - 1), max_size=20)
origins = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), max_size=60)

REQUESTS: list[tuple[StreamRequest, str]] = [
    (
        Connect(TcpAddress("db.internal", 5432), "127.0.0.1:9"),
        "01 1538 000b 64622e696e7465726e616c 000b 3132372e302e302e313a39",
    ),
    (Connect(TcpAddress("a", 80), "b", "c"), "04 01 0050 0001 61 0001 62 0001 63"),
    (Connect(UdpAddress("a", 53)), "04 02 0035 0001 61 0000 0000"),
    (Connect(UnixAddress("/s"), "b"), "04 03 0000 0002 2f73 0001 62 0000"),
    (Through(7, "[::1]:80"), "02 00000007 0008 5b3a3a315d3a3830"),
    (Through(7, "a", local="b"), "05 00000007 00 0000 0000 0001 61 0001 62"),
    (Through(7, "a", TcpAddress("b", 80)), "05 00000007 01 0050 0001 62 0001 61 0000"),
    (Measure(Measurement.ECHO), "03 01"),
    (Measure(Measurement.SINK), "03 02"),
    (Measure(Measurement.SOURCE), "03 03"),
]
CONTROL: list[tuple[ControlMessage, str]] = [
    (Listen(3, TcpAddress("0.0.0.0", 8080)), "01 00000003 1f90 0007 302e302e302e30"),
    (Listen(3, TcpAddress("::1", 0), {ListenOption.DYNAMIC: 1}), "05 00000003 01 0000 0003 3a3a31 01 01 00000001"),
    (Listen(3, UdpAddress("*", 53)), "05 00000003 02 0035 0001 2a 00"),
    (Listen(3, UnixAddress("@s"), {200: 7, 7: 0o600}), "05 00000003 03 0000 0002 4073 02 07 00000180 c8 00000007"),
    (Listen(3, PublishedName("a.b")), "05 00000003 04 0000 0003 612e62 00"),
    (Listening(3, 8080), "02 00000003 1f90"),
    (ListenFailed(3, 5, "in use"), "03 00000003 0005 0006 696e20757365"),
    (Unlisten(3), "04 00000003"),
    (Published(3, "a.b"), "06 00000003 0003 612e62"),
    (ListenEnded(3, 4, "no rule"), "07 00000003 0004 0007 6e6f2072756c65"),
    (ListenAgain(), "08"),
]


@pytest.mark.parametrize(("message", "wire"), REQUESTS)
def test_a_stream_request_is_laid_out_as_the_protocol_says(message: StreamRequest, wire: str) -> None:
    assert message.encode().hex() == wire.replace(" ", "")
    assert decode_request(bytes.fromhex(wire)) == message


@pytest.mark.parametrize(("message", "wire"), CONTROL)
def test_a_control_message_is_laid_out_as_the_protocol_says(message: ControlMessage, wire: str) -> None:
    assert message.encode().hex() == wire.replace(" ", "")
    assert decode_control(bytes.fromhex(wire)) == message


@given(
    st.builds(Connect, targets, origins, origins)
    | st.builds(Through, forwards, origins, st.none() | tcp_addresses | udp_addresses, origins)
)
def test_every_stream_request_survives_the_way(message: StreamRequest) -> None:
    assert decode_request(message.encode()) == message
    assert len(message.encode()) <= LARGEST


@given(
    st.builds(Listen, forwards, places, options)
    | st.builds(Listening, forwards, ports)
    | st.builds(ListenFailed, forwards, ports, origins)
    | st.builds(ListenEnded, forwards, ports, origins)
    | st.builds(Unlisten, forwards)
)
def test_every_control_message_survives_the_way(message: ControlMessage) -> None:
    assert decode_control(message.encode()) == message
    assert len(message.encode()) <= LARGEST


@pytest.mark.parametrize(("message", "wire"), REQUESTS + CONTROL)
def test_a_message_cut_short_or_followed_by_more_is_refused(message: object, wire: str) -> None:
    content = bytes.fromhex(wire)
    decode = decode_request if isinstance(message, Connect | Through | Measure) else decode_control
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
        decode_request(Connect(TcpAddress("h" * 256, 1)).encode())
    with pytest.raises(MalformedListen) as caught:
        decode_control(Listen(1, TcpAddress("h" * 256, 1)).encode())
    assert caught.value.forward == 1


def test_a_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_request(bytes.fromhex("02 00000007 0001 ff"))


@pytest.mark.parametrize("message", [Through(1, "ü" * 300), Connect(TcpAddress("h", 1), "ü" * 300)])
def test_an_origin_that_is_too_long_is_cut_between_characters(message: StreamRequest) -> None:
    decoded = decode_request(message.encode())
    assert isinstance(decoded, Connect | Through)
    assert decoded.origin == "ü" * 127


def test_a_reason_that_is_too_long_is_cut_between_characters() -> None:
    decoded = decode_control(ListenFailed(1, 5, "x" + "ü" * 600).encode())
    assert isinstance(decoded, ListenFailed)
    assert decoded.text == "x" + "ü" * 255


def test_what_the_other_end_says_cannot_move_the_cursor_or_begin_a_line() -> None:
    assert printable("a\x1b[2Jb\nc\u202ed") == "a�[2Jb�c�d"
    decoded = decode_request(Through(1, "evil\r\nlog line").encode())
    assert decoded.origin == "evil��log line"


@pytest.mark.parametrize(
    "wire",
    [
        "04 04 0000 0001 61 0000 0000",  # a CONNECT to a published name
        "04 00 0000 0000 0000 0000",  # to nothing
        "04 03 0001 0001 61 0000 0000",  # a Unix socket with a port
        "04 05 0001 0001 61 0000 0000",  # an unknown network
        "05 00000001 03 0000 0001 61 0000 0000",  # a dynamic forward's user cannot name a Unix socket
        "05 00000001 00 0000 0001 61 0000 0000",  # no network, and a host
    ],
)
def test_a_request_to_what_cannot_be_a_target_is_refused(wire: str) -> None:
    with pytest.raises(ProtocolError):
        decode_request(bytes.fromhex(wire))


@pytest.mark.parametrize(
    "wire",
    [
        "05 00000001 00 0000 0000 00",  # nowhere
        "05 00000001 09 0000 0000 00",  # an unknown network
        "05 00000001 01 0050 0001 61 02 01 00000001 01 00000001",  # an option twice
    ],
)
def test_a_listen_at_that_cannot_be_understood_names_its_forward(wire: str) -> None:
    with pytest.raises(MalformedListen) as caught:
        decode_control(bytes.fromhex(wire))
    assert caught.value.forward == 1


@pytest.mark.parametrize(
    "newer", [Connect(UnixAddress("/s")), Through(1, "a", local="b"), Listen(1, UdpAddress("a", 1))]
)
def test_an_older_peer_is_not_sent_what_it_does_not_know(newer: Connect | Through | Listen) -> None:
    with pytest.raises(EndpointError, match="this forward: the other end does not know"):
        check_known(newer.encode(), Features.NONE, "this forward")
    check_known(newer.encode(), Features.KINDS, "this forward")
    for older in Connect(TcpAddress("a", 1), "b"), Through(1, "a"), Listen(1, TcpAddress("a", 1)):
        check_known(older.encode(), Features.NONE, "this forward")
