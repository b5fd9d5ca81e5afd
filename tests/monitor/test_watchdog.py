"""The service manager's watchdog is fed while watcher and lanes move, and not when one of them is stuck."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qanat.base.watcher import Watcher
from qanat.monitor.watchdog import ServiceReporter, Watchdog, watchdog_seconds
from qanat.mux.lane import Lane
from qanat.mux.parameters import LaneParameters
from tests.support.mux.rig import DEADLINE, Pair

PATIENCE = 0.1


@contextmanager
def stuck_watcher() -> Iterator[tuple[Watcher, threading.Event]]:
    """A watcher whose thread is in a callback until the event is set."""
    watcher, go_on = Watcher(), threading.Event()
    here, there = socket.socketpair()
    with here, there:

        def block() -> None:
            here.recv(1)
            go_on.wait(DEADLINE)

        watcher.add(here.fileno(), block)
        there.send(b"x")
        try:
            yield watcher, go_on
        finally:
            go_on.set()
            watcher.remove(here.fileno())
            watcher.close()


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stuck_watcher_is_found_and_one_that_goes_on_is_not() -> None:
    with stuck_watcher() as (watcher, go_on):
        dog = Watchdog(watcher, list, patience=PATIENCE)
        wait_until(dog.look)
        assert "the watcher has been in one round" in dog.look()[0]
        go_on.set()
        wait_until(lambda: not dog.look())


def test_an_idle_watcher_is_no_trouble_and_one_that_sleeps_past_a_timer_is() -> None:
    watcher = Watcher()
    watcher.timer(lambda: None).set(time.monotonic() + 3600)
    try:
        wait_until(lambda: "slept" in watcher.stuck(time.monotonic() + 3600 + 1, PATIENCE))
        assert not watcher.stuck(time.monotonic(), PATIENCE)
    finally:
        watcher.close()


def test_a_lane_whose_lock_is_held_is_found() -> None:
    watcher = Watcher()
    lane = Lane("office", LaneParameters(client=True), on_open=lambda stream: None, on_control=lambda message: None)
    dog = Watchdog(watcher, lambda: [lane], patience=PATIENCE)
    assert dog.look() == ()
    with lane.lock:
        assert "office: its lock" in dog.look(0.01)[0]
    assert dog.look() == ()


def test_a_lane_at_rest_is_no_trouble_and_one_that_sends_no_ping_is() -> None:
    with Pair() as pair:
        wait_until(lambda: pair.client.lane.round_trip)
        assert Watchdog(Watcher(), lambda: [pair.client.lane, pair.server.lane]).look() == ()
        clock = pair.client.lane.clock
        pair.client.lane.clock = lambda: clock() + 3600
        try:
            found = pair.client.lane.trouble(15.0, 1.0)
        finally:
            pair.client.lane.clock = clock
    assert "client: a PING has been due for" in found


# --- what the service manager hears -----------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd listens with."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(DEADLINE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield sock


def heard(manager: socket.socket) -> list[str]:
    manager.setblocking(False)
    found = []
    try:
        while True:
            found.append(manager.recv(4096).decode())
    except BlockingIOError:
        return found


def test_the_watchdog_is_fed_while_all_moves_and_not_while_the_watcher_is_stuck(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with stuck_watcher() as (watcher, go_on):
        dog = Watchdog(watcher, list, patience=PATIENCE)
        reporter = ServiceReporter(dog.look, lambda: "2 clients connected")
        assert reporter.feeds == 3.0
        wait_until(dog.look)
        reporter.report()
        (status,) = heard(manager)
        assert status.startswith("STATUS=the watcher has been in one round for")
        assert "restarts us in 3 s" in caplog.text
        assert "in block" in caplog.text, "the log says where the watcher is"
        go_on.set()
        wait_until(lambda: not dog.look())
        reporter.report()
        assert heard(manager) == ["WATCHDOG=1", "STATUS=2 clients connected"]
        reporter.report()
        assert heard(manager) == ["WATCHDOG=1"], "a line that says the same is not sent again"


def test_the_reporter_feeds_by_itself_until_it_is_stopped(manager: socket.socket) -> None:
    reporter = ServiceReporter(lambda: (), lambda: "all is well")
    reporter.start()
    try:
        said = [manager.recv(4096).decode() for _ in range(3)]
    finally:
        reporter.stop()
    assert said == ["WATCHDOG=1", "STATUS=all is well", "WATCHDOG=1"]


def test_nobody_reports_where_no_service_manager_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    reporter = ServiceReporter(lambda: (), lambda: "")
    before = set(threading.enumerate())  # not their number, since some may be ending
    reporter.start()
    assert not set(threading.enumerate()) - before
    reporter.stop()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_time_is_the_service_managers(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(environ) == seconds
