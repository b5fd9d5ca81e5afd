"""Promises of the race over the ways to a server: who starts when, who wins, and how many reach the server."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from qanat.base.cancel import Cancel
from qanat.base.errors import QanatError, RefusedError, TransportError, UsageError
from qanat.base.threads import ThreadGroup
from qanat.client import race as race_module
from qanat.client.race import MAX_HANDSHAKES, START_DELAY, Attempt, Race, RaceLost, Step
from qanat.client.ways import Candidate
from qanat.handshake.exchange import SealedPipe
from qanat.transports.dial.urls import TunnelUrl
from tests.support.background import DEADLINE, Background, wait_until

ADDRESS = ("192.0.2.1", 443)


def ways(*transports: str, url: str = "wss://server.example/tunnel") -> list[Candidate]:
    return [Candidate(TunnelUrl.parse(url), transport) for transport in transports]


class Pipe:
    """What a way that works gives."""

    def __init__(self) -> None:
        self.closed = ""

    def close(self, cause: str) -> None:
        self.closed = cause


class Path:
    """What each way meets, by transport, and what has happened so far."""

    def __init__(self, **meets: Callable[[Attempt], object]) -> None:
        self.meets = meets
        self.started: dict[str, float] = {}
        self.reached: list[str] = []
        self.stopped: list[str] = []
        self.pipes: dict[str, Pipe] = {}
        self.threads = ThreadGroup("test")

    def connect(self, attempt: Attempt) -> SealedPipe:
        name = attempt.candidate.transport
        self.started[name] = time.monotonic()
        self.meets[name](attempt)
        self.pipes[name] = Pipe()
        return cast(SealedPipe, self.pipes[name])

    def race(self, order: list[Candidate], cancel: Cancel | None = None, **more: Any) -> str:
        """The transport that wins."""
        more = {"elsewhere": lambda address: False, **more}
        race = Race(order, self.connect, lambda candidate: candidate.url, self.threads, **more)
        winner, sealed = race.run(cancel or Cancel())
        assert cast(Pipe, sealed) is self.pipes[winner.transport]
        return winner.transport

    # --- what a way may meet

    def works(self, attempt: Attempt) -> None:
        self.reaches(attempt)
        for step in (Step.ANSWERED, Step.HEARD, Step.PROVEN):
            attempt.step(step)

    def reaches(self, attempt: Attempt) -> None:
        attempt.step(Step.CONNECTED, ADDRESS)
        attempt.step(Step.OPEN)
        self.reached.append(attempt.candidate.transport)

    def is_silent(self, attempt: Attempt) -> None:
        self.reaches(attempt)
        self.wait(attempt)

    def is_silent_once_open(self, attempt: Attempt) -> None:
        self.reaches(attempt)
        attempt.step(Step.ANSWERED)
        self.wait(attempt)

    def is_refused(self, attempt: Attempt) -> None:
        self.reaches(attempt)
        raise TransportError(f"{attempt.candidate}: 403", hint="ask somebody")

    def wait(self, attempt: Attempt) -> None:
        canceled = threading.Event()
        with attempt.cancel.waking(canceled.set):
            assert canceled.wait(DEADLINE)
        self.stopped.append(attempt.candidate.transport)
        raise TransportError("it was stopped")


@pytest.fixture
def path() -> Iterator[Path]:
    path = Path()
    yield path
    assert not path.threads.join(DEADLINE)


def test_a_way_that_works_makes_no_second_start(path: Path) -> None:
    path.meets = {"a": path.works, "b": path.works}
    assert path.race(ways("a", "b")) == "a"
    assert list(path.started) == ["a"]


def test_a_way_that_is_silent_has_the_next_one_start_beside_it_after_a_moment(path: Path) -> None:
    path.meets = {"a": path.is_silent, "b": path.is_silent_once_open, "c": path.works}
    assert path.race(ways("a", "b", "c")) == "c"
    starts = list(path.started.values())
    assert all(later - earlier >= START_DELAY for earlier, later in itertools.pairwise(starts))
    assert not path.threads.join(DEADLINE)
    assert sorted(path.stopped) == ["a", "b"]


def test_a_way_that_fails_has_the_next_one_start_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "START_DELAY", 3 * DEADLINE)
    path.meets = {"a": path.is_refused, "b": path.is_refused, "c": path.works}
    assert Background(lambda: path.race(ways("a", "b", "c"))).result(DEADLINE) == "c"


def test_nobody_starts_while_a_way_makes_progress(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "START_DELAY", 1.0)
    monkeypatch.setattr(race_module, "HEARD_DELAY", 1.0)

    def is_slow(attempt: Attempt) -> None:
        for step in (Step.CONNECTED, Step.OPEN, Step.ANSWERED, Step.HEARD, Step.PROVEN):
            time.sleep(0.3)
            attempt.step(step)

    path.meets = {"a": is_slow, "b": path.works}
    assert path.race(ways("a", "b")) == "a"
    assert list(path.started) == ["a"]


def test_nobody_starts_while_it_is_this_program_that_takes_its_time(path: Path) -> None:
    def needs_a_key(attempt: Attempt) -> None:
        self_made = threading.Event()
        with attempt.waiting_for_us():
            self_made.wait(3 * START_DELAY)
        path.works(attempt)

    path.meets = {"a": needs_a_key, "b": path.works}
    assert path.race(ways("a", "b")) == "a"
    assert list(path.started) == ["a"]


def test_never_more_than_three_ways_of_one_race_reach_the_server(path: Path) -> None:
    path.meets = dict.fromkeys("abcde", path.is_silent)
    with pytest.raises(RaceLost) as lost:
        path.race(ways(*"abcde"), patience=2 * START_DELAY)
    assert path.reached == ["a", "b", "c"]
    assert len(path.reached) == MAX_HANDSHAKES
    assert [way.transport for way in lost.value.untried] == ["d", "e"]
    assert [(failure.candidate.transport, failure.silent) for failure in lost.value.failures] == [
        ("a", True),
        ("b", True),
        ("c", True),
    ]


def test_a_way_waits_with_its_request_until_another_has_failed_before_any_handshake(path: Path) -> None:
    go = threading.Event()

    def is_refused_later(attempt: Attempt) -> None:
        path.reaches(attempt)
        assert go.wait(DEADLINE)
        raise TransportError("404")

    def connects_late(attempt: Attempt) -> None:
        attempt.step(Step.CONNECTED, ADDRESS)
        wait_until(lambda: len(path.reached) == 3, "three have reached the server")
        threading.Timer(0.1, go.set).start()
        attempt.step(Step.OPEN)
        assert go.is_set()
        path.reached.append(attempt.candidate.transport)

    path.meets = {"a": connects_late, "b": path.is_silent, "c": path.is_silent, "d": is_refused_later}
    assert path.race(ways("a", "b", "c", "d"), patience=DEADLINE) == "a"
    assert path.reached == ["b", "c", "d", "a"]


def test_ways_to_one_address_do_not_dial_it_side_by_side(path: Path) -> None:
    connect = threading.Event()

    def dials(attempt: Attempt) -> None:
        assert connect.wait(DEADLINE)
        path.works(attempt)

    def other(attempt: Attempt) -> None:
        attempt.step(Step.CONNECTED, ADDRESS)
        time.sleep(3 * START_DELAY)
        connect.set()
        path.wait(attempt)

    path.meets = {"a": dials, "b": path.works, "c": other}
    order = [*ways("a", "b"), *ways("c", url="wss://other.example/tunnel")]
    assert path.race(order) == "a"
    assert list(path.started) == ["a", "c"]


def test_an_address_that_cannot_be_connected_to_is_not_dialed_again_for_other_transports(path: Path) -> None:
    def is_down(attempt: Attempt) -> None:
        raise TransportError("cannot connect: connection refused")

    path.meets = {"a": is_down, "b": path.works, "c": path.works}
    order = [*ways("a", "b"), *ways("c", url="wss://other.example/tunnel")]
    assert path.race(order) == "c"
    assert list(path.started) == ["a", "c"]


@pytest.mark.parametrize(
    "error",
    [
        RefusedError("the server does not accept the client"),
        UsageError("a file is gone"),
        TransportError("503", retry_after=7.0),
    ],
    ids=["refused", "files", "come back later"],
)
def test_what_concerns_all_ways_ends_the_race(path: Path, error: QanatError) -> None:
    def meets(attempt: Attempt) -> None:
        path.reaches(attempt)
        raise error

    path.meets = {"a": meets, "b": path.works}
    with pytest.raises(type(error), match=error.message):
        path.race(ways("a", "b"))
    assert list(path.started) == ["a"]


def test_what_nobody_proved_is_one_way_s_failure(path: Path) -> None:
    def meets(attempt: Attempt) -> None:
        path.works(attempt)
        raise RefusedError("something refused this client", final=False)

    path.meets = {"a": meets, "b": path.works}
    assert path.race(ways("a", "b")) == "b"


def test_a_race_whose_ways_have_all_failed_says_so_at_once(path: Path) -> None:
    path.meets = {"a": path.is_refused, "b": path.is_refused}
    with pytest.raises(RaceLost) as lost:
        path.race(ways("a", "b"))
    assert not lost.value.untried
    text = lost.value.failures[0].describe("a GET")
    assert text == (
        "wss://server.example/tunnel over a does not work here: sent a GET; came back: 403; meaning: ask somebody"
    )


def test_a_dead_address_does_not_hold_the_race_where_there_is_another(path: Path) -> None:
    path.meets = {"a": path.is_silent}
    with pytest.raises(RaceLost) as lost:
        path.race(ways("a"), elsewhere=lambda address: address == ADDRESS, patience=0.1)
    assert lost.value.failures[0].address == ADDRESS


def test_a_race_that_is_canceled_ends_at_once_and_so_do_its_ways(path: Path) -> None:
    cancel = Cancel()
    path.meets = {"a": path.is_silent, "b": path.is_silent}
    running = Background(lambda: path.race(ways("a", "b"), cancel))
    wait_until(lambda: len(path.reached) == 2, "both are on their way")
    cancel.cancel()
    with pytest.raises(TransportError, match="stopped"):
        running.result(DEADLINE)
    assert not path.threads.join(DEADLINE)
    assert sorted(path.stopped) == ["a", "b"]


def test_a_way_that_works_too_late_is_closed(path: Path) -> None:
    late = threading.Event()

    def is_late(attempt: Attempt) -> None:
        path.reaches(attempt)
        assert late.wait(DEADLINE)

    path.meets = {"a": is_late, "b": path.works}
    assert path.race(ways("a", "b")) == "b"
    late.set()
    assert not path.threads.join(DEADLINE)
    assert path.pipes["a"].closed
    assert not path.pipes["b"].closed


def test_the_winner_may_dial_again_later(path: Path) -> None:
    kept: list[Attempt] = []

    def works(attempt: Attempt) -> None:
        path.works(attempt)
        kept.append(attempt)

    path.meets = {"a": works}
    assert path.race(ways("a")) == "a"
    kept[0].step(Step.CONNECTED, ADDRESS)
    kept[0].step(Step.OPEN)
