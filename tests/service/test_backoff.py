"""Promises of the back-off: at once after what worked, slower while nothing works, never in step with others."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backoff import Backoff
from service.settings import Reconnect


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
    backoff.give_up_hope()
    assert backoff.delay() == 30
    backoff.succeeded()
    assert backoff.delay() == 0


def test_what_the_server_asked_for_is_the_least() -> None:
    backoff = Backoff(Reconnect(), shortest)
    backoff.failed()
    assert backoff.delay(retry_after=17) == 17
    assert Backoff(Reconnect(), longest).delay(retry_after=17) == 18  # a thousand clients must not come as one
    backoff.give_up_hope()
    assert backoff.delay(retry_after=1) == 30


@given(
    st.lists(st.sampled_from(["failed", "succeeded", "give_up_hope"]), max_size=60),
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
    assert 0 <= backoff.delay(retry_after) <= max(settings.max, (retry_after or 0) + settings.min)


@pytest.mark.parametrize("failures", [33, 100, 5000])
def test_many_failures_stay_at_the_ceiling(failures: int) -> None:
    backoff = Backoff(Reconnect(), longest)
    for _ in range(failures):
        backoff.failed()
    assert backoff.delay() == 60
