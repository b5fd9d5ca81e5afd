"""A look at a large server is cheap: what is made and called is counted, since a clock says nothing on a busy machine.

The whole thousand sessions are `python -m benchmarks.status`, real ones `python -m benchmarks.crowd`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from benchmarks.monitoring import TRACER
from benchmarks.status import idle_server, measure, scraper
from qanat.cli.status_tables import MOST_ROWS
from qanat.monitor.sessions import SUMMARY, Wanted
from qanat.server.server import Server
from qanat.session.messages import Through
from tests.support.identities import placed_identity
from tests.support.mux.cores import Rig

SESSIONS, STREAMS = 120, 240


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="q-"))
    placed_identity(path / "server.key")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with idle_server(directory, SESSIONS, STREAMS) as running:
        yield running


def calls_of(do: Callable[[], object]) -> int:
    """How many functions of this program are called in this thread meanwhile."""
    do()  # what is made once for all is made
    count = 0

    def called(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call" and "/qanat/" in frame.f_code.co_filename

    sys.setprofile(called)
    try:
        do()
    finally:
        sys.setprofile(None)
    return count


def test_a_scrape_costs_the_same_however_many_streams_there_are(server: Server) -> None:
    scrape, session = scraper(server), server.registry.sessions[0]
    before = calls_of(scrape)
    more = [session.open_stream(Through(0, "192.0.2.7:1").encode()) for _ in range(200)]
    assert calls_of(scrape) == before
    for stream in more:
        stream.release()
    assert before < 30 * SESSIONS, "a dozen for each session, and a few hundred for the text"


def test_status_makes_what_it_shows_and_looks_at_the_rest_in_two_steps_a_stream(server: Server) -> None:
    wanted = Wanted(sessions=MOST_ROWS, streams=MOST_ROWS)
    part, whole = server.snapshot(wanted), server.snapshot()
    assert whole.counts is None
    assert part.counts is not None
    assert part.counts.sessions == len(whole.sessions) == SESSIONS
    assert part.counts.streams == sum(len(each.streams) for each in whole.sessions) == STREAMS
    assert len(part.sessions) <= 2 * MOST_ROWS
    assert sum(len(each.streams) for each in part.sessions) == MOST_ROWS
    before, session = calls_of(lambda: server.snapshot(wanted)), server.registry.sessions[0]
    more = [session.open_stream(Through(0, "192.0.2.7:1").encode()) for _ in range(200)]
    assert calls_of(lambda: server.snapshot(wanted)) <= before + 3 * 200
    for stream in more:
        stream.release()
    assert calls_of(lambda: server.snapshot(SUMMARY)) < before < calls_of(server.snapshot)


def test_a_frame_pays_one_addition_for_metrics_at_each_end() -> None:
    rig = Rig()
    ours, theirs = rig.open()

    def push() -> None:
        for size in (1, 100_000) * 10:
            assert rig.client.write_buffer(ours, bytes(size)) == size
            rig.settle()
            assert rig.server.read(theirs)
            rig.settle()

    passed = TRACER.count(push)
    assert passed.frames == 20
    assert passed.updates == 2 * 20, "what else counts for metrics belongs where less happens than here"


def test_the_benchmark_sees_a_whole_answer_and_a_short_one(directory: Path) -> None:
    looks = measure(directory, 60, 300)
    assert looks.streams == looks.counted == 300
    assert looks.short_streams == MOST_ROWS, "nobody makes a thousand rows of which fifty are shown"
    assert looks.short_size < 0.6 * looks.size
    assert looks.short < looks.answer
