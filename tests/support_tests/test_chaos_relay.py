"""Promises about the hostile network itself: what each fault does to the two ends, and that a seed repeats itself."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.support.applications import (
    END,
    RESET,
    Target,
    connection,
    discard,
    echo,
    ending_of,
    exchange,
    receive_exactly,
)
from tests.support.chaos import QUICK, SILENT, ChaosRelay, Fault, Hindrance, Plans, deck
from tests.support.harness import SECONDS
from tests.support.spoken import Spoken


@dataclass(frozen=True, slots=True)
class Path:
    target: Target
    relay: ChaosRelay
    sock: socket.socket


@contextmanager
def path_with(fault: Fault, *, seed: int = 1) -> Iterator[Path]:
    """A connection to an echo that has just met `fault`."""
    with (
        Target(echo) as target,
        ChaosRelay(target.port, seed=seed, faults={fault: 1}, life=(0, 0), least=1) as relay,
        connection(relay.port) as sock,
    ):
        assert exchange(sock, b"hello") == b"hello"
        assert relay.wait_faults(1), relay.report()
        yield Path(target, relay, sock)


def hears_nothing(sock: socket.socket) -> bool:
    sock.settimeout(0.3)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    return False


def seed_with(fault: Fault, *, gently: bool) -> int:
    """A seed whose first connection has its half-open end this way."""
    return next(seed for seed in range(100) if Plans(seed, {fault: 1}, (0, 0)).plan(0).gently is gently)


def test_a_cut_is_an_orderly_end_for_both() -> None:
    with path_with(Fault.CUT) as path:
        assert ending_of(path.sock) == END
        assert path.target.wait_endings(1) == [END]


def test_a_reset_is_a_reset_for_both() -> None:
    with path_with(Fault.RESET) as path:
        assert ending_of(path.sock) == RESET
        assert path.target.wait_endings(1) == [RESET]


@pytest.mark.parametrize(("gently", "ending"), [(True, END), (False, RESET)])
def test_a_half_open_connection_tells_one_end_and_not_the_other(gently: bool, ending: str) -> None:
    with path_with(Fault.CLIENT_TOLD, seed=seed_with(Fault.CLIENT_TOLD, gently=gently)) as path:
        assert ending_of(path.sock) == ending
        assert path.target.endings == []
    with path_with(Fault.SERVER_TOLD, seed=seed_with(Fault.SERVER_TOLD, gently=gently)) as path:
        assert path.target.wait_endings(1) == [ending]
        assert hears_nothing(path.sock)
        path.sock.sendall(b"into the void")


def test_a_stalled_connection_tells_nobody_and_takes_nothing() -> None:
    with path_with(Fault.STALLED) as path:
        assert hears_nothing(path.sock)
        with contextlib.suppress(TimeoutError):
            while True:  # until the buffers are full
                path.sock.sendall(bytes(1 << 20))
        assert path.target.endings == []


def test_one_direction_dies_while_the_other_lives() -> None:
    with path_with(Fault.UP_DEAD) as path:
        path.sock.sendall(b"never arrives")
        assert hears_nothing(path.sock)
    with beat_with(Fault.UP_DEAD) as sock:
        receive_exactly(sock, 10_000)  # far more than could have been on its way
    with beat_with(Fault.DOWN_DEAD) as sock:
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            receive_exactly(sock, 1 << 30)


@contextmanager
def beat_with(fault: Fault) -> Iterator[socket.socket]:
    """A connection over which a hundred bytes come every millisecond, and that has just met `fault`."""
    with (
        Target(source_of_a_beat) as target,
        ChaosRelay(target.port, faults={fault: 1}, least=1) as relay,
        connection(relay.port) as sock,
    ):
        sock.sendall(b"?")
        assert relay.wait_faults(1), relay.report()
        yield sock


def source_of_a_beat(sock: socket.socket, target: Target) -> str:
    """Take one byte, then send a hundred every millisecond."""
    sock.recv(1)
    while not target.closing.wait(0.001):
        sock.sendall(bytes(100))
    return END


def test_a_truncated_chunk_arrives_in_part_and_both_ends_are_reset() -> None:
    with path_with(Fault.TRUNCATED) as path:
        path.sock.sendall(bytes(1000))
        assert len(path.sock.recv(1000)) < 1000
        assert ending_of(path.sock) == RESET
        assert path.target.wait_endings(1) == [RESET]


def test_without_a_fault_every_byte_arrives_in_order_and_so_does_the_end() -> None:
    data = os.urandom(3_000_000)

    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    with Target(echo) as target, ChaosRelay(target.port, calm=True, delay=0.02) as relay:
        with connection(relay.port) as sock:
            sender = threading.Thread(target=send)
            began = time.monotonic()
            sender.start()
            assert receive_exactly(sock, len(data)) == data
            assert sock.recv(1) == b""
            assert time.monotonic() - began >= 0.04
            sender.join()
        assert target.wait_endings(1) == [END]


def test_a_long_path_delays_bytes_the_connection_itself_and_news_of_a_cut() -> None:
    with Target(echo) as target, ChaosRelay(target.port, calm=True, delay=0.05) as relay:
        first, later, told = [], [], []
        for number in range(1, 11):  # whatever else runs here can only add to the times, so the best counts
            began = time.monotonic()
            with connection(relay.port) as sock:
                assert exchange(sock, b"x") == b"x"
                first.append(time.monotonic() - began)
                for _ in range(3):
                    began = time.monotonic()
                    assert exchange(sock, b"x") == b"x"
                    later.append(time.monotonic() - began)
                cut = relay.cut()
                assert target.wait_endings(number) == [RESET] * number
                told.append(time.monotonic() - cut)
                assert ending_of(sock) == RESET
                assert time.monotonic() - cut >= 0.05
            assert min(first) >= 0.2
            assert min(later) >= 0.1
            if min(first) < 0.3 and min(later) < 0.2 and min(told) < 0.05:
                return
        pytest.fail(f"even at best it took {min(first):.3f}, {min(later):.3f} and {min(told):.3f} s")


@pytest.mark.parametrize("hindrance", [Hindrance.PAUSE, Hindrance.DELAY])
def test_after_a_hindrance_it_goes_on_as_before(hindrance: Hindrance) -> None:
    def first(seed: int) -> Hindrance:
        return Plans(seed, {Fault.RESET: 1}, (0, 0)).plan(0).hindrance

    seed = next(seed for seed in range(100) if first(seed) is hindrance)
    with (
        Target(echo) as target,
        ChaosRelay(target.port, seed=seed, faults={Fault.RESET: 1}, life=(0, 0), least=1) as relay,
        connection(relay.port) as sock,
    ):
        with contextlib.suppress(ConnectionResetError):
            for number in itertools.count():
                data = number.to_bytes(8, "big")
                assert exchange(sock, data) == data
        assert relay.wait_faults(1)
        assert relay.counts == {hindrance.value: 1, "reset": 1}


def test_calm_leaves_connections_alone() -> None:
    with (
        Target(echo) as target,
        ChaosRelay(target.port, faults={Fault.RESET: 1}, life=(0.1, 0.1), least=1) as relay,
        connection(relay.port) as sock,
    ):
        assert exchange(sock, b"x") == b"x"
        relay.calm()
        assert hears_nothing(sock)
        sock.settimeout(SECONDS)
        assert exchange(sock, b"x") == b"x"
        relay.cut()
        assert ending_of(sock) == RESET


def test_an_end_is_told_to_the_other_side_on_every_port() -> None:
    with Target(discard) as target, ChaosRelay(target.port, calm=True, ports=3) as relay:
        for port in relay.ports:
            with connection(port) as sock:
                sock.sendall(b"x")
        assert target.wait_endings(3) == [END] * 3


def test_a_seed_repeats_itself_and_a_deal_has_every_fault() -> None:
    faults = deck(2, *SILENT)
    plans = [Plans(7, faults, (0.1, 0.2)).plan(number) for number in range(24)]
    assert plans == [Plans(7, faults, (0.1, 0.2)).plan(number) for number in range(24)]
    assert plans != [Plans(8, faults, (0.1, 0.2)).plan(number) for number in range(24)]
    for deal in (plans[:12], plans[12:]):
        assert sorted(plan.fault.value for plan in deal) == sorted(f.value for f in [*QUICK, *QUICK, *SILENT])
    assert all(0.1 <= plan.peace <= 0.2 for plan in plans)


@pytest.mark.parametrize(
    ("begin", "transport"),
    [
        (b"GET /tunnel HTTP/1.1\r\n", "websocket"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5) + b"\0\0\4\1" + bytes(5) + b"abcd", "http2"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x11\1" + bytes(5) + b"\x10application/grpc", "grpc"),
    ],
)
def test_a_transport_is_told_by_its_first_bytes_however_they_come(begin: bytes, transport: str) -> None:
    heard: list[str] = []
    spoken = Spoken(heard.append)
    for number in range(len(begin)):
        spoken.feed(begin[number : number + 1])
    assert heard == [transport]
