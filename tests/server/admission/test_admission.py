"""Admission with a clock of its own: slots, the RSA gate, and slowing that never refuses."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.addresses import bucket_key
from qanat.config.server_settings import ServerLimits
from qanat.process.log_throttle import LogThrottle
from qanat.server.admission.admission import AddressRates, Admission
from qanat.server.admission.client_address import ClientAddress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rates(clock: Clock, *, rate: float = 2.0, burst: int = 3, capacity: int = 100) -> AddressRates:
    return AddressRates(rate, burst, max_delay=5.0, clock=clock, capacity=capacity)


def test_a_burst_is_free_and_what_follows_waits_in_turn() -> None:
    bucket = rates(Clock())
    assert [bucket.delay("192.0.2.1") for _ in range(6)] == [0, 0, 0, 0.5, 1.0, 1.5]


def test_another_burst_and_rate_count_at_once_and_what_was_used_stays_used() -> None:
    bucket = rates(Clock())
    assert [bucket.delay("192.0.2.1") for _ in range(5)] == [0, 0, 0, 0.5, 1.0]
    bucket.change(1.0, 6, max_delay=5.0)
    assert [bucket.delay("192.0.2.1") for _ in range(3)] == [0, 1.0, 2.0]
    assert [bucket.delay("192.0.2.2") for _ in range(7)] == [0, 0, 0, 0, 0, 0, 1.0]


def test_other_limits_on_handshakes_count_at_once() -> None:
    admission = Admission(ServerLimits(handshakes=1), clock=Clock())
    assert admission.enter("192.0.2.1", lambda: None) is not None
    assert admission.enter("192.0.2.1", lambda: None) is None
    admission.change(ServerLimits(handshakes=3))
    assert [admission.enter("192.0.2.1", lambda: None) is not None for _ in range(3)] == [True, True, False]


def test_waiting_refills_the_bucket_but_never_above_the_burst() -> None:
    clock = Clock()
    bucket = rates(clock)
    for _ in range(4):
        bucket.delay("192.0.2.1")
    clock.now += 1.0
    assert bucket.delay("192.0.2.1") == 0
    clock.now += 3600
    assert [bucket.delay("192.0.2.1") for _ in range(4)] == [0, 0, 0, 0.5]


def test_addresses_do_not_wait_for_each_other() -> None:
    bucket = rates(Clock())
    for _ in range(100):
        bucket.delay("192.0.2.1")
    assert bucket.delay("192.0.2.2") == 0


def test_however_long_a_flood_was_the_address_is_forgiven_soon() -> None:
    clock = Clock()
    bucket = rates(clock)
    assert max(bucket.delay("192.0.2.1") for _ in range(10_000)) == 5.0
    clock.now += 5.5
    assert bucket.delay("192.0.2.1") == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1, 10)), max_size=60))
def test_no_history_makes_a_delay_above_the_ceiling(history: list[tuple[str, float]]) -> None:
    clock = Clock()
    bucket = rates(clock, capacity=2)
    for address, pause in history:
        clock.now += pause
        assert 0 <= bucket.delay(address) <= 5.0
        assert len(bucket) <= 2


def test_the_table_is_bounded_and_forgets_the_one_not_seen_for_longest() -> None:
    bucket = rates(Clock(), burst=1, capacity=2)
    bucket.delay("192.0.2.1")
    bucket.delay("192.0.2.2")
    assert bucket.delay("192.0.2.1") > 0
    bucket.delay("192.0.2.3")
    assert len(bucket) == 2
    assert bucket.delay("192.0.2.1") > 0
    assert bucket.delay("192.0.2.2") == 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not an address", "not an address"),
    ],
)
def test_one_customer_has_one_bucket(address: str, key: str) -> None:
    assert bucket_key(address) == key


def uncut() -> None:
    raise AssertionError("this one was cut")


def test_slots_are_limited_and_each_is_given_back_once() -> None:
    admission = Admission(ServerLimits(handshakes=2, handshake_rate=1e6))
    first, second = admission.enter("192.0.2.1", uncut), admission.enter("192.0.2.1", uncut)
    assert first is not None
    assert second is not None
    assert admission.enter("192.0.2.1", uncut) is None
    first.release()
    first.release()
    assert admission.handshakes == 1
    assert admission.enter("192.0.2.1", uncut) is not None
    assert admission.enter("192.0.2.1", uncut) is None


def test_an_address_that_holds_every_slot_gives_its_oldest_to_another() -> None:
    admission = Admission(ServerLimits(handshakes=3, handshake_rate=1e6))
    cut: list[str] = []
    slots = [admission.enter("2001:db8::1", partial(cut.append, number)) for number in "123"]
    other = admission.enter("192.0.2.1", uncut)
    assert other is not None
    assert cut == ["1"]
    assert slots[0] is not None
    slots[0].release()  # its connection ends only now, and gives back nothing that is another's
    assert admission.handshakes == 3
    # The same customer, by another address of his, displaces nobody; and neither does who has as many as he.
    assert admission.enter("2001:db8::2", uncut) is None
    assert admission.enter("192.0.2.1", uncut) is not None
    assert cut == ["1", "2"]
    assert admission.enter("192.0.2.1", uncut) is None


def test_handshakes_begin_no_faster_than_the_rate_though_slots_are_free() -> None:
    clock = Clock()
    admission = Admission(ServerLimits(handshakes=2, handshake_rate=10), clock=clock)

    def begin() -> bool:
        slot = admission.enter("192.0.2.1", uncut)
        if slot is not None:
            slot.release()
        return slot is not None

    assert [begin(), begin(), begin()] == [True, True, False]
    clock.now += 0.11
    assert [begin(), begin()] == [True, False]
    assert admission.handshakes == 0


def test_whoever_finds_every_slot_taken_uses_up_none_of_the_rate() -> None:
    admission = Admission(ServerLimits(handshakes=2, handshake_rate=0.001), clock=(clock := Clock()))
    first, second = admission.enter("192.0.2.1", uncut), admission.enter("192.0.2.1", uncut)
    assert first is not None
    assert second is not None
    clock.now += 1000
    for _ in range(10):
        assert admission.enter("192.0.2.1", uncut) is None
    second.release()
    assert admission.enter("192.0.2.1", uncut) is not None


def test_who_is_no_pipe_yet_makes_room_first_and_then_the_oldest_handshake_of_who_has_most() -> None:
    cut: list[str] = []
    admission = Admission(ServerLimits(), clock=Clock())
    assert not admission.make_room()
    for name, address in (("first", "192.0.2.1"), ("second", "192.0.2.2"), ("third", "192.0.2.2")):
        assert admission.enter(address, lambda name=name: cut.append(name)) is not None  # type: ignore[misc]
    admission.unfinished.add("silent", "192.0.2.3", lambda: cut.append("silent"))
    assert [admission.make_room() for _ in range(5)] == [True] * 4 + [False]
    assert cut == ["silent", "second", "first", "third"]
    assert admission.handshakes == 0


def test_each_client_that_is_turned_away_is_given_the_next_free_moment() -> None:
    admission = Admission(ServerLimits(handshakes=1, handshake_rate=2), clock=Clock())
    assert admission.enter("192.0.2.1", uncut) is not None
    assert [admission.retry_after(f"198.51.100.{number}") for number in range(6)] == [1, 1, 2, 2, 3, 3]


def test_only_so_many_rsa_operations_run_at_once() -> None:
    admission = Admission(ServerLimits(rsa_operations=2))
    third_is_in = threading.Event()

    def third() -> None:
        with admission.rsa_gate:
            third_is_in.set()

    with admission.rsa_gate:
        with admission.rsa_gate:
            thread = threading.Thread(target=third, name="third")
            thread.start()
            assert not third_is_in.wait(0.05)
        assert third_is_in.wait(20)
    thread.join(20)


def test_an_address_in_a_log_says_who_and_by_which_way() -> None:
    assert str(ClientAddress("192.0.2.1:1234", "192.0.2.1", False)) == "192.0.2.1:1234"
    assert str(ClientAddress("127.0.0.1:1234", "192.0.2.1", True)) == "192.0.2.1 via 127.0.0.1:1234"


def test_a_thing_is_said_once_an_interval() -> None:
    clock = Clock()
    seldom = LogThrottle(interval=60, clock=clock)
    assert [seldom.due("a"), seldom.due("a"), seldom.due("b")] == [True, False, True]
    clock.now += 60
    assert seldom.due("a")
