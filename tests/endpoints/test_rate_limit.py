"""Many streams share one rate: none gets more than its part, none starves, and small exchanges are quick."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import NoThread
from qanat.base.watcher import Flushable
from qanat.endpoints.rate_limit import MIN_BURST, RateLimit, RateShare

RATE = 1_000_000


class Time:
    """A clock that is moved by hand, and the timers that it calls."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[Timer] = []
        self.broken = False

    def __call__(self) -> float:
        return self.now

    def timer(self, callback: Callable[[], Flushable | None]) -> Timer:
        self._timers.append(Timer(self, callback))
        return self._timers[-1]

    def run(self, seconds: float, each: Callable[[], object] = lambda: None, step: float = 0.001) -> None:
        """Let time pass, and call `each` every `step`."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += step
            for timer in self._timers:
                timer.call_if_due()
            each()


class Timer:
    def __init__(self, time: Time, callback: Callable[[], Flushable | None]) -> None:
        self._time, self._callback, self._at = time, callback, math.inf

    def set(self, at: float) -> None:
        if self._time.broken:
            raise NoThread
        self._at = min(self._at, at)

    def call_if_due(self) -> None:
        if self._at <= self._time.now:
            self._at = math.inf
            self._callback()


class Bulk:
    """A stream that always has more to move."""

    def __init__(self, limit: RateLimit, most: int = 128 * 1024) -> None:
        self.moved = 0
        self.turns: list[int] = []
        self.share = limit.share()
        self._most = most
        self.go()

    def go(self) -> None:
        while count := self.share.take(self._most):
            self.moved += count
            self.turns.append(count)
        self.share.when_ready(self.go)


@pytest.fixture
def time() -> Time:
    return Time()


def limit(time: Time, rate: float = RATE) -> RateLimit:
    return RateLimit(rate, time, clock=time)


def burst(rate: float) -> float:
    return max(MIN_BURST, rate / 4)


@pytest.mark.parametrize("rate", [1_000, 50_000, RATE, 100_000_000])
@pytest.mark.parametrize("streams", [1, 3, 50])
def test_the_rate_is_used_and_kept(time: Time, rate: int, streams: int) -> None:
    shared = limit(time, rate)
    flows = [Bulk(shared) for _ in range(streams)]
    at_once = sum(flow.moved for flow in flows)
    time.run(10)
    moved = sum(flow.moved for flow in flows)
    assert moved <= burst(rate) + 10 * rate + 1
    assert moved - at_once >= 0.9 * 10 * rate - burst(rate) / 2


@pytest.mark.parametrize("streams", [2, 10, 100])
def test_streams_share_the_rate_evenly(time: Time, streams: int) -> None:
    shared = limit(time)
    flows = [Bulk(shared, most=2_000 if n % 2 else 128 * 1024) for n in range(streams)]
    time.run(5)
    before = [flow.moved for flow in flows]
    time.run(20)
    moved = [flow.moved - so_far for flow, so_far in zip(flows, before, strict=True)]
    assert min(moved) >= 0.8 * max(moved)


def test_a_small_exchange_beside_bulk_does_not_wait(time: Time) -> None:
    shared = limit(time)
    for _ in range(20):
        Bulk(shared)
    small = shared.share()
    waited = 0

    def exchange() -> None:
        nonlocal waited
        taken = small.take(16 * 1024)
        if taken < 100:
            waited += 1
        else:
            small.give_back(taken - 100)  # a read that found 100 bytes

    time.run(5, exchange, step=0.02)
    assert not waited


def test_many_small_exchanges_leave_half_to_bulk(time: Time) -> None:
    shared = limit(time)
    bulk = Bulk(shared)
    greedy = [shared.share() for _ in range(200)]
    taken = 0

    def exchange() -> None:
        nonlocal taken
        taken += sum(share.take(1000) for share in greedy)

    time.run(2, exchange, step=0.01)
    before = bulk.moved
    time.run(5, exchange, step=0.01)
    assert bulk.moved - before >= 0.4 * 5 * RATE
    assert taken > RATE


def test_who_comes_anew_does_not_keep_others_from_their_turn(time: Time) -> None:
    shared = limit(time)
    bulk = Bulk(shared)

    def newcomers() -> None:
        for _ in range(10):
            Bulk(shared, most=500).share.take(500)

    time.run(1, newcomers, step=0.01)
    assert bulk.moved >= RATE / 8


def test_what_was_not_needed_is_there_for_others(time: Time) -> None:
    shared = limit(time, 1000)
    one, other = shared.share(), shared.share()
    count = one.take(MIN_BURST)
    assert count
    one.give_back(count)
    assert other.take(MIN_BURST) == count


def test_who_has_used_all_that_it_took_keeps_the_rest_of_its_turn(time: Time) -> None:
    shared = limit(time)
    Bulk(shared)
    waiting = drained(shared)
    waiting.when_ready(lambda: None)
    time.run(1)
    granted = waiting.granted
    assert granted > 10
    taken = waiting.take(10)
    waiting.give_back(0)
    assert waiting.granted == granted - taken


def test_a_share_that_waits_is_called_once_by_its_turn_or_by_wake(time: Time) -> None:
    shared = limit(time)
    Bulk(shared)
    calls: list[str] = []
    waiting, woken, closed = (drained(shared) for _ in range(3))
    waiting.when_ready(lambda: calls.append("turn"))
    woken.when_ready(lambda: calls.append("woken"))
    closed.when_ready(lambda: calls.append("closed"))
    assert not calls
    woken.wake()
    woken.wake()
    closed.close()
    closed.wake()
    assert calls == ["woken"]
    time.run(1)
    assert calls == ["woken", "turn"]
    assert waiting.take(10) == 10


def test_a_grant_that_is_not_used_is_anybodys_again(time: Time) -> None:
    shared = limit(time, 10_000)
    bulk = Bulk(shared)
    sleeper = drained(shared)
    sleeper.when_ready(lambda: None)
    time.run(2)
    sleeper.close()
    before = bulk.moved
    time.run(10)
    assert bulk.moved - before >= 0.95 * 100_000


def test_without_a_timer_nobody_waits_for_ever(time: Time) -> None:
    shared = limit(time, 1000)
    share = drained(shared)
    time.broken = True
    calls: list[int] = []
    share.when_ready(lambda: calls.append(1))
    assert calls == [1]


def test_datagrams_beyond_the_rate_are_dropped(time: Time) -> None:
    shared = limit(time)
    taken = 0

    def send() -> None:
        nonlocal taken
        taken += 1000 * shared.take_all(1000)

    time.run(4, lambda: [send() for _ in range(3)])
    assert 0.9 * 4 * RATE <= taken <= burst(RATE) + 4 * RATE


@given(
    rate=st.floats(100, 1e8),
    steps=st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 200_000), st.sampled_from(["take", "wait", "back", "close"])),
        max_size=60,
    ),
    pause=st.floats(0, 0.2),
)
def test_no_order_of_calls_gets_more_than_the_bound(
    rate: float, steps: list[tuple[int, int, str]], pause: float
) -> None:
    time = Time()
    shared = limit(time, rate)
    shares = [shared.share() for _ in range(5)]
    moved, began = 0, time.now
    for which, count, what in steps:
        share = shares[which]
        if what == "take":
            moved += (taken := share.take(count))
            assert 0 <= taken <= count
        elif what == "wait" and share.callback is None:
            share.when_ready(lambda: None)
        elif what == "back":
            taken = share.take(count)
            share.give_back(taken)
        elif what == "close":
            share.close()
            shares[which] = shared.share()
        time.run(pause, step=max(pause, 0.001))
        assert moved <= burst(rate) + rate * (time.now - began) + 1


def drained(shared: RateLimit) -> RateShare:
    """A share that may take nothing now."""
    share = shared.share()
    while share.take(128 * 1024):
        pass
    return share
