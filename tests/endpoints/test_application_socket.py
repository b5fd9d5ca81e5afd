"""What holds for every application's socket: a machine that vanished is noticed, and no urgent byte is lost."""

from __future__ import annotations

import errno
import os
import queue
import socket
import time
from contextlib import ExitStack

import pytest

from qanat.base.addresses import listen_addresses
from qanat.base.deadline import Deadline
from qanat.base.watcher import Watcher
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive, reason_for
from qanat.endpoints.tcp import Listener
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason
from tests.support.background import Background
from tests.support.machine.networks import SERVER, TwoCables, within
from tests.support.sockets import SECONDS
from tests.support.targets import connect


class Both:
    """A connection between a forward's listener and a forward's target: both kinds of our sockets."""

    def __init__(self, stack: ExitStack, keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE) -> None:
        came: queue.Queue[socket.socket] = queue.Queue()
        watcher = Watcher()
        stack.callback(watcher.close)
        listener = Listener(
            listen_addresses("127.0.0.1", 0), lambda sock, peer: came.put(sock), "listen", watcher, keepalive=keepalive
        )
        listener.start()
        stack.callback(listener.close)
        address = ("127.0.0.1", listener.port)
        self.connected = connect([(socket.AF_INET, address)], Deadline(SECONDS), keepalive=keepalive)
        stack.callback(self.connected.close, orderly=False)
        self.accepted = WakeableSocket(came.get(timeout=SECONDS))
        stack.callback(self.accepted.close, orderly=False)

    def options(self, level: int, option: int) -> set[int]:
        return {end._sock.getsockopt(level, option) for end in (self.connected, self.accepted)}


def test_sockets_of_both_ends_are_kept_alive() -> None:
    with ExitStack() as stack:
        both = Both(stack)
        assert both.options(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == {1}
        assert both.options(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == {60}
        assert both.options(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == {15}
        assert both.options(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == {4}
        assert both.options(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == {0}, "it would end who only pauses"


def test_it_can_be_set_and_switched_off() -> None:
    with ExitStack() as stack:
        both = Both(stack, ApplicationKeepalive(idle=5, interval=0.1, count=2))
        assert both.options(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == {5}
        assert both.options(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == {1}
        off = Both(stack, ApplicationKeepalive(idle=0))
        assert off.options(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == {0}


def test_urgent_bytes_stay_in_their_place() -> None:
    with ExitStack() as stack:
        both = Both(stack)
        for sender, receiver in ((both.connected, both.accepted), (both.accepted, both.connected)):
            sender._sock.sendall(b"\xff\xf4")
            sender._sock.send(b"\xff\xf2", socket.MSG_OOB)
            sender._sock.sendall(b"ABOR\r\n")
            received = b""
            while len(received) < 10:
                received += receiver.recv(100)
            assert received == b"\xff\xf4\xff\xf2ABOR\r\n"


def test_a_machine_that_vanished_is_noticed() -> None:
    keepalive = ApplicationKeepalive(idle=1, interval=1, count=2)
    with TwoCables() as network, ExitStack() as stack:
        came: queue.Queue[socket.socket] = queue.Queue()

        def listen() -> Listener:
            addresses = listen_addresses(SERVER, 0)
            return Listener(addresses, lambda sock, peer: came.put(sock), "listen", watcher, keepalive=keepalive)

        watcher = Watcher()
        stack.callback(watcher.close)

        listener = within(network.server, listen)
        listener.start()
        stack.callback(listener.close)
        application = within(network.client, lambda: socket.create_connection((SERVER, listener.port), SECONDS))
        stack.callback(application.close)
        ours = WakeableSocket(came.get(timeout=SECONDS))
        stack.callback(ours.close, orderly=False)
        reading = Background(lambda: ours.recv(1))
        assert not reading.wait(4), "a quiet application whose machine answers is left alone"
        for cable in ("cable1", "cable2"):
            network.on_client("link", "set", cable, "down")
        started = time.monotonic()
        error = reading.error()
        assert time.monotonic() - started < SECONDS
        assert isinstance(error, OSError)
        reason, text = reason_for(error)
        assert reason is Reason.UNREACHABLE
        assert "no longer answers" in text


def test_an_application_that_does_not_read_for_long_is_left_alone() -> None:
    """Its machine acknowledges what probes a closed window: keepalive is not the time that it takes to read."""
    with ExitStack() as stack:
        both = Both(stack, ApplicationKeepalive(idle=1, interval=1, count=2))
        sending = Background(lambda: both.accepted.send_all(memoryview(bytes(64 << 20))))
        assert not sending.wait(6)
        assert both.accepted._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        both.accepted.abort()
        sending.error()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ETIMEDOUT, Reason.UNREACHABLE),
        (errno.EHOSTUNREACH, Reason.UNREACHABLE),
        (errno.ECONNRESET, Reason.CANCELED),
        (errno.EPIPE, Reason.CANCELED),
    ],
)
def test_what_the_system_says_becomes_the_streams_reason(number: int, reason: Reason) -> None:
    code, text = reason_for(OSError(number, os.strerror(number)))
    assert code is reason
    assert os.strerror(number) in text
