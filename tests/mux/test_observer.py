"""What a lane tells its observer: the round trips of its PINGs, and the streams that were reset."""

from __future__ import annotations

from qanat.base.events import RESETS, Events
from qanat.mux.frames import Accept, Ping, Pong, Reason, Reset
from qanat.mux.observer import reason_label
from qanat.mux.parameters import LaneParameters
from tests.support.mux.cores import Peer


def test_a_reason_that_the_peer_made_up_has_no_label_of_its_own() -> None:
    assert reason_label(Reason.NOT_ALLOWED) == "not allowed"
    assert reason_label(4711) == reason_label(4712) == "unknown"


def test_a_round_trip_is_told_once_and_only_of_the_last_ping() -> None:
    events = Events()
    peer = Peer(LaneParameters(client=True, observer=events))
    peer.core.attach(0.0)
    (ping,) = [frame for frame in peer.next_frames(1.0) if isinstance(frame, Ping)]
    peer.feed(Pong(ping.value + 7).encode(), now=1.1)
    peer.feed(Pong(ping.value).encode(), now=1.25)
    peer.feed(Pong(ping.value).encode(), now=1.5)
    counts, total = events.round_trips.read()
    assert (counts[-1], total) == (1, 0.25)


def test_resets_of_both_ends_are_told_by_their_reason() -> None:
    events = Events()
    peer = Peer(LaneParameters(client=True, observer=events))
    peer.core.attach(0.0)
    for _ in range(3):
        peer.core.open_stream(b"x", 0.0)
    one, two, three = peer.core.streams
    peer.core.reset(one, Reason.CANCELED, "")
    peer.core.reset(one, Reason.CANCELED, "")
    peer.feed(Reset(two.id, Reason.UNREACHABLE, "no").encode(), Reset(three.id, 999, "?").encode())
    assert events.stream_resets.read() == dict.fromkeys(RESETS, 0) | {"canceled": 1}
    assert events.stream_resets_received.read() == dict.fromkeys(RESETS, 0) | {"unreachable": 1, "unknown": 1}


def test_each_reason_has_a_counter_from_the_start() -> None:
    assert tuple(map(reason_label, Reason)) == RESETS


def test_what_a_stream_took_to_open_is_told_by_its_opener() -> None:
    events = Events()
    peer = Peer(LaneParameters(client=True, observer=events))
    peer.core.attach(0.0)
    stream = peer.core.open_stream(b"x", 1.0)
    peer.feed(Accept(stream.id, "127.0.0.1:80").encode(), now=1.5)
    counts, total = events.stream_opens.read()
    assert (counts[-1], total) == (1, 0.5)
