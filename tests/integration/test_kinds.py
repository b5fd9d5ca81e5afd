"""Every kind of forward over every transport: both ways, half-close, refusals, many at once, and cuts.

`make soak` does the same with 100 cuts and larger counts (docs/SOAK.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from qanat.config.texts import AUTO, TRANSPORTS
from tests.support import kind_promises
from tests.support.kinds import KINDS, UDP_KINDS, Place

CARRIERS = [name for name in TRANSPORTS if name != AUTO]
CUTS = 3
SIZE = 200_000
AT_ONCE, PROCESSES = 20, 3
"""Connections at once, and programs where each is one; over `websocket`, and over the others as many as FEW says."""
FEW = 8, 1

each_kind = pytest.mark.parametrize("kind", KINDS)
each_udp_kind = pytest.mark.parametrize("kind", UDP_KINDS)


@pytest.fixture(scope="module", params=CARRIERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path_factory.mktemp("kinds"), request.param, stack)


@each_kind
def test_bytes_go_both_ways_at_once(place: Place, kind: str) -> None:
    kind_promises.both_ways_at_once(place, KINDS[kind], SIZE)


@each_kind
def test_an_answer_comes_after_the_end(place: Place, kind: str) -> None:
    kind_promises.half_close(place, KINDS[kind])


@pytest.mark.parametrize("kind", [*KINDS, *UDP_KINDS])
def test_a_refusal_has_its_reason(place: Place, kind: str) -> None:
    (KINDS.get(kind) or UDP_KINDS[kind]).check_refusal(place)


@each_kind
def test_many_at_once(place: Place, kind: str) -> None:
    connections, processes = (AT_ONCE, PROCESSES) if place.transport == "websocket" else FEW
    kind_promises.at_once(place, KINDS[kind], processes if kind == "stdio" else connections)


@each_udp_kind
def test_datagrams_go_there_and_back_in_order_and_once(place: Place, kind: str) -> None:
    kind_promises.datagrams_both_ways(place, UDP_KINDS[kind], 50)


@each_udp_kind
def test_many_senders_get_their_own_answers(place: Place, kind: str) -> None:
    kind_promises.flows_at_once(place, UDP_KINDS[kind], AT_ONCE)


def test_no_datagram_comes_late_where_the_path_has_stalled(place: Place) -> None:
    kind_promises.none_late_after_a_stall(place, seconds=1.3)


def test_all_go_on_over_cuts_with_nothing_lost_and_no_datagram_late_or_twice(place: Place) -> None:
    with kind_promises.Cutting(place) as cutting:
        cutting.run(CUTS)
