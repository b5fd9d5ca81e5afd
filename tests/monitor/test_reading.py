"""A snapshot's JSON is a snapshot again, whatever else stands in it; and what it comes to, in words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qanat.cli.status_tables import MOST_ROWS, heading_of, tables_of
from qanat.monitor.reading import read_snapshot
from qanat.monitor.snapshot import (
    ClientSnapshot,
    ConnectionSnapshot,
    Failure,
    Finding,
    ForwardSnapshot,
    HandshakesSnapshot,
    LaneSnapshot,
    ServerSnapshot,
    SessionSnapshot,
    StreamSnapshot,
    Totals,
)
from qanat.monitor.summary import format_bytes, format_seconds, problems_of, summary_of

NOW = 1_800_000_000.0
STREAM = StreamSnapshot(
    "office/0/1", "tcp", "local 8080", "10.0.0.9:5", "db:5432", NOW - 65, 65.0, 1_500_000, 20, 2000.0, 0.0, 7
)
LANE = LaneSnapshot(0, True, "websocket", "10.1.1.1", "10.2.2.2:443", NOW - 90, 0.02, 7, 100, 1000, 3, 2, 512)
SESSION = SessionSnapshot(
    id="cafe0001",
    name="office",
    since=NOW - 100,
    state="connected",
    waits_until=None,
    transport="websocket",
    address="10.1.1.1",
    via="10.2.2.2:443",
    agent="qanat/1",
    round_trip_s=0.02,
    lanes=(LANE,),
    streams=(STREAM,),
    bytes_received=1_500_000,
    bytes_sent=20,
    queued_bytes=7,
    recoveries=2,
    last_recovery_s=1.5,
    replayed_bytes=512,
    last_failure=Failure(NOW - 90, "cut"),
)  # type: ignore[arg-type]
SERVER = ServerSnapshot(
    node="gw1",
    agent="qanat 1",
    pid=7,
    started_at=NOW - 7200,
    taken_at=NOW,
    config="/etc/q.yaml",
    fingerprint="SHA256:x",
    listening=("127.0.0.1:1",),
    sessions=(SESSION,),
    forwards=(ForwardSnapshot("remote", "127.0.0.1:80", "", "office", "listening"),),
    handshakes=HandshakesSnapshot(1, 64, 2, 3, 4096),
    totals=Totals(5, 6, 7, 8, 9, 10),
    threads=9,
    memory_bytes=50_000_000,
)  # type: ignore[arg-type]
CONNECTION = ConnectionSnapshot(
    "wss://gw/t", "waiting", "", NOW - 5, Failure(NOW - 6, "refused"), NOW + 9, "http://p:1"
)
CLIENT = ClientSnapshot(
    "office", "qanat 1", 8, NOW - 60, NOW, None, (CONNECTION,), (), (), Totals(), threads=5, memory_bytes=None
)


@pytest.mark.parametrize("snapshot", [SERVER, CLIENT], ids=["server", "client"])
def test_what_was_written_is_read(snapshot: ServerSnapshot | ClientSnapshot) -> None:
    content = json.loads(json.dumps(snapshot.to_json()))
    assert read_snapshot(content) == snapshot
    assert read_snapshot({**content, "news": [1]}) == snapshot, "what another version adds is ignored"


def test_a_stream_says_from_and_to() -> None:
    assert SERVER.to_json()["sessions"][0]["streams"][0]["from"] == "10.0.0.9:5"


def test_what_is_missing_is_empty_and_what_is_wrong_is_no_fault() -> None:
    found = read_snapshot({"role": "server", "sessions": [{"name": 7, "lanes": "x", "streams": [{}]}], "pid": "many"})
    assert isinstance(found, ServerSnapshot)
    assert (found.pid, found.sessions[0].name, found.sessions[0].lanes) == (0, "", ())
    for content in (None, [], {"role": "king"}, "x"):
        with pytest.raises(ValueError, match="no status"):
            read_snapshot(content)


def test_no_text_of_another_process_moves_the_cursor() -> None:
    content = SERVER.to_json()
    content["sessions"][0]["agent"] = "\x1b[2Jqanat"
    assert "\x1b" not in str(tables_of(read_snapshot(content)))


def test_every_item_is_in_the_tables() -> None:
    shown = str([heading_of(SERVER), tables_of(SERVER)])
    for item in ("office", "websocket", "10.1.1.1", "10.2.2.2:443", "20.0 ms", "10.0.0.9:5", "db:5432", "1 min 5 s"):
        assert item in shown
    for item in ("1.5 MB", "2.0 kB/s", "7 B", "cut", "2, last 1.50 s", "office/0/1", "127.0.0.1:80", "1 of 64"):
        assert item in shown
    client = str(tables_of(CLIENT))
    for item in ("wss://gw/t", "http://p:1", "refused", "in 9 s"):
        assert item in client


def test_a_long_table_is_cut_unless_all_is_wanted() -> None:
    streams = tuple(STREAM._replace(id=f"office/0/{n}", rate_sent=float(n)) for n in range(5000))
    many = replace(SERVER, sessions=(SESSION._replace(streams=streams),))
    (table,) = (each for each in tables_of(many) if each.title == "Streams")
    assert len(table.rows) == MOST_ROWS
    assert table.rows[0][0] == "office/0/4999", "the busiest first"
    assert "4950 more" in table.more
    (table,) = (each for each in tables_of(many, everything=True) if each.title == "Streams")
    assert len(table.rows) == 5000


def test_the_line_says_who_is_connected_and_what_is_not() -> None:
    assert summary_of(SERVER) == "1 client connected; 1 stream; 2.0 kB/s received, 0 B/s sent"
    assert problems_of(SERVER) == ()
    away = replace(SERVER, sessions=(SESSION._replace(state="waiting"),), troubles=("the watcher is stuck",))
    assert problems_of(away) == ("the watcher is stuck", "office is away")
    assert summary_of(CLIENT) == "not connected to wss://gw/t, next try in 9 s; 0 streams"
    assert problems_of(CLIENT) == ("not connected to wss://gw/t, next try in 9 s",)
    failed = replace(
        CLIENT, servers=(), forwards=(ForwardSnapshot("local", "*:80", "x:1", "office", "failed", "in use"),)
    )
    assert problems_of(failed) == ("*:80: in use",)
    cut = Finding("error", "cut", "office", "office is cut again and again", "Twelve times.", "Look at the proxy.")
    slow = cut._replace(severity="warning", title="slow")
    assert problems_of(replace(SERVER, findings=(cut, slow))) == ("office is cut again and again",)


def test_figures_have_units() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 123_456, 7.5e9)] == ["0 B", "999 B", "1.0 kB", "123 kB", "7.5 GB"]
    assert [format_seconds(n) for n in (0, 61, 7300, 100_000)] == ["0 s", "1 min 1 s", "2 h 1 min", "1 d 3 h"]
