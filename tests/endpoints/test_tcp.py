"""Connecting and listening: every failure has a reason that a person can act on, and nothing spins."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from qanat.base.addresses import listen_addresses
from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError
from qanat.base.resolve import Address
from qanat.base.watcher import Watcher
from qanat.endpoints.accepting import Accepting
from qanat.endpoints.tcp import Listener
from qanat.mux.frames import Reason
from tests.support.background import wait_until
from tests.support.machine.descriptors import files_limited
from tests.support.machine.ports import silent_address
from tests.support.sockets import SECONDS, read_to_end
from tests.support.targets import connect

LOOPBACK4 = (socket.AF_INET, "127.0.0.1")
LOOPBACK6 = (socket.AF_INET6, "::1")


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """An address that never answers."""
    with contextlib.ExitStack() as stack:
        yield silent_address(stack)


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


def failure(*addresses: Address, seconds: float = SECONDS) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        connect(addresses, Deadline(seconds))
    return caught.value


# --- connecting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "host"), [LOOPBACK4, LOOPBACK6])
def test_a_target_is_reached_over_ipv4_and_ipv6(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        target = connect([(family, server.getsockname())], Deadline(SECONDS))
        accepted, _ = server.accept()
        with accepted:
            target.send_all(memoryview(b"hello"))
            assert accepted.recv(10) == b"hello"
            assert target._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert target.peer.startswith("[::1]:" if family is socket.AF_INET6 else "127.0.0.1:")
            target.close(orderly=False)
            assert read_to_end(accepted) == (b"", "reset")


def test_a_refused_connection_is_a_refusal(closed_port: int) -> None:
    error = failure((socket.AF_INET, ("127.0.0.1", closed_port)))
    assert (error.code, error.message) == (Reason.REFUSED, "Connection refused")


def test_a_target_that_never_answers_is_unreachable_at_the_deadline(silent: tuple[str, int]) -> None:
    started = time.monotonic()
    error = failure((socket.AF_INET, silent), seconds=0.2)
    assert (error.code, error.message) == (Reason.UNREACHABLE, "no answer in time")
    assert 0.15 < time.monotonic() - started < SECONDS / 2


def test_an_end_that_knows_more_reasons_is_told_which(silent: tuple[str, int], closed_port: int) -> None:
    assert failure((socket.AF_INET, silent), seconds=0.2).closer_code == Reason.TIMED_OUT
    assert failure((socket.AF_INET, ("127.0.0.1", closed_port))).closer_code == Reason.REFUSED


def test_a_deadline_that_has_passed_tries_nothing(closed_port: int) -> None:
    assert failure((socket.AF_INET, ("127.0.0.1", closed_port)), seconds=0).code == Reason.UNREACHABLE


def test_a_family_that_has_no_route_is_unreachable() -> None:
    assert failure((socket.AF_INET6, ("100::1", 9)), seconds=0.3).code == Reason.UNREACHABLE


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EHOSTUNREACH, Reason.UNREACHABLE),
        (errno.ENETUNREACH, Reason.UNREACHABLE),
        (errno.EACCES, Reason.NOT_ALLOWED),
        (errno.EPERM, Reason.NOT_ALLOWED),
        (errno.ECONNRESET, Reason.REFUSED),
    ],
)
def test_what_the_system_says_becomes_a_reason(monkeypatch: pytest.MonkeyPatch, number: int, reason: Reason) -> None:
    """These need networks that a test cannot have, so the one call that would meet them fails as it would there."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "connect_ex", fail)
    error = failure((socket.AF_INET, ("192.0.2.1", 9)))
    assert (error.code, error.message) == (reason, os.strerror(number))


def test_the_next_address_is_tried_and_a_silent_one_leaves_it_time(silent: tuple[str, int], closed_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        addresses: list[Address] = [
            (socket.AF_INET, silent),
            (socket.AF_INET, ("127.0.0.1", closed_port)),
            (socket.AF_INET, server.getsockname()),
        ]
        connect(addresses, Deadline(0.6)).close(orderly=True)


def test_a_connection_that_nobody_wants_any_more_is_not_tried(closed_port: int) -> None:
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(EndpointError, match="stopped"):
        connect([(socket.AF_INET, ("127.0.0.1", closed_port))], Deadline(SECONDS), cancel)


def test_no_descriptor_left_is_a_limit_and_leaks_none(closed_port: int) -> None:
    with files_limited(0):
        error = failure((socket.AF_INET, ("127.0.0.1", closed_port)))
    assert error.code == Reason.LIMIT


# --- listening --------------------------------------------------------------------------------------


class Accepted:
    """A listener whose connections wait in a queue."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.connections: queue.Queue[tuple[socket.socket, str]] = queue.Queue()
        self.watcher = Watcher()
        self.listener = Listener(
            listen_addresses(host, port), lambda sock, peer: self.connections.put((sock, peer)), "listen", self.watcher
        )

    def __enter__(self) -> Accepted:
        self.listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.watcher.close()
        while not self.connections.empty():
            self.connections.get()[0].close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_arrive_with_their_address(host: str) -> None:
    with Accepted(host) as accepting, socket.create_connection((host, accepting.listener.port), SECONDS) as client:
        sock, peer = accepting.connections.get(timeout=SECONDS)
        with sock:
            port = client.getsockname()[1]
            assert peer == (f"[::1]:{port}" if host == "::1" else f"127.0.0.1:{port}")
            assert accepting.listener.address.endswith(f":{accepting.listener.port}")


def test_a_wildcard_of_ipv6_does_not_take_ipv4s_port() -> None:
    with Accepted("::") as six, Accepted("0.0.0.0", six.listener.port) as four:
        with socket.create_connection(("127.0.0.1", six.listener.port), SECONDS):
            four.connections.get(timeout=SECONDS)[0].close()
        with socket.create_connection(("::1", six.listener.port), SECONDS):
            six.connections.get(timeout=SECONDS)[0].close()


def test_a_port_in_use_says_who_to_look_for() -> None:
    with Accepted() as holder:
        where = listen_addresses("127.0.0.1", holder.listener.port)
        with pytest.raises(EndpointError) as caught:
            Listener(where, lambda sock, peer: None, "second", holder.watcher)
        assert caught.value.code == Reason.LIMIT
        assert f"cannot listen on 127.0.0.1:{holder.listener.port}" in caught.value.message
        assert "ss -ltnp" in caught.value.hint


def test_an_address_that_is_not_ours_says_so(watcher: Watcher) -> None:
    with pytest.raises(EndpointError) as caught:
        Listener(listen_addresses("192.0.2.1", 0), lambda sock, peer: None, "foreign", watcher)
    assert "does not have that address" in caught.value.hint


@pytest.mark.parametrize("spare", range(4))
def test_no_descriptor_left_for_a_listener_leaks_none(spare: int, watcher: Watcher) -> None:
    """None at all, one for the socket itself, and some of what the watcher waits with."""
    with files_limited(spare), pytest.raises(EndpointError) as caught:
        Listener(listen_addresses("127.0.0.1", 0), lambda sock, peer: None, "starved", watcher).start()
    assert caught.value.code == Reason.LIMIT
    assert "ulimit -n" in caught.value.hint


def test_close_joins_frees_the_port_and_may_be_repeated() -> None:
    with Accepted() as accepting:
        port = accepting.listener.port
        closers = [threading.Thread(target=accepting.listener.close) for _ in range(4)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(SECONDS)
        assert len(accepting.watcher) == 0
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_listener_that_never_started_frees_its_port(watcher: Watcher) -> None:
    listener = Listener(listen_addresses("127.0.0.1", 0), lambda sock, peer: None, "unused", watcher)
    listener.close()
    with socket.create_server(("127.0.0.1", listener.port)):
        pass


def test_a_listener_may_be_closed_by_its_own_thread(watcher: Watcher) -> None:
    listeners: list[Listener] = []
    closed: queue.Queue[socket.socket] = queue.Queue()

    def close(sock: socket.socket, peer: str) -> None:
        listeners[0].close()
        closed.put(sock)

    listeners.append(Listener(listen_addresses("127.0.0.1", 0), close, "own", watcher))
    listeners[0].start()
    with socket.create_connection(("127.0.0.1", listeners[0].port), SECONDS):
        closed.get(timeout=SECONDS).close()
    listeners[0].close()
    with socket.create_server(("127.0.0.1", listeners[0].port)):
        pass


def test_connections_that_nobody_took_charge_of_are_reset() -> None:
    with Accepted() as accepting, socket.create_connection(("127.0.0.1", accepting.listener.port), SECONDS) as client:
        accepting.connections.get(timeout=SECONDS)[0].close()
        assert read_to_end(client) == (b"", "reset")


def test_without_descriptors_it_waits_without_spinning_and_then_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with Accepted() as accepting, socket.socket() as client:
        client.settimeout(SECONDS)
        tries = _count_calls(monkeypatch, accepting.listener._accepting, "_accept")
        with files_limited(1):  # For `poll`, which needs none; the connection would need one more.
            taken = os.open("/dev/null", os.O_RDONLY)
            client.connect(("127.0.0.1", accepting.listener.port))
            wait_until(lambda: accepting.listener._accepting._exhausted, "it has met the limit")
            cpu = time.process_time()
            wait_until(lambda: tries() >= 4, "it has tried again")
            assert time.process_time() - cpu < 0.25
            os.close(taken)
        sock, _ = accepting.connections.get(timeout=SECONDS)
        sock.close()
        assert tries() < 50


def test_close_does_not_wait_for_descriptors() -> None:
    with Accepted() as accepting, socket.socket() as client, files_limited(0):
        client.connect(("127.0.0.1", accepting.listener.port))
        wait_until(lambda: accepting.listener._accepting._exhausted, "it has met the limit")
        accepting.listener.close()


def _count_calls(monkeypatch: pytest.MonkeyPatch, accepting: Accepting, name: str) -> Callable[[], int]:
    calls: list[None] = []
    method = getattr(accepting, name)

    def counting(listener: socket.socket) -> object:
        calls.append(None)
        return method(listener)

    monkeypatch.setattr(accepting, name, counting)
    return lambda: len(calls)
