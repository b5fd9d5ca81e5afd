"""Promises of a measurement's figures: they are those of what was timed, and nothing is made up where nothing was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.measure.figures import INTERVAL, Latency, Mark, Ping, Step, Throughput, percentile, rates

MEGABIT = 125_000
"""Bytes."""


def pings(*milliseconds: float) -> list[Ping]:
    return [Ping(number * INTERVAL / 2, took / 1000) for number, took in enumerate(milliseconds)]


def test_latency_has_the_usual_figures() -> None:
    found = Latency.of(pings(*range(1, 101)))
    assert found is not None
    assert (found.count, found.least, found.most) == (100, 0.001, 0.1)
    assert found.median == pytest.approx(0.0505)
    assert (found.p90, found.p99) == (0.09, 0.099)


def test_jitter_is_the_mean_change_from_one_ping_to_the_next_and_not_the_spread() -> None:
    swinging, drifting = Latency.of(pings(1, 3, 1, 3, 1)), Latency.of(pings(1, 1, 1, 3, 3))
    assert swinging is not None
    assert drifting is not None
    assert swinging.jitter == pytest.approx(0.002)
    assert drifting.jitter == pytest.approx(0.0005)


def test_one_ping_has_no_jitter_and_none_has_no_figures() -> None:
    only = Latency.of(pings(5))
    assert only is not None
    assert (only.median, only.jitter) == (0.005, 0.0)
    assert Latency.of([]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_one_of_the_values_and_so_many_do_not_exceed_it(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= len(ordered) * percent / 100 - 1e-6


def test_throughput_is_that_of_each_tenth_of_a_second() -> None:
    marks = [Mark(0.0, 0), Mark(0.1, 1 * MEGABIT), Mark(0.2, 4 * MEGABIT), Mark(0.3, 6 * MEGABIT)]
    assert rates(marks) == pytest.approx([10e6, 30e6, 20e6])
    found = Throughput.of(marks)
    assert found is not None
    assert (found.received, found.seconds) == (6 * MEGABIT, 0.3)
    assert (found.median, found.p10, found.p90) == pytest.approx((20e6, 10e6, 30e6))


def test_a_stall_counts_as_long_as_it_lasted() -> None:
    marks = [Mark(0.0, 0), Mark(0.1, 10 * MEGABIT), Mark(0.6, 10 * MEGABIT), Mark(0.7, 20 * MEGABIT)]
    assert rates(marks) == pytest.approx([100e6, 0, 0, 0, 0, 0, 100e6], abs=1)
    found = Throughput.of(marks)
    assert found is not None
    assert found.median == pytest.approx(0, abs=1)


def test_less_than_one_interval_is_one_sample_and_no_time_none() -> None:
    assert rates([Mark(0.0, 0), Mark(0.05, MEGABIT)]) == pytest.approx([20e6])
    assert rates([Mark(0.0, 0), Mark(0.0, MEGABIT)]) == []
    assert Throughput.of([Mark(0.0, 0)]) is None
    assert Throughput.of([]) is None


@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.integers(0, 10**8)), min_size=1, max_size=40))
def test_however_the_marks_come_the_rates_add_up_to_the_bytes(steps: list[tuple[float, int]]) -> None:
    marks = [Mark(0.0, 0)]
    for took, size in steps:
        marks.append(Mark(marks[-1].at + took, marks[-1].received + size))
    found = rates(marks)
    assert all(rate >= 0 for rate in found)
    if marks[-1].at >= INTERVAL:
        total = sum(found) * INTERVAL / 8
        assert total <= marks[-1].received * (1 + 1e-6) + 1
        assert len(found) == int(marks[-1].at / INTERVAL + 1e-6)


def test_latency_over_time_is_the_longest_ping_of_each_interval() -> None:
    step = Step([Ping(0.01, 0.001), Ping(0.05, 0.004), Ping(0.25, 0.002)])
    assert step.latency_over_time() == [0.004, None, 0.002]
    assert Step([]).latency_over_time() == []
