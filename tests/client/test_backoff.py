"""Promises of the back-off: at once after what worked, slower while nothing works, never in step with others."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.client.backoff import MAX_SERVER_DELAYS, Backoff
from qanat.config.client_settings import Reconnect


def longest(a: float, b: float) -> float:
    return b


def shortest(a: float, b: float) -> float:
    return a


def test_the_first_try_comes_within_a_tenth_of_a_second() -> None:
    assert Backoff(Reconnect(), longest).delay() == 0.1
    assert Backoff(Reconnect(), shortest).delay() == 0.0


def test_the_ceiling_doubles_from_one_second_to_a_minute() -> None:
    backoff = Backoff(Reconnect(), longest)
    ceilings = []
    for _ in range(9):
        backoff.failed()
        ceilings.append(backoff.delay())
    assert ceilings == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_every_delay_up_to_the_ceiling_is_possible() -> None:
    backoff = Backoff(Reconnect(), shortest)
    for _ in range(5):
        backoff.failed()
        assert backoff.delay() == 0.0


def test_progress_brings_back_the_quick_first_try() -> None:
    backoff = Backoff(Reconnect(), longest)
    for _ in range(5):
        backoff.failed()
    backoff.succeeded()
    assert backoff.delay() == 0.1
    backoff.failed()
    assert backoff.delay() == 1


def test_one_session_that_ended_early_is_chance_and_the_next_is_a_failure() -> None:
    backoff = Backoff(Reconnect(), longest)
    backoff.ended_early()
    assert backoff.delay() == 0.1
    backoff.ended_early()
    assert backoff.delay() == 1
    backoff.ended_early()
    assert backoff.delay() == 2
    backoff.succeeded()
    backoff.ended_early()
    assert backoff.delay() == 0.1


def test_asking_does_not_count_as_failing() -> None:
    backoff = Backoff(Reconnect(), longest)
    backoff.failed()
    assert [backoff.delay() for _ in range(3)] == [1, 1, 1]


def test_after_a_refusal_half_of_the_longest_delay_is_certain() -> None:
    backoff = Backoff(Reconnect(), shortest)
    backoff.refused()
    assert backoff.delay() == 30
    backoff.succeeded()
    assert backoff.delay() == 0


def test_what_the_server_asked_for_is_the_least() -> None:
    backoff = Backoff(Reconnect(), shortest)
    backoff.failed()
    assert backoff.delay(retry_after=17) == 17
    assert backoff.delay(retry_after=0) == 1
    assert Backoff(Reconnect(), longest).delay(retry_after=17) == 18  # a thousand clients must not come as one
    backoff.refused()
    assert backoff.delay(retry_after=1) == 30


def test_a_delay_that_the_server_asks_for_replaces_a_longer_one_of_our_own() -> None:
    backoff = Backoff(Reconnect(), longest)
    for _ in range(40):
        backoff.failed()
    assert backoff.delay() == 60
    assert [backoff.delay(retry_after=3) for _ in range(MAX_SERVER_DELAYS)] == [4] * MAX_SERVER_DELAYS
    assert backoff.delay(retry_after=3) == 60, "a server is not believed for ever"
    assert backoff.delay() == 60
    assert backoff.delay(retry_after=3) == 4


@given(
    st.lists(st.sampled_from(["failed", "succeeded", "refused"]), max_size=60),
    st.none() | st.floats(0, 3600),
    st.integers(),
)
def test_a_delay_is_never_negative_and_never_above_the_ceiling(
    happened: list[str], retry_after: float | None, seed: int
) -> None:
    settings = Reconnect(first=0.1, min=1, max=60)
    backoff = Backoff(settings, random.Random(seed).uniform)
    for what in happened:
        getattr(backoff, what)()
    assert 0 <= backoff.delay(retry_after) <= max(settings.max, max(1, retry_after or 0) + settings.min)


@pytest.mark.parametrize("failures", [33, 100, 5000])
def test_many_failures_stay_at_the_ceiling(failures: int) -> None:
    backoff = Backoff(Reconnect(), longest)
    for _ in range(failures):
        backoff.failed()
    assert backoff.delay() == 60


# --- the delays of many clients, as a distribution

DRAWS = 10_000
FARTHEST = 2 / math.sqrt(DRAWS)
"""The Kolmogorov-Smirnov distance that draws from the right distribution exceed once in 1500 seeds; ours is fixed."""


def distance_from_uniform(draws: list[float], low: float, high: float) -> float:
    """The largest difference between the share of `draws` up to a point and what a uniform distribution has there."""
    ordered = sorted(draws)
    shares = [min(1.0, max(0.0, (draw - low) / (high - low))) for draw in ordered]
    count = len(ordered)
    return max(max((n + 1) / count - share, share - n / count) for n, share in enumerate(shares))


def delays_after(failures: int, count: int, seed: int, retry_after: float | None = None) -> list[float]:
    """What `count` clients wait after as many failures each."""
    uniform = random.Random(seed).uniform
    delays = []
    for _ in range(count):
        backoff = Backoff(Reconnect(), uniform)
        for _ in range(failures):
            backoff.failed()
        delays.append(backoff.delay(retry_after))
    return delays


def test_the_distance_tells_a_wrong_distribution_from_a_right_one() -> None:
    even = [(n + 0.5) / 100 for n in range(100)]
    assert distance_from_uniform(even, 0, 1) == pytest.approx(0.005)
    assert distance_from_uniform([0.5] * 100, 0, 1) == 0.5
    halves = [0.5 + delay / 2 for delay in delays_after(1, DRAWS, seed=1)]  # what "equal jitter" would give
    assert distance_from_uniform(halves, 0, 1) > 0.4


@pytest.mark.parametrize(
    ("failures", "ceiling"),
    [(0, 0.1), (1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 16.0), (6, 32.0), (7, 60.0), (20, 60.0)],
)
def test_a_delay_is_uniform_between_nothing_and_the_ceiling(failures: int, ceiling: float) -> None:
    delays = delays_after(failures, DRAWS, seed=failures)
    assert 0 <= min(delays) < ceiling / 100
    assert ceiling * 0.99 < max(delays) <= ceiling
    assert distance_from_uniform(delays, 0, ceiling) < FARTHEST


def test_those_who_were_told_the_same_second_spread_over_the_second_after_it() -> None:
    delays = delays_after(1, DRAWS, seed=5, retry_after=7)
    assert distance_from_uniform(delays, 7, 8) < FARTHEST


@pytest.mark.parametrize(("failures", "share"), [(0, 0.16), (1, 0.03), (2, 0.025), (4, 0.015), (7, 0.01)])
def test_five_hundred_clients_that_lose_their_server_in_one_moment_do_not_come_back_in_one(
    failures: int, share: float
) -> None:
    """`share` of them at most comes in the same 10 ms, with the clumps that chance makes.

    On average that is a tenth at the first try, then a hundredth, and half as much with each doubling.
    """
    for seed in range(20):
        bins = Counter(int(delay / 0.01) for delay in delays_after(failures, 500, seed))
        assert max(bins.values()) <= share * 500
