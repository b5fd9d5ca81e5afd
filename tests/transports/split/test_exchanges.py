"""Promises of requests that nobody's thread waits for, against whatever is at the other end of the connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.watcher import Watcher
from qanat.mux.parameters import LaneParameters
from qanat.transports.dial.route import DIRECT
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.split import connections
from qanat.transports.split.connections import Connections
from qanat.transports.split.exchanges import Exchanges
from qanat.transports.split.token import Carrier
from tests.support.background import DEADLINE, wait_until
from tests.transports.split.test_exchange import Kept

CARRIED = [(Carrier.HEADER, "token")]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"


class Rig:
    """A client's requests, with one idle connection, to a server that is this test."""

    def __init__(self, stack: ExitStack) -> None:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        watcher = Watcher()
        stack.callback(watcher.close)
        watcher.start()
        url = TunnelUrl.parse(f"http://127.0.0.1:{listener.getsockname()[1]}/tunnel")
        self.requests = Connections(url, DIRECT, 5.0)
        stack.callback(self.requests.close)
        self.exchanges = Exchanges(self.requests)
        connection = self.requests.open(Deadline(DEADLINE))
        self.peer = stack.enter_context(listener.accept()[0])
        self.peer.settimeout(DEADLINE)
        self.exchanges.watch_with(watcher)
        self.requests.give_back(connection, reusable=True)

    def begin(self, body: bytes | None = None, *, patience: float = 0.0, seconds: float = 60.0) -> Kept:
        taker = Kept()
        taker.patience = patience
        connection = self.exchanges.reserve()
        assert connection is not None
        self.exchange = self.exchanges.begin(connection, taker, taker.over.append, seconds)
        self.exchanges.send(self.exchange, "GET" if body is None else "POST", CARRIED, body)
        return taker

    def is_free(self) -> bool:
        """Whether a further request could be made."""
        connection = self.requests.reserve()
        if connection is not None:
            self.requests.give_back(connection, reusable=True)
        return connection is not None


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack)


def processor_time(seconds: float) -> float:
    """What this process needs meanwhile."""
    before = time.process_time()
    time.sleep(seconds)
    return time.process_time() - before


def test_a_connection_is_used_again_once_its_answer_has_come(rig: Rig) -> None:
    for _ in range(3):
        taker = rig.begin()
        assert rig.peer.recv(65536).startswith(b"GET /tunnel HTTP/1.1\r\n")
        assert not rig.is_free()
        rig.peer.sendall(ANSWER)
        wait_until(lambda taker=taker: taker.over == [None], "the answer")  # type: ignore[misc]
        wait_until(rig.is_free, "the connection is free")


def test_more_than_the_answer_is_no_other_requests_answer(rig: Rig) -> None:
    taker = rig.begin()
    rig.peer.sendall(ANSWER + ANSWER)
    wait_until(lambda: taker.over == [None], "the answer")
    assert not rig.is_free()


def test_an_answer_before_all_of_its_request_is_out_costs_nothing_and_loses_no_connection(rig: Rig) -> None:
    body = bytes(16 * 1024 * 1024)
    taker = rig.begin(body)
    received = len(rig.peer.recv(65536))
    rig.peer.sendall(ANSWER)
    wait_until(lambda: taker.over == [None], "the answer")
    assert processor_time(0.3) < 0.15
    assert not rig.is_free()
    while received < len(body):
        received += len(rig.peer.recv(1 << 20))
    wait_until(rig.is_free, "the connection is free")


def test_one_that_is_over_keeps_nobody_busy(rig: Rig) -> None:
    taker = rig.begin(patience=0.05, seconds=0.05)
    wait_until(lambda: len(taker.over) == 1, "its time is over")
    rig.exchanges.watch(rig.exchange)
    assert processor_time(0.3) < 0.15
    assert not rig.exchange.hold(1.0)
    assert len(taker.over) == 1


def test_a_connection_that_ends_while_it_is_idle_is_not_used(rig: Rig) -> None:
    rig.peer.close()
    wait_until(lambda: not rig.is_free(), "it is gone")


def test_a_request_whose_connection_is_cut_fails_once(rig: Rig) -> None:
    taker = rig.begin(bytes(16 * 1024 * 1024))
    rig.peer.recv(1000)
    rig.peer.close()
    wait_until(lambda: len(taker.over) == 1, "it has failed")
    assert isinstance(taker.over[0], TransportError)
    assert processor_time(0.3) < 0.15
    assert len(taker.over) == 1


def test_what_a_thread_holds_is_read_by_the_watcher_after_that(rig: Rig) -> None:
    taker = rig.begin(patience=60.0)
    rig.peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    wait_until(lambda: taker.body == b"a", "the watcher reads")
    assert rig.exchange.hold(0.1)
    rig.peer.sendall(b"1\r\nb\r\n")
    time.sleep(0.05)
    assert taker.body == b"a"
    while taker.body == b"a":
        rig.exchange.read(held=True)
    assert taker.body == b"ab"
    rig.peer.sendall(b"1\r\nc\r\n0\r\n\r\n")
    rig.exchanges.watch(rig.exchange)
    wait_until(lambda: taker.over == [None], "all has come")
    assert taker.body == b"abc"


def test_a_connection_that_an_idle_pipe_needs_with_each_ping_is_not_made_anew_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = LaneParameters(client=True)
    with ExitStack() as stack:
        rig = Rig(stack)
        second = rig.requests.open(Deadline(DEADLINE))
        rig.requests.give_back(second, reusable=True)
        now = time.monotonic()
        for ping in range(1, 4):
            later = now + ping * (idle.keepalive + idle.keepalive_slack)
            monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda later=later: later))
            both = [rig.requests.reserve(), rig.requests.reserve()]
            assert None not in both
            for each in both:
                assert each is not None
                rig.requests.give_back(each, reusable=True)
