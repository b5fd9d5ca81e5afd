"""What single groups of figures need beside load and target: many idle clients, and a line between two namespaces."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest

from benchmarks.contenders import OTHERS, Running, Site
from benchmarks.figures import Lengths, client_figures, measure_clients
from benchmarks.qanat_contenders import QANAT
from benchmarks.rig import load, processes
from benchmarks.rig.namespaces import FAR, Line, Machines, impossible
from benchmarks.rig.processes import Started, python


def test_idle_clients_are_counted_at_their_server(tmp_path: Path) -> None:
    websocket = next(one for one in QANAT if one.name == "websocket")
    start = websocket.start_clients
    assert start is not None
    lengths = Lengths(clients=(6, 5000), clients_watch=0.5)
    sites = iter([tmp_path / "one", tmp_path / "six"])

    def site() -> Site:
        folder = next(sites)
        folder.mkdir()
        return Site(folder, target=1)

    values = measure_clients(lambda count: start(site(), count), 1000, lengths)
    assert values.keys() == {figure.name for figure in client_figures(Lengths(clients=(6,)))}, "5,000 are beyond 1,000"
    assert values["clients.threads.6"] >= 1
    assert (tmp_path / "six" / "ready-0").exists()


class Sleeper:
    """A process that none looks at."""

    pid = 0
    running = True
    last_words = ""

    def stop(self) -> None:
        """Nothing runs."""


def test_the_next_measurement_waits_until_a_contender_has_nothing_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(("127.0.0.1", 1), far=[Sleeper()])
    used = iter([0.0, 5.0, 5.0, 7.0, 7.0, 7.0])
    monkeypatch.setattr(processes, "processor_time", lambda pids: next(used))
    assert running.await_rest(60.0)
    assert next(used, None) is None, "it looked until two looks gave the same"
    busy = itertools.count()
    monkeypatch.setattr(processes, "processor_time", lambda pids: next(busy) * 100.0)
    assert not running.await_rest(0.0)
    assert Running(("127.0.0.1", 1)).await_rest(0.0), "no process, no backlog"


@pytest.mark.skipif(impossible() is not None, reason=impossible() or "")
def test_a_line_delays_what_goes_between_two_namespaces_and_holds_it_to_its_rate(tmp_path: Path) -> None:
    line = Line("", "", delay=0.02, rate=20e6, queue=250_000)
    with Machines() as machines:
        with machines.far:
            target = Started(*python("-m", "benchmarks.rig.target", FAR, tmp_path / "port"))
        try:
            target.wait_until((tmp_path / "port").exists, "listening")
            site = Site(
                tmp_path, int((tmp_path / "port").read_text()), FAR, lambda: machines.near, lambda: machines.far
            )
            with machines.joined(line):
                direct = next(one for one in OTHERS if one.name == "direct").start(site)
                with machines.near:
                    assert 0.039 < statistics.median(load.ping(direct.address, 0.5)) < 0.2
                    carried = load.bulk(direct.address, streams=1, up=True, down=False, seconds=1.0, warm=1.0)
                    assert 1e6 < carried.up * 8 < 25e6
        finally:
            target.stop()
