"""Budgets: what they grant, when they are spent, and how near they say they came."""

from __future__ import annotations

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from qanat.transports.http2.accounts import Accounts
from qanat.transports.http2.frames import FrameType, Http2Error
from qanat.transports.http2.limits import MAX_STREAMS, ControlFrameBudget, StreamBudget


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def spend_all(budget: StreamBudget) -> None:
    while not budget.refused_for():
        budget.begin()
        budget.spend_request()
    budget.begin()


def test_a_budget_says_how_near_it_came_in_all_and_for_each_kind(clock: Clock) -> None:
    budget = ControlFrameBudget(clock)
    assert budget.used_most.used == 0
    for _ in range(10):
        budget.spend(FrameType.RST_STREAM)
    clock.now += 3  # 64 a second
    budget.spend(FrameType.PING)
    clock.now += 100
    budget.spend(FrameType.PING)
    assert budget.used_most == (320, 1024)
    assert budget.used_most_for == {"RST_STREAM": (320, 1024), "PING": (1, 1024)}
    budget.check()


def test_a_budget_refills_and_forgives_debts(clock: Clock) -> None:
    budget = ControlFrameBudget(clock)
    for _ in range(1000):
        budget.spend(FrameType.RST_STREAM)
    assert budget.used_most.share == 2
    with pytest.raises(Http2Error, match="too many control frames"):
        budget.check()
    assert budget.retry_after == 16
    clock.now += 16.1
    budget.check()


def test_an_address_that_has_spent_all_is_refused_until_some_is_left(clock: Clock) -> None:
    budget = StreamBudget(clock)
    spend_all(budget)
    assert budget.refused_for() == 1
    clock.now += 1
    assert not budget.refused_for()


def test_where_somebody_is_known_a_few_at_a_time_are_served_all_the_same(clock: Clock) -> None:
    """An office with a stranger in it: the stranger's requests end at once, and leave room for a colleague."""
    budget = StreamBudget(clock)
    budget.trust()
    spend_all(budget)
    assert budget.refused_for()
    served = 0
    while budget.refused_for():
        budget.end()
    while not budget.refused_for():
        budget.begin()
        served += 1
    assert served == 1
    assert budget.refused_for() == 1, "soon: a place is free as soon as one of them is over"


def test_a_client_that_is_authenticated_pays_for_nothing_that_others_share(clock: Clock) -> None:
    accounts = Accounts({})
    office = StreamBudget(clock)
    accounts.open(1, office)
    accounts.begin(1)
    accounts.authenticate(1)
    for _ in range(1000):
        accounts.spend(1, FrameType.RST_STREAM)
        accounts.spend(1, FrameType.DATA)
    assert (office.used_most.used, accounts.connection.used_most.used) == (0, 0)
    for _ in range(1000):
        accounts.spend(3, FrameType.RST_STREAM)
    with pytest.raises(Http2Error):
        accounts.connection.check()


def test_streams_that_are_remembered_are_few(clock: Clock) -> None:
    known = H2Connection(H2Configuration(client_side=True))
    known.initiate_connection()
    known.send_headers(1, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")])
    accounts = Accounts(known.streams)
    office = StreamBudget(clock)
    for stream_id in range(1, 40 * MAX_STREAMS, 2):
        accounts.open(stream_id, office)
    assert accounts.has_own(1), "it is not over"
    assert sum(accounts.has_own(stream_id) for stream_id in range(1, 40 * MAX_STREAMS)) <= 16 * MAX_STREAMS
