"""Medians, spreads, and ratios that are taken within a round."""

from __future__ import annotations

import pytest

from benchmarks.contenders import Contender, Running
from benchmarks.figures import Figure, percentile
from benchmarks.report.goals import GOALS, Goal
from benchmarks.report.results import Results
from benchmarks.report.summary import Spread, differences, ratios, rotated
from benchmarks.report.tables import number, plain, short_table


def _never(_: object) -> Running:
    raise AssertionError("nothing is started here")


SPEED = Figure("speed", "speed", "Gbit/s", "more")


def results(**values: list[float | None]) -> Results:
    found = Results([Contender(name, name, _never) for name in values], [SPEED], 3, False)
    for name, rounds in values.items():
        for turn, value in enumerate(rounds):
            if value is not None:
                found.add(name, turn, {"speed": value})
    return found


def test_a_spread_is_of_the_rounds_that_have_a_value() -> None:
    assert Spread.of([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([None, None]) is None


def test_ratios_are_taken_within_a_round() -> None:
    # In each round the first is twice the second, though the machine was ten times as slow in the last.
    assert ratios([20.0, 10.0, 2.0], [10.0, 5.0, 1.0]) == [2.0, 2.0, 2.0]
    assert ratios([1.0, None, 1.0, 1.0], [1.0, 1.0, None, 0.0]) == [1.0, None, None, None]
    assert differences([3.0, None], [1.0, 1.0]) == [2.0, None]


def test_the_ratio_of_results_is_the_median_of_the_rounds_ratios() -> None:
    found = results(ssh=[10.0, 1.0, None], websocket=[20.0, 3.0, 5.0])
    assert found.ratio("websocket", "speed") == Spread(2.5, 2.0, 3.0)


def test_every_contender_is_first_once() -> None:
    assert [rotated("abc", by) for by in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated("", 1) == []


def test_percentiles() -> None:
    values = [float(value) for value in range(1000)]
    assert [percentile(values, part) for part in (0.5, 0.99, 0.999, 1.0)] == [500.0, 990.0, 999.0, 999.0]
    assert percentile([7.0], 0.99) == 7.0


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.0, 0.01234, 1.234, 45.67, 1234.5)] == ["0", "0.0123", "1.23", "45.7", "1,234"]


def test_a_table_says_what_failed_and_what_is_missing() -> None:
    found = results(ssh=[1.0, 1.0, 1.0], websocket=[2.0, 2.0, 2.0], gone=[None])
    found.skipped["gone"] = "not installed: apt-get install gone"
    text = "\n".join(plain(short_table(found)))
    assert "2 (2.00x)" in text
    assert "gone" in text
    assert "apt-get install gone" in text


@pytest.mark.parametrize(("bound", "reached"), [(2.0, True), (2.1, False)])
def test_a_goal_is_judged_by_the_median_of_the_rounds(bound: float, reached: bool) -> None:
    found = results(ssh=[10.0, 1.0, 2.0], websocket=[20.0, 1.0, 8.0])
    judged = Goal("", ("websocket", "speed"), bound, True, ("ssh", "speed")).judge(found)
    assert judged == (Spread(2.0, 1.0, 4.0), reached)


def test_a_goal_that_was_not_measured_is_not_judged() -> None:
    assert GOALS[0].judge(results(ssh=[1.0])) is None
