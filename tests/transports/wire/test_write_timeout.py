"""A write timeout punishes a peer that takes nothing, and not one that is slow, however slow."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

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

SECONDS = 2.0
TIMES = 2 * 4
"""Quarters of the timeout for which a slow peer is watched.  A busy machine may make one of them last three."""
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


@dataclass(frozen=True, slots=True)
class Watched:
    """What became of a sender whose peer took a little for a while, and then nothing."""

    lived: bool  # as long as something was taken
    errors: tuple[BaseException, BaseException]  # of the sender, and of who received
    seconds: float  # from the last mouthful to the end


def watch(take: Callable[[], object], send: Callable[[], object], receive: Callable[[], object]) -> Watched:
    receiving, sending = Background(receive), Background(send)
    slowly(take)
    lived = not sending.wait(0) and not receiving.wait(0)
    since = time.monotonic()
    errors = sending.error(), receiving.error()
    return Watched(lived, errors, time.monotonic() - since)


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


def send_plenty(pipe: Pipe) -> None:
    for _ in range(1000):
        send_bytes(pipe, bytes(65536))


def watch_wire(kind: str, stack: ExitStack, certificate: Certificate) -> Watched:
    wire, take = wire_over(kind, stack, certificate)
    wire.set_write_timeout(SECONDS)
    watched = watch(take, lambda: wire.send_all(PLENTY), lambda: receive(wire))
    with pytest.raises(TransportError, match=STALLED):
        wire.send_all(b"more")
    return watched


def watch_pipe(pipe: Pipe, take: Callable[[], object]) -> Watched:
    pipe.set_write_timeout(SECONDS)
    return watch(take, lambda: send_plenty(pipe), pipe.recv)


def watch_websocket(stack: ExitStack, _: Certificate) -> Watched:
    pipe, peer = server_pipe(stack, small_buffers=True)
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    return watch_pipe(pipe, lambda: peer.sock.recv(8 * MOUTHFUL))


def watch_memory(stack: ExitStack, _: Certificate) -> Watched:
    pipe, peer = memory_pair()
    stack.callback(peer.close, "the test is over")
    return watch_pipe(pipe, peer.recv)


def windows(peer: RawHttp2, stream_id: int) -> None:
    """Open both windows by a mouthful, and read that."""
    peer.h2.increment_flow_control_window(MOUTHFUL)
    peer.h2.increment_flow_control_window(MOUTHFUL, stream_id)
    peer.flush()
    peer.expect(DataReceived)


def watch_http2_client(stack: ExitStack, _: Certificate) -> Watched:
    pipe, peer, stream_id = http2_loopback.client_pipe(stack)
    return watch_pipe(pipe, lambda: windows(peer, stream_id))


def watch_http2_server(stack: ExitStack, _: Certificate) -> Watched:
    """Its end is not the end of another stream."""
    server = TestServer(stack)
    peer = raw_client(stack, server)
    stream_id = peer.request(content_type="application/octet-stream")
    pipe = server.pipe()
    other_id = peer.request(content_type="application/octet-stream")
    other = server.pipe()
    watched = watch_pipe(pipe, lambda: windows(peer, stream_id))
    peer.h2.increment_flow_control_window(1000)
    peer.flush()
    send_bytes(other, b"still there")
    peer.read_until(lambda event: isinstance(event, DataReceived) and event.stream_id == other_id)
    return watched


def watch_control_frames(stack: ExitStack, _: Certificate) -> Watched:
    """Its peer sends PING after PING, and opens no window."""
    pipe, peer, _ = http2_loopback.client_pipe(stack)
    pinging = frame(FrameType.PING, 0, 0, b"question")

    def ping() -> None:
        with contextlib.suppress(OSError):  # the pipe ends while we go on
            peer.sock.sendall(pinging)

    return watch_pipe(pipe, ping)


KINDS: dict[str, Callable[[ExitStack, Certificate], Watched]] = {
    "tcp": partial(watch_wire, "tcp"),
    "tls": partial(watch_wire, "tls"),
    "websocket": watch_websocket,
    "memory": watch_memory,
    "http2 client": watch_http2_client,
    "http2 server": watch_http2_server,
}


@pytest.fixture(scope="module")
def watched(good_certificate: Certificate) -> Iterator[dict[str, Background[Watched]]]:
    """All at the same time, since they wait and do little else."""
    kinds = {**KINDS, "control frames": watch_control_frames}
    with ExitStack() as opened:
        stacks = {name: opened.enter_context(ExitStack()) for name in kinds}
        running = {name: Background(partial(kinds[name], stacks[name], good_certificate)) for name in kinds}
        for each in running.values():
            each.wait(DEADLINE + TIMES * SECONDS)
        yield running


@pytest.mark.parametrize("kind", KINDS)
def test_a_sender_whose_peer_reads_slowly_lives_until_it_reads_no_more(
    watched: dict[str, Background[Watched]], kind: str
) -> None:
    one = watched[kind].result()
    assert one.lived
    for error in one.errors:
        assert isinstance(error, TransportError)
        assert error.message == STALLED
    # Its last mouthful was a quarter before.
    assert SECONDS * 0.5 < one.seconds < SECONDS + DEADLINE / 2


def test_control_frames_alone_are_no_progress(watched: dict[str, Background[Watched]]) -> None:
    one = watched["control frames"].result()
    assert not one.lived
    for error in one.errors:
        assert isinstance(error, PipeEnded)
        assert error.message == STALLED


def test_what_came_before_a_stall_is_still_received(stack: ExitStack) -> None:
    ours, theirs = slow_pair(stack)
    wire = TcpWire(ours)
    stack.callback(wire.close)
    wire.set_write_timeout(0.5)
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
    wire.set_write_timeout(1.0)
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
    wire.set_write_timeout(0.5)
    started = time.monotonic()
    with pytest.raises(TransportError, match="nothing could be sent"):
        wire.send_all(PLENTY)
    assert time.monotonic() - started < DEADLINE


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_the_kernel_too_gives_up_in_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        wire = TcpWire(sock)
        for seconds, expected in ((1.5, 6000), (None, 0)):
            wire.set_write_timeout(seconds)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == expected
        wire.close()
