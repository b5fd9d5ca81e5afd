"""The queue for handshakes, with a clock of its own: how soon they begin, and who is told to come back when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.server.admission.handshake_rate import BOOKINGS, KEPT, LONGEST, HandshakeRate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def used_up(clock: Clock, *, rate: float = 10.0, burst: int = 20) -> HandshakeRate:
    """A bucket whose burst has been taken."""
    handshakes = HandshakeRate(rate, burst, clock=clock)
    assert all(handshakes.take("192.0.2.1") for _ in range(burst))
    return handshakes


def singles(count: int) -> list[str]:
    return [f"198.51.{number // 250}.{number % 250}" for number in range(count)]


def test_a_burst_begins_at_once_and_what_follows_at_the_rate() -> None:
    clock = Clock()
    handshakes = used_up(clock)
    assert not handshakes.take("192.0.2.1")
    clock.now += 1.05
    assert [handshakes.take("192.0.2.1") for _ in range(12)] == [True] * 10 + [False] * 2
    clock.now += 3600
    assert [handshakes.take("192.0.2.1") for _ in range(21)] == [True] * 20 + [False]


def test_a_token_that_was_not_needed_is_there_for_the_next_and_never_makes_more_than_the_burst() -> None:
    handshakes = used_up(Clock(), burst=2)
    for _ in range(5):
        handshakes.give_back()
    assert [handshakes.take("192.0.2.1") for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("addresses", [["192.0.2.1"] * 600, singles(600)])
def test_bookings_follow_each_other_at_the_rate_in_whole_seconds_rounded_up(addresses: list[str]) -> None:
    handshakes = used_up(Clock())
    told = [handshakes.book(address) for address in addresses]
    assert told == [second for second in range(1, 61) for _ in range(10)]


def test_a_new_booking_stands_at_the_end_of_the_present_queue() -> None:
    clock = Clock()
    handshakes = used_up(clock)
    for address in singles(300):
        handshakes.book(address)
    clock.now += 0.05
    for address in singles(100):
        clock.now += 0.1
        assert handshakes.take(address)
    assert handshakes.book("203.0.113.1") == 21  # 20 seconds of others, and its own place


def test_those_whose_moment_has_come_do_not_make_the_queue_longer_since_their_tokens_wait_for_them() -> None:
    clock = Clock()
    handshakes = used_up(clock)
    for address in singles(10):
        handshakes.book(address)
    clock.now += 1.05
    assert handshakes.book("203.0.113.1") == 1


def test_beyond_the_longest_time_nothing_is_booked_and_those_told_to_ask_again_do_not_come_as_one() -> None:
    handshakes = used_up(Clock())
    for address in singles(600):
        handshakes.book(address)
    told = [handshakes.book(f"203.0.{number // 250}.{number % 250}") for number in range(3000)]
    assert len(handshakes) == 600
    assert {told.count(second) for second in range(LONGEST // 2 + 1, LONGEST + 1)} == {100}


def test_a_booking_for_which_nobody_comes_goes_stale() -> None:
    clock = Clock()
    handshakes = used_up(clock)
    for address in singles(100):
        handshakes.book(address)
    clock.now += 5 + KEPT
    assert 45 <= len(handshakes) <= 55
    clock.now += 6
    assert len(handshakes) == 0
    assert handshakes.book("203.0.113.1") == 1


def test_tokens_are_kept_for_those_who_booked_against_those_who_did_not() -> None:
    clock = Clock()
    handshakes = used_up(clock)
    for address in singles(8):
        handshakes.book(address)
    for _ in range(17):
        clock.now += 0.05
        assert not handshakes.take("203.0.113.1")
    clock.now += 0.2
    assert all(handshakes.take(address) for address in singles(8))
    assert handshakes.take("203.0.113.1")  # two tokens are left, and nobody is waiting


def test_not_more_than_half_of_the_burst_is_kept_for_those_who_may_never_come() -> None:
    clock = Clock()
    handshakes = used_up(clock)
    for address in singles(100):
        handshakes.book(address)
    clock.now += 3
    assert [handshakes.take("203.0.113.1") for _ in range(11)] == [True] * 10 + [False]


def test_one_who_floods_moves_only_its_own_moments_away() -> None:
    clock = Clock()
    handshakes = used_up(clock)
    told = 0
    for _ in range(5000):
        told = handshakes.book("192.0.2.66")
    assert told > LONGEST / 2
    assert [handshakes.book(address) for address in singles(20)] == [1] * 9 + [2] * 10 + [3]


def test_a_client_that_comes_when_it_was_told_to_gets_in_though_another_never_stops_asking() -> None:
    clock = Clock()
    handshakes = used_up(clock)

    def flood(seconds: float) -> None:
        for _ in range(round(seconds * 200)):
            clock.now += 1 / 200
            if not handshakes.take("192.0.2.66"):
                handshakes.book("192.0.2.66")

    flood(30)
    for address in singles(20):
        flood(0.5)
        assert not handshakes.take(address)
        told = handshakes.book(address)
        assert told == 1
        flood(told + 0.4)
        assert handshakes.take(address)


def test_a_flood_uses_what_nobody_else_needs() -> None:
    clock = Clock()
    handshakes = used_up(clock)
    begun = 0
    for _ in range(2000):
        clock.now += 0.01
        if handshakes.take("192.0.2.66"):
            begun += 1
        else:
            handshakes.book("192.0.2.66")
    assert begun >= 198


def test_a_customer_with_many_ipv6_addresses_is_one() -> None:
    handshakes = used_up(Clock())
    for number in range(1, 500):
        handshakes.book(f"2001:db8::{number:x}")
    assert handshakes.book("2001:db8:0:1::1") == 1


def test_however_many_addresses_ask_the_bookings_are_bounded() -> None:
    handshakes = used_up(Clock(), rate=1000.0)
    for number in range(BOOKINGS + 5000):
        assert 1 <= handshakes.book(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}") <= LONGEST
    assert len(handshakes) == BOOKINGS


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.floats(-1, 8)), max_size=200),
)
def test_whatever_happens_the_rate_holds_and_all_is_forgotten_in_the_end(
    burst: int, history: list[tuple[str, bool, float]]
) -> None:
    clock = Clock()
    handshakes = HandshakeRate(2.0, burst, clock=clock)
    begun: list[float] = []
    highest = clock.now
    booked = 0
    for address, books, pause in history:
        clock.now += pause
        highest = max(highest, clock.now)
        if handshakes.take(address):
            begun.append(highest)
        elif books:
            booked += 1
            assert 1 <= handshakes.book(address) <= LONGEST
        assert len(handshakes) <= booked
    for first, start in enumerate(begun):
        for last in range(first, len(begun)):
            assert last - first + 1 <= burst + 2.0 * (begun[last] - start) + 1e-6
    clock.now = highest + LONGEST + KEPT + 1
    assert len(handshakes) == 0
