"""Load and target, with nothing in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.rig import load
from benchmarks.rig.processes import Started, memory, processor_time, python
from benchmarks.rig.target import Waits

Address = tuple[str, int]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Started]:
    started = Started(*python("-m", "benchmarks.rig.target", "127.0.0.1", tmp_path / "port"))
    started.wait_until((tmp_path / "port").exists, "listening")
    yield started
    started.stop()


@pytest.fixture
def address(target: Started, tmp_path: Path) -> Address:
    return "127.0.0.1", int((tmp_path / "port").read_text())


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True), (True, True)])
def test_bulk_is_counted_in_each_direction(address: Address, up: bool, down: bool) -> None:
    carried = load.bulk(address, streams=10, up=up, down=down, seconds=0.3, warm=0.1)
    assert (carried.up > 1e6, carried.down > 1e6) == (up, down)
    assert carried.total > 0.3 * (carried.up + carried.down)
    assert 0 < carried.waited < 5
    assert 0 <= carried.fairness <= 1


def test_pings_connections_and_requests_reach_the_target(address: Address) -> None:
    assert len(load.ping(address, 0.1)) > 10
    assert load.connections_in_turn(address, 0.1)[0] > 5
    assert load.connections_at_once(address, 0.1, 20)[0] >= 20
    assert load._requests_of_our_own(address, 0.2, 5).rate > 10
    with load.idle_streams(address, 120):
        assert len(load.ping(address, 0.1)) > 10


def test_pings_go_on_beside_bulk_in_another_process(address: Address) -> None:
    with load.Beside(address, streams=2, up=True, down=True, warm=0.1) as beside:
        assert len(load.ping(address, 0.3)) > 10
    assert beside.carried is not None
    assert beside.carried.up > 0
    assert beside.carried.down > 0


def test_a_target_that_is_gone_is_an_error(target: Started, address: Address) -> None:
    target.stop()
    with pytest.raises(OSError):
        load.ping(address, 0.1)


def test_a_family_s_use_is_counted(target: Started, address: Address) -> None:
    before = processor_time([target.pid])
    load.bulk(address, streams=1, up=True, down=False, seconds=0.3, warm=0.0)
    assert processor_time([target.pid]) > before, "the bulk is carried by the target's child"
    found = memory([target.pid])
    assert found.threads == 2
    assert found.rss >= found.pss > 1_000_000


def test_the_longest_wait_is_that_of_the_stream_that_waits_right_now_too() -> None:
    waits = Waits()
    waits.opened(1, 0.0)
    waits.opened(2, 0.0)
    waits.moved(1, 2.0)
    assert waits.longest(3.0) == 3.0
    waits.mark(10.0)
    assert waits.longest(10.5) == 0.5
    waits.moved(2, 11.0)
    waits.closed(1)
    assert waits.longest(11.0) == 1.0
