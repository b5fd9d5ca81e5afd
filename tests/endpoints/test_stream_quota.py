"""Nobody takes a forward whole, and what is given as a bound is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.endpoints.stream_quota import REMEMBERED, SMALL, QuotaLimits, StreamQuota, StreamRoom, address_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def quota(room: StreamRoom, **limits: float) -> StreamQuota:
    return StreamQuota(room, QuotaLimits(**limits))  # type: ignore[arg-type]


def entered(of: StreamQuota, address: str, tries: int = 10_000) -> int:
    return sum(not of.enter(address) for _ in range(tries))


def test_one_address_gets_half_of_the_room_and_the_next_half_of_the_rest(clock: Clock) -> None:
    forward = quota(StreamRoom(4096, clock=clock))
    assert entered(forward, "192.0.2.1") == 2048
    assert entered(forward, "192.0.2.2") == 1024
    assert not forward.enter("192.0.2.3")


def test_many_addresses_leave_an_eighth_to_other_forwards(clock: Clock) -> None:
    room = StreamRoom(4096, clock=clock)
    flooded, other = quota(room), quota(room)
    taken = sum(entered(flooded, f"192.0.{n // 200}.{n % 200}", 100) for n in range(1000))
    assert taken == 3584
    assert "kept for other forwards" in flooded.enter("198.51.100.1")
    assert not other.enter("198.51.100.1")


@pytest.mark.parametrize("size", [1, 3, SMALL])
def test_little_room_can_be_used_whole_by_one(clock: Clock, size: int) -> None:
    forward = quota(StreamRoom(size, clock=clock))
    assert entered(forward, "192.0.2.1", 200) == size
    assert "in use" in forward.enter("192.0.2.2")


def test_a_room_that_grows_has_more_and_never_less(clock: Clock) -> None:
    room = StreamRoom(2, clock=clock)
    forward = quota(room)
    assert entered(forward, "192.0.2.1") == 2
    room.grow(3)
    assert entered(forward, "192.0.2.1") == 1
    room.grow(1)
    assert room.size == 3


def test_what_is_left_can_be_had_again(clock: Clock) -> None:
    room = StreamRoom(1000, clock=clock)
    forward = quota(room)
    assert entered(forward, "192.0.2.1") == 500
    for _ in range(500):
        forward.leave("192.0.2.1")
    assert (len(forward), room.free, forward.remembered) == (0, 1000, 0)
    assert entered(forward, "192.0.2.2") == 500


def test_a_forward_has_no_more_than_its_max_streams(clock: Clock) -> None:
    forward = quota(StreamRoom(1000, clock=clock), max_streams=3)
    assert entered(forward, "192.0.2.1", 10) == 3
    assert "max_streams" in forward.enter("192.0.2.2")


def test_an_address_has_no_more_than_its_max_streams(clock: Clock) -> None:
    forward = quota(StreamRoom(1000, clock=clock), max_streams_per_address=3)
    assert entered(forward, "192.0.2.1", 10) == 3
    assert "max_streams_per_address" in forward.enter("192.0.2.1")
    assert not forward.enter("192.0.2.2")


def test_a_rate_lets_in_one_seconds_worth_and_then_so_many_a_second(clock: Clock) -> None:
    forward = quota(StreamRoom(1000, clock=clock), streams_per_second=5)
    assert entered(forward, "192.0.2.1", 100) == 5
    clock.now += 1
    assert entered(forward, "192.0.2.2", 100) == 5
    clock.now += 0.5
    assert entered(forward, "192.0.2.3", 100) == 2
    assert "streams_per_second" in forward.enter("192.0.2.3")


def test_each_address_has_a_rate_of_its_own(clock: Clock) -> None:
    forward = quota(StreamRoom(1000, clock=clock), streams_per_second_per_address=0.5)
    assert entered(forward, "192.0.2.1", 10) == 1
    assert entered(forward, "192.0.2.2", 10) == 1
    forward.leave("192.0.2.1")
    assert entered(forward, "192.0.2.1", 10) == 0
    clock.now += 2
    assert entered(forward, "192.0.2.1", 10) == 1


def test_a_network_of_ipv6_is_one_address(clock: Clock) -> None:
    forward = quota(StreamRoom(1000, clock=clock), max_streams_per_address=2)
    assert sum(entered(forward, f"2001:db8::{n:x}", 1) for n in range(1, 20)) == 2
    assert entered(forward, "2001:db8:0:1::1", 5) == 2
    assert entered(forward, "::ffff:192.0.2.1", 5) == 2
    assert "max_streams_per_address" in forward.enter("192.0.2.1")


def test_who_has_no_address_is_counted_with_the_forward_alone(clock: Clock) -> None:
    forward = quota(StreamRoom(1000, clock=clock), max_streams_per_address=1, max_streams=50)
    assert entered(forward, "", 100) == 50


def test_what_is_known_of_addresses_is_bounded(clock: Clock) -> None:
    forward = quota(StreamRoom(100_000, clock=clock), streams_per_second_per_address=1)
    for number in range(REMEMBERED + 500):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert not forward.enter(address)
        forward.leave(address)
    assert forward.remembered == REMEMBERED
    plain = quota(StreamRoom(100, clock=clock))
    plain.enter("192.0.2.1")
    plain.leave("192.0.2.1")
    assert plain.remembered == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 5)), max_size=300), st.integers(1, 200))
def test_the_counts_are_those_of_a_naive_model(steps: list[tuple[bool, int, int]], size: int) -> None:
    room = StreamRoom(size, clock=Clock())
    forwards = [quota(room, max_streams=100), quota(room, max_streams_per_address=20)]
    model: list[dict[str, int]] = [{}, {}]
    for enters, which, number in steps:
        address, known = f"192.0.2.{number}", model[which]
        if enters:
            if not forwards[which].enter(address):
                known[address] = known.get(address, 0) + 1
        elif known.get(address):
            forwards[which].leave(address)
            known[address] -= 1
        totals = [sum(each.values()) for each in model]
        assert [len(forward) for forward in forwards] == totals
        assert sum(totals) == room.size - room.free <= size
        assert max(model[1].values(), default=0) <= 20


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0"),
        ("", ""),
        ("/run/app.sock", ""),
        ("@abstract", ""),
    ],
)
def test_the_address_in_a_peers_name(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_who_is_over_and_has_a_place_still_is_counted_out_before_another_is_refused() -> None:
    over = ["10.0.0.1"]

    def tidy() -> bool:
        if not over:
            return False
        forward.leave(over.pop())
        return True

    forward = quota(StreamRoom(1000, tidy=tidy), max_streams=1)
    assert not forward.enter("10.0.0.1")
    assert not forward.enter("10.0.0.2")
    assert "as many as its max_streams" in forward.enter("10.0.0.3")
