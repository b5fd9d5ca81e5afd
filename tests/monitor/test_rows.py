"""Tables come in pages, however much there is and whatever is asked for."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from qanat.monitor.page.rows import SIZE, Wanted, forward_rows, parse_wanted, session_rows, stream_rows
from qanat.monitor.snapshot import ForwardSnapshot, streams_of
from tests.support.made_snapshots import crowd, server, session, stream


def test_five_thousand_streams_are_one_page_and_each_can_be_found() -> None:
    streams = list(streams_of(crowd(0, 1000, 5000)))
    first = stream_rows(streams, Wanted())
    assert (first["total"], first["matched"], len(first["rows"])) == (5000, 5000, SIZE)
    found = stream_rows(streams, Wanted(filter="CLIENT-77/ db:5432", sort="name", descending=False, limit=3))
    assert [row["id"] for row in found["rows"]] == ["client-77/0/1", "client-77/0/3", "client-77/0/5"]
    assert found["matched"] == 5
    last = stream_rows(streams, Wanted(offset=5000 - 3))
    assert (last["offset"], len(last["rows"])) == (4997, 3)
    assert stream_rows(streams, Wanted(offset=6000))["offset"] == 0


def test_sessions_are_ordered_by_what_they_move() -> None:
    sessions = server(0, session("a"), session("b", agent="qanat/77"), session("c")).sessions
    rates = {"id-b": (10.0, 0.0), "id-c": (0.0, 20.0)}
    assert [row["name"] for row in session_rows(sessions, rates, Wanted())["rows"]] == ["c", "b", "a"]
    assert [row["name"] for row in session_rows(sessions, rates, Wanted(sort="name"))["rows"]] == ["c", "b", "a"]
    assert [row["name"] for row in session_rows(sessions, rates, Wanted(filter="QANAT/77"))["rows"]] == ["b"]


def test_a_session_s_row_holds_no_streams_and_is_json() -> None:
    (row,) = session_rows([session("a", *(stream("a", 2 * n + 1) for n in range(500)))], {}, Wanted())["rows"]
    assert row["streams"] == 500
    assert len(json.dumps(row)) < 2000


def test_forwards_that_do_not_listen_come_first_and_there_is_an_end() -> None:
    forwards = [ForwardSnapshot("local", f"127.0.0.1:{n}", "db:1", "a", "listening") for n in range(1000)]
    rows = forward_rows([*forwards, ForwardSnapshot("local", "127.0.0.1:9", "db:1", "a", "failed", "in use")])
    assert rows["total"] == 1001
    assert len(rows["rows"]) == 200
    assert rows["rows"][0]["state"] == "failed: in use"


@given(st.text(max_size=300))
def test_a_query_that_makes_no_sense_does_no_harm(query: str) -> None:
    _, wanted = parse_wanted(query)
    assert len(stream_rows([stream("a", 1)], wanted)["rows"]) <= 1


def test_a_query_is_taken_within_bounds() -> None:
    table, wanted = parse_wanted("of=streams&filter=" + "x" * 5000 + "&sort=age&descending=0&offset=50&limit=9999999")
    assert table == "streams"
    assert wanted == Wanted("x" * 100, "age", descending=False, offset=50, limit=SIZE)
    assert parse_wanted("&".join(f"f{n}=1" for n in range(100))) == ("", Wanted())
    assert parse_wanted("of=streams&offset=-1&limit=" + "9" * 5000)[1] == Wanted()
