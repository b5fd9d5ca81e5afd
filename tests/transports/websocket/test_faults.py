"""The faults of the two WebSocket libraries, each met: these tests fail when a library is left to itself."""

from __future__ import annotations

import os
import resource
import select
import threading
import time
from contextlib import ExitStack

import pytest
import websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request
from wsproto.extensions import PerMessageDeflate

from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, ProtocolError, TransportError
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import MAX_MESSAGE, Pipe
from qanat.transports.websocket.frames import Opcode
from qanat.transports.websocket.machine import Capture, NoThread
from qanat.transports.websocket.upgrade import accept, connect
from qanat.transports.wire.tcp import TcpWire
from tests.support.background import DEADLINE, Background
from tests.support.transports.loopback import (
    PipeMaker,
    client_pipe,
    encode_frame,
    listen,
    read_head,
    read_request,
    send_bytes,
    server_pipe,
    socket_pair,
)

BOTH_ENDS = pytest.mark.parametrize("make", [server_pipe, client_pipe], ids=["server", "client"])


def resident_bytes() -> int:
    """Memory of this process that is really there (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def flusher(pipe: Pipe, stack: ExitStack) -> None:
    """The lane's writing thread, as far as it concerns an idle lane: flush whenever the pipe asks for it."""
    wanted = threading.Semaphore(0)
    ending = threading.Event()
    pipe.set_wakeup(wanted.release)

    def loop() -> None:
        while wanted.acquire() and not ending.is_set():
            try:
                pipe.flush()
            except PipeEnded:
                return

    running = Background(loop)

    def end() -> None:
        ending.set()
        wanted.release()
        pipe.close("the test is over")
        running.result()

    stack.callback(end)


@BOTH_ENDS
def test_answers_to_pings_never_get_into_a_message(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    flusher(pipe, stack)
    message = os.urandom(100_000)
    receiving = Background(pipe.recv)

    def send_messages() -> None:
        for _ in range(40):
            send_bytes(pipe, message)

    def ping() -> None:
        for _ in range(400):
            peer.send_frame(Opcode.PING, b"are you there")

    sending, pinging = Background(send_messages), Background(ping)
    messages = pongs = 0
    while messages < 40 or pongs < 1:
        first, payload = peer.read_frame()
        if first == 0x82:
            assert payload == message
            messages += 1
        else:
            assert (first, payload) == (0x8A, b"are you there")
            pongs += 1
    sending.result()
    pinging.result()
    pipe.close("done")
    receiving.error()


def test_a_small_send_buffer_does_not_cut_a_message(stack: ExitStack) -> None:
    pipe, peer = server_pipe(stack, small_buffers=True)
    message = os.urandom(MAX_MESSAGE)
    sending = Background(lambda: send_bytes(pipe, message))
    assert peer.read_frame() == (0x82, message)
    sending.result()


def test_a_small_send_buffer_does_not_cut_the_answer_to_the_upgrade(stack: ExitStack) -> None:
    """`accept` sends through `send_all`; a library's `send` may leave out the end."""
    sent: list[int] = []

    class Counting(TcpWire):
        def send_all(self, data: bytes | bytearray | memoryview) -> None:
            sent.append(len(data))
            super().send_all(data)

    client, server = socket_pair(stack, small_buffers=True)
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    client.sendall(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n")
    client.sendall(b"Sec-WebSocket-Protocol: qanat.1\r\n\r\n")
    wire = Counting(server)
    request, rest = read_request(wire)
    pipe = accept(request, wire, rest)
    stack.callback(pipe.close, "the test is over")
    assert sent == [len(read_head(client))]


@BOTH_ENDS
def test_a_peer_that_floods_while_nobody_receives_fills_no_memory(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    frame = encode_frame(Opcode.BINARY, bytes(65536), mask=bytes(4) if peer.masks else None)
    before = resident_bytes()
    peer.sock.setblocking(False)
    accepted = 0
    while select.select([], [peer.sock], [], 0.3)[1]:
        accepted += peer.sock.send(frame)
        assert accepted < 64 * 1024 * 1024, "nobody receives, and still it is taken"
    grown = resident_bytes() - before
    assert grown < 8 * 1024 * 1024, f"grown by {grown} bytes"
    assert pipe.cause is None


@BOTH_ENDS
def test_pings_and_fragments_that_nobody_answers_fill_no_memory(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    flood = b"".join(
        encode_frame(Opcode.PING, b"%06d" % number, mask=bytes(4) if peer.masks else None) for number in range(50_000)
    )
    sending = Background(lambda: peer.sock.sendall(flood))
    receiving = Background(pipe.recv)
    sending.result(3 * DEADLINE)
    peer.send_frame(Opcode.BINARY, b"after the flood")
    assert receiving.result(3 * DEADLINE) == b"after the flood"
    pipe.flush()
    assert peer.read_frame() == (0x8A, b"049999"), "one pong, for the last ping (RFC 6455 §5.5.3)"
    send_bytes(pipe, b"next")
    assert peer.read_frame() == (0x82, b"next"), "and no other pong"


@BOTH_ENDS
def test_a_bad_frame_ends_recv_promptly_instead_of_leaving_it_blocked(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    receiving = Background(pipe.recv)
    assert not receiving.wait(0.05)
    peer.send_frame(0x3, b"an opcode that does not exist")
    assert isinstance(receiving.error(), ProtocolError)
    assert peer.read_close() == 1002
    with pytest.raises(PipeEnded, match="broke the WebSocket protocol"):
        send_bytes(pipe, b"too late")


def test_deflate_is_not_negotiated_even_when_offered(stack: ExitStack) -> None:
    client, server = socket_pair(stack)
    browser = WSConnection(ConnectionType.CLIENT)
    request = Request("localhost", "/tunnel", extensions=[PerMessageDeflate()], subprotocols=["qanat.1"])
    offer = browser.send(request)
    assert b"permessage-deflate" in offer
    client.sendall(offer)
    wire = TcpWire(server)
    upgrade, rest = read_request(wire)
    pipe = accept(upgrade, wire, rest)
    stack.callback(pipe.close, "the test is over")
    browser.receive_data(read_head(client))
    (event,) = browser.events()
    assert isinstance(event, AcceptConnection)
    assert event.extensions == []
    assert event.subprotocol == "qanat.1"


@BOTH_ENDS
def test_an_extension_nobody_offered_is_refused_in_a_frame(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.send_frame(0x40 | Opcode.BINARY, b"RSV1 means deflate")
    with pytest.raises(ProtocolError):
        pipe.recv()


@BOTH_ENDS
def test_pings_while_both_directions_are_full_do_not_deadlock(make: PipeMaker, stack: ExitStack) -> None:
    """The peer reads only after it has sent all; a reader that writes its pongs would never get there."""
    pipe, peer = make(stack)
    flusher(pipe, stack)
    count = 200

    def send_from_peer() -> None:
        for _ in range(count):
            peer.send_frame(Opcode.BINARY, bytes(65536))
            peer.send_frame(Opcode.PING, b"p")

    def send_from_pipe() -> None:
        for _ in range(count):
            send_bytes(pipe, bytes(65536))

    pipe_sends = Background(send_from_pipe)
    assert not pipe_sends.wait(0.2), "its direction must be full"
    pipe_receives = Background(lambda: [len(pipe.recv()) for _ in range(count)])
    peer_sends = Background(send_from_peer)
    peer_sends.result()
    assert pipe_receives.result() == [65536] * count
    seen = {0x82: 0, 0x8A: 0}
    while seen[0x82] < count or not seen[0x8A]:
        seen[peer.read_frame()[0]] += 1
    pipe_sends.result()


@BOTH_ENDS
def test_close_while_another_thread_receives_returns_at_once(make: PipeMaker, stack: ExitStack) -> None:
    pipe, _ = make(stack)
    receiving = Background(pipe.recv)
    assert not receiving.wait(0.05)
    started = time.monotonic()
    pipe.close("enough")
    assert isinstance(receiving.error(), PipeEnded)
    assert time.monotonic() - started < DEADLINE / 2


def test_redirects_are_not_followed(stack: ExitStack) -> None:
    listener, port = listen(stack)
    elsewhere, other_port = listen(stack)

    def redirect() -> None:
        with listener.accept()[0] as sock:
            read_head(sock)
            location = f"ws://127.0.0.1:{other_port}/"
            sock.sendall(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

    redirecting = Background(redirect)
    with pytest.raises(TransportError, match=f"302.*127.0.0.1:{other_port}.*not followed"):
        connect(TunnelUrl.parse(f"ws://127.0.0.1:{port}/"), deadline=Deadline(DEADLINE))
    redirecting.result()
    assert not select.select([elsewhere], [], [], 0)[0], "nobody may have come here"


@BOTH_ENDS
def test_a_memoryview_is_sent_as_its_bytes(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    buffer = memoryview(bytearray(pipe.headroom + 5))
    buffer[pipe.headroom :] = b"bytes"
    pipe.send(buffer)
    assert peer.read_frame() == (0x82, b"bytes")


def test_no_library_ever_starts_a_thread_or_gets_the_socket(stack: ExitStack) -> None:
    before = set(threading.enumerate())  # not their number, since some may be ending
    pipe, _ = server_pipe(stack)
    assert not set(threading.enumerate()) - before
    library = pipe._machine._server  # type: ignore[attr-defined]
    assert isinstance(library.sock, Capture)
    assert isinstance(library.thread, NoThread)


def test_the_client_is_really_websocket_client(stack: ExitStack) -> None:
    pipe, _ = client_pipe(stack)
    library = pipe._machine._client  # type: ignore[attr-defined]
    assert isinstance(library, websocket.WebSocket)
    assert isinstance(library.sock, Capture)
