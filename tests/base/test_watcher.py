"""Promises of qanat.base.watcher: who has something is called, and all that came is flushed once a round."""

from __future__ import annotations

import itertools
import math
import queue
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from qanat.base import watcher as module
from qanat.base.watcher import Timer, Watcher
from tests.support.background import wait_until

TIMEOUT = 20.0


class Lane:
    """Notes by which thread it was flushed."""

    def __init__(self) -> None:
        self.flushed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def flush(self) -> None:
        self.flushed.put(threading.current_thread().name)


@pytest.fixture(params=["epoll", "selectors"])
def watcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    if request.param == "selectors":
        monkeypatch.setattr(module, "_HAS_EPOLL", False)
    elif not module._HAS_EPOLL:
        pytest.skip("there is no epoll on this system")
    made = Watcher()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


Pair = tuple[socket.socket, socket.socket]


def reading(sock: socket.socket, into: queue.SimpleQueue[bytes], lane: Lane) -> Callable[[], Lane]:
    def ready() -> Lane:
        into.put(sock.recv(4096, socket.MSG_DONTWAIT))
        return lane

    return ready


def test_what_comes_is_read_and_its_lane_flushed_in_one_thread(watcher: Watcher, pair: Pair) -> None:
    got, lane = queue.SimpleQueue[bytes](), Lane()
    watcher.add(pair[0].fileno(), reading(pair[0], got, lane))
    for number in range(3):
        pair[1].send(b"%d" % number)
        assert got.get(timeout=TIMEOUT) == b"%d" % number
        assert lane.flushed.get(timeout=TIMEOUT) == module.NAME


def test_what_was_there_before_counts_and_so_does_the_end(watcher: Watcher, pair: Pair) -> None:
    got, lane = queue.SimpleQueue[bytes](), Lane()
    pair[1].send(b"early")
    pair[1].shutdown(socket.SHUT_WR)
    watcher.add(pair[0].fileno(), reading(pair[0], got, lane))
    assert got.get(timeout=TIMEOUT) == b"early"
    assert got.get(timeout=TIMEOUT) == b""
    watcher.remove(pair[0].fileno())


def test_who_is_removed_is_not_called_and_may_come_back(watcher: Watcher, pair: Pair) -> None:
    got, lane = queue.SimpleQueue[bytes](), Lane()
    fd = pair[0].fileno()
    watcher.add(fd, reading(pair[0], got, lane))
    watcher.remove(fd)
    watcher.remove(fd)
    assert len(watcher) == 0
    pair[1].send(b"later")
    with pytest.raises(queue.Empty):
        got.get(timeout=0.1)
    watcher.add(fd, reading(pair[0], got, lane))
    assert got.get(timeout=TIMEOUT) == b"later"


def test_a_fault_of_one_socket_s_callback_leaves_the_others(
    watcher: Watcher, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    got, lane = queue.SimpleQueue[bytes](), Lane()
    faulty, other = socket.socketpair()
    with faulty, other:
        watcher.add(faulty.fileno(), lambda: 1 // 0)  # type: ignore[arg-type, return-value]
        watcher.add(pair[0].fileno(), reading(pair[0], got, lane))
        other.send(b"x")
        pair[1].send(b"well")
        assert got.get(timeout=TIMEOUT) == b"well"
        pair[1].send(b"and")
        assert got.get(timeout=TIMEOUT) == b"and"
    assert caplog.text.count("an unexpected error") == 1


def test_a_fault_while_one_lane_is_flushed_leaves_the_others(
    watcher: Watcher, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Lane):
        def flush(self) -> None:
            raise RuntimeError

    got, lane = queue.SimpleQueue[bytes](), Lane()
    faulty, other = socket.socketpair()
    with faulty, other:
        watcher.add(faulty.fileno(), reading(faulty, got, Faulty()))
        other.send(b"x")
        assert got.get(timeout=TIMEOUT) == b"x"
        watcher.add(pair[0].fileno(), reading(pair[0], got, lane))
        pair[1].send(b"well")
        assert got.get(timeout=TIMEOUT) == b"well"
        assert lane.flushed.get(timeout=TIMEOUT) == module.NAME
        watcher.remove(faulty.fileno())
    assert caplog.text.count("an unexpected error") == 1


def test_closed_it_has_no_thread_and_calls_nobody(watcher: Watcher, pair: Pair) -> None:
    got, lane = queue.SimpleQueue[bytes](), Lane()
    watcher.add(pair[0].fileno(), reading(pair[0], got, lane))
    watcher.close()
    watcher.close()
    assert not [thread for thread in threading.enumerate() if thread.name == module.NAME]
    watcher.add(pair[0].fileno(), reading(pair[0], got, lane))
    pair[1].send(b"x")
    with pytest.raises(queue.Empty):
        got.get(timeout=0.05)


def test_timers_call_in_their_order_and_for_each_time_that_was_set(watcher: Watcher) -> None:
    called = queue.SimpleQueue[str]()
    start = time.monotonic() + 1.0  # by when all have been set
    late, soon = watcher.timer(lambda: called.put("late")), watcher.timer(lambda: called.put("soon"))
    late.set(start + 0.2)
    soon.set(start + 0.15)
    soon.set(start + 0.05)  # sooner: both count
    late.set(start + 9)  # later than it is set for: does not count
    assert [called.get(timeout=TIMEOUT) for _ in range(3)] == ["soon", "soon", "late"]
    assert time.monotonic() >= start + 0.2
    assert late.at == soon.at == math.inf


def test_a_timer_may_be_set_from_its_own_call_and_canceled(watcher: Watcher) -> None:
    called = queue.SimpleQueue[float]()

    def again() -> None:
        now = time.monotonic()
        called.put(now)
        timer.set(now + 0.01)

    timer, canceled = watcher.timer(again), watcher.timer(lambda: called.put(-1.0))
    canceled.set(time.monotonic() + 0.02)
    canceled.cancel()
    timer.set(time.monotonic())
    times = [called.get(timeout=TIMEOUT) for _ in range(5)]
    assert all(later >= earlier + 0.01 for earlier, later in itertools.pairwise(times))


def test_what_a_timer_returns_is_flushed_and_a_fault_of_one_leaves_the_others(
    watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    lane = Lane()
    faulty = watcher.timer(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    faulty.set(time.monotonic())
    watcher.timer(lambda: lane).set(time.monotonic() + 0.01)
    assert lane.flushed.get(timeout=TIMEOUT) == module.NAME
    assert caplog.text.count("an unexpected error") == 1


def test_a_thousand_times_set_is_one_entry_each(watcher: Watcher) -> None:
    timer = watcher.timer(lambda: None)
    now = time.monotonic()
    for _ in range(1000):
        timer.set(now + 1000)
    assert len(watcher._timers) == len(watcher._times) == 1


def test_many_timers_for_one_time_hold_up_no_socket(watcher: Watcher, pair: Pair) -> None:
    order = queue.SimpleQueue[str]()
    many, due = 4 * module.TIMERS_IN_ROUND, time.monotonic() + 0.5  # by when all have been set

    def called() -> None:
        order.put("timer")
        if order.qsize() == 1:
            pair[1].send(b"the first has been called")

    for _ in range(many):
        watcher.timer(called).set(due)
    watcher.add(pair[0].fileno(), lambda: order.put(pair[0].recv(4096).decode()))
    wait_until(lambda: order.qsize() > many, "all have been called")
    come = [order.get() for _ in range(many + 1)]
    assert come.index("the first has been called") == module.TIMERS_IN_ROUND
    assert come.count("timer") == many


def test_sockets_that_always_have_something_hold_up_no_timer(watcher: Watcher) -> None:
    """Each round reads more sockets than it calls timers, and what is read sets a timer that is due already."""
    called = threading.Event()
    waiting: list[int] = []
    called_after: list[int] = []
    pairs = [socket.socketpair() for _ in range(2 * module.ROUND)]
    many = 50 * module.ROUND

    def call() -> None:
        called_after.append(len(waiting))
        called.set()

    other_timer = watcher.timer(call)

    def busy(timer: Timer) -> Callable[[], None]:
        def ready() -> None:
            timer.set(time.monotonic())
            waiting.append(len(watcher._overdue))
            if len(waiting) == many:
                other_timer.set(time.monotonic())

        return ready

    try:
        for one, other in pairs:
            other.send(b"which nobody reads")
            watcher.add(one.fileno(), busy(watcher.timer(lambda: None)))
        assert called.wait(TIMEOUT)
        assert called_after[0] - many < many
        assert max(waiting) <= len(pairs) + 1, "one waits several times"
    finally:
        watcher.close()
        for one, other in pairs:
            one.close()
            other.close()


# --- chores -----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.01)


def noting(done: queue.SimpleQueue[str], name: str, *answers: bool) -> Callable[[], bool]:
    left = list(answers)

    def chore() -> bool:
        done.put(name)
        return left.pop(0) if left else False

    return chore


@pytest.mark.usefixtures("quick")
def test_chores_are_done_after_something_has_happened_the_latest_first(watcher: Watcher) -> None:
    done = queue.SimpleQueue[str]()
    watcher.add_chore(noting(done, "first"))
    watcher.add_chore(noting(done, "second"))
    for _ in range(2):
        watcher.stir()
        assert [done.get(timeout=TIMEOUT), done.get(timeout=TIMEOUT)] == ["second", "first"]


@pytest.mark.usefixtures("quick")
def test_chores_are_not_done_again_while_nothing_happens_unless_one_asks_for_it(watcher: Watcher) -> None:
    done = queue.SimpleQueue[str]()
    watcher.add_chore(noting(done, "again", True, True))
    watcher.stir()
    assert [done.get(timeout=TIMEOUT) for _ in range(3)] == ["again"] * 3
    with pytest.raises(queue.Empty):
        done.get(timeout=0.2)


@pytest.mark.usefixtures("quick")
def test_a_chore_that_fails_ends_neither_the_others_nor_the_watching(watcher: Watcher, pair: Pair) -> None:
    done, got, lane = queue.SimpleQueue[str](), queue.SimpleQueue[bytes](), Lane()
    watcher.add_chore(noting(done, "goes on"))
    watcher.add_chore(lambda: 1 // 0 > 0)
    watcher.stir()
    assert done.get(timeout=TIMEOUT) == "goes on"
    watcher.add(pair[0].fileno(), reading(pair[0], got, lane))
    pair[1].send(b"still watched")
    assert got.get(timeout=TIMEOUT) == b"still watched"


@pytest.mark.usefixtures("quick")
def test_a_chore_that_was_removed_is_not_done(watcher: Watcher) -> None:
    done = queue.SimpleQueue[str]()
    removed = noting(done, "removed")
    watcher.add_chore(noting(done, "kept"))
    watcher.add_chore(removed)
    watcher.remove_chore(removed)
    watcher.stir()
    assert done.get(timeout=TIMEOUT) == "kept"


@pytest.mark.usefixtures("quick")
def test_timers_that_were_canceled_are_forgotten_and_the_others_still_call(watcher: Watcher) -> None:
    called, done = queue.SimpleQueue[str](), queue.SimpleQueue[str]()
    start = time.monotonic() + 0.5
    timers = [watcher.timer(lambda: called.put("canceled")) for _ in range(100)]
    for number, timer in enumerate(timers):
        timer.set(start + number)
        timer.cancel()
    for name, after in (("late", 0.2), ("soon", 0.1)):
        watcher.timer(lambda name=name: called.put(name)).set(start + after)
    watcher.add_chore(noting(done, "chore"))
    watcher.stir()
    assert done.get(timeout=TIMEOUT) == "chore"
    assert len(watcher._timers) == len(watcher._times) <= 2
    assert [called.get(timeout=TIMEOUT) for _ in range(2)] == ["soon", "late"]


def test_what_was_called_last_is_not_kept_while_nothing_happens(watcher: Watcher, pair: Pair) -> None:
    class Owner(Lane):
        def ready(self) -> Owner:
            pair[0].recv(4096)
            watcher.remove(pair[0].fileno())
            return self

    owner = Owner()
    gone, flushed = weakref.ref(owner), owner.flushed
    watcher.add(pair[0].fileno(), owner.ready)
    pair[1].send(b"the last")
    assert flushed.get(timeout=TIMEOUT) == module.NAME
    del owner
    wait_until(lambda: gone() is None, "what has ended is gone")


def test_what_may_wait_is_flushed_with_what_one_more_look_brings(watcher: Watcher, pair: Pair) -> None:
    order: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Noting(Lane):
        def flush(self) -> None:
            order.put("flushed")

    lane = Noting()
    first, other = socket.socketpair()
    with first, other:

        def ends() -> None:
            first.recv(1)
            order.put("ends")
            pair[1].send(b"x")  # so that the other one has something only after this round has looked
            watcher.flush_soon(lane)

        def begins() -> Lane:
            pair[0].recv(1)
            order.put("begins")
            return lane

        watcher.add(first.fileno(), ends)
        watcher.add(pair[0].fileno(), begins)
        for _ in range(2):
            other.send(b"x")
            assert [order.get(timeout=TIMEOUT) for _ in range(3)] == ["ends", "begins", "flushed"]
        with pytest.raises(queue.Empty):
            order.get(timeout=0.05)
        watcher.flush_soon(lane)  # outside the watcher's thread there is nothing to wait for
        assert order.get_nowait() == "flushed"
        watcher.remove(first.fileno())


def test_what_may_wait_does_so_for_one_look_only(watcher: Watcher, pair: Pair) -> None:
    lane = Lane()

    def ends() -> None:
        pair[0].recv(1)
        watcher.flush_soon(lane)

    watcher.add(pair[0].fileno(), ends)
    pair[1].send(b"x")
    assert lane.flushed.get(timeout=TIMEOUT) == module.NAME


def test_who_is_flushed_in_this_round_is_not_flushed_again(watcher: Watcher, pair: Pair) -> None:
    got: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    lane, another = Lane(), Lane()

    def ready() -> Lane:
        got.put(pair[0].recv(1))
        watcher.flush_soon(lane)
        watcher.flush_soon(another)
        return lane

    watcher.add(pair[0].fileno(), ready)
    for _ in range(3):
        pair[1].send(b"x")
        assert another.flushed.get(timeout=TIMEOUT) == module.NAME  # which comes a round later
        assert lane.flushed.get_nowait() == module.NAME
    assert lane.flushed.empty()


def test_tidying_up_comes_after_what_is_sent_and_a_fault_of_one_leaves_the_others(
    watcher: Watcher, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    order: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Noting(Lane):
        def flush(self) -> None:
            order.put("flushed")

    def again() -> None:
        order.put("tidied")
        watcher.call_late(lambda: order.put("tidied more"))

    def ready() -> Lane:
        pair[0].recv(1)
        watcher.call_late(lambda: 1 // 0)  # type: ignore[arg-type]
        watcher.call_late(again)
        order.put("read")
        return lane

    lane = Noting()
    watcher.add(pair[0].fileno(), ready)
    for _ in range(2):
        pair[1].send(b"x")
        got = [order.get(timeout=TIMEOUT) for _ in range(4)]
        assert got == ["read", "flushed", "tidied", "tidied more"]
    assert caplog.text.count("an unexpected error") == 2
    watcher.call_late(lambda: order.put("at once"))  # outside the watcher's thread
    assert order.get_nowait() == "at once"


def test_who_needs_a_place_has_what_is_late_called_before(watcher: Watcher, pair: Pair) -> None:
    order: queue.SimpleQueue[object] = queue.SimpleQueue()

    def ready() -> None:
        pair[0].recv(1)
        watcher.call_late(lambda: order.put("tidied"))
        order.put(watcher.tidy())
        order.put(watcher.tidy())

    watcher.add(pair[0].fileno(), ready)
    pair[1].send(b"x")
    assert [order.get(timeout=TIMEOUT) for _ in range(3)] == ["tidied", True, False]
    assert not watcher.tidy()  # outside the watcher's thread
