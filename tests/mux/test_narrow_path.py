"""What the core promises about a slow path: bulk fills it, no queue stands in it, and nobody starves.

Two cores over a line of 20 Mbit/s and 40 ms round trip, by a fake clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.mux.parameters import LaneParameters
from qanat.mux.path_queue import PATH_TIME, PathQueue
from qanat.mux.stream_state import StreamState
from qanat.mux.window import NARROW_LEAST, ReceiveWindow, WindowBudget
from tests.support.mux.cores import KIB, Rig
from tests.support.mux.slow_line import SlowLine

RATE, DELAY = 2.5e6, 0.02


class Download:
    """A server that sends on `count` streams over a line, to a client that reads them."""

    def __init__(self, count: int, rate: float = RATE, delay: float = DELAY, *, tell_clock: bool = True) -> None:
        self.rig = Rig(*(LaneParameters(client=client, tell_clock=tell_clock) for client in (True, False)))
        self._rate = rate
        self.line = SlowLine(self.rig, rate, delay)
        self.line.run(0.1)
        self.ours = [self.rig.client.core.open_stream(b"", self.line.now) for _ in range(count)]
        self.line.run(3 * delay)
        self.theirs = [self.rig.server.stream(stream.id) for stream in self.ours]

    def run(self, seconds: float, reading: Sequence[StreamState] | None = None) -> float:
        """Let time go by; return which part of the line's rate came of payload."""
        receiver = self.rig.client.core.receiver
        before = receiver.payload_received
        writers = [(self.rig.server, stream) for stream in self.theirs]
        readers = [(self.rig.client, stream) for stream in (self.ours if reading is None else reading)]
        took = self.line.run(seconds, writers, readers)
        self.rig.client.core.check_invariants()
        return (receiver.payload_received - before) / took / self._rate

    @property
    def longest_wait(self) -> float:
        """The longest that anything would have waited in the line's queue while it `run` last."""
        return max(self.line.waits[self.rig.server])


def test_eight_downloads_fill_a_slow_line_and_leave_no_queue_in_it() -> None:
    download = Download(8)
    download.run(2.0)
    assert download.longest_wait > 0.3  # Eight initial windows,
    assert download.run(2.0) > 0.9
    assert download.longest_wait < 0.06  # and what is left of them once they have been seen.
    sizes = [stream.window.size for stream in download.ours]
    assert min(sizes) > 0.5 * max(sizes)


def test_one_download_fills_a_slow_line_from_the_first_second_on() -> None:
    download = Download(1)
    download.run(0.5)
    assert download.run(1.5) > 0.85
    assert download.longest_wait < 0.06


def test_bursts_that_take_most_of_a_very_long_path_do_not_hide_its_queue() -> None:
    """0.4 s: three PINGs one after the other, and twice, are most of the time between two bursts."""
    download = Download(8, rate=RATE / 4, delay=0.2)
    download.run(8.0)
    assert download.run(2.5) > 0.85
    assert download.longest_wait < 0.2
    assert all(stream.window.narrow for stream in download.ours)


def test_a_reader_that_stands_still_holds_up_nobody_and_goes_on_when_it_reads() -> None:
    download = Download(8)
    download.run(2.0)
    still, others = download.ours[0], download.ours[1:]
    assert download.run(2.0, reading=others) > 0.85
    stood = still.window.received
    download.run(1.0)
    assert still.window.received > stood


def test_the_least_round_trip_stays_the_paths_own_while_bulk_goes_on() -> None:
    download = Download(2, rate=RATE / 10)
    download.run(10.0)
    pending = download.rig.client.core.pending
    for _ in range(7):  # As long as no older PING than those beside bulk is remembered.
        download.run(10.0)
        assert pending.least_round_trip < 2 * DELAY + 0.02


def test_an_end_that_only_sends_measures_again_when_the_other_does() -> None:
    download = Download(1)
    pending = download.rig.server.core.pending
    pending._round_trips.clear()  # As if its first PING had found a busy machine.
    pending.least_round_trip = 10 * DELAY
    download.run(1.0)
    assert pending.least_round_trip < 2 * DELAY + 0.06


@pytest.mark.parametrize("count", [1, 3])
def test_others_who_fill_the_line_leave_us_what_they_would_without_any_of_this(count: int) -> None:
    """Windows that shrink because others' queue makes PINGs wait bring less, shrink again, and end at nothing."""
    left_alone, download = Download(count, tell_clock=False), Download(count)
    for each in (left_alone, download):
        each.run(1.5)
        each.line.others = 0.25
        each.run(6.0)
    assert left_alone.ours[0].window.size >= left_alone.ours[0].window.initial  # Of a peer without CLOCK.
    assert download.run(5.0) > 0.6 * left_alone.run(5.0)  # Once it has been seen.
    download.line.others = 0.0
    download.run(1.0)
    assert download.run(1.0) > 0.85


def test_a_fast_path_and_a_short_one_are_left_alone() -> None:
    path = PathQueue()
    assert not path.bulk(PATH_TIME / 2, 0.0, ping_waits=False)
    path.answered(0.5, PATH_TIME / 2, 0.0)
    path.received = 10**6
    path.bulk(PATH_TIME / 2, 0.2, ping_waits=False)
    assert not path.narrow(PATH_TIME / 2, 0.3)
    path.answered(0.5, 0.1, 0.3)
    path.received += 25 * 10**6
    path.bulk(0.1, 0.5, ping_waits=False)
    assert path.rate * 0.1 > 4 * KIB * KIB
    assert not path.narrow(0.1, 0.6)


def narrow_path(rate: float, least_round_trip: float) -> PathQueue:
    """A path on which a PING has just waited, and that has brought `rate` bytes a second."""
    path = PathQueue()
    path.answered(10.0, least_round_trip, 0.0)
    path.bulk(least_round_trip, 0.0, ping_waits=True)
    path.received = int(rate)
    path.bulk(least_round_trip, 0.999, ping_waits=True)
    return path


steps = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 200_000), st.floats(0.0, 1.0), st.floats(0.0, 0.3), st.booleans()),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(rate=st.floats(1e4, 1e7), least=st.floats(PATH_TIME, 0.3), steps=steps)
def test_whatever_comes_each_stream_may_go_on_once_its_reader_has_read(
    rate: float, least: float, steps: list[tuple[int, int, float, float, bool]]
) -> None:
    path, now = narrow_path(rate, least), 1.0
    budget = WindowBudget(1024 * KIB)
    windows = [ReceiveWindow(128 * KIB, 1024 * KIB, budget, now) for _ in range(6)]
    for number, size, elapsed, waited, ping in steps:
        now += elapsed
        window = windows[number]
        size = min(size, window.granted - window.received)
        window.received += size
        path.received += size
        if ping:
            path.ping_received(0, least, now)
        path.answered(least + waited, least, now)
        path.waited(waited, least, now)
        if window.consume(window.received - window.consumed, now, least, path):
            window.grant()
            path.bulk(least, now, ping_waits=not ping)
        assert window.size >= NARROW_LEAST
        assert window.granted - window.consumed >= min(NARROW_LEAST, window.allowed) // 2
        assert 0 <= budget.used <= budget.limit
