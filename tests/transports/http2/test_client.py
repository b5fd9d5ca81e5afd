"""A client's pipe and what servers and proxies do to it, said by a peer that speaks HTTP/2 through h2."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from h2.errors import ErrorCodes
from h2.events import DataReceived, PingAckReceived, SettingsAcknowledged, StreamEnded, WindowUpdated
from h2.settings import SettingCodes
from hyperframe.frame import ContinuationFrame, GoAwayFrame, HeadersFrame, WindowUpdateFrame

from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, ProtocolError, QanatError, TransportError
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.frames import FrameType
from qanat.transports.http2.limits import WINDOW
from qanat.transports.http2.pipe import Http2Pipe
from qanat.transports.pipe import Pipe
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import ReloadingServerContext
from tests.support.background import DEADLINE, Background
from tests.support.machine.certificates import Authority, Certificate
from tests.support.transports.http2_loopback import (
    CONNECT,
    RawHttp2,
    TestServer,
    client_pipe,
    frame,
    framed,
    raw_client,
)
from tests.support.transports.loopback import listen, send_bytes


def read_message(peer: RawHttp2, stream_id: int, size: int, *, reopen: bool = True) -> bytes:
    """Read the next `size` bytes of DATA, giving back each window as it is used."""
    content = b""
    while len(content) < size:
        event = peer.read_until(lambda event: isinstance(event, DataReceived))
        assert isinstance(event, DataReceived)
        content += event.data
        if reopen:
            peer.h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
            peer.flush()
    return content


# --- windows and frames


def test_a_peer_with_small_windows_and_frames_gets_every_byte(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack, initial_window_size=32768)
    message = bytes(range(256)) * 1000
    sending = Background(lambda: [send_bytes(pipe, message) for _ in range(4)])
    assert read_message(peer, stream_id, 4 * (len(message) + 4)) == framed(http2.DIALECT, message) * 4
    sending.result()


def test_no_frame_is_larger_than_the_peer_takes_and_it_may_change_its_mind(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack, initial_window_size=2**20)
    peer.h2.increment_flow_control_window(2**24)
    peer.flush()
    sizes: list[int] = []

    def sizes_of_a_message() -> list[int]:
        sizes.clear()
        sending = Background(lambda: send_bytes(pipe, bytes(200_000)))
        while sum(sizes) < 200_004:
            event = peer.expect(DataReceived)
            assert isinstance(event, DataReceived)
            sizes.append(event.flow_controlled_length)
        sending.result()
        return sizes

    assert max(sizes_of_a_message()) == 16384
    peer.h2.update_settings({SettingCodes.MAX_FRAME_SIZE: 2**20})
    peer.flush()
    send_message(peer, stream_id, b"now")  # so that the pipe has read the SETTINGS
    assert pipe.recv() == b"now"
    pipe.flush()
    peer.expect(SettingsAcknowledged)
    assert sizes_of_a_message() == [200_004]


def send_message(peer: RawHttp2, stream_id: int, message: bytes) -> None:
    peer.h2.send_data(stream_id, framed(http2.DIALECT, message))
    peer.flush()


def test_a_window_that_shrinks_below_zero_stops_the_sender_until_it_is_open_again(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    sending = Background(lambda: send_bytes(pipe, bytes(100_000)))
    assert len(read_message(peer, stream_id, 65535, reopen=False)) == 65535
    peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10_000})  # which makes it -55535
    peer.h2.increment_flow_control_window(2**20)
    peer.flush()
    peer.expect(SettingsAcknowledged)
    peer.flush(WindowUpdateFrame(stream_id, window_increment=55_000).serialize())
    assert not sending.wait(0.1)
    assert not [event for event in peer.events if isinstance(event, DataReceived)]
    peer.h2.increment_flow_control_window(2**20, stream_id)
    peer.flush()
    assert len(read_message(peer, stream_id, 100_004 - 65535, reopen=False)) == 100_004 - 65535
    sending.result()


def test_a_sender_without_a_window_still_answers_what_the_peer_asks(stack: ExitStack) -> None:
    """A writer that waits for a window alone, and a peer that waits for an answer, wait for ever."""
    pipe, peer, stream_id = client_pipe(stack)
    receiving = Background(pipe.recv)
    sending = Background(lambda: send_bytes(pipe, bytes(200_000)))
    read_message(peer, stream_id, 65535, reopen=False)
    peer.h2.ping(b"question")
    peer.flush()
    peer.expect(PingAckReceived)
    peer.h2.increment_flow_control_window(2**20)
    peer.h2.increment_flow_control_window(2**20, stream_id)
    peer.flush()
    read_message(peer, stream_id, 200_004 - 65535, reopen=False)
    sending.result()
    pipe.close("done")
    receiving.error()


def test_an_idle_pipe_has_its_lane_send_what_is_owed(stack: ExitStack) -> None:
    pipe, peer, _ = client_pipe(stack)
    pending_control = threading.Event()
    pipe.set_wakeup(pending_control.set)
    pipe.flush()
    pending_control.clear()
    receiving = Background(pipe.recv)
    peer.h2.ping(b"question")
    peer.flush()
    assert pending_control.wait(DEADLINE)
    pipe.flush()
    peer.expect(PingAckReceived)
    pipe.close("done")
    receiving.error()


def test_windows_are_open_for_a_long_fast_path_and_reopened_as_messages_are_taken(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    while peer.h2.local_flow_control_window(stream_id) < WINDOW:
        peer.read()
    message = bytes(250_000)
    for _ in range(3 * WINDOW // len(message)):
        peer.h2.max_outbound_frame_size = 2**18 + 4096
        while peer.h2.local_flow_control_window(stream_id) < len(message) + 4:
            peer.expect(WindowUpdated)
        send_message(peer, stream_id, message)
        assert len(pipe.recv()) == len(message)


def test_padding_is_not_content_but_counts_against_the_window(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    for number in range(50):
        data = framed(http2.DIALECT, b"%d" % number)
        peer.h2.send_data(stream_id, data[:2], pad_length=number)
        peer.h2.send_data(stream_id, data[2:], pad_length=255)
    peer.flush()
    for number in range(50):
        assert pipe.recv() == b"%d" % number


# --- what proxies say in between


def test_goaway_without_an_error_leaves_the_running_stream_alive_to_its_last_byte(stack: ExitStack) -> None:
    """nginx on a reload, and after keepalive_requests: RFC 9113 §6.8."""
    pipe, peer, stream_id = client_pipe(stack)
    assert isinstance(pipe, Http2Pipe)
    assert not pipe.leaving
    for last in (2**31 - 1, stream_id):  # a warning first, as the RFC advises
        peer.flush(GoAwayFrame(0, last_stream_id=last, error_code=0).serialize())
    send_message(peer, stream_id, b"still here")
    assert pipe.recv() == b"still here"
    assert pipe.leaving, "the next pipe must use another connection"
    for _ in range(20):
        sending = Background(lambda: send_bytes(pipe, bytes(50_000)))
        read_message(peer, stream_id, 50_004)
        sending.result()
        send_message(peer, stream_id, bytes(5_000))
        assert len(pipe.recv()) == 5_000
    peer.h2.end_stream(stream_id)
    peer.flush()
    with pytest.raises(PipeEnded, match="ended the stream"):
        pipe.recv()


def test_that_the_peer_is_leaving_is_told_once_though_nothing_else_comes(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    pipe.set_on_leaving(lambda: told.put(threading.current_thread().name))
    receiving = Background(lambda: (setattr(threading.current_thread(), "name", "the reader"), pipe.recv())[1])
    assert told.empty()
    for last in (2**31 - 1, stream_id, stream_id):
        peer.flush(GoAwayFrame(0, last_stream_id=last, error_code=0).serialize())
    assert told.get(timeout=DEADLINE) == "the reader"
    assert not receiving.wait(0)
    send_message(peer, stream_id, b"still here")
    assert receiving.result() == b"still here"
    assert told.empty()


def test_that_the_peer_is_leaving_is_told_at_once_to_who_asks_later(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    peer.flush(GoAwayFrame(0, last_stream_id=stream_id, error_code=0).serialize())
    send_message(peer, stream_id, b"last")
    assert pipe.recv() == b"last"
    told: list[threading.Thread] = []
    pipe.set_on_leaving(lambda: told.append(threading.current_thread()))
    assert told == [threading.current_thread()]


@pytest.mark.parametrize(("last", "code"), [(0, 0), (1, 0xB)])
def test_an_end_is_not_announced_as_leaving(stack: ExitStack, last: int, code: int) -> None:
    pipe, peer, _ = client_pipe(stack)
    told: list[str] = []
    pipe.set_on_leaving(lambda: told.append("leaving"))
    peer.flush(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(PipeEnded):
        pipe.recv()
    pipe.set_on_leaving(lambda: told.append("leaving"))
    assert not told


def test_a_client_that_sends_goaway_does_not_leave_its_servers_pipe(stack: ExitStack) -> None:
    server = TestServer(stack)
    peer = raw_client(stack, server)
    stream_id = peer.request(content_type="application/octet-stream")
    pipe = server.pipe()
    told: list[str] = []
    pipe.set_on_leaving(lambda: told.append("leaving"))
    peer.flush(GoAwayFrame(0, last_stream_id=0, error_code=0).serialize())
    send_message(peer, stream_id, b"on")
    assert pipe.recv() == b"on"
    assert not told


def test_goaway_below_our_stream_ends_the_pipe(stack: ExitStack) -> None:
    pipe, peer, _ = client_pipe(stack)
    peer.flush(GoAwayFrame(0, last_stream_id=0, error_code=0).serialize())
    with pytest.raises(PipeEnded, match="did not take the request"):
        pipe.recv()


def test_why_the_peer_gave_up_is_told(stack: ExitStack) -> None:
    pipe, peer, _ = client_pipe(stack)
    peer.flush(GoAwayFrame(0, last_stream_id=1, error_code=0xB, additional_data=b"too\x1bmany").serialize())
    peer.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PipeEnded, match=r"ENHANCE_YOUR_CALM, too\ufffdmany"):
        pipe.recv()


def test_a_reset_ends_the_pipe_after_what_came_before_it(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    send_message(peer, stream_id, b"before")
    peer.h2.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
    peer.flush()
    assert pipe.recv() == b"before"
    with pytest.raises(PipeEnded, match="reset the stream: INTERNAL_ERROR"):
        pipe.recv()
    with pytest.raises(PipeEnded, match="INTERNAL_ERROR"):
        send_bytes(pipe, b"more")


def test_a_reset_after_one_mebibyte_names_the_body_limit_of_nginx(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack, initial_window_size=2**21)
    peer.h2.increment_flow_control_window(2**21)
    peer.flush()
    sending = Background(lambda: [send_bytes(pipe, bytes(100_000)) for _ in range(11)])
    read_message(peer, stream_id, 11 * 100_004, reopen=False)
    sending.result()
    peer.h2.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
    peer.flush()
    with pytest.raises(PipeEnded, match=r"INTERNAL_ERROR after 1\.0 MiB went up: nginx .* client_max_body_size 0"):
        pipe.recv()


def test_an_end_of_the_stream_while_we_send_wakes_the_sender(stack: ExitStack) -> None:
    """nginx, Caddy and nghttpx cut the upload when the answer has ended."""
    pipe, peer, stream_id = client_pipe(stack)
    sending = Background(lambda: send_bytes(pipe, bytes(200_000)))
    read_message(peer, stream_id, 65535, reopen=False)
    peer.h2.end_stream(stream_id)
    peer.flush()
    error = sending.error()
    assert isinstance(error, PipeEnded)
    assert "ended the stream" in error.message


def test_an_end_in_the_middle_of_a_message_is_told_apart(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    peer.h2.send_data(stream_id, framed(http2.DIALECT, b"a message")[:7], end_stream=True)
    peer.flush()
    with pytest.raises(PipeEnded, match="in the middle of a message"):
        pipe.recv()


def test_trailers_say_why_a_call_ended(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack, grpc.DIALECT)
    trailers = [("grpc-status", "14"), ("grpc-message", "upstream%20gone")]
    peer.h2.send_headers(stream_id, trailers, end_stream=True)
    peer.flush()
    with pytest.raises(PipeEnded, match="gRPC status 14 UNAVAILABLE: upstream gone"):
        pipe.recv()


def test_closing_a_pipe_ends_the_stream_in_an_orderly_way(stack: ExitStack) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    send_bytes(pipe, b"last words")
    pipe.close("our own affair")
    assert read_message(peer, stream_id, 14) == framed(http2.DIALECT, b"last words")
    peer.expect(StreamEnded)
    peer.sock.settimeout(DEADLINE)
    while not peer.ended:
        peer.read()


# --- the answer


def answering(stack: ExitStack, answer: Callable[[RawHttp2, int], None]) -> Background[Pipe]:
    """A client that connects to a server which gives this answer."""
    listener, port = listen(stack)
    url = TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")
    connecting = Background(lambda: CONNECT["grpc"](url, deadline=Deadline(DEADLINE)))
    sock = stack.enter_context(listener.accept()[0])
    sock.settimeout(DEADLINE)
    peer = RawHttp2(sock, client=False)
    while not peer.h2.highest_inbound_stream_id:
        peer.read()
    answer(peer, peer.h2.highest_inbound_stream_id)
    peer.flush()
    return connecting  # type: ignore[return-value]


HEAD = [(":status", "200"), ("content-type", "application/grpc+proto")]


def test_early_hints_and_continuations_may_come_first(stack: ExitStack) -> None:
    def answer(peer: RawHttp2, stream_id: int) -> None:
        peer.h2.send_headers(stream_id, [(":status", "103"), ("link", "</style.css>")])
        peer.h2.send_headers(stream_id, [(":status", "100")])
        block = peer.h2.encoder.encode([*HEAD, ("x-long", "y" * 2000)])
        pieces = [block[at : at + 100] for at in range(0, len(block), 100)]
        data = HeadersFrame(stream_id, pieces[0]).serialize()
        for number, piece in enumerate(pieces[1:], 2):
            flags = ["END_HEADERS"] if number == len(pieces) else []
            data += ContinuationFrame(stream_id, piece, flags=flags).serialize()
        peer.flush(data)

    pipe = answering(stack, answer).result()
    pipe.close("done")


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([(":status", "404"), ("content-type", "text/html")], "404 Not Found"),
        ([(":status", "200"), ("content-type", "text/html")], "an ordinary web page"),
        ([(":status", "403")], "403 Forbidden"),
        ([(":status", "502")], "502 Bad Gateway"),
        ([*HEAD, ("grpc-status", "12")], "gRPC status 12 UNIMPLEMENTED"),
        ([*HEAD, ("grpc-status", "999"), ("grpc-message", "%1b[2J")], r"gRPC status 999: \ufffd\[2J"),
    ],
)
def test_an_answer_that_opens_no_pipe_is_explained(
    stack: ExitStack, headers: list[tuple[str, str]], words: str
) -> None:
    error = answering(stack, lambda peer, number: peer.h2.send_headers(number, headers, end_stream=True)).error()
    assert isinstance(error, TransportError)
    with pytest.raises(TransportError, match=words):
        raise error
    assert error.hint


def test_when_to_come_back_is_heeded(stack: ExitStack) -> None:
    headers = [*HEAD, ("grpc-status", "14"), ("grpc-retry-pushback-ms", "4000")]
    error = answering(stack, lambda peer, number: peer.h2.send_headers(number, headers, end_stream=True)).error()
    assert isinstance(error, TransportError)
    assert error.retry_after == 4.0


def connect_error(stack: ExitStack, answer: bytes, *, seconds: float = DEADLINE) -> TransportError:
    """What a client says about a server that answers with these bytes, and closes unless they are b"silence"."""
    listener, port = listen(stack)
    url = TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")
    connecting = Background(lambda: CONNECT["http2"](url, deadline=Deadline(seconds)))
    with listener.accept()[0] as sock:
        sock.recv(4096)
        if answer != b"silence":
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
        error = connecting.error()
    assert isinstance(error, TransportError)
    return error


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP/1.1 on this port.*write wss://.*switch HTTP/2 on"),
        (b"HTTP/1.1 505 Not Supported\r\n\r\n", r"speaks HTTP/1.1 on this port, not HTTP/2 \(switch HTTP/2 on"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS on this port.*wss://"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP/2 server: it answered 'SSH-2.0"),
        (b"", "without an answer.*transport: websocket"),
    ],
)
def test_what_does_not_speak_http2_is_recognized(stack: ExitStack, answer: bytes, words: str) -> None:
    with pytest.raises(TransportError, match=words):
        raise connect_error(stack, answer)


def test_a_server_that_is_silent_costs_no_more_than_the_deadline(stack: ExitStack) -> None:
    with pytest.raises(TransportError, match="did not answer in time"):
        raise connect_error(stack, b"silence", seconds=0.2)


def test_a_server_without_http2_in_alpn_is_recognized(
    stack: ExitStack, authority: Authority, good_certificate: Certificate
) -> None:
    listener, port = listen(stack)
    url = TunnelUrl.parse(f"wss://127.0.0.1:{port}/tunnel")
    route = Route(ca_file=authority.ca_file)
    connecting = Background(lambda: CONNECT["http2"](url, route=route, deadline=Deadline(DEADLINE)))
    with listener.accept()[0] as sock:
        files = ReloadingServerContext(good_certificate.certificate, good_certificate.key, ())
        wire = TlsWire(TcpWire(sock), files.context(), server_side=True, deadline=Deadline(DEADLINE))
        with pytest.raises(TransportError, match="does not speak HTTP/2"):
            raise connecting.error()
        wire.close()


# --- what breaks the protocol


def header_bomb(peer: RawHttp2, stream_id: int) -> bytes:
    """A short block that says a long header a thousand times over."""
    block = peer.h2.encoder.encode([("x-bomb", "y" * 4000)])
    return HeadersFrame(stream_id, block + b"\xbe" * 1000, flags=["END_HEADERS"]).serialize()


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda peer, number: frame(FrameType.PING, 0, 0, bytes(8)) * 9000, "too many control frames"),
        (lambda peer, number: frame(FrameType.SETTINGS, 0, 0) * 9000, "too many control frames"),
        (lambda peer, number: frame(FrameType.DATA, 0, number) * 9000, "too many control frames"),
        (lambda peer, number: frame(FrameType.PRIORITY, 0, 9, b"\0\0\0\0\1") * 9000, "too many control frames"),
        (lambda peer, number: WindowUpdateFrame(0, window_increment=2**31 - 1).serialize(), "window"),
        (lambda peer, number: WindowUpdateFrame(number, window_increment=2**31 - 1).serialize(), "reset the stream"),
        (lambda peer, number: frame(FrameType.WINDOW_UPDATE, 0, 0, bytes(4)), "broke HTTP/2"),
        (lambda peer, number: frame(FrameType.DATA, 0, 99, b"x"), "broke HTTP/2"),
        (lambda peer, number: frame(FrameType.HEADERS, 4, 2, b"\x88"), "broke HTTP/2"),
        (lambda peer, number: frame(FrameType.PUSH_PROMISE, 4, number, b"\0\0\0\2\x88"), "broke HTTP/2"),
        (lambda peer, number: frame(FrameType.CONTINUATION, 4, number, b"\x88"), "broke HTTP/2"),
        (lambda peer, number: frame(FrameType.GOAWAY, 0, 0, b"short"), "malformed GOAWAY"),
        (lambda peer, number: frame(FrameType.SETTINGS, 0, 0, b"short"), "broke HTTP/2"),
        (lambda peer, number: frame(FrameType.DATA, 0, number, b"\xff\xff\xff\xff"), "a message of 4294967295 bytes"),
        (header_bomb, "broke HTTP/2"),
    ],
)
def test_a_server_that_breaks_or_floods_the_connection_ends_the_pipe(
    stack: ExitStack, attack: Callable[[RawHttp2, int], bytes], words: str
) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    data = attack(peer, stream_id)
    pushing = Background(lambda: peer.sock.sendall(data))
    with pytest.raises(QanatError, match=words) as caught:
        pipe.recv()
    assert isinstance(caught.value, ProtocolError | PipeEnded)
    assert pipe.cause is not None
    pushing.wait(DEADLINE)


def test_what_a_peer_asks_for_and_does_not_read_is_bounded(stack: ExitStack) -> None:
    """As many pings as are allowed, from a peer whose receive buffer is full."""
    pipe, peer, stream_id = client_pipe(stack, small_buffers=True)
    sent: list[None] = []
    sending = Background(lambda: [sent.append(send_bytes(pipe, bytes(100_000))) for _ in range(1000)])
    peer.h2.increment_flow_control_window(2**30)
    peer.h2.increment_flow_control_window(2**30, stream_id)
    peer.flush()
    receiving = Background(pipe.recv)
    before = -1
    while len(sent) > before:  # until the kernel takes no more
        before = len(sent)
        assert not sending.wait(0.3)
    pings = frame(FrameType.PING, 0, 0, bytes(8)) * 4050
    peer.sock.sendall(pings)
    with pytest.raises(QanatError, match=r"does not read them|too many control frames"):
        raise receiving.error()
    sending.error()
