"""Promises of a condition and an event that cost nothing while nobody waits."""

from __future__ import annotations

import sys
import threading

from qanat.base.lazy_waiting import LazyCondition, LazyEvent
from tests.support.background import DEADLINE, Background, wait_until


def test_all_who_wait_are_woken_and_nothing_is_kept_for_them() -> None:
    lock = threading.Lock()
    condition, state = LazyCondition(lock), {"due": False, "waiting": 0}

    def wait() -> None:
        with lock:
            state["waiting"] += 1
            assert condition.wait_for(lambda: bool(state["due"]), DEADLINE)

    threads = [Background(wait), Background(wait)]
    wait_until(lambda: state["waiting"] == 2, "both wait")
    with lock:
        state["due"] = True
        condition.notify_all()
    for thread in threads:
        thread.result()
    assert condition._condition is None
    assert sys.getsizeof(condition) < 100


def test_one_of_those_who_wait_is_woken() -> None:
    lock = threading.Lock()
    condition = LazyCondition(lock)
    waiting, woken = [0], []

    def wait() -> None:
        with lock:
            waiting[0] += 1
            assert condition.wait(DEADLINE)
            woken.append(1)
            condition.notify()

    threads = [Background(wait), Background(wait)]
    wait_until(lambda: waiting[0] == 2, "both wait")
    with lock:
        condition.notify()
    for thread in threads:
        thread.result()
    assert len(woken) == 2


def test_who_waits_in_vain_is_told() -> None:
    lock = threading.Lock()
    condition = LazyCondition(lock)
    with lock:
        condition.notify()
        condition.notify_all()  # for nobody
        assert not condition.wait(0.01)
        assert not condition.wait_for(lambda: False, 0.01)
        assert condition.wait_for(lambda: True, 0)


def test_an_event_wakes_who_waits_and_stays_set() -> None:
    event = LazyEvent()
    assert not event.is_set()
    assert not event.wait(0.01)
    waits = Background(lambda: event.wait(DEADLINE))
    event.set()
    event.set()
    assert waits.result()
    assert event.is_set()
    assert event.wait(0)
