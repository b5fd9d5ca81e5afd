"""WebSocket over a stream of HTTP/2 (RFC 8441), said by peers that speak HTTP/2 through h2 and write frames out."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack

import pytest
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
)
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, ProtocolError, TransportError
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import extended_connect
from qanat.transports.http2.byte_inbox import ByteInbox
from qanat.transports.http2.limits import UNAUTHENTICATED_WINDOW
from qanat.transports.pipe import MAX_UNAUTHENTICATED, Pipe
from qanat.transports.websocket.frames import Opcode
from qanat.transports.websocket.pipe import WebSocketPipe
from tests.support.background import DEADLINE, Background
from tests.support.transports.http2_loopback import RawHttp2, TestServer, client_pipe, raw_client
from tests.support.transports.loopback import encode_frame, listen, send_bytes, slow_mask

KEY = b"\x01\x02\x03\x04"
OFFER = {"sec_websocket_version": "13", "sec_websocket_protocol": "qanat.1"}


def read_bytes(peer: RawHttp2, stream_id: int, count: int) -> bytes:
    """The next `count` bytes of DATA."""
    content = b""
    while len(content) < count:
        event = peer.read_until(lambda event: isinstance(event, DataReceived) and event.stream_id == stream_id)
        assert isinstance(event, DataReceived)
        content += event.data
    assert len(content) == count
    return content


@pytest.fixture
def server(stack: ExitStack) -> tuple[Pipe, RawHttp2, int]:
    """A server's pipe, and the raw client with its stream."""
    served = TestServer(stack)
    peer = raw_client(stack, served)
    stream_id = peer.extended_connect(**OFFER)
    pipe = served.pipe()
    answer = peer.expect(ResponseReceived)
    assert isinstance(answer, ResponseReceived)
    assert dict(answer.headers) == {":status": "200", "sec-websocket-protocol": "qanat.1"}
    return pipe, peer, stream_id


def send(peer: RawHttp2, stream_id: int, data: bytes, piece: int = 16384) -> None:
    for at in range(0, len(data), piece):
        peer.h2.send_data(stream_id, data[at : at + piece])
    peer.flush()


def test_the_server_offers_it_in_its_settings(stack: ExitStack) -> None:
    peer = raw_client(stack, TestServer(stack))
    settings = peer.expect(RemoteSettingsChanged)
    assert isinstance(settings, RemoteSettingsChanged)
    assert settings.changed_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL].new_value == 1


def test_frames_are_those_of_websocket_and_a_client_masks(server: tuple[Pipe, RawHttp2, int]) -> None:
    pipe, peer, stream_id = server
    send(peer, stream_id, encode_frame(Opcode.BINARY, b"hello", mask=KEY))
    assert pipe.recv() == b"hello"
    send_bytes(pipe, b"and back")
    assert read_bytes(peer, stream_id, 10) == b"\x82\x08and back"


@pytest.mark.parametrize("piece", [1, 7, 16384])
def test_a_message_may_come_in_any_pieces_of_data(server: tuple[Pipe, RawHttp2, int], piece: int) -> None:
    pipe, peer, stream_id = server
    messages = [os.urandom(size) for size in (0, 1, 125, 126, 900)]
    send(
        peer,
        stream_id,
        b"".join(encode_frame(Opcode.BINARY, message, mask=os.urandom(4)) for message in messages),
        piece,
    )
    for message in messages:
        assert pipe.recv() == message


def test_an_answer_names_no_subprotocol_that_was_not_offered(stack: ExitStack) -> None:
    served = TestServer(stack)
    peer = raw_client(stack, served)
    peer.extended_connect(sec_websocket_version="13")
    answer = peer.expect(ResponseReceived)
    assert isinstance(answer, ResponseReceived)
    assert dict(answer.headers) == {":status": "200"}
    served.pipe()


def test_what_breaks_the_protocol_gets_a_close_frame_and_the_end_of_its_stream(
    server: tuple[Pipe, RawHttp2, int],
) -> None:
    pipe, peer, stream_id = server
    send(peer, stream_id, encode_frame(Opcode.BINARY, b"not masked", mask=None))
    with pytest.raises(ProtocolError, match="should be masked"):
        pipe.recv()
    assert read_bytes(peer, stream_id, 4) == b"\x88\x02" + struct.pack("!H", 1002)
    peer.expect(StreamEnded)
    assert not any(isinstance(event, ConnectionTerminated) for event in peer.events), "others may be on it"


def test_a_stranger_sends_no_more_than_a_handshake_needs(server: tuple[Pipe, RawHttp2, int]) -> None:
    pipe, peer, stream_id = server
    pipe.set_unauthenticated(True)
    assert peer.h2.local_flow_control_window(stream_id) == UNAUTHENTICATED_WINDOW
    head = encode_frame(Opcode.BINARY, bytes(MAX_UNAUTHENTICATED + 1), mask=KEY)[:8]
    send(peer, stream_id, head)
    with pytest.raises(ProtocolError, match="a message of more than 1024 bytes"):
        pipe.recv()
    assert read_bytes(peer, stream_id, 4)[2:] == struct.pack("!H", 1009)


def expect_pong_in_a_handshake(pipe: Pipe, peer: RawHttp2, stream_id: int) -> None:
    """Ping a pipe on which nobody writes yet, wait for the answer, and go on."""
    pipe.set_unauthenticated(True)
    receiving = Background(pipe.recv)
    send(peer, stream_id, encode_frame(Opcode.PING, b"are you", mask=KEY))
    assert read_bytes(peer, stream_id, 9) == b"\x8a\x07are you"
    send(peer, stream_id, encode_frame(Opcode.BINARY, b"yes", mask=KEY))
    assert receiving.result() == b"yes"


def test_in_a_handshake_a_ping_is_answered_though_nobody_writes(server: tuple[Pipe, RawHttp2, int]) -> None:
    pipe, peer, stream_id = server
    expect_pong_in_a_handshake(pipe, peer, stream_id)


def test_in_a_handshake_a_ping_is_answered_though_another_stream_is_sending(
    server: tuple[Pipe, RawHttp2, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, peer, stream_id = server
    assert isinstance(pipe, WebSocketPipe)
    tried: list[bytes] = []
    try_to_send = pipe._try_to_send

    def not_at_first(frame: bytes) -> bool:
        tried.append(frame)
        return len(tried) > 1 and try_to_send(frame)

    monkeypatch.setattr(pipe, "_try_to_send", not_at_first)
    expect_pong_in_a_handshake(pipe, peer, stream_id)


def test_the_end_of_the_stream_ends_the_pipe(server: tuple[Pipe, RawHttp2, int]) -> None:
    pipe, peer, stream_id = server
    send(peer, stream_id, encode_frame(Opcode.BINARY, b"the last", mask=KEY))
    peer.h2.end_stream(stream_id)
    peer.flush()
    assert pipe.recv() == b"the last"
    with pytest.raises(PipeEnded, match="ended the stream"):
        pipe.recv()


def test_a_client_asks_for_nothing_where_it_is_not_offered(stack: ExitStack) -> None:
    listener, port = listen(stack)
    url = TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")
    connecting = Background(lambda: extended_connect.connect(url, deadline=Deadline(DEADLINE)))
    sock = stack.enter_context(listener.accept()[0])
    sock.settimeout(DEADLINE)
    peer = RawHttp2(sock, client=False)
    error = connecting.error()
    assert isinstance(error, TransportError)
    assert "does not offer WebSocket over HTTP/2 (RFC 8441)" in error.message
    assert "H2WebSockets on" in error.hint
    assert "transport: websocket" in error.hint
    while not peer.ended:
        peer.read()
    assert not any(isinstance(event, RequestReceived) for event in peer.events)


def test_a_client_waits_for_settings_no_longer_than_it_may(stack: ExitStack) -> None:
    _, port = listen(stack)
    with pytest.raises(TransportError, match="did not begin to speak HTTP/2 in time"):
        extended_connect.connect(TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel"), deadline=Deadline(0.3))


def test_a_web_server_of_http1_is_told_from_one_that_offers_nothing(stack: ExitStack) -> None:
    listener, port = listen(stack)
    url = TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")
    connecting = Background(lambda: extended_connect.connect(url, deadline=Deadline(DEADLINE)))
    with listener.accept()[0] as sock:
        sock.recv(100)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    error = connecting.error()
    assert isinstance(error, TransportError)
    assert "speaks HTTP/1.1 on this port, not HTTP/2" in error.message


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, [], "there is no tunnel at this path"),
        (400, [], "may not hand WebSocket on"),
        (503, [("retry-after", "7")], "the server has no room now"),
        (200, [("sec-websocket-protocol", "chat")], "is a WebSocket server, but not a Qanat server"),
        (200, [("sec-websocket-extensions", "permessage-deflate")], "wants a WebSocket extension that was not offered"),
    ],
)
def test_every_other_answer_is_explained(
    stack: ExitStack, status: int, headers: list[tuple[str, str]], message: str
) -> None:
    listener, port = listen(stack)
    url = TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")
    connecting = Background(lambda: extended_connect.connect(url, deadline=Deadline(DEADLINE)))
    sock = stack.enter_context(listener.accept()[0])
    sock.settimeout(DEADLINE)
    peer = RawHttp2(sock, client=False, enable_connect_protocol=1)
    request = peer.expect(RequestReceived)
    assert isinstance(request, RequestReceived)
    assert dict(request.headers) | {":method": "CONNECT", ":protocol": "websocket"} == dict(request.headers)
    peer.h2.send_headers(request.stream_id, [(":status", str(status)), *headers])
    peer.flush()
    error = connecting.error()
    assert isinstance(error, TransportError)
    assert message in str(error)
    assert error.retry_after == (7 if status == 503 else None)


def test_a_client_pings_until_the_first_bytes_come_and_not_after(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack, extended_connect.DIALECT, enable_connect_protocol=1)
    receiving = Background(pipe.recv)
    for _ in range(3):
        head = read_bytes(peer, stream_id, 6)
        assert head[:2] == b"\x89\x80", "a ping without content, and masked"
    send(peer, stream_id, encode_frame(Opcode.BINARY, b"at last", mask=None))
    assert receiving.result() == b"at last"
    receiving = Background(pipe.recv)
    assert not receiving.wait(0.3)
    send_bytes(pipe, b"hello")
    frame = read_bytes(peer, stream_id, 11)
    while frame[0] == 0x89:  # the last ping may have crossed with the first bytes
        frame = frame[6:] + read_bytes(peer, stream_id, 6)
    assert frame[:2] == b"\x82\x85"
    assert slow_mask(frame[6:], frame[2:6]) == b"hello"
    pipe.close("enough")
    assert isinstance(receiving.error(), PipeEnded)


def test_silence_is_found_though_the_client_pings(stack: ExitStack) -> None:
    pipe, _, _ = client_pipe(stack, extended_connect.DIALECT, enable_connect_protocol=1)
    pipe.set_read_timeout(0.25)
    with pytest.raises(PipeEnded, match=r"nothing received for 0\.25 s"):
        pipe.recv()


def test_a_client_says_the_end_with_a_close_frame_and_the_end_of_the_stream(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack, extended_connect.DIALECT, enable_connect_protocol=1)
    pipe.close("enough")
    frame = read_bytes(peer, stream_id, 8)
    assert frame[:2] == b"\x88\x82"
    assert slow_mask(frame[6:], frame[2:6]) == struct.pack("!H", 1000)
    peer.expect(StreamEnded)


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 100))
def test_bytes_come_out_as_they_went_in_lent_or_kept(pieces: list[bytes], size: int) -> None:
    inbox, out, room = ByteInbox(), b"", memoryview(bytearray(size))
    for piece in pieces:
        inbox.lend(room)
        inbox.feed(memoryview(piece))
        count = inbox.take_back()
        while count:
            out += room[:count]
            count = inbox.take(room)
    assert out == b"".join(pieces)
    assert inbox.released == len(out)
