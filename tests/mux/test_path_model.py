"""What the model of a path promises, on a simulated line: it fills the line, and no queue stands.

The line has one queue without a bound, so that whatever is sent too much shows as time that is spent in it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.mux.path_model import LEAST_LIMIT, LEAST_PIECE, MOST_PIECE, PathModel, PathPhase

MBIT = 125_000
ACK_DELAY = 0.020


class Line:
    """`rate` bytes a second, `delay` seconds each way, between a model and a peer that answers each PING at once.

    `demand` is how many bytes a second there are to be sent; `answers` whether PINGs bring an ACK before its 20 ms.
    """

    def __init__(self, rate: float, delay: float, *, demand: float = float("inf"), answers: bool = True) -> None:
        self.rate, self.delay, self.demand, self.answers = rate, delay, demand, answers
        self.now = 0.0
        self.model = PathModel(self.now)
        self.delivered = 0
        self.waits: list[float] = []
        self._free = 0.0
        self._spent = 0.0
        self._number = 0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ack_due = False
        self._woken_at = 0.0
        self._last_arrived = 0
        self.model.round_trip(2 * delay, 0.0)

    def run(self, seconds: float) -> float:
        """Let time pass; return the part of the line that was used."""
        end, before = self.now + seconds, self.delivered
        self._waits_from = len(self.waits)
        self._send()
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
            self._send()
        self.now = end
        return (self.delivered - before) / seconds / self.rate

    @property
    def median_wait(self) -> float:
        """The seconds that half of what was sent in the last run waited for the line, at most."""
        waits = sorted(self.waits[self._waits_from :])
        return waits[len(waits) // 2]

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _send(self) -> None:
        model = self.model
        while not model.full:
            pause = model.pause(self.now)
            if self.demand < float("inf"):
                pause = max(pause, self._spent / self.demand - self.now)
            if pause > 0:
                if self._woken_at <= self.now:
                    self._woken_at = self.now + pause
                    self._at(self._woken_at, lambda: None)
                return
            asked, size, sent_at = model.asks(), model.piece, self.now
            self._number += 1
            self._spent = max(self._spent, self.demand * self.now if self.demand < float("inf") else 0.0) + size
            model.sent(self._number, size, self.now, more=self.demand == float("inf"))
            self.waits.append(max(0.0, self._free - self.now))
            self._free = max(self._free, self.now) + size / self.rate
            ping = sent_at if asked else None
            self._at(self._free + self.delay, partial(self._arrived, self._number, size, ping))

    def _arrived(self, number: int, size: int, ping: float | None) -> None:
        self.delivered += size
        self._last_arrived = number
        if ping is not None:
            self._at(self.now + self.delay, lambda: self.model.round_trip(self.now - ping, self.now))
        if ping is not None and self.answers:
            self._at(self.now + self.delay, lambda: self.model.acknowledged(number, self.now))
        elif not self._ack_due:
            self._ack_due = True
            self._at(self.now + ACK_DELAY, self._ack_late)

    def _ack_late(self) -> None:
        self._ack_due = False
        number = self._last_arrived
        self._at(self.now + self.delay, lambda: self.model.acknowledged(number, self.now))


rates = st.sampled_from([2, 20, 100, 1000])
delays = st.sampled_from([0.0005, 0.005, 0.02, 0.05])


@settings(max_examples=16, deadline=None)
@given(rate=rates, delay=delays)
def test_it_fills_a_line_and_no_queue_stands(rate: int, delay: float) -> None:
    line = Line(rate * MBIT, delay)
    line.run(4 + 40 * delay)
    assert line.run(3) > 0.85
    assert line.median_wait < 0.030 + delay / 2 + 3 * LEAST_PIECE / line.rate


@settings(max_examples=8, deadline=None)
@given(rate=st.sampled_from([5, 50]), delay=delays)
def test_a_line_that_becomes_quicker_is_filled_again(rate: int, delay: float) -> None:
    line = Line(rate * MBIT, delay)
    line.run(4)
    line.rate *= 4
    line.run(8)
    assert line.run(3) > 0.65


@settings(max_examples=8, deadline=None)
@given(rate=st.sampled_from([40, 400]), delay=delays)
def test_a_line_that_becomes_slower_has_a_queue_for_a_while_only(rate: int, delay: float) -> None:
    line = Line(rate * MBIT, delay)
    line.run(4)
    line.rate /= 8
    line.run(25)
    assert line.run(4) > 0.8
    assert line.median_wait < 0.030 + delay / 2 + 3 * LEAST_PIECE / line.rate


@pytest.mark.parametrize("rate", [20, 200])
def test_a_line_that_becomes_longer_is_followed_within_some_seconds(rate: int) -> None:
    line = Line(rate * MBIT, 0.010)
    line.run(5)
    line.delay = 0.040
    line.run(12)
    assert line.model.least_round_trip == pytest.approx(0.080, abs=0.02)
    line.run(10)
    assert line.run(4) > 0.8


def test_a_line_that_becomes_shorter_is_followed_at_once() -> None:
    line = Line(20 * MBIT, 0.040)
    line.run(5)
    line.delay = 0.010
    line.run(0.5)
    assert line.model.least_round_trip < 0.05


def test_what_had_little_to_send_does_not_lower_the_rate() -> None:
    line = Line(100 * MBIT, 0.010)
    line.run(4)
    known = line.model.rate
    line.demand = 1 * MBIT
    line.run(20)
    assert line.model.rate >= known * 0.999
    line.demand = float("inf")
    assert line.run(1) > 0.8


def test_a_peer_that_acknowledges_late_is_sent_to_nonetheless() -> None:
    """As one does that answers a PING without an ACK, and acknowledges 20 ms after what came first."""
    line = Line(100 * MBIT, 0.005, answers=False)
    line.run(4)
    assert line.run(3) > 0.5


def test_the_least_round_trip_is_looked_for_with_half_of_what_the_line_holds() -> None:
    line = Line(100 * MBIT, 0.020)
    line.run(9)
    phases = set()
    for _ in range(400):
        line.run(0.01)
        phases.add(line.model.phase)
        if line.model.phase is PathPhase.DRAIN:
            assert line.model.limit < 100 * MBIT * 0.041
    assert phases == {PathPhase.CRUISE, PathPhase.DRAIN}


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["send", "ack", "pong"]), st.integers(1, 200_000), st.floats(0, 3)), max_size=60
    )
)
def test_whatever_comes_the_limit_has_a_floor_and_a_piece_its_bounds(steps: list[tuple[str, int, float]]) -> None:
    model, now, number = PathModel(0.0), 0.0, 0
    for step, size, seconds in steps:
        now += seconds
        if step == "send":
            number += 1
            model.sent(number, size, now, more=size % 3 > 0)
        elif step == "ack":
            model.acknowledged(size % (number + 1), now)
        else:
            model.round_trip(seconds, now)
        assert model.limit >= LEAST_LIMIT
        assert LEAST_PIECE <= model.piece <= MOST_PIECE
        assert model.in_flight >= 0
        assert 0 <= model.pause(now) < float("inf")
    model.acknowledged(number, now)
    assert model.in_flight == 0


def test_an_ack_is_asked_for_again_and_again_and_never_without_need() -> None:
    model = PathModel(0.0)
    asked = 0
    for number in range(1, 65):
        model.sent(number, 4096, 0.0, more=True)
        asked += model.asks()
        assert not model.asks()
    assert asked == 4
