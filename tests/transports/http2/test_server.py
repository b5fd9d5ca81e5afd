"""A server's connection: many streams, plain requests, and what strangers may not do to it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from hyperframe.frame import HeadersFrame, WindowUpdateFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, ProtocolError
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.dialect import Dialect
from qanat.transports.http2.frames import FrameType
from qanat.transports.http2.limits import MAX_STREAMS, UNAUTHENTICATED_WINDOW, WINDOW
from qanat.transports.pipe import MAX_UNAUTHENTICATED, Pipe
from tests.support.background import DEADLINE, Background, wait_until
from tests.support.transports.http2_loopback import (
    CONNECT,
    DIALECTS,
    RawHttp2,
    TestServer,
    frame,
    framed,
    http2_pair,
    raw_client,
)
from tests.support.transports.loopback import send_bytes

BINARY = {"content_type": "application/octet-stream"}


@pytest.fixture
def server(stack: ExitStack) -> TestServer:
    return TestServer(stack)


def open_stream(peer: RawHttp2, server: TestServer, **headers: str) -> tuple[int, Pipe]:
    stream_id = peer.request(**{**BINARY, **headers})
    pipe = server.pipe()
    event = peer.read_until(lambda event: isinstance(event, ResponseReceived) and event.stream_id == stream_id)
    assert isinstance(event, ResponseReceived)
    assert dict(event.headers)[":status"] == "200"
    return stream_id, pipe


def data_of(peer: RawHttp2, stream_id: int, size: int) -> bytes:
    """The next `size` bytes on a stream; every window is reopened."""
    content = b""
    while len(content) < size:
        event = peer.read_until(lambda event: isinstance(event, DataReceived) and event.stream_id == stream_id)
        assert isinstance(event, DataReceived)
        content += event.data
        peer.h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
        peer.flush()
    return content


# --- the server speaks first


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_the_server_speaks_first_while_the_request_is_open(stack: ExitStack, dialect: Dialect) -> None:
    """An answer that waits for the end of a request, which waits for the answer, never comes."""
    client, server = http2_pair(stack, dialect)
    send_bytes(server, b"the server's key")
    assert client.recv() == b"the server's key"
    for number in range(20):
        send_bytes(client, b"question %d" % number)
        assert server.recv() == b"question %d" % number
        send_bytes(server, b"answer %d" % number)
        assert client.recv() == b"answer %d" % number


def test_the_answer_comes_before_one_byte_of_the_request(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream_id, pipe = open_stream(peer, server)
    send_bytes(pipe, b"hello")
    assert data_of(peer, stream_id, 9) == framed(http2.DIALECT, b"hello")


# --- several streams on one connection, as proxies make them


def test_streams_of_one_connection_are_pipes_of_their_own(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    streams = [open_stream(peer, server) for _ in range(10)]
    streams += [open_stream(peer, server, content_type="application/grpc") for _ in range(10)]
    for stream_id, pipe in streams:
        dialect = DIALECTS[pipe.transport]
        peer.h2.send_data(stream_id, framed(dialect, b"to %d" % stream_id))
        peer.flush()
    for stream_id, pipe in streams:
        assert pipe.recv() == b"to %d" % stream_id
        send_bytes(pipe, b"from %d" % stream_id)
        expected = framed(DIALECTS[pipe.transport], b"from %d" % stream_id)
        assert data_of(peer, stream_id, len(expected)) == expected


def test_a_stream_that_nobody_reads_stops_no_other(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    full, _ = open_stream(peer, server)
    other, pipe = open_stream(peer, server)
    message = framed(http2.DIALECT, bytes(16000))
    while peer.h2.local_flow_control_window(full) < UNAUTHENTICATED_WINDOW:
        peer.read()
    for _ in range(UNAUTHENTICATED_WINDOW // len(message)):
        peer.h2.send_data(full, message)
        peer.flush()
    for _ in range(2 * WINDOW // len(message)):
        while peer.h2.local_flow_control_window(other) < len(message):
            peer.read()
        peer.h2.send_data(other, message)
        peer.flush()
        assert len(pipe.recv()) == 16000


def test_a_stranger_has_a_small_window_and_may_send_no_more_than_a_handshake(
    stack: ExitStack, server: TestServer
) -> None:
    peer = raw_client(stack, server)
    stream_id, pipe = open_stream(peer, server)
    other_id, other = open_stream(peer, server)
    for one in (pipe, other):
        one.set_unauthenticated(True)
    peer.h2.send_data(stream_id, framed(http2.DIALECT, bytes(MAX_UNAUTHENTICATED)))
    peer.flush()
    assert len(pipe.recv()) == MAX_UNAUTHENTICATED
    assert peer.h2.streams[stream_id].outbound_flow_control_window <= UNAUTHENTICATED_WINDOW
    pipe.set_unauthenticated(False)
    while peer.h2.streams[stream_id].outbound_flow_control_window < WINDOW - WINDOW // 8:
        peer.read()
    peer.h2.send_data(other_id, framed(http2.DIALECT, bytes(MAX_UNAUTHENTICATED + 100))[:10])
    peer.flush()
    with pytest.raises(ProtocolError, match="in the handshake"):
        other.recv()


def test_more_than_the_window_resets_that_stream_alone(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    bad, bad_pipe = open_stream(peer, server)
    good, good_pipe = open_stream(peer, server)
    message = framed(http2.DIALECT, bytes(16000))
    data = frame(FrameType.DATA, 0, bad, message) * (UNAUTHENTICATED_WINDOW // len(message) + 1)
    peer.sock.sendall(data)
    event = peer.expect(StreamReset)
    assert isinstance(event, StreamReset)
    assert (event.stream_id, event.error_code) == (bad, ErrorCodes.FLOW_CONTROL_ERROR)
    assert isinstance(Background(lambda: [bad_pipe.recv() for _ in range(100)]).error(), ProtocolError)
    peer.h2.send_data(good, framed(http2.DIALECT, b"fine"))
    peer.flush()
    assert good_pipe.recv() == b"fine"


def test_two_writers_of_one_connection_take_turns(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server, initial_window_size=2**30)
    peer.h2.increment_flow_control_window(2**30)
    peer.flush()
    streams = [open_stream(peer, server) for _ in range(2)]
    over = threading.Event()

    def fill(pipe: Pipe) -> None:
        while not over.is_set():
            send_bytes(pipe, bytes(200_000))

    writing = [Background(lambda pipe=pipe: fill(pipe)) for _, pipe in streams]
    came = dict.fromkeys((stream_id for stream_id, _ in streams), 0)
    while min(came.values()) < 20_000_000:
        event = peer.expect(DataReceived)
        assert isinstance(event, DataReceived)
        came[event.stream_id] += len(event.data)
        assert max(came.values()) < 4 * min(came.values()) + 20_000_000
    over.set()
    for _, pipe in streams:
        pipe.close("enough")
    for one in writing:
        one.wait(DEADLINE)


def test_the_end_of_a_pipe_is_the_end_of_its_stream_alone(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    first, first_pipe = open_stream(peer, server)
    second, second_pipe = open_stream(peer, server, content_type="application/grpc")
    third, third_pipe = open_stream(peer, server)
    send_bytes(first_pipe, b"bye")
    first_pipe.close("enough")
    second_pipe.close("enough")
    assert data_of(peer, first, 7) == framed(http2.DIALECT, b"bye")
    trailers = peer.expect(TrailersReceived)
    assert isinstance(trailers, TrailersReceived)
    assert dict(trailers.headers)["grpc-status"] == "0"
    for stream_id in (first, second):
        event = peer.read_until(
            lambda event, wanted=stream_id: getattr(event, "stream_id", 0) == wanted and isinstance(event, StreamReset)
        )
        assert isinstance(event, StreamReset)
        assert event.error_code == ErrorCodes.NO_ERROR, "the answer was whole; only the request is not needed any more"
    peer.h2.send_data(third, framed(http2.DIALECT, b"still there"))
    peer.flush()
    assert third_pipe.recv() == b"still there"


def test_a_connection_is_used_again_by_the_next_client(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    for _ in range(5):
        stream_id, pipe = open_stream(peer, server)
        peer.h2.send_data(stream_id, framed(http2.DIALECT, b"x"), end_stream=True)
        peer.flush()
        assert pipe.recv() == b"x"
        with pytest.raises(PipeEnded, match="ended the stream"):
            pipe.recv()
    assert len(server.connections) == 1


def test_the_end_of_the_connection_is_the_end_of_every_pipe(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    pipes = [open_stream(peer, server)[1] for _ in range(3)]
    receiving = [Background(pipe.recv) for pipe in pipes]
    peer.sock.shutdown(socket.SHUT_RDWR)
    for one in receiving:
        assert "closed by the other end or the path" in str(one.error())


def test_closing_a_pipe_whose_writer_is_stuck_in_the_kernel_ends_the_connection_in_the_end(
    stack: ExitStack, server: TestServer
) -> None:
    peer = raw_client(stack, server, initial_window_size=2**30)
    peer.h2.increment_flow_control_window(2**30)
    peer.flush()
    _, stuck = open_stream(peer, server)
    _, other = open_stream(peer, server)
    writing = Background(lambda: [send_bytes(stuck, bytes(250_000)) for _ in range(400)])
    assert not writing.wait(0.3)
    receiving = Background(other.recv)
    started = time.monotonic()
    stuck.close("enough")
    assert time.monotonic() - started < DEADLINE, "it would wait for somebody who reads"
    assert isinstance(writing.error(), PipeEnded)
    assert isinstance(receiving.error(), PipeEnded)


# --- plain requests


def test_plain_requests_are_answered_beside_tunnels(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    open_stream(peer, server)
    for path, status in (("/healthz", "200"), ("/else", "404"), ("/tunnel", "404")):
        stream_id = peer.request(path, "GET")
        event = peer.read_until(lambda event: isinstance(event, ResponseReceived))
        assert isinstance(event, ResponseReceived)
        assert (event.stream_id, dict(event.headers)[":status"]) == (stream_id, status)
    peer.request("/healthz", "HEAD")
    peer.expect(ResponseReceived)


def test_requests_that_are_answered_and_left_open_take_nobodys_place(stack: ExitStack, server: TestServer) -> None:
    """As nghttpx leaves them when their client is gone: more of them than a connection may have open."""
    peer = raw_client(stack, server)
    for _ in range(2 * MAX_STREAMS):
        stream_id = peer.request("/nothing", **BINARY)
        event = peer.read_until(lambda event: isinstance(event, ResponseReceived))
        assert isinstance(event, ResponseReceived)
        assert (event.stream_id, dict(event.headers)[":status"]) == (stream_id, "404")
    resets = [event for event in peer.events if isinstance(event, StreamReset)]
    assert resets
    assert {event.error_code for event in resets} == {ErrorCodes.NO_ERROR}
    open_stream(peer, server)


def test_a_refusal_is_told_in_the_words_of_the_dialect(stack: ExitStack, server: TestServer) -> None:
    url = TunnelUrl.parse(f"ws://127.0.0.1:{server.port}/busy")
    for name, words in (("http2", "503 Service Unavailable"), ("grpc", "gRPC status 14 UNAVAILABLE")):
        with pytest.raises(Exception, match=words) as caught:
            CONNECT[name](url, deadline=Deadline(DEADLINE))
        assert getattr(caught.value, "retry_after", None) == 3.0


def test_an_answer_goes_to_a_peer_without_a_window(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server, initial_window_size=0)
    peer.request("/healthz", "GET")
    event = peer.expect(ResponseReceived)
    assert isinstance(event, ResponseReceived)
    peer.expect(StreamReset)


def test_an_idle_connection_is_closed_and_one_with_a_pipe_is_not(stack: ExitStack) -> None:
    server = TestServer(stack, idle=1.0)
    peer = raw_client(stack, server)
    _, pipe = open_stream(peer, server)
    receiving = Background(pipe.recv)
    assert not receiving.wait(1.5)
    server.release()
    peer.expect(ConnectionTerminated)
    while not peer.ended:
        peer.read()


def test_a_server_that_leaves_lets_running_pipes_finish(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream_id, pipe = open_stream(peer, server)
    server.connections[0].leave()
    wait_until(lambda: b"\x07\x00\x00\x00\x00\x00" in peer.sock.recv(4096, socket.MSG_PEEK), "GOAWAY came")
    peer.sock.recv(4096)
    late = frame(
        FrameType.HEADERS,
        5,
        stream_id + 2,
        peer.h2.encoder.encode([(":method", "GET"), (":scheme", "http"), (":path", "/healthz"), (":authority", "x")]),
    )
    peer.flush(late)
    refusal = peer.sock.recv(13)
    assert refusal == frame(FrameType.RST_STREAM, 0, stream_id + 2, b"\0\0\0\x07"), "REFUSED_STREAM: safe to try again"
    peer.h2.send_data(stream_id, framed(http2.DIALECT, b"still"))
    peer.flush()
    assert pipe.recv() == b"still"


# --- strangers


def request_bytes(peer: RawHttp2, stream_id: int) -> bytes:
    headers = [(":method", "POST"), (":scheme", "http"), (":path", "/nothing"), (":authority", "x")]
    return HeadersFrame(stream_id, peer.h2.encoder.encode(headers), flags=["END_HEADERS"]).serialize()


def rapid_reset(peer: RawHttp2) -> bytes:
    """CVE-2023-44487."""
    data = b""
    for stream_id in range(1, 4001, 2):
        data += request_bytes(peer, stream_id) + frame(FrameType.RST_STREAM, 0, stream_id, b"\0\0\0\x08")
    return data


def header_bomb(peer: RawHttp2) -> bytes:
    block = peer.h2.encoder.encode([(":method", "POST"), ("x-bomb", "y" * 4000)])
    return HeadersFrame(1, block + b"\xbe" * 1000, flags=["END_HEADERS"]).serialize()


def tunnel_bytes(peer: RawHttp2, stream_id: int) -> bytes:
    headers = [(":method", "POST"), (":scheme", "http"), (":path", "/tunnel"), (":authority", "x")]
    block = peer.h2.encoder.encode([*headers, ("content-type", "application/octet-stream")])
    return HeadersFrame(stream_id, block, flags=["END_HEADERS"]).serialize()


def made_to_reset(offense: Callable[[int], bytes]) -> Callable[[RawHttp2], bytes]:
    """Return an attack in which the server resets every stream (CVE-2025-8671)."""

    def attack(peer: RawHttp2) -> bytes:
        return b"".join(tunnel_bytes(peer, number) + offense(number) for number in range(1, 4001, 2))

    return attack


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (rapid_reset, ErrorCodes.ENHANCE_YOUR_CALM),
        (made_to_reset(lambda number: frame(FrameType.DATA, 0, number, b"\xff" * 5)), ErrorCodes.ENHANCE_YOUR_CALM),
        (
            made_to_reset(lambda number: WindowUpdateFrame(number, window_increment=2**31 - 1).serialize()),
            ErrorCodes.ENHANCE_YOUR_CALM,
        ),
        (header_bomb, ErrorCodes.ENHANCE_YOUR_CALM),
        (lambda peer: frame(FrameType.PING, 0, 0, bytes(8)) * 9000, ErrorCodes.ENHANCE_YOUR_CALM),
        (lambda peer: frame(FrameType.SETTINGS, 0, 0) * 1000, ErrorCodes.ENHANCE_YOUR_CALM),
        (lambda peer: frame(FrameType.PRIORITY, 0, 9, b"\0\0\0\0\1") * 9000, ErrorCodes.ENHANCE_YOUR_CALM),
        (lambda peer: WindowUpdateFrame(0, window_increment=1).serialize() * 9000, ErrorCodes.ENHANCE_YOUR_CALM),
        (lambda peer: WindowUpdateFrame(0, window_increment=2**31 - 1).serialize(), ErrorCodes.FLOW_CONTROL_ERROR),
        (
            lambda peer: b"".join(request_bytes(peer, 2 * n + 1) for n in range(MAX_STREAMS + 2)),
            ErrorCodes.PROTOCOL_ERROR,
        ),
        (
            lambda peer: frame(FrameType.HEADERS, 0, 1, b"\x82") + frame(9, 0, 1, bytes(0)) * 200,
            ErrorCodes.PROTOCOL_ERROR,
        ),
        (
            lambda peer: frame(FrameType.HEADERS, 0, 1, b"\x82") + frame(9, 0, 1, b"\0" * 16384) * 5,
            ErrorCodes.ENHANCE_YOUR_CALM,
        ),
        (lambda peer: frame(FrameType.HEADERS, 4, 1, b"\xff\xff\xff\xff"), ErrorCodes.PROTOCOL_ERROR),
        (lambda peer: frame(FrameType.DATA, 0, 7, b"x"), ErrorCodes.PROTOCOL_ERROR),
        (lambda peer: b"\xff" * 100, ErrorCodes.FRAME_SIZE_ERROR),
        (lambda peer: b"GET / HTTP/1.1\r\n\r\n", ErrorCodes.FRAME_SIZE_ERROR),
    ],
)
def test_an_attack_ends_its_connection_and_says_so(
    stack: ExitStack, server: TestServer, attack: Callable[[RawHttp2], bytes], code: ErrorCodes
) -> None:
    peer = raw_client(stack, server)
    peer.read()
    data = attack(peer)
    pushing = Background(lambda: peer.sock.sendall(data))
    pushing.wait(DEADLINE)
    received = b""
    try:
        while part := peer.sock.recv(65536):
            received += part
    except ConnectionResetError:
        return  # it was still being sent to when it closed, and that took its last words away
    assert received[-17:-8] == frame(FrameType.GOAWAY, 0, 0, bytes(8))[:9]
    assert int.from_bytes(received[-4:], "big") == code


def offend_in_turn(peer: RawHttp2, offense: Callable[[int], bytes]) -> int:
    """Make requests that the server has to end, one after the other; return how many it took to be sent away."""
    for count in range(1000):
        with contextlib.suppress(BrokenPipeError):  # it has closed, and what it said is still to be read
            stream_id = peer.request(**BINARY)
            peer.flush(offense(stream_id))
        while not any(isinstance(event, StreamReset | StreamEnded | ConnectionTerminated) for event in peer.events):
            assert not peer.ended
            with contextlib.suppress(BrokenPipeError):
                peer.read()
        for event in peer.events:
            if isinstance(event, ConnectionTerminated):
                assert event.error_code == ErrorCodes.ENHANCE_YOUR_CALM
                return count
        peer.events.clear()
    raise AssertionError("the connection is served for ever")


@pytest.mark.parametrize(
    "offense",
    [
        lambda number: frame(FrameType.DATA, 0, number, b"\xff" * 5),
        lambda number: WindowUpdateFrame(number, window_increment=2**31 - 1).serialize(),
        lambda number: frame(FrameType.DATA, 1, number),
    ],
)
def test_a_peer_that_makes_us_reset_or_never_authenticates_is_sent_away_soon(
    stack: ExitStack, server: TestServer, offense: Callable[[int], bytes]
) -> None:
    server.release()  # whatever has a pipe gives it up at once
    assert offend_in_turn(raw_client(stack, server), offense) <= 100


def test_requests_to_a_connection_that_leaves_are_not_refused_for_ever(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream_id, _ = open_stream(peer, server)
    server.connections[0].leave()
    flood = b"".join(tunnel_bytes(peer, number) for number in range(stream_id + 2, 8001, 2))
    pushing = Background(lambda: peer.sock.sendall(flood))
    pushing.wait(DEADLINE)
    wait_until(lambda: server.connections[0]._engine.over, "it has ended")


def test_the_last_words_wait_for_a_writer_in_the_middle_of_something(
    stack: ExitStack, server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qanat.transports.http2.engine._CLOSING_TIME", DEADLINE)
    peer = raw_client(stack, server)
    peer.read()
    engine = server.connections[0]._engine
    with engine._write_lock:
        peer.sock.sendall(frame(FrameType.PING, 0, 0, b"short"))
        wait_until(lambda: engine.over, "the reader has seen it")
    last = peer.expect(ConnectionTerminated)
    assert isinstance(last, ConnectionTerminated)
    assert last.error_code == ErrorCodes.FRAME_SIZE_ERROR


def test_a_writer_who_is_stuck_costs_the_last_words_and_not_the_end(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    peer.read()
    with server.connections[0]._engine._write_lock:
        started = time.monotonic()
        peer.sock.sendall(frame(FrameType.PING, 0, 0, b"short"))
        while not peer.ended:
            peer.read()
        assert time.monotonic() - started < DEADLINE
    assert not [event for event in peer.events if isinstance(event, ConnectionTerminated)]


def test_answers_that_nobody_reads_are_bounded(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server, small_buffers=True)
    wait_until(lambda: bool(server.connections), "the connection is served")

    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/healthz"), (":authority", "x")]
    block, numbers = peer.h2.encoder.encode(fields), itertools.count(1, 2)

    def ask_for_ever() -> None:
        while True:
            peer.sock.sendall(b"".join(frame(FrameType.HEADERS, 5, next(numbers), block) for _ in range(100)))

    error = Background(ask_for_ever).error()
    assert isinstance(error, Exception)
    wait_until(lambda: server.connections[0]._engine.over, "it has ended")


def test_data_for_a_stream_that_is_over_is_ignored_within_reason(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream_id, pipe = open_stream(peer, server)
    other, other_pipe = open_stream(peer, server)
    pipe.close("enough")
    peer.sock.sendall(frame(FrameType.DATA, 0, stream_id, bytes(16000)) * 100)
    peer.h2.send_data(other, framed(http2.DIALECT, b"fine"))
    peer.flush()
    assert other_pipe.recv() == b"fine"


def test_a_request_that_ends_at_once_is_an_end_for_its_pipe(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream_id, pipe = open_stream(peer, server)
    peer.h2.send_data(stream_id, framed(http2.DIALECT, b"whole")[:5], end_stream=True)
    peer.flush()
    with pytest.raises(PipeEnded, match="in the middle of a message"):
        pipe.recv()


def test_what_a_client_says_before_the_pipe_is_accepted_is_kept(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream_id = peer.h2.get_next_available_stream_id()
    headers = [(":method", "POST"), (":scheme", "http"), (":path", grpc.METHOD_PATH), (":authority", "x")]
    peer.h2.send_headers(stream_id, [*headers, ("content-type", "application/grpc"), ("te", "trailers")])
    peer.h2.send_data(stream_id, framed(grpc.DIALECT, b"early"))
    peer.flush()
    assert server.pipe().recv() == b"early"


def test_threads_end_with_their_streams(stack: ExitStack, server: TestServer) -> None:
    before = threading.active_count()
    peer = raw_client(stack, server)
    for _ in range(30):
        stream_id, pipe = open_stream(peer, server)
        peer.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        peer.flush()
        with pytest.raises(PipeEnded, match="CANCEL"):
            pipe.recv()
    assert threading.active_count() <= before + 2 + 30


FRAMES = st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40))


@given(st.lists(FRAMES, max_size=30))
@settings(max_examples=150)
def test_no_sequence_of_frames_brings_down_more_than_its_connection(
    frames: list[tuple[int, int, int, bytes]],
) -> None:
    with ExitStack() as stack:
        server = TestServer(stack)
        peer = raw_client(stack, server)
        data = b"".join(frame(*one) for one in frames)
        peer.sock.sendall(data + frame(FrameType.PING, 0, 0, b"the end."))
        while b"the end." not in (part := peer.sock.recv(65536)) and part:
            pass
        again = raw_client(stack, server)
        again.request("/healthz", "GET")
        again.expect(StreamEnded)


def test_a_message_of_every_size_crosses_every_frame_size(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream_id, pipe = open_stream(peer, server)
    pipe.set_unauthenticated(False)
    for size in (1, 100, 16384, 70_000):
        message = os.urandom(size)
        data = framed(http2.DIALECT, message)
        while peer.h2.local_flow_control_window(stream_id) < len(data):
            peer.read()
        for at in range(0, len(data), 7777):
            peer.h2.send_data(stream_id, data[at : at + 7777])
        peer.flush()
        assert pipe.recv() == message
