"""A write timeout punishes a peer that takes nothing, and not one that is slow, however slow."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from h2.events import DataReceived

from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, TransportError
from qanat.transports.http2.frames import FrameType
from qanat.transports.pipe import Pipe, Wire
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import ReloadingServerContext
from tests.support.background import DEADLINE, Background
from tests.support.machine.certificates import Certificate
from tests.support.transports import http2_loopback
from tests.support.transports.http2_loopback import RawHttp2, TestServer, frame, raw_client
from tests.support.transports.loopback import listen, send_bytes, server_pipe, trusting
from tests.support.transports.memory import memory_pair

SECONDS = 0.8
TIMES = 2 * 4
"""Quarters of the timeout for which a slow peer is watched."""
MOUTHFUL = 4096
PLENTY = bytes(64 * 1024 * 1024)
STALLED = f"nothing could be sent for {SECONDS:g} s"


def slow_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """The sender's and the reader's socket, whose window opens for little: small segments, small buffers."""
    listener, port = listen(stack)
    reader = stack.enter_context(socket.socket())
    reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.settimeout(DEADLINE)
    reader.connect(("127.0.0.1", port))
    return stack.enter_context(listener.accept()[0]), reader


def slowly(take: Callable[[], object]) -> None:
    """Take a little, each quarter of the timeout."""
    never = threading.Event()
    for _ in range(TIMES):
        take()
        never.wait(SECONDS / 4)


def ends_in_time(sending: Background[None], receiving: Background[object], since: float) -> None:
    for one in (sending, receiving):
        error = one.error()
        assert isinstance(error, TransportError)
        assert error.message == STALLED
    # Its last mouthful was a quarter before `since`.
    assert SECONDS * 0.5 < time.monotonic() - since < SECONDS * 1.25 + 1.0


def receive(wire: Wire) -> object:
    return wire.recv_into(memoryview(bytearray(10)))


def wire_over(kind: str, stack: ExitStack, certificate: Certificate) -> tuple[Wire, Callable[[], object]]:
    """A wire, and how its peer takes a mouthful."""
    ours, theirs = slow_pair(stack)
    wire: Wire = TcpWire(ours)
    if kind == "tls":
        server_context = ReloadingServerContext(certificate.certificate, certificate.key, ()).context()
        context = trusting(certificate)
        shaking = Background(lambda: context.wrap_socket(theirs, server_hostname="localhost"))
        wire = TlsWire(wire, server_context, server_side=True, deadline=Deadline(DEADLINE))
        theirs = stack.enter_context(shaking.result())
    stack.callback(wire.close)
    return wire, lambda: theirs.recv(4 * MOUTHFUL if kind == "tls" else MOUTHFUL)  # a TLS record has 16 KiB


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_wire_whose_peer_reads_slowly_lives_until_it_reads_no_more(
    stack: ExitStack, good_certificate: Certificate, kind: str
) -> None:
    wire, take = wire_over(kind, stack, good_certificate)
    wire.set_write_timeout(SECONDS)
    receiving = Background(lambda: receive(wire))
    sending = Background(lambda: wire.send_all(PLENTY))
    slowly(take)
    assert not sending.wait(0)
    assert not receiving.wait(0)
    ends_in_time(sending, receiving, time.monotonic())
    with pytest.raises(TransportError, match=STALLED):
        wire.send_all(b"more")


def test_what_came_before_a_stall_is_still_received(stack: ExitStack) -> None:
    ours, theirs = slow_pair(stack)
    wire = TcpWire(ours)
    stack.callback(wire.close)
    wire.set_write_timeout(0.1)
    theirs.sendall(b"why")
    with pytest.raises(TransportError, match="nothing could be sent"):
        wire.send_all(PLENTY)
    buffer = memoryview(bytearray(10))
    assert bytes(buffer[: wire.recv_into(buffer)]) == b"why"
    with pytest.raises(TransportError, match="nothing could be sent"):
        wire.recv_into(buffer)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was acknowledged")
def test_what_the_kernel_takes_and_nobody_acknowledges_is_no_progress(stack: ExitStack) -> None:
    """A keepalive now and then never fills the kernel's buffer, and so never blocks."""
    ours, theirs = slow_pair(stack)
    wire = TcpWire(ours)
    stack.callback(wire.close)
    wire.set_write_timeout(0.3)
    receiving = Background(lambda: receive(wire))
    wire.send_all(bytes(30_000))

    def keep_alive() -> None:
        while True:
            wire.send_all(b"ping")
            receiving.wait(0.02)

    assert "nothing could be sent" in str(Background(keep_alive).error())
    assert "nothing could be sent" in str(receiving.error())
    assert theirs.fileno() >= 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_pause_is_no_stall(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    if elsewhere:
        monkeypatch.setattr("qanat.transports.wire.tcp._unacknowledged", lambda sock: None)
    ours, theirs = slow_pair(stack)
    wire = TcpWire(ours)
    stack.callback(wire.close)
    wire.set_write_timeout(0.05)
    for _ in range(3):
        threading.Event().wait(0.15)
        wire.send_all(b"hello")
        assert theirs.recv(10) == b"hello"


def test_where_the_kernel_does_not_tell_what_was_acknowledged_what_it_takes_counts(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qanat.transports.wire.tcp._unacknowledged", lambda sock: None)
    ours, _ = slow_pair(stack)
    wire = TcpWire(ours)
    stack.callback(wire.close)
    wire.set_write_timeout(0.2)
    started = time.monotonic()
    with pytest.raises(TransportError, match="nothing could be sent"):
        wire.send_all(PLENTY)
    assert time.monotonic() - started < 1.5


def send_plenty(pipe: Pipe) -> None:
    for _ in range(1000):
        send_bytes(pipe, bytes(65536))


def test_a_websocket_pipe_whose_peer_reads_slowly_lives(stack: ExitStack) -> None:
    pipe, peer = server_pipe(stack, small_buffers=True)
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    watch_slow_pipe(pipe, lambda: peer.sock.recv(8 * MOUTHFUL))


def test_a_memory_pipe_whose_peer_reads_slowly_lives(stack: ExitStack) -> None:
    pipe, peer = memory_pair()
    stack.callback(peer.close, "the test is over")
    watch_slow_pipe(pipe, peer.recv)


def watch_slow_pipe(pipe: Pipe, take: Callable[[], object]) -> None:
    pipe.set_write_timeout(SECONDS)
    receiving = Background[object](pipe.recv)
    sending = Background(lambda: send_plenty(pipe))
    slowly(take)
    assert not sending.wait(0)
    assert not receiving.wait(0)
    ends_in_time(sending, receiving, time.monotonic())


def windows(peer: RawHttp2, stream_id: int) -> None:
    """Open both windows by a mouthful, and read that."""
    peer.h2.increment_flow_control_window(MOUTHFUL)
    peer.h2.increment_flow_control_window(MOUTHFUL, stream_id)
    peer.flush()
    peer.expect(DataReceived)


def test_a_client_over_http2_whose_window_opens_slowly_lives(stack: ExitStack) -> None:
    pipe, peer, stream_id = http2_loopback.client_pipe(stack)
    watch_slow_pipe(pipe, lambda: windows(peer, stream_id))


def test_a_server_over_http2_whose_window_opens_slowly_lives_and_its_end_is_no_other_streams(stack: ExitStack) -> None:
    server = TestServer(stack)
    peer = raw_client(stack, server)
    stream_id = peer.request(content_type="application/octet-stream")
    pipe = server.pipe()
    other_id = peer.request(content_type="application/octet-stream")
    other = server.pipe()
    watch_slow_pipe(pipe, lambda: windows(peer, stream_id))
    peer.h2.increment_flow_control_window(1000)
    peer.flush()
    send_bytes(other, b"still there")
    peer.read_until(lambda event: isinstance(event, DataReceived) and event.stream_id == other_id)


def test_control_frames_alone_are_no_progress(stack: ExitStack) -> None:
    pipe, peer, _ = http2_loopback.client_pipe(stack)
    pipe.set_write_timeout(SECONDS)
    sending = Background(lambda: send_plenty(pipe))

    pinging = frame(FrameType.PING, 0, 0, b"question")
    with contextlib.suppress(OSError):  # the pipe ends while we go on
        slowly(lambda: peer.sock.sendall(pinging))
    error = sending.error()
    assert isinstance(error, PipeEnded)
    assert error.message == STALLED


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_the_kernel_too_gives_up_in_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        wire = TcpWire(sock)
        for seconds, expected in ((1.5, 6000), (None, 0)):
            wire.set_write_timeout(seconds)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == expected
        wire.close()
