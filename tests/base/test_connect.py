"""Happy Eyeballs: a dead address costs a quarter of a second once, and whoever answers first is taken."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from qanat.base import connect as module
from qanat.base.cancel import Cancel
from qanat.base.connect import ATTEMPT_DELAY, MAX_PENDING, connect
from qanat.base.deadline import Deadline
from qanat.base.errors import Canceled, ConnectError
from qanat.base.resolve import Address
from tests.support.background import DEADLINE, Background, wait_until
from tests.support.machine.networks import card, in_a_network_of_its_own, ip
from tests.support.machine.ports import SilentListener, silent_address, unused_port

SOON = DEADLINE / 2
"""Seconds; clearly less than ATTEMPT_DELAY where that is `at_length`."""


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    module._slow.clear()
    yield
    module._slow.clear()


def four(address: tuple[str, int]) -> Address:
    return socket.AF_INET, address


def living(stack: ExitStack, host: str = "127.0.0.1") -> Address:
    """A listener whose connections nobody needs to accept."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = stack.enter_context(socket.create_server((host, 0), family=family))
    return family, listener.getsockname()


def at_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait very long for a silent address from now on, so that who does wait is told from who does not."""
    monkeypatch.setattr(module, "ATTEMPT_DELAY", DEADLINE)


def refusing() -> Address:
    return four(("127.0.0.1", unused_port()))


def timed(*addresses: Address, seconds: float = DEADLINE) -> tuple[Address, float]:
    """Who won, and after how many seconds."""
    started = time.monotonic()
    sock, address = connect(addresses, Deadline(seconds))
    took = time.monotonic() - started
    with sock:
        assert sock.gettimeout() is None
        assert sock.getpeername()[:2] == address[:2]
        return (sock.family, address), took


def test_a_silent_address_costs_a_quarter_of_a_second_once(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, answering = four(silent_address(stack)), living(stack)
    assert ATTEMPT_DELAY == 0.25
    winner, took = timed(silent, answering)
    assert winner == answering
    assert ATTEMPT_DELAY - 0.05 < took < SOON
    at_length(monkeypatch)
    winner, took = timed(silent, answering)
    assert winner == answering
    assert took < SOON


def test_what_is_remembered_is_forgotten_when_it_answers_and_the_other_does_not(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = living(stack), living(stack)
    module._slow.learn(other[1], [one[1]])
    assert timed(one, other)[0] == other
    dead = four(silent_address(stack))
    module._slow.learn(dead[1], [one[1]])
    assert timed(one, dead)[0] == one
    at_length(monkeypatch)
    assert timed(one, dead)[1] < SOON


def test_several_good_addresses_are_taken_in_the_order_given(stack: ExitStack) -> None:
    """A name server spreads load by its order, so one that has answered is not preferred."""
    one, other = living(stack), living(stack)
    assert timed(one, other)[0] == one
    assert timed(other, one)[0] == other


def test_one_that_refuses_is_followed_by_the_next_at_once(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    at_length(monkeypatch)
    answering = living(stack)
    winner, took = timed(refusing(), refusing(), answering)
    assert winner == answering
    assert took < SOON


def test_families_alternate() -> None:
    six = [(socket.AF_INET6, (f"2001:db8::{n}", 1, 0, 0)) for n in (1, 2, 3)]
    fours = [four((f"192.0.2.{n}", 1)) for n in (1, 2)]
    assert module._in_order([*six, *fours]) == [six[0], fours[0], six[1], fours[1], six[2]]
    assert module._in_order([fours[0], six[0], fours[1], fours[0]]) == [fours[0], six[0], fours[1]]


def test_a_slow_first_address_still_wins_and_the_second_is_not_blamed(stack: ExitStack) -> None:
    slow, silent = SilentListener(stack), silent_address(stack)
    answering = threading.Timer(ATTEMPT_DELAY + 0.5, slow.answer)
    answering.start()
    winner, took = timed(four(slow.address), four(silent), seconds=3 * DEADLINE)
    answering.join()
    assert winner == four(slow.address)
    assert took > ATTEMPT_DELAY
    assert module._in_order([four(silent), four(slow.address)]) == [four(silent), four(slow.address)]


def test_more_addresses_than_are_tried_at_once_are_all_tried(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.01)
    silent = [four(silent_address(stack)) for _ in range(MAX_PENDING + 3)]
    answering = living(stack)
    assert timed(*silent, answering)[0] == answering


def test_all_that_failed_are_named_and_a_refusal_counts_more_than_silence(stack: ExitStack) -> None:
    silent, refused = four(silent_address(stack)), refusing()
    with pytest.raises(ConnectError) as caught:
        connect([refused, silent], Deadline(0.5))
    assert {address for address, _ in caught.value.attempts} == {silent[1], refused[1]}
    assert isinstance(caught.value.last, ConnectionRefusedError)


def test_the_deadline_holds_for_all_together(stack: ExitStack) -> None:
    silent = [four(silent_address(stack)) for _ in range(3)]
    started = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        connect(silent, Deadline(0.4))
    assert 0.35 < time.monotonic() - started < SOON
    assert len(caught.value.attempts) == 3
    assert "no answer in time" in str(caught.value.last)


def test_canceling_wakes_it_and_every_socket_is_closed(stack: ExitStack) -> None:
    silent = [four(silent_address(stack)) for _ in range(2)]
    cancel = Cancel()
    before = _descriptors()
    connecting = Background(lambda: connect(silent, Deadline(DEADLINE), cancel))
    wait_until(lambda: _descriptors() >= before + 4, "both are being tried")
    cancel.cancel()
    assert isinstance(connecting.error(), Canceled)
    assert _descriptors() == before
    with pytest.raises(Canceled):
        connect(silent, Deadline(DEADLINE), cancel)


def test_losers_are_closed(stack: ExitStack) -> None:
    silent, answering = four(silent_address(stack)), living(stack)
    before = _descriptors()
    sock, _ = connect([silent, answering], Deadline(DEADLINE))
    assert _descriptors() == before + 1
    sock.close()


def test_options_are_set_before_connecting(stack: ExitStack) -> None:
    seen: list[bool] = []

    def configure(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.getpeername()
            seen.append(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    sock, _ = connect([living(stack)], Deadline(DEADLINE), configure=configure)
    with sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    assert not seen


def test_a_port_that_is_connected_to_itself_is_one_where_nobody_listens() -> None:
    """TCP allows that, and the kernel may choose the very port that is connected to as the one it comes from."""
    port = unused_port()

    def same_port(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))

    with pytest.raises(ConnectError) as caught:
        connect([four(("127.0.0.1", port))], Deadline(DEADLINE), configure=same_port)
    assert isinstance(caught.value.last, ConnectionRefusedError)


def test_what_is_remembered_is_bounded() -> None:
    for n in range(3000):
        module._slow.learn(("127.0.0.1", 1), [("192.0.2.1", n)])
    assert len(module._slow._since) <= 1024


def test_a_black_hole_in_a_real_network_costs_a_quarter_of_a_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 leads nowhere without a word, as where a router drops it; IPv4 works."""

    def scenario() -> None:
        ip("link", "set", "lo", "up")
        card("d0", "10.9.9.1/24", "2001:db8::1/64")
        ip("neighbor", "add", "2001:db8::dead", "lladdr", "02:00:00:00:00:09", "dev", "d0")
        with socket.create_server(("10.9.9.1", 0)) as listener:
            port = listener.getsockname()[1]
            dead: Address = (socket.AF_INET6, ("2001:db8::dead", port, 0, 0))
            alive = four(("10.9.9.1", port))
            winner, took = timed(dead, alive)
            assert winner == alive
            assert ATTEMPT_DELAY - 0.05 < took < SOON
            at_length(monkeypatch)
            assert timed(dead, alive)[1] < SOON

    in_a_network_of_its_own(scenario)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
