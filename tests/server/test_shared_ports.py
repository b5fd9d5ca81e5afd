"""Promises about ports that several clients share, with real sockets and clients made up."""

from __future__ import annotations

import queue
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from qanat.base import watcher
from qanat.base.addresses import listen_addresses
from qanat.base.errors import EndpointError, NoThread
from qanat.mux.frames import Reason
from qanat.server.shared_ports import SharedPorts
from tests.support.harness import SECONDS
from tests.support.machine.ports import unused_port

HOST = "127.0.0.1"


class Taker:
    """A client that keeps what it is given."""

    def __init__(self, name: str, taken: queue.Queue[tuple[Taker, Callable[[], None]]], stack: ExitStack) -> None:
        self.name = name
        self.attached = True
        self._taken, self._stack = taken, stack

    def accept(self, sock: socket.socket, peer: str, done: Callable[[], None]) -> None:
        self._stack.enter_context(sock)
        self._taken.put((self, done))


class Rig:
    """One port, and who shares it."""

    def __init__(self, stack: ExitStack) -> None:
        watching = watcher.Watcher()
        stack.callback(watching.close)
        self.ports, self.port = SharedPorts(watching), unused_port()
        self._stack = stack
        self._taken = queue.Queue[tuple[Taker, Callable[[], None]]]()
        self.takers = {name: Taker(name, self._taken, stack) for name in "abc"}

    def join(self, name: str) -> Callable[[], None]:
        """Have this one share the port; returns what ends that."""
        taker = self.takers[name]
        member = self.ports.join(listen_addresses(HOST, self.port), taker, taker.accept)
        assert (member.address, member.port) == (f"{HOST}:{self.port}", self.port)
        self._stack.callback(member.close)
        return member.close

    def connect(self) -> tuple[str, Callable[[], None]]:
        """A new connection: who got it, and what says that it has ended."""
        self._stack.enter_context(socket.create_connection((HOST, self.port), timeout=SECONDS))
        taker, done = self._taken.get(timeout=SECONDS)
        return taker.name, done

    def who(self, count: int) -> list[str]:
        return [self.connect()[0] for _ in range(count)]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack)


def test_connections_are_spread_evenly(rig: Rig) -> None:
    for name in "abc":
        rig.join(name)
    assert Counter(rig.who(9)) == {"a": 3, "b": 3, "c": 3}


def test_among_equals_the_one_that_has_waited_longest_gets_the_next(rig: Rig) -> None:
    rig.join("a")
    rig.join("b")
    order = []
    for _ in range(4):
        name, done = rig.connect()
        done()
        order.append(name)
    assert order == ["a", "b", "a", "b"]


def test_the_next_connection_goes_to_the_least_loaded(rig: Rig) -> None:
    rig.join("a")
    assert rig.who(3) == ["a"] * 3
    rig.join("b")
    given = [rig.connect() for _ in range(3)]
    assert [name for name, _ in given] == ["b"] * 3
    for _, done in given[:2]:
        done()
    assert rig.who(2) == ["b", "b"]


def test_one_that_is_cut_off_is_left_out_while_another_is_there(rig: Rig) -> None:
    rig.join("a")
    rig.join("b")
    rig.takers["a"].attached = False
    assert rig.who(3) == ["b"] * 3
    rig.takers["a"].attached = True
    assert rig.who(3) == ["a"] * 3


def test_when_all_are_cut_off_they_get_what_comes_all_the_same(rig: Rig) -> None:
    for name in "ab":
        rig.join(name)
        rig.takers[name].attached = False
    assert Counter(rig.who(4)) == {"a": 2, "b": 2}


def test_one_that_leaves_gets_nothing_more_and_the_last_frees_the_port(rig: Rig) -> None:
    leave_a, leave_b = rig.join("a"), rig.join("b")
    leave_a()
    leave_a()
    assert rig.who(2) == ["b", "b"]
    leave_b()
    with socket.create_server((HOST, rig.port)):
        with pytest.raises(EndpointError) as caught:
            rig.join("c")
        assert caught.value.code == Reason.LIMIT
    rig.join("c")
    assert rig.who(1) == ["c"]


def test_a_port_that_got_no_thread_is_free_for_the_next(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(name: str, target: Callable[[], None]) -> threading.Thread:
        raise NoThread

    with monkeypatch.context() as patch:
        patch.setattr(watcher, "start_thread", no_thread)
        with pytest.raises(EndpointError, match="new thread"):
            rig.join("a")
    rig.join("b")
    assert rig.connect()[0] == "b"


def test_a_connection_that_ends_after_its_client_left_does_no_harm(rig: Rig) -> None:
    leave = rig.join("a")
    rig.join("b")
    _, done = rig.connect()
    leave()
    done()
    rig.join("a")
    assert Counter(rig.who(4)) == {"a": 2, "b": 2}


def test_members_that_come_and_go_at_once_leave_nothing_behind(rig: Rig) -> None:
    def come_and_go(name: str) -> None:
        taker = rig.takers[name]
        for _ in range(100):
            rig.ports.join(listen_addresses(HOST, rig.port), taker, taker.accept).close()

    threads = [threading.Thread(target=come_and_go, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    with socket.create_server((HOST, rig.port)):
        pass
