"""Promises of looks at a server: a part shows what the whole would, sums are those of a snapshot, rates are honest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.status import idle_server
from qanat.cli.status_tables import MOST_ROWS, tables_of
from qanat.monitor.rates import LEAST, STALE, Rates
from qanat.monitor.reading import read_snapshot
from qanat.monitor.sessions import BRIEF, SUMMARY, Wanted
from qanat.monitor.summary import counts_of, problems_of, summary_of
from qanat.mux.stream import Stream
from qanat.server.server import Server
from tests.support.identities import placed_identity
from tests.support.mux.rig import Pair

SESSIONS, STREAMS = 60, 120


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="q-"))
    placed_identity(directory / "server.key")
    with idle_server(directory, SESSIONS, STREAMS) as running:
        yield running
    shutil.rmtree(directory)


def test_what_status_asks_for_makes_the_same_tables_as_everything(server: Server) -> None:
    part = read_snapshot(server.snapshot(Wanted(sessions=MOST_ROWS, streams=MOST_ROWS)).to_json())
    whole = read_snapshot(server.snapshot().to_json())
    assert [table.more for table in tables_of(part)] == [table.more for table in tables_of(whole)]
    # Ages and times to wait are of two moments.
    names = [[[row[0] for row in table.rows] for table in tables_of(each)] for each in (part, whole)]
    assert names[0] == names[1]
    assert problems_of(part) == problems_of(whole)
    assert summary_of(part) == summary_of(whole) == summary_of(server.snapshot(SUMMARY))


def test_only_the_sessions_of_the_names_that_are_asked_for_are_shown(server: Server) -> None:
    found = server.snapshot(Wanted(names=frozenset({"client-7", "client-8", "nobody"})))
    assert sorted(each.name for each in found.sessions) == ["client-7", "client-8"]
    assert [len(each.streams) for each in found.sessions] == [2, 2]
    assert (found.counts, counts_of(found).sessions) == (None, 2)


def test_a_brief_answer_says_who_this_is_and_what_all_have_carried(server: Server) -> None:
    brief = server.snapshot(BRIEF)
    assert (brief.node, brief.sessions, brief.forwards, brief.counts) == (server.node, (), (), None)
    assert brief.totals == server.snapshot().totals


def test_a_scrape_sums_up_what_a_snapshot_shows_ended_sessions_included(server: Server) -> None:
    over = server.registry.sessions[0]
    server.observation.begun(over.name)
    server.observation.ended(over)  # as when it is over but still there
    sums, whole = server.observation.sums(server.settings, (), lambda name: name), server.snapshot()
    assert set(sums.peers) == {each.name for each in whole.peers}
    assert {name: peer.opened for name, peer in sums.peers.items()} == {
        each.name: each.totals.streams for each in whole.peers
    }
    assert sums.total(lambda peer: peer.opened) == whole.totals.streams == STREAMS
    assert sums.total(lambda peer: peer.waiting) == len(whole.sessions) == SESSIONS
    assert sums.total(lambda peer: peer.streams) == STREAMS
    assert sums.sessions_begun == whole.totals.sessions == 1


@pytest.fixture
def stream() -> Iterator[Stream]:
    with Pair() as lanes:
        ours, theirs = lanes.open()
        yield ours
        for end in (ours, theirs):
            end.finish()
            end.release()


def test_a_rate_is_that_between_two_looks_that_are_far_enough_apart(stream: Stream) -> None:
    rates, opened_at = Rates(), 1000.0

    def look(now: float, received: int, sent: int) -> tuple[float, float]:
        rates.begin(now)
        return rates.of(stream, received, sent, opened_at)

    assert look(opened_at + LEAST / 2, 500, 0) == (0.0, 0.0), "it is too new to say"
    assert look(opened_at + 2, 1000, 4000) == (500.0, 2000.0), "it began as nothing"
    assert look(opened_at + 2 + LEAST / 2, 9000, 9000) == (500.0, 2000.0), "somebody has just looked"
    assert look(opened_at + 4, 1000, 5000) == (0.0, 500.0)
    assert look(opened_at + 5, 1000, 5000) == (0.0, 0.0)
    still = stream.sample
    assert look(opened_at + 6, 1000, 5000) == (0.0, 0.0)
    assert stream.sample is still, "what stands still is not written to"
    assert look(opened_at + 7, 1000, 6000) == (0.0, 1000.0), "and moves from the last look on"
    assert look(opened_at + 8 + STALE, 2000, 6000) == (0.0, 0.0), "there is nothing to compare with"
    assert look(opened_at + 9 + STALE, 3000, 6000) == (1000.0, 0.0)


def test_the_rate_of_an_old_stream_that_nobody_has_looked_at_is_not_known_yet(stream: Stream) -> None:
    rates = Rates()
    rates.begin(2 * STALE)
    assert rates.of(stream, 10_000, 10_000, 0.0) == (0.0, 0.0)
    rates.begin(2 * STALE + 1)
    assert rates.of(stream, 10_500, 10_000, 0.0) == (500.0, 0.0)
