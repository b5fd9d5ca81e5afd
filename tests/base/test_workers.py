"""Promises of qanat.base.workers: a thread is used again, tells its work's name, and is not kept for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from qanat.base.errors import NoThread
from qanat.base.threads import ThreadGroup
from qanat.base.workers import IDLE_NAME, Workers, current_task

TIMEOUT = 20.0


def test_a_thread_is_used_again_and_bears_the_name_of_its_work() -> None:
    workers = Workers(idle_seconds=TIMEOUT)
    seen: list[tuple[int, str]] = []
    for name in ("one", "two"):
        task = workers.start(name, lambda: seen.append((threading.get_ident(), threading.current_thread().name)))
        task.join(TIMEOUT)
        assert not task.is_alive()
        _until(lambda: any(thread.name == IDLE_NAME for thread in threading.enumerate()))
    (first, one), (second, two) = seen
    assert (one, two) == ("one", "two")
    assert first == second


def test_a_thread_with_nothing_to_do_ends() -> None:
    workers = Workers(idle_seconds=0.05)
    ident: list[int] = []
    workers.start("short", lambda: ident.append(threading.get_ident())).join(TIMEOUT)
    _until(lambda: all(thread.ident != ident[0] for thread in threading.enumerate()))


def test_no_more_threads_wait_than_the_pool_keeps() -> None:
    workers = Workers(most_idle=1, idle_seconds=TIMEOUT)
    gate = threading.Event()
    idents: list[int] = []

    def work() -> None:
        idents.append(threading.get_ident())
        gate.wait(TIMEOUT)

    tasks = [workers.start(f"task {number}", work) for number in range(3)]
    _until(lambda: len(idents) == 3)
    gate.set()
    for task in tasks:
        task.join(TIMEOUT)
    _until(lambda: sum(thread.ident in idents for thread in threading.enumerate()) == 1)


def test_what_escapes_a_task_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(idle_seconds=0.5)
    failing = workers.start("failing", lambda: 1 // 0)
    failing.join(TIMEOUT)
    assert "thread failing ended by an unexpected error" in caplog.text
    done = threading.Event()
    workers.start("next", done.set).join(TIMEOUT)
    assert done.is_set()


def test_a_group_joins_its_tasks_but_not_the_one_that_asks() -> None:
    group = ThreadGroup("test")
    results: list[list[str]] = []
    gate = threading.Event()
    group.start("slow", lambda: gate.wait(TIMEOUT))
    asking = group.start("asking", lambda: results.append(group.join(0.05)))
    asking.join(TIMEOUT)
    assert results == [["slow"]]
    gate.set()
    assert group.join(TIMEOUT) == []
    assert len(group) == 0
    assert current_task() is None


def test_without_a_thread_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("qanat.base.threads.WORKERS", Workers())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    group = ThreadGroup("test")
    with pytest.raises(NoThread):
        group.start("never", lambda: pytest.fail("it ran"))
    assert len(group) == 0


# --- threads that are kept back -----------------------------------------------------------------------


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Workers, list[str]]]:
    """A pool that keeps two threads back, in a system that gives no more; and who was asked to give way."""
    workers, asked = Workers(idle_seconds=0.01), list[str]()
    workers.reserve(2, lambda: asked.append("give way"))
    _until(lambda: len(workers._idle) == 2)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield workers, asked
    workers.reserve(0, lambda: None)
    _until(lambda: not workers._idle)


def test_threads_that_are_kept_back_are_for_reserved_work_alone(scarce: tuple[Workers, list[str]]) -> None:
    workers, asked = scarce
    with pytest.raises(NoThread):
        workers.start("a stranger's", lambda: pytest.fail("it ran"))
    assert asked == []
    done = threading.Event()
    workers.start("a session's", done.set, reserved=True)
    assert done.wait(TIMEOUT)
    assert asked == ["give way"]


def test_when_even_those_are_taken_others_are_asked_to_give_way(scarce: tuple[Workers, list[str]]) -> None:
    workers, asked = scarce
    gate = threading.Event()
    tasks = [workers.start(f"task {number}", gate.wait, reserved=True) for number in range(2)]
    with pytest.raises(NoThread):
        workers.start("one too many", lambda: pytest.fail("it ran"), reserved=True)
    assert asked == ["give way"] * 3
    gate.set()
    for task in tasks:
        task.join(TIMEOUT)
    _until(lambda: len(workers._idle) == 2)


def test_threads_that_are_kept_back_wait_for_longer_than_others(scarce: tuple[Workers, list[str]]) -> None:
    workers, _ = scarce
    time.sleep(0.1)  # ten times as long as others wait
    assert len(workers._idle) == 2


def test_work_goes_to_threads_beyond_those_that_are_kept_back() -> None:
    workers = Workers(idle_seconds=TIMEOUT)
    workers.reserve(1, lambda: None)
    _until(lambda: len(workers._idle) == 1)
    idents: list[int] = []
    for _ in range(2):
        workers.start("work", lambda: idents.append(threading.get_ident())).join(TIMEOUT)
        _until(lambda: len(workers._idle) == 2)
    assert idents[0] == idents[1]
    workers.reserve(0, lambda: None)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
