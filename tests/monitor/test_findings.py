"""What is wrong is named, with who it is about; what passes by itself, or is as it should be, is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from qanat.cli.status_tables import heading_of
from qanat.monitor.findings import MOST, Findings
from qanat.monitor.reading import read_snapshot
from qanat.monitor.snapshot import (
    ClientSnapshot,
    ConnectionSnapshot,
    Failure,
    Finding,
    HandshakesSnapshot,
    LaneSnapshot,
    Snapshot,
    Totals,
)
from tests.support.made_snapshots import START, crowd, lane, server, session, stream

EVERY = 2.0


def look(make: Callable[[float], Snapshot], *, seconds: float = 30.0) -> tuple[Finding, ...]:
    """What is found at the end of `seconds`, with a look every EVERY seconds at what `make` shows at that time."""
    findings = Findings()
    found: tuple[Finding, ...] = ()
    for step in range(int(seconds / EVERY) + 1):
        found = findings.look(make(step * EVERY))
    return found


def codes(found: Iterable[Finding]) -> set[tuple[str, str]]:
    return {(finding.code, finding.subject) for finding in found}


def test_a_quiet_server_has_nothing_wrong() -> None:
    assert look(lambda now: server(now, session("a", stream("a", 1)), session("b"))) == ()


def test_a_busy_server_has_nothing_wrong() -> None:
    def busy(now: float) -> Snapshot:
        moved = int(now * (1 << 30))
        flowing = [
            stream(name, 1, bytes_received=moved, bytes_sent=moved, inbox_bytes=1 << 20, queued_bytes=1 << 20)
            for name in "ab"
        ]
        return server(
            now,
            *(
                session(each.id[0], each, bytes_received=moved, bytes_sent=moved, lanes=(lane(outbox_bytes=4 << 20),))
                for each in flowing
            ),
        )

    assert look(busy) == ()


def test_a_target_that_takes_nothing_is_named_with_its_stream() -> None:
    def stopped(now: float) -> Snapshot:
        slow = stream("a", 5, bytes_received=65536, inbox_bytes=65536, to="db:5432")
        return server(
            now, session("a", stream("a", 1), slow, stream("a", 3, bytes_received=int(now * 1e6), to="web:80"))
        )

    (found,) = look(stopped)
    assert (found.code, found.subject) == ("slow-target", "db:5432")
    assert "a/0/5" in found.text
    assert "64 KiB" in found.text


def test_a_target_that_takes_little_is_slow_and_one_that_takes_much_is_not() -> None:
    def taking(rate: float) -> Callable[[float], Snapshot]:
        return lambda now: server(
            now, session("a", stream("a", 1, bytes_received=int(65536 + rate * now), inbox_bytes=65536))
        )

    assert codes(look(taking(3000))) == {("slow-target", "db:5432")}
    assert codes(look(taking(3e6))) == set()


def test_a_slow_application_at_the_other_end_is_told_from_the_target() -> None:
    blocked = {"peer_takes_no_more": True, "queued_bytes": 65536, "bytes_sent": 65536}

    def opened_by(number: int) -> Callable[[float], Snapshot]:
        return lambda now: server(now, session("a", stream("a", number, **blocked)))

    assert codes(look(opened_by(1))) == {("slow-target", "127.0.0.1:50000")}  # the client's, which opened it
    assert codes(look(opened_by(2))) == {("slow-target", "db:5432")}  # the client's target, of a remote forward


def test_many_streams_to_one_slow_target_are_one_finding() -> None:
    slow = [stream("a", 2 * number + 1, bytes_received=9999, inbox_bytes=9999) for number in range(100)]
    (found,) = look(lambda now: server(now, session("a", *slow)))
    assert "99 more" in found.text


def test_a_target_that_has_not_answered_is_a_note_and_for_a_while() -> None:
    def asked(now: float) -> Snapshot:
        return server(now, session("a", stream("a", 1, bytes_received=100 if now >= 4 else 50, bytes_sent=50)))

    (found,) = look(asked, seconds=12)
    assert (found.severity, found.code, found.subject) == ("note", "no-answer", "db:5432")
    assert look(asked, seconds=600) == ()


@pytest.mark.parametrize("trip", [1.5, 0.4])
def test_bytes_that_are_held_back_while_little_moves_are_named(trip: float) -> None:
    def held(now: float) -> Snapshot:
        return server(now, session("a", round_trip_s=0.02 if now < 4 else trip, via="192.0.2.9"), session("b"))

    (found,) = look(held)
    assert (found.code, found.subject) == ("held-back", "a")
    assert "192.0.2.9" in found.text


def test_a_full_path_is_no_proxy_that_holds_back() -> None:
    (found,) = look(lambda now: server(now, session("a", round_trip_s=1.5, bytes_received=int(now * 1e6))))
    assert found.severity == "note"
    assert "full" in found.title


def test_a_path_that_is_far_is_not_held_back() -> None:
    assert look(lambda now: server(now, session("a", round_trip_s=0.6))) == ()


def test_plain_requests_are_named_as_what_a_proxy_makes_of_it() -> None:
    (found,) = look(lambda now: server(now, session("a", transport="split")))
    assert (found.severity, found.code, found.subject) == ("note", "held-back", "a")


def test_a_full_outbox_is_named_with_its_lane() -> None:
    full = (lane(), lane(index=1, outbox_bytes=8 << 20))
    (found,) = look(lambda now: server(now, session("a", lanes=full), session("b")))
    assert (found.severity, found.code, found.subject) == ("error", "full-outbox", "a/1")


def test_an_outbox_that_is_full_for_a_moment_is_no_finding() -> None:
    def now_and_then(now: float) -> Snapshot:
        return server(now, session("a", lanes=(lane(outbox_bytes=8 << 20 if now % 4 == 0 else 0),)))

    assert look(now_and_then) == ()


def cut_every(seconds: float, now: float, *, lanes: int = 1) -> tuple[LaneSnapshot, ...]:
    """Lanes that have been cut each `seconds` seconds since START, and resumed at once."""
    times = int(now / seconds)
    return tuple(lane(index=index, recoveries=times, since=START + times * seconds) for index in range(lanes))


def test_a_cut_every_five_seconds_is_named_with_its_rhythm_and_cause() -> None:
    def cut(now: float) -> Snapshot:
        failure = Failure(START + now, "reset by peer")
        return server(now, session("a", lanes=cut_every(5, now), last_failure=failure), session("b"))

    (found,) = look(cut, seconds=60)
    assert (found.severity, found.code, found.subject) == ("error", "cut", "a")
    assert "every 5" in found.title
    assert "reset by peer" in found.text
    assert "time limit" in found.next


def test_sessions_that_end_and_begin_anew_are_cuts_too() -> None:
    def anew(now: float) -> Snapshot:
        return server(now, session("a", id=f"a-{int(now / 5)}"))

    assert codes(look(anew, seconds=60)) == {("cut", "a")}


@pytest.mark.parametrize(("seconds", "said"), [(0.5, "500 ms"), (1.2, "1.2 s"), (4.0, "4 s"), (12.0, "12 s")])
def test_the_rhythm_of_cuts_is_when_they_happened_and_not_when_somebody_looked(seconds: float, said: str) -> None:
    findings, found = Findings(), []
    for at in range(4, 61, 5):
        found = [*findings.look(server(at, session("a", lanes=cut_every(seconds, at))))]
        if seconds == 1.2 and at == 4:
            assert found[0].text.startswith("3 times in 60 s"), "those before the first look count"
    assert found[0].title == f"a is cut again and again, about every {said}"
    assert found[0].next.startswith("So regular a cut is a time limit" if seconds >= 4 else "Look at")


def test_what_cuts_all_lanes_at_once_is_one_cut() -> None:
    assert look(lambda now: server(now, session("a", lanes=cut_every(20, now, lanes=4))), seconds=58) == ()


def test_one_cut_is_no_finding() -> None:
    assert look(lambda now: server(now, session("a", lanes=(lane(recoveries=int(now > 10)),)))) == ()


def test_a_client_that_opens_stream_after_stream_floods() -> None:
    def flood(now: float) -> Snapshot:
        return server(now, session("a", streams_opened=int(200 * now)), session("b", streams_opened=int(now)))

    assert codes(look(flood)) == {("flood", "a")}


def test_a_client_that_moves_most_of_all_floods() -> None:
    def flood(now: float) -> Snapshot:
        return server(now, session("a", bytes_received=int(1e8 * now)), session("b", bytes_sent=int(1e6 * now)))

    (found,) = look(flood)
    assert (found.code, found.subject) == ("flood", "a")
    assert "99 %" in found.text


def test_the_only_client_does_not_flood_by_its_bytes() -> None:
    assert look(lambda now: server(now, session("a", bytes_received=int(1e8 * now)))) == ()


def test_a_session_without_connection_and_one_without_answer_are_named() -> None:
    def away(now: float) -> Snapshot:
        return server(
            now,
            session("a", state="waiting", waits_until=START + 300, lanes=(lane(connected=False),)),
            session("b", lanes=(lane(ping_waits_s=20.0),)),
        )

    assert codes(look(away)) == {("away", "a"), ("silent", "b/0")}


def test_what_is_not_acknowledged_is_the_path_s_fault_and_no_application_s() -> None:
    def swallowed(now: float) -> Snapshot:
        blocked = stream("a", 1, bytes_sent=131072, peer_takes_no_more=True)
        return server(now, session("a", blocked, bytes_sent=131072, lanes=(lane(outbox_bytes=131072),)))

    assert codes(look(swallowed)) == {("silent", "a/0")}


def test_crowded_handshakes_and_what_does_not_move_are_named() -> None:
    def crowded(now: float) -> Snapshot:
        return server(now, handshakes=HandshakesSnapshot(32, 32, 9, 100, 1000), troubles=("lane a/0 has not moved",))

    assert {code for code, _ in codes(look(crowded))} == {"handshakes", "stuck"}


def test_a_client_says_that_it_is_not_connected_and_why() -> None:
    def alone(now: float) -> Snapshot:
        lost = ConnectionSnapshot(
            "wss://example.org/", "reconnecting", "", START, Failure(START, "connection refused"), START + now + 1, ""
        )
        return ClientSnapshot(
            "a", "qanat/1", 1, START, START + now, None, (lost,), (), (), Totals(), threads=1, memory_bytes=None
        )

    (found,) = look(alone)
    assert (found.severity, found.code) == ("error", "away")
    assert "connection refused" in found.text


def test_findings_are_bounded_the_worst_first_and_hold_no_control_characters() -> None:
    def bad(now: float) -> Snapshot:
        sessions = [
            session(f"evil\x1b\n{number}", lanes=(lane(outbox_bytes=8 << 20),), transport="split")
            for number in range(100)
        ]
        return server(now, *sessions)

    found = look(bad)
    assert len(found) == MOST
    assert {finding.severity for finding in found} == {"error"}
    assert all(text.isprintable() for finding in found for text in (finding.title, finding.text, finding.next))


def test_what_ends_is_told_no_more_and_nothing_is_kept_of_those_who_left() -> None:
    findings = Findings()
    for step in range(10):
        found = findings.look(server(step * EVERY, session("a", lanes=(lane(outbox_bytes=8 << 20),))))
    assert found
    assert findings.look(server(20, session("a"))) == ()
    for step in range(10, 60):
        findings.look(replace(crowd(step * EVERY, 10, 50), sessions=()))
    assert not (findings._sessions)
    assert not (findings._streams)
    assert not (findings._since)


def test_status_tells_what_was_found_after_its_way_through_json() -> None:
    found = Finding("error", "cut", "a", "a is cut again and again", "Twelve times.", "Look at the proxy.")
    shown = replace(server(0, session("a")), findings=(found,))
    read = read_snapshot(json.loads(json.dumps(shown.to_json())))
    assert read == shown
    assert "error: a is cut again and again. Twelve times. Look at the proxy." in heading_of(read)
