"""What strangers can cost: time, threads, memory, files; and who is slowed down."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import resource
import socket
import threading
import time

import pytest

from qanat.base.deadline import Deadline
from qanat.base.workers import Workers
from qanat.config.server_settings import ServerLimits
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door.front_door import FrontDoor
from qanat.transports.pipe import Pipe
from tests.support.background import DEADLINE
from tests.support.server.front_door_rig import (
    WEBSOCKET,
    connect,
    exchange,
    front_door,
    read_head,
    read_to_end,
    request,
    seconds_until_closed,
)


def upgrade(door: FrontDoor, *headers: str) -> tuple[socket.socket, bytes]:
    """A socket that asked for the tunnel, and the head of the answer."""
    sock = connect(door)
    sock.sendall(("\r\n".join(["GET /tunnel HTTP/1.1", *headers]) + f"\r\n{WEBSOCKET}\r\n").encode())
    return sock, read_head(sock)


def test_a_head_sent_byte_by_byte_dies_at_the_deadline() -> None:
    with front_door(limits=ServerLimits(header_timeout=0.5)) as door, connect(door) as sock:
        started = time.monotonic()
        sock.settimeout(0.02)
        sent = 0
        for byte in request("GET /healthz HTTP/1.1", "X: " + "y" * 5000):
            try:
                sock.sendall(bytes([byte]))
                sent += 1
                if not sock.recv(100):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert sent < 4000
        assert 0.4 < time.monotonic() - started < 20, "all of it would take a hundred seconds"


def test_half_open_connections_cost_bounded_threads_and_die_at_the_deadline() -> None:
    with (
        front_door(limits=ServerLimits(connections=100, header_timeout=0.5)) as door,
        contextlib.ExitStack() as stack,
    ):
        before = threading.active_count()
        sockets = [stack.enter_context(connect(door)) for _ in range(300)]
        for sock in sockets[::2]:
            sock.sendall(b"GET /hea")
        assert threading.active_count() <= before + 100
        for sock in sockets:
            assert read_to_end(sock) == b""
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")


def test_connections_above_the_limit_wait_for_their_turn_while_all_are_pipes(caplog: pytest.LogCaptureFixture) -> None:
    with front_door(limits=ServerLimits(connections=2)) as door, contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(upgrade(door)[0]) for _ in range(2)]
        third = stack.enter_context(connect(door))
        third.sendall(request("GET /healthz HTTP/1.1"))
        third.settimeout(0.2)
        with pytest.raises(TimeoutError):
            third.recv(1)
        pipes[1].close()
        third.settimeout(DEADLINE)
        assert read_to_end(third).endswith(b"ok\n")
    assert caplog.text.count("limits.connections") == 1


def test_nobody_is_kept_out_by_connections_that_do_nothing() -> None:
    with front_door(limits=ServerLimits(connections=20, header_timeout=60)) as door, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(door)) for _ in range(60)]
        with connect(door) as other:
            other.sendall(request("GET /healthz HTTP/1.1"))
            assert read_to_end(other).endswith(b"ok\n")
        assert read_to_end(idle[0]) == b""  # the oldest gave way
        idle[-1].sendall(request("GET /healthz HTTP/1.1"))
        assert read_to_end(idle[-1]).endswith(b"ok\n")


def test_a_flood_that_is_slowed_down_keeps_nobody_else_out() -> None:
    limits = ServerLimits(connections=20, header_timeout=60, per_address_rate=0.1, per_address_burst=1)
    with front_door(limits=limits) as door, contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(door.addresses[0], DEADLINE, source_address=("127.0.0.2", 0)))
        started = time.monotonic()
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")
        assert time.monotonic() - started < 20, "the flood waits for half a minute"


def test_who_holds_every_handshake_loses_one_to_whoever_comes_from_elsewhere() -> None:
    finish = threading.Event()

    def on_pipe(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        finish.wait(3 * DEADLINE)

    limits = ServerLimits(handshakes=3, handshake_rate=1e6)
    with (
        front_door(on_pipe, limits=limits, trusted_proxies=("127.0.0.0/8",)) as door,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(finish.set)
        held = [upgrade(door, "X-Forwarded-For: 203.0.113.1") for _ in range(4)]
        for sock, _ in held:
            stack.enter_context(sock)
        assert [answer[9:12] for _, answer in held] == [b"101", b"101", b"101", b"503"]
        sock, answer = upgrade(door, "X-Forwarded-For: 203.0.113.2")
        stack.enter_context(sock)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert read_to_end(held[0][0]) == b""
        assert door.admission.handshakes == 3


def test_a_header_bomb_is_cut_off_at_the_limit() -> None:
    with front_door(limits=ServerLimits(header_bytes=2000)) as door, connect(door) as sock:
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(2000):
                sent += sock.send(b"X: " + b"y" * 4093)
        assert sent < 8_000_000
        answer = exchange(door, b"GET /healthz HTTP/1.1\r\n" + b"A: " + b"b" * 3000)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")


def test_handshakes_above_the_limit_are_told_when_to_come_back() -> None:
    slots: list[HandshakeSlot] = []
    arrived = threading.Semaphore(0)
    finish = threading.Event()

    def on_pipe(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        slots.append(slot)
        arrived.release()
        finish.wait(3 * DEADLINE)

    with (
        front_door(on_pipe, limits=ServerLimits(handshakes=2, handshake_rate=0.5)) as door,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(finish.set)
        for _ in range(2):
            sock, answer = upgrade(door)
            stack.enter_context(sock)
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert arrived.acquire(timeout=DEADLINE)
        waits = []
        began = time.monotonic()
        for _ in range(10):
            sock, answer = upgrade(door)
            stack.enter_context(sock)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"upgrade:" not in answer.lower()
            found = re.search(rb"\r\nRetry-After: ([0-9]+)\r\n", answer)
            assert found
            waits.append(int(found[1]))
        assert waits[0] in (1, 2)
        passed = time.monotonic() - began
        assert 16 - passed <= waits[-1] - waits[0] <= 18  # nine bookings further, less what passed meanwhile
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")
        slots[0].release()
        assert _comes_in_soon(door)


def _comes_in_soon(door: FrontDoor) -> bool:
    deadline = Deadline(3 * DEADLINE)  # who has booked before comes first
    while not deadline.passed:
        sock, answer = upgrade(door)
        with sock:
            if answer.startswith(b"HTTP/1.1 101 "):
                return True
        time.sleep(0.05)  # the tokens come with the time
    return False


def test_behind_a_trusted_proxy_one_who_floods_only_waits_longer_itself() -> None:
    with front_door(
        lambda pipe, address, slot: None,
        limits=ServerLimits(handshakes=1, handshake_rate=0.1),
        trusted_proxies=("127.0.0.0/8",),
    ) as door:
        told = {}
        for client in ["203.0.113.66"] * 30 + ["203.0.113.1"]:
            sock, answer = upgrade(door, f"X-Forwarded-For: {client}")
            with sock:
                found = re.search(rb"\r\nRetry-After: ([0-9]+)\r\n", answer)
                told[client] = int(found[1]) if found else 0
    assert told["203.0.113.66"] > 30
    assert 10 <= told["203.0.113.1"] <= 20  # behind one of the other's bookings, less what passed meanwhile


def test_the_slot_is_free_again_when_the_handler_returns() -> None:
    with front_door(lambda pipe, address, slot: None, limits=ServerLimits(handshakes=1, handshake_rate=1e6)) as door:
        for _ in range(5):
            sock, answer = upgrade(door)
            with sock:
                assert answer.startswith(b"HTTP/1.1 101 ")
                read_to_end(sock)
        _eventually_no_handshakes(door)


def _eventually_no_handshakes(door: FrontDoor) -> None:
    door.close()
    assert door.join(DEADLINE) == []
    assert door.admission.handshakes == 0


def _delays_told(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Which address the door has asked for from now on, and how many seconds it was told."""
    told: list[tuple[str, float]] = []
    delay = door.admission.delay

    def note(ip: str) -> float:
        told.append((ip, delay(ip)))
        return told[-1][1]

    monkeypatch.setattr(door.admission, "delay", note)
    return told


def test_an_address_that_comes_too_often_is_slowed_down_and_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ServerLimits(per_address_rate=0.125, per_address_burst=3, header_timeout=3)
    with front_door(limits=limits) as door, contextlib.ExitStack() as stack:
        told = _delays_told(door, monkeypatch)
        started = time.monotonic()
        sockets = [stack.enter_context(connect(door)) for _ in range(6)]
        for sock in sockets:
            sock.sendall(request("GET /healthz HTTP/1.1"))
        served_after = []
        for sock in sockets:
            assert read_to_end(sock).endswith(b"ok\n")
            served_after.append(time.monotonic() - started)
    assert told == [("127.0.0.1", 0.0)] * 3 + [("127.0.0.1", 1.5)] * 3  # the burst, and who has to wait its half
    assert min(served_after[3:]) >= 1.5


def test_a_flood_of_one_address_is_served_to_the_last() -> None:
    limits = ServerLimits(per_address_rate=25, per_address_burst=5, header_timeout=3)  # one by one it would take 3.8 s
    with front_door(limits=limits) as door, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(door)) for _ in range(100)]
        for sock in sockets:
            sock.sendall(request("GET /healthz HTTP/1.1"))
        assert all(read_to_end(sock).endswith(b"ok\n") for sock in sockets)


SLOW = ServerLimits(per_address_rate=0.125, per_address_burst=1, header_timeout=3)
DELAY = 1.5
"""Seconds that the second of an address waits: half of the time for a head, since the next token is further away."""


def _seconds_for_upgrades(door: FrontDoor, *addresses: str) -> list[float]:
    took = []
    for address in addresses:
        started = time.monotonic()
        sock, answer = upgrade(door, f"X-Forwarded-For: {address}")
        took.append(time.monotonic() - started)
        with sock:
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert read_to_end(sock) is not None  # the handler has been called, and has returned
    return took


def test_behind_a_trusted_proxy_each_client_is_slowed_down_by_itself_and_the_proxy_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[ClientAddress] = []
    with front_door(lambda p, address, s: seen.append(address), limits=SLOW, trusted_proxies=("127.0.0.0/8",)) as door:
        told = _delays_told(door, monkeypatch)
        clients = [f"203.0.113.{n}" for n in range(10)]
        _seconds_for_upgrades(door, *clients)
        _, second = _seconds_for_upgrades(door, "198.51.100.1", "198.51.100.1")
        assert second >= DELAY
        for _ in range(10):
            exchange(door, request("GET /healthz HTTP/1.1"))
        _seconds_for_upgrades(door, "127.0.0.9", "127.0.0.9", "not an address", "not an address")
    assert told == [(client, 0.0) for client in clients] + [("198.51.100.1", 0.0), ("198.51.100.1", DELAY)]
    assert [address.client for address in seen[:2]] == ["203.0.113.0", "203.0.113.1"]
    assert all(address.via_proxy and address.peer.startswith("127.0.0.1:") for address in seen)


def test_a_proxy_that_was_forgotten_in_trusted_proxies_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with front_door(lambda pipe, address, slot: None) as door:
        for header in ((), ("X-Forwarded-For: 203.0.113.1",), ("X-Forwarded-For: 203.0.113.2",)):
            assert "trusted_proxies" not in caplog.text or header
            sock, _ = upgrade(door, *header)
            sock.close()
    assert caplog.text.count("set trusted_proxies: [127.0.0.1]") == 1


def test_a_proxy_that_is_trusted_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with front_door(lambda pipe, address, slot: None, trusted_proxies=("127.0.0.0/8",)) as door:
        sock, _ = upgrade(door, "X-Forwarded-For: 203.0.113.1")
        sock.close()
    assert "trusted_proxies" not in caplog.text


def test_what_an_untrusted_peer_says_about_its_address_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ClientAddress] = []
    with front_door(lambda p, address, s: seen.append(address), limits=SLOW, trusted_proxies=("10.0.0.0/8",)) as door:
        told = _delays_told(door, monkeypatch)
        _, second = _seconds_for_upgrades(door, "203.0.113.1", "203.0.113.2")
    assert told == [("127.0.0.1", 0.0), ("127.0.0.1", DELAY)]
    assert second >= DELAY
    assert [(address.client, address.via_proxy) for address in seen] == [("127.0.0.1", False)] * 2


def test_closing_does_not_wait_for_those_who_are_slowed_down() -> None:
    limits = ServerLimits(per_address_rate=0.01, per_address_burst=1, header_timeout=60)
    with front_door(limits=limits) as door:
        exchange(door, request("GET /healthz HTTP/1.1"))
        with connect(door) as sock:
            sock.sendall(request("GET /healthz HTTP/1.1"))
            sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(DEADLINE)
            door.close()
            assert seconds_until_closed(sock, time.monotonic()) < DEADLINE  # 30 s is what it was told


def test_without_free_files_it_waits_quietly_and_then_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()  # nothing may give a number back during the test
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with front_door() as door, socket.socket() as first, socket.socket() as sock:
        sock.settimeout(0.5)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, hard))
            with contextlib.ExitStack() as hoard:
                with contextlib.suppress(OSError):
                    while True:
                        hoard.enter_context(socket.socket())  # the numbers below the limit that are still free
                first.connect(door.addresses[0])  # takes the number that a blocked accept() may have reserved
                sock.connect(door.addresses[0])
                sock.sendall(request("GET /healthz HTTP/1.1"))
                spent = time.process_time()
                with pytest.raises(TimeoutError):
                    sock.recv(1)
                spent = time.process_time() - spent
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        sock.settimeout(DEADLINE)
        assert read_to_end(sock).endswith(b"ok\n")
    assert spent < 0.25
    said = [record for record in caplog.records if "cannot accept" in record.message]
    assert [record.levelno for record in said] == [logging.ERROR]


def test_without_free_threads_it_drops_the_connection_and_then_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qanat.base.threads.WORKERS", Workers())  # in which no thread waits
    with front_door() as door:
        usual = threading.stack_size(1 << 46)  # no machine has that much to give to a thread
        try:
            assert exchange(door, request("GET /healthz HTTP/1.1")) == b""
        finally:
            threading.stack_size(usual)
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")
    assert caplog.text.count("cannot serve connections") == 1
