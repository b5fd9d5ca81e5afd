"""The command line of `python -m benchmarks`."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import CONTENDERS, QUICK_CONTENDERS, parse
from benchmarks.report.goals import GOALS
from benchmarks.rounds import ALL_GROUPS, Plan
from qanat.cli.demo import TRANSPORTS


def test_without_arguments_everything_is_measured_in_five_rounds() -> None:
    plan, _ = parse([])
    assert [one.name for one in plan.contenders] == [one.name for one in CONTENDERS]
    assert (plan.groups, plan.rounds, plan.quick) == (ALL_GROUPS, 5, False)


def test_quick_is_less_of_everything() -> None:
    plan, _ = parse(["--quick"])
    assert {one.name for one in plan.contenders} == set(QUICK_CONTENDERS)
    assert plan.rounds == 1
    assert plan.lengths.ping < parse([])[0].lengths.ping


def test_names_are_chosen_in_the_order_of_the_list() -> None:
    plan, _ = parse(["--only", "websocket, ssh", "--figures", "connections,ping", "--rounds", "2"])
    assert [one.name for one in plan.contenders] == ["ssh", "websocket"]
    assert (plan.groups, plan.rounds) == (("ping", "connections"), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "telnet"], "there is no contender 'telnet'; there are direct, ssh"),
        (["--figures", "beauty"], "there is no figure 'beauty'; there are throughput"),
        (["--only", ","], "no contender is named"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_a_mistake_says_what_there_is(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_every_transport_is_measured_by_every_way() -> None:
    names = {one.name for one in CONTENDERS}
    ways = {f"{transport}{way}" for transport in TRANSPORTS for way in ("", "-wss", "-nginx", "-haproxy")}
    assert ways - {"websocket-h2-nginx"} <= names, "nginx has no RFC 8441"


def test_every_goal_is_of_contenders_and_figures_that_there_are() -> None:
    names = {one.name for one in CONTENDERS}
    figures = {figure.name for figure in Plan(CONTENDERS, ALL_GROUPS, 1, False).figures}
    for goal in GOALS:
        for value in (goal.value, goal.to, goal.less):
            assert value is None or (value[0] in names and value[1] in figures), goal
