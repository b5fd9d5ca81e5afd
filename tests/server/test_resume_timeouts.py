"""Sessions whose clients stay away, and those who come back at the very last moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from qanat.base.deadline import Deadline
from qanat.base.deadline_watch import DeadlineWatch
from qanat.mux.lane import Lane
from qanat.mux.parameters import LaneParameters
from qanat.server.resume_timeouts import ResumeTimeouts
from qanat.session.session import Session
from tests.support.background import DEADLINE, wait_until


def make_lane() -> Lane:
    return Lane("away", LaneParameters(client=False), on_open=print, on_control=print)


class Sessions(Session):
    """Counts which lanes have expired."""

    def __init__(self) -> None:
        self.expired: list[Lane] = []
        self.resume_for = 0.001

    def lane_expired(self, number: int, lane: Lane) -> None:
        self.expired.append(lane)

    def _on_open(self, stream: object) -> None: ...

    def _on_control(self, message: bytes) -> None: ...

    def _release(self) -> None: ...


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that change as often as may be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_whoever_comes_back_just_as_its_time_is_up_harms_nobody(hasty: None) -> None:
    timeouts, session = ResumeTimeouts(), Sessions()
    timeouts.start()
    for _ in range(3000):
        lane = make_lane()
        timeouts.begin(session, 0, lane)
        threading.Event().wait(0.0009)
        timeouts.stop(lane)
    last = make_lane()
    timeouts.begin(session, 0, last)
    wait_until(lambda: session.expired[-1:] == [last], "the last has expired")
    timeouts.close()
    assert timeouts.join(DEADLINE) == []


def test_one_that_cannot_be_cut_keeps_no_other_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    cut = threading.Event()

    class Faulty:
        deadline = Deadline(0.01)

        def cut(self) -> None:
            raise KeyError("a fault")

    class Good:
        deadline = Deadline(0.02)

        def cut(self) -> None:
            cut.set()

    watch = DeadlineWatch("test")
    watch.start()
    watch.add(Faulty())
    watch.add(Good())
    assert cut.wait(DEADLINE)
    watch.close()
    assert watch.join(DEADLINE) == []
    assert "please report it" in caplog.text
