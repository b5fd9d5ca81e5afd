"""Promises about the ways to a server: which one is started first, which is avoided, and when a better one is due."""

from __future__ import annotations

from pathlib import Path

from qanat.client.remembered_ways import RememberedWays
from qanat.client.ways import (
    AVOIDED_FOR,
    FAILURE_COUNTS,
    LONGEST,
    LOOK_AFTER,
    LOSSES,
    LOSSES_WITHIN,
    SHORT_LIFE,
    Candidate,
    Ways,
)
from qanat.transports.dial.urls import TunnelUrl

URL = TunnelUrl.parse("wss://server.example/tunnel")
A, B, C = (Candidate(URL, transport) for transport in ("a", "b", "c"))


class Place:
    """Ways on a network that can be changed, by a clock that is set."""

    def __init__(self, file: Path | None = None) -> None:
        self.now, self.network = 1000.0, "gateway:192.0.2.1"
        memory = RememberedWays(file, network=lambda: self.network, now=lambda: self.now)
        self.ways = Ways((A, B, C), memory, clock=lambda: self.now, uniform=lambda low, high: high)
        self.ways.order()  # as each race does first

    @property
    def order(self) -> str:
        return "".join(way.transport for way in self.ways.order())

    def lose(self, way: Candidate, count: int = LOSSES, *, every: float = 1.0) -> None:
        for _ in range(count):
            self.now += every
            self.ways.lost(way, 0.5)


def test_what_worked_last_is_started_first_and_the_others_in_their_order() -> None:
    place = Place()
    assert place.order == "abc"
    place.ways.worked(C)
    assert place.order == "cab"
    place.ways.worked(B)
    assert place.order == "bac"


def test_what_worked_is_remembered_beyond_the_process_and_for_its_network(tmp_path: Path) -> None:
    place = Place(tmp_path / "ways")
    place.ways.order()
    place.ways.worked(C)
    place.network = "gateway:198.51.100.1"
    assert place.order == "abc"
    place.ways.worked(B)
    again = Place(tmp_path / "ways")
    assert again.order == "cab"
    again.network = "gateway:198.51.100.1"
    assert again.order == "bac"


def test_what_failed_comes_last_for_a_while_and_the_longest_ago_first() -> None:
    place = Place()
    for way in (A, B):
        place.ways.failed(way)
        place.now += 1
    assert place.order == "cab"
    place.ways.failed(C)
    assert place.order == "abc"
    place.now += FAILURE_COUNTS
    assert place.order == "abc"


def test_what_failed_on_one_network_is_tried_on_the_next() -> None:
    place = Place()
    place.ways.order()
    place.ways.failed(A)
    assert place.order == "bca"
    place.network = "gateway:198.51.100.1"
    assert place.order == "abc"


def test_a_way_that_keeps_losing_its_connections_comes_after_the_others() -> None:
    place = Place()
    place.ways.worked(A)
    place.lose(A, LOSSES - 1)
    assert place.order == "abc"
    place.lose(A, 1)
    assert place.order == "bca"


def test_a_way_that_loses_one_now_and_then_or_an_old_one_keeps_its_place() -> None:
    place = Place()
    place.ways.worked(A)
    place.lose(A, 3 * LOSSES, every=LOSSES_WITHIN)
    for _ in range(3 * LOSSES):
        place.ways.lost(A, SHORT_LIFE)
    assert place.order == "abc"


def test_a_way_that_was_avoided_has_its_place_again_and_is_avoided_for_longer_the_next_time() -> None:
    place = Place()
    place.ways.worked(A)
    for times in (1, 2, 4):
        place.lose(A)
        assert place.order == "bca"
        place.now += times * AVOIDED_FOR - 1
        assert place.order == "bca"
        place.now += 2
        assert place.order == "abc"
    place.ways.lost(A, SHORT_LIFE)
    place.lose(A)
    place.now += AVOIDED_FOR + 1
    assert place.order == "abc"


def test_better_ways_are_looked_for_less_and_less_often_the_best_first() -> None:
    place = Place()
    place.ways.worked(C)
    after = LOOK_AFTER
    for _ in range(10):
        assert place.ways.better_at(C) == place.now + after
        place.now += after
        looked_at = []
        while (better := place.ways.next_better(C)) is not None:
            looked_at.append(better)
            assert place.ways.next_better(C) is None  # one at a time
            place.ways.looked()
            assert place.ways.better_at(C) == place.now  # the other one, at once
        assert looked_at == [A, B]
        after = min(LONGEST, 2 * after)
    assert after == LONGEST


def test_there_is_nothing_better_than_the_first() -> None:
    assert Place().ways.better_at(A) is None


def test_a_way_that_is_avoided_is_looked_at_when_that_is_over() -> None:
    place = Place()
    place.ways.worked(A)
    place.lose(A)
    place.ways.worked(B)
    place.lose(A, 0)
    at = place.ways.better_at(B)
    assert at is not None
    place.now = at
    assert place.ways.next_better(B) is None  # not yet
    place.now += 2 * AVOIDED_FOR
    assert place.ways.next_better(B) == A


def test_who_follows_hears_of_each_move_and_not_of_what_stays() -> None:
    place, heard = Place(), list[Candidate]()
    place.ways.follow(heard.append)
    for way in (C, C, A, A):
        place.ways.worked(way)
    assert heard == [C, A]
    place.ways.unfollow(heard.append)
    place.ways.worked(B)
    assert heard == [C, A]
