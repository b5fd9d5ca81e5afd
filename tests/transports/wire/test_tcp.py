"""A TCP socket as a wire: full duplex, one way to close, and what is still sent then."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from qanat.base.errors import TransportError
from qanat.transports.wire.tcp import NOT_SENT_LIMIT, TcpWire
from tests.support.background import DEADLINE, Background, wait_until
from tests.support.transports.loopback import socket_pair


def wire_and_peer(stack: ExitStack) -> tuple[TcpWire, socket.socket]:
    peer, ours = socket_pair(stack)
    wire = TcpWire(ours)
    stack.callback(wire.close)
    return wire, peer


def test_small_writes_are_not_held_back_and_little_is_left_to_the_kernel(stack: ExitStack) -> None:
    wire, _ = wire_and_peer(stack)
    sock = wire._sock
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == NOT_SENT_LIMIT


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what its kernel has not sent")
def test_what_the_kernel_has_not_sent_is_told_until_it_has(stack: ExitStack) -> None:
    wire, peer = wire_and_peer(stack)
    assert wire.unsent == 0
    sent = 0
    while wire.can_send_now:
        sent += 65536
        wire.send_now(bytes(65536))
    wait_until(lambda: 0 < wire.unsent <= sent, "the peer's window is full")
    reading = Background(lambda: receive(peer, sent))
    wire.flush()
    reading.result()
    wait_until(lambda: wire.unsent == 0, "all has been sent")
    wire.close()
    assert wire.unsent == 0


def receive(sock: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(sock.recv(size))


def test_the_descriptor_is_given_back_only_when_nobody_uses_it(stack: ExitStack) -> None:
    """Else another socket gets the number, and a reader reads a stranger's bytes."""
    wire, _ = wire_and_peer(stack)
    inside, go_on = threading.Event(), threading.Event()
    original = wire._sock

    class Slow:
        def recv_into(self, buffer: memoryview, *how: int) -> int:
            inside.set()
            go_on.wait(DEADLINE)
            return original.recv_into(buffer, *how)

        def __getattr__(self, name: str) -> object:
            return getattr(original, name)

    wire._sock = Slow()  # type: ignore[assignment]
    reading = Background(lambda: wire.recv_into(memoryview(bytearray(10))))
    assert inside.wait(DEADLINE)
    wire.close()
    assert original.fileno() >= 0, "a thread is still inside"
    go_on.set()
    assert "closed here" in str(reading.error())
    assert original.fileno() == -1


def test_a_socket_that_is_gone_or_no_internet_socket_has_no_addresses(stack: ExitStack) -> None:
    wire, peer = wire_and_peer(stack)
    assert wire.addresses == (peer.getpeername(), peer.getsockname())
    one, other = socket.socketpair()
    with other:
        local = TcpWire(one)
        assert local.addresses is None
        local.close()
    unconnected = TcpWire(stack.enter_context(socket.socket()))
    assert unconnected.addresses is None


def test_after_close_every_call_says_that_it_was_closed_here(stack: ExitStack) -> None:
    wire, _ = wire_and_peer(stack)
    wire.close()
    wire.close()
    for call in (
        lambda: wire.recv_into(memoryview(bytearray(1))),
        lambda: wire.send_all(b"x"),
        lambda: wire.set_read_timeout(1),
        lambda: wire.set_write_timeout(1),
    ):
        with pytest.raises(TransportError, match="closed here"):
            call()


def test_last_words_are_sent_if_there_is_room(stack: ExitStack) -> None:
    wire, peer = wire_and_peer(stack)
    wire.close(b"the end")
    assert peer.recv(100) == b"the end"
    assert peer.recv(100) == b""


def test_last_words_never_block(stack: ExitStack) -> None:
    wire, _ = wire_and_peer(stack)
    sending = Background(lambda: wire.send_all(bytes(64 * 1024 * 1024)))
    assert not sending.wait(0.2)
    started = time.monotonic()
    wire.close(b"the end")
    assert time.monotonic() - started < DEADLINE, "it would block for ever"
    sending.error()


def test_a_reset_is_called_a_reset(stack: ExitStack) -> None:
    wire, peer = wire_and_peer(stack)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    peer.close()
    with pytest.raises(TransportError, match="receiving failed: Connection reset by peer"):
        wire.recv_into(memoryview(bytearray(1)))


def test_the_read_timeout_can_be_a_moment_but_is_never_rounded_to_for_ever(stack: ExitStack) -> None:
    wire, _ = wire_and_peer(stack)
    wire.set_read_timeout(0.0)
    with pytest.raises(TransportError, match="nothing received"):
        wire.recv_into(memoryview(bytearray(1)))
