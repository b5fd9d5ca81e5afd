"""Promises of what a client's end of a split pipe makes of what its path shows."""

from __future__ import annotations

import threading

from qanat.transports.cause import FirstCause
from qanat.transports.split.measures import (
    ACTIVE,
    FAST,
    FIRST_BODY,
    MAX_ANSWER,
    MAX_BODY,
    MAX_DOWN,
    MAX_UP,
    MIN_BODY,
    MIN_WAIT,
    QUICK_UP,
    SLOW,
    SMALL_UP,
    Measures,
)
from qanat.transports.split.receiving import Receiving
from qanat.transports.split.sending import MAX_UNSENT, UNSENT_TIME, Sending
from qanat.transports.split.sequence import Incoming

MUCH = 1 << 30


def test_bodies_grow_while_full_ones_are_quick_and_shrink_when_they_are_slow_or_refused() -> None:
    measures = Measures()
    measures.posted(FIRST_BODY - 1, FAST / 10)
    assert measures.body == FIRST_BODY, "one that was not full says nothing of larger ones"
    for _ in range(10):
        measures.posted(measures.body, FAST / 10)
    assert measures.body == MAX_BODY
    measures.posted(MAX_BODY, 2 * SLOW)
    assert measures.body == MAX_BODY // 2
    assert measures.refused(100_000)
    assert measures.body == 50_000
    assert not measures.refused(MIN_BODY)
    assert measures.body == MIN_BODY


def test_on_a_quick_path_few_requests_with_bulk_run_at_once() -> None:
    measures = Measures()
    assert measures.most_posts(MUCH) == MAX_UP
    assert measures.most_posts(0) == SMALL_UP
    measures.posted(100, 0.002)
    assert measures.most_posts(MUCH) == QUICK_UP
    for _ in range(200):
        measures.posted(100, 0.1)
    assert measures.most_posts(MUCH) == MAX_UP


def test_more_requests_wait_while_more_comes() -> None:
    measures, now = Measures(), 100.0
    assert measures.asks == 1
    measures.asked(10, 1000, now)
    assert measures.asks == 2, "the next bytes find one there"
    for _ in range(10):
        measures.asked(measures.answer, measures.answer, now)
    assert measures.asks == MAX_DOWN
    assert measures.answer == MAX_ANSWER
    measures.asked(0, 1000, now + ACTIVE / 2)
    assert measures.asks == MAX_DOWN
    measures.asked(0, 1000, now + 2 * ACTIVE)
    assert measures.asks == 1


def test_a_request_waits_for_less_where_the_path_cuts_it() -> None:
    measures = Measures()
    measures.ask_failed(MIN_WAIT / 2)
    assert measures.wait == Measures().wait, "it was not the waiting"
    measures.ask_failed(10.0)
    assert measures.wait == 7.0
    for _ in range(20):
        measures.ask_failed(MIN_WAIT)
    assert measures.wait == MIN_WAIT


def test_on_a_long_path_more_waits_for_the_next_request_and_on_a_short_one_no_more() -> None:
    measures = Measures()
    for _ in range(20):
        measures.posted(1000, 0.12)
    assert 0.03 < measures.next_in < 0.06
    measures.posted(1000, 0.003)
    assert measures.next_in < UNSENT_TIME


def test_who_sends_may_have_as_much_waiting_as_passes_until_the_next_request() -> None:
    """At a client on a long path a request should find as many bytes as it can take."""
    for unsent_time, most in ((UNSENT_TIME, MAX_UNSENT), (0.05, 500_000)):
        lock = threading.Lock()
        cause = FirstCause()
        sending = Sending(lock, Receiving(lock, Incoming(1 << 20), cause), cause)
        sending.unsent_time = unsent_time
        sending.outgoing.limit = 1 << 30
        for turn in range(1, 4):  # 10 MB/s
            sending.outgoing.append(bytes(1_000_000))
            while sending.take_locked(1 << 20) is not None:
                pass
            sending.acknowledge_locked(turn * 1_000_000, 0, turn * 0.1)
        sending.outgoing.append(bytes(most - 1))
        assert sending.has_room
        sending.outgoing.append(bytes(1000))
        assert not sending.has_room
