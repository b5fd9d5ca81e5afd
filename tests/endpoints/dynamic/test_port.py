"""A proxy's port: what its connections may cost in time and number, and how they end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from qanat.base.endpoint_addresses import UdpAddress
from qanat.base.errors import WouldBlock
from qanat.base.watcher import Watcher
from qanat.endpoints.dynamic import connection, forwarding
from qanat.endpoints.dynamic import port as port_module
from qanat.endpoints.dynamic.asked import Asked
from qanat.endpoints.dynamic.port import DynamicPort
from qanat.endpoints.pending import PendingConnection
from qanat.endpoints.udp import UdpFlow
from qanat.mux.frames import Reason
from tests.support.background import wait_until

SECONDS = 20.0
SOCKS = b"\x05\x01\x00\x05\x01\x00\x01\x0a\0\0\1\0\x50"
GET = b"GET http://a.example/ HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Rig:
    """A port, what it has asked for, and how many of its connections are over."""

    def __init__(self) -> None:
        self.watcher = Watcher()
        self.pending: list[tuple[PendingConnection, Asked]] = []
        self.over = 0
        self._lock = threading.Lock()
        self._ours: list[socket.socket] = []
        self.port = DynamicPort(
            "a port", self.watcher, lambda pending, asked: self.pending.append((pending, asked)), flow
        )

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(SECONDS)
        self._ours.append(ours)
        self.port.take(theirs, "192.0.2.7:1", self._ended)
        return ours

    def wait_asked(self, count: int) -> tuple[PendingConnection, Asked]:
        wait_until(lambda: len(self.pending) >= count, f"{count} asked for something")
        return self.pending[count - 1]

    def wait_over(self, count: int) -> None:
        wait_until(lambda: self.over == count, f"{count} are over")

    def close(self) -> None:
        for sock in self._ours:
            sock.close()
        self.port.abort()
        self.watcher.close()

    def _ended(self) -> None:
        with self._lock:
            self.over += 1


def flow(
    to: UdpAddress, origin: str, on_datagram: Callable[[bytes], None], on_over: Callable[[int, str], None]
) -> UdpFlow:
    raise WouldBlock


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def rest_of(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize(("start", "answer"), [(b"", b""), (b"\x05\x01", b""), (b"GET http://a.ex", b"HTTP/1.1 408 ")])
def test_who_does_not_say_where_to_in_time_is_let_go(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, start: bytes, answer: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    sock = rig.connect()
    sock.sendall(start)
    assert rest_of(sock).startswith(answer)
    rig.wait_over(1)
    assert not rig.pending


def test_a_kept_connection_is_let_go_after_a_while_and_a_slow_second_head_sooner(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "IDLE_SECONDS", 0.3)
    for number, second in enumerate((b"", b"GET http://a"), 1):
        if second:
            monkeypatch.setattr(forwarding, "IDLE_SECONDS", 1000.0)
            monkeypatch.setattr(forwarding, "HEAD_SECONDS", 0.3)
        sock = rig.connect()
        sock.sendall(GET)
        target = rig.wait_asked(number)[0].accepted("10.0.0.1:80")
        assert target is not None
        target.sendall(OK)
        assert sock.recv(65536).endswith(b"ok")
        sock.sendall(second)
        assert rest_of(sock).startswith(b"HTTP/1.1 408 " if second else b"")
        target.close()
        rig.wait_over(number)


def test_more_than_there_is_room_for_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_module, "MAX_CONNECTIONS", 2)
    first, _ = rig.connect(), rig.connect()
    assert rest_of(rig.connect()) == b""
    rig.wait_over(1)
    first.sendall(SOCKS)
    target = rig.wait_asked(1)[0].accepted("10.0.0.1:80")
    assert target is not None  # it leads somewhere, and makes room
    third = rig.connect()
    third.sendall(SOCKS)
    rig.wait_asked(2)
    target.close()


def test_what_waits_for_a_request_ends_with_the_port_and_what_is_under_way_goes_on(rig: Rig) -> None:
    silent, asking, kept = rig.connect(), rig.connect(), rig.connect()
    asking.sendall(SOCKS)
    pending, asked = rig.wait_asked(1)
    assert asked == Asked("10.0.0.1", 80)
    kept.sendall(GET)
    target = rig.wait_asked(2)[0].accepted("10.0.0.2:80")
    assert target is not None
    rig.port.close()
    assert rest_of(silent) == b""
    pending.refused(Reason.TIMED_OUT, "no answer in time")
    assert rest_of(asking)[2:4] == b"\x05\x06"
    target.sendall(OK)
    assert rest_of(kept).endswith(b"ok")
    target.close()
    rig.wait_over(3)
    assert rest_of(rig.connect()) == b""


def test_a_user_who_goes_while_his_target_is_awaited_leaves_nothing(rig: Rig) -> None:
    for number, request in enumerate((SOCKS, GET), 1):
        sock = rig.connect()
        sock.sendall(request)
        pending, _ = rig.wait_asked(number)
        sock.close()
        target = pending.accepted("10.0.0.1:80")
        if target is not None:
            target.close()
            pending.ended()
    rig.wait_over(2)
