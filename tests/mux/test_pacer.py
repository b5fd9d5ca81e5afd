"""What a pace of bulk promises: no bursts in a slow path, both ways at once, and nothing small waits behind bulk."""

from __future__ import annotations

import math

from qanat.mux.frames import Ack, Clock, Credit, Data, parse_frames
from qanat.mux.pacer import (
    EMPTY_GAIN,
    GAIN,
    LATE,
    LEAST_RATE,
    LEAST_RECORD,
    MOST_RECORD,
    RATES_KEPT,
    RECORD_TIME,
    UNBOUNDED,
    Pacer,
)
from qanat.mux.parameters import LaneParameters
from qanat.mux.path_queue import PATH_TIME, SLOW
from qanat.mux.sender import RIDE_WAIT
from qanat.mux.stream_state import StreamState
from tests.support.mux.cores import Rig
from tests.support.mux.slow_line import SlowLine

RATE, DELAY = 2.5e6, 0.02
WAITED = 0.012
"""Seconds that bulk waits in a path's queue: more than a quarter of the least round trip."""


def paced(rate: float, *, until: float = math.inf, least_round_trip: float = 2 * DELAY) -> Pacer:
    """A pacer that has found a path of `rate` bytes a second, by its ACKs, at 0.5 s; all but the first waited in it."""
    pacer = Pacer()
    pacer.loaded(until, least_round_trip)
    for number in range(7):
        pacer.sent(number + 1, int(rate / 8), number / 8)
        if number:
            pacer.acknowledged(number, 100.0 + number / 8 + (WAITED if number > 1 else 0.0), least_round_trip)
    return pacer


def give_pace_and_bulk(rig: Rig, stream: StreamState) -> None:
    """Have the client's end keep the pace of a path, with as much waiting on `stream` as may."""
    core = rig.client.core
    core.sender.pacer, core.pending.least_round_trip = paced(RATE), 2 * DELAY
    while rig.client.write_buffer(stream, bytes(20_000)):
        pass


def test_both_ways_at_once_a_slow_line_is_full_and_has_no_long_queue() -> None:
    rig = Rig(*(LaneParameters(client=client, tell_clock=True) for client in (True, False)))
    line = SlowLine(rig, RATE, DELAY)
    line.run(0.1)
    ours = [rig.client.core.open_stream(b"", line.now) for _ in range(8)]
    line.run(3 * DELAY)
    ends = [(peer, stream if peer is rig.client else peer.stream(stream.id)) for peer in rig.ends for stream in ours]
    line.run(3.0, ends, ends)
    before = [peer.core.receiver.payload_received for peer in rig.ends]
    took = line.run(2.0, ends, ends)
    for peer, came in zip(rig.ends, before, strict=True):
        peer.core.check_invariants()
        assert (peer.core.receiver.payload_received - came) / took / RATE > 0.9
        waits = sorted(line.waits[peer])
        assert waits[len(waits) * 99 // 100] < DELAY  # so a ping takes less than twice as long as on an empty line


def test_a_rate_is_taken_by_the_peers_clock_and_a_pace_from_it() -> None:
    pacer = paced(RATE)
    assert 0.99 < pacer.rate / RATE < 1.01
    assert LEAST_RECORD <= pacer.record <= MOST_RECORD
    pacer.sent(8, int(RATE), 2.0)
    assert 1 / EMPTY_GAIN - LATE - 0.01 < pacer.wait(2.0) < 1 / GAIN
    assert not pacer.wait(3.0)


def test_a_late_thread_makes_up_for_a_moment_and_for_no_more() -> None:
    pacer = paced(RATE)
    sent = 0
    while not pacer.wait(5.0):
        pacer.sent(9, 1000, 5.0)
        sent += 1000
    assert 1000 < sent <= LATE * EMPTY_GAIN * pacer.rate + 1000


def test_what_fills_one_direction_holds_back_nothing_in_the_other() -> None:
    """PINGs wait in the download's queue; the upload that begins then has a path of its own, which is fast."""
    rig = Rig(*(LaneParameters(client=client, tell_clock=True) for client in (True, False)))
    line = SlowLine(rig, 10 * RATE, 0.05)
    line.run(0.1)
    down, up = (rig.client.core.open_stream(b"", line.now) for _ in range(2))
    line.run(0.2)
    line.run(3.0, [(rig.server, rig.server.stream(down.id))], [(rig.client, down)])
    assert max(line.waits[rig.server]) > 0.02
    upload = [(rig.client, up)], [(rig.server, rig.server.stream(up.id))]
    line.run(3.0, *upload)
    before = rig.server.core.receiver.payload_received
    took = line.run(0.5, *upload)
    assert (rig.server.core.receiver.payload_received - before) / took / (10 * RATE) > 0.9


def test_what_an_application_sends_by_itself_is_not_taken_for_the_paths_rate() -> None:
    pacer = paced(RATE)
    for number in range(40):  # A little, and all of it acknowledged each time.
        pacer.sent(10 + number, 100, 10 + number / 10)
        pacer.acknowledged(10 + number, 110.0 + number * 0.11, 2 * DELAY)
    assert pacer.rate > 0.9 * RATE


def test_a_fast_path_and_one_that_is_not_loaded_have_no_pace() -> None:
    pacer = paced(RATE, until=2.0)
    pacer.sent(7, 10**9, 1.0)
    assert pacer.wait(1.9)
    assert not pacer.wait(2.1)
    assert pacer.record == UNBOUNDED
    pacer.loaded(math.inf, SLOW / pacer.rate)
    assert pacer.record == UNBOUNDED
    pacer.sent(8, 10**9, 3.0)
    assert not pacer.wait(3.0)


def test_a_path_that_turns_out_to_be_short_has_no_pace() -> None:
    pacer = paced(RATE)
    assert pacer.record < UNBOUNDED
    pacer.loaded(math.inf, PATH_TIME / 2)
    assert pacer.record == UNBOUNDED


def test_what_went_over_the_pipe_before_is_not_taken_for_the_new_ones_rate() -> None:
    rig = Rig(*(LaneParameters(client=client, tell_clock=True) for client in (True, False)))
    bulk, _ = rig.open()
    sender, pending = rig.client.core.sender, rig.client.core.pending
    while sender.payload_sent < 1e6:
        assert rig.client.write_buffer(bulk, bytes(20_000))
        bulk.send_limit += 20_000
        rig.client.send_all()
        rig.client.feed(Ack(sender.retransmit_buffer.next_number).encode())
        rig.client.wire.clear()
    rig.client.core.detach()
    now = 100.0
    rig.client.core.attach(now, peer_expects=sender.retransmit_buffer.next_number, receive_from=0)
    pending.least_round_trip = 2 * DELAY
    for number in range(20):
        assert rig.client.write_buffer(bulk, bytes(10_000))
        bulk.send_limit += 10_000
        rig.client.send_all(now)
        now += 0.1
        acknowledged = sender.retransmit_buffer.next_number
        rig.client.feed(Clock(100 * number).encode(), Ack(acknowledged).encode(), now=now)
    assert 0 < sender.pacer.rate < 200_000


def test_a_path_that_has_become_faster_is_found_while_nothing_waits_in_it() -> None:
    pacer, now, number = paced(RATE), 2.0, 10
    while now < 5.0:
        wait = pacer.wait(now)
        if not wait:  # What the pace allows is through at once.
            number += 1
            pacer.sent(number, pacer.record, now)
            pacer.acknowledged(number, 100.125 + now, 2 * DELAY)
        now += wait or 0.0001
    assert pacer.rate > 4 * RATE


def test_a_path_that_stood_still_holds_back_no_record_for_long() -> None:
    pacer = paced(RATE)
    pacer.sent(8, 1, 2.0)
    for number in range(RATES_KEPT + 1):
        pacer.acknowledged(7, 101.0 + number / 8, 2 * DELAY)
    pacer.acknowledged(8, 101.0 + number / 8 + 0.125, 2 * DELAY)
    assert 0 < pacer.rate < LEAST_RATE
    pacer.sent(100, pacer.record, 9.0)
    assert pacer.wait(9.0) <= LEAST_RECORD / LEAST_RATE


def test_bulk_keeps_its_pace_and_what_is_small_goes_past_it() -> None:
    rig = Rig()
    bulk, _ = rig.open()
    typed, _ = rig.open()
    sender = rig.client.core.sender
    give_pace_and_bulk(rig, bulk)
    now = 6.0
    assert rig.client.send(now)
    assert rig.client.send(now)
    assert sender.pacer.wait(now) > 0
    assert sender.queued_bytes > 0
    assert not rig.client.send(now)
    assert 0 < (sender.next_timeout(now) or 0.0) <= RIDE_WAIT
    sender.send(typed, b"x")
    assert [(f.stream, bytes(f.payload)) for f in rig.client.next_frames(now) if isinstance(f, Data)] == [
        (typed.id, b"x")
    ]
    assert rig.client.send(now + 2 * sender.pacer.wait(now))


def test_bulk_waits_while_the_kernel_has_not_sent_what_it_has_and_small_does_not() -> None:
    rig = Rig()
    bulk, _ = rig.open()
    typed, _ = rig.open()
    sender = rig.client.core.sender
    give_pace_and_bulk(rig, bulk)
    now, behind = 6.0, sender.pacer.most_unsent + 1
    assert sender.next_record(now, unsent=behind - 1) is not None, "more than a record of it may wait there"
    for _ in range(20):
        now += sender.pacer.wait(now) + 0.001
        assert sender.next_record(now, unsent=behind) is None
        assert 0 < (sender.next_timeout(now) or 0.0) <= 1.01 * RECORD_TIME, "it looks again soon"
    sender.send(typed, b"x")
    record = sender.next_record(now, unsent=behind)
    assert record is not None
    assert [bytes(f.payload) for f in parse_frames(record[1:]) if isinstance(f, Data)] == [b"x"]
    now += sender.pacer.wait(now)
    assert sender.next_record(now, unsent=0) is not None


def test_while_bulk_waits_for_it_the_kernel_has_something_to_send_however_fast_the_path_is() -> None:
    for rate in (0.5e6, RATE, 12.5e6, 50e6):
        pacer = paced(rate, least_round_trip=2 * PATH_TIME)
        assert pacer.record != UNBOUNDED
        pacer.hold(6.0)
        assert pacer.most_unsent >= pacer.wait(6.0) * pacer.rate
        assert pacer.most_unsent > pacer.record


def test_without_a_pace_nothing_waits_for_the_kernel() -> None:
    rig = Rig()
    bulk, _ = rig.open()
    while rig.client.write_buffer(bulk, bytes(20_000)):
        pass
    assert rig.client.core.sender.next_record(6.0, unsent=1 << 20) is not None


def test_credit_and_acks_ride_with_the_bulk_that_is_about_to_leave() -> None:
    rig = Rig()
    ours, theirs = rig.open()
    pending, sender = rig.client.core.pending, rig.client.core.sender
    give_pace_and_bulk(rig, ours)
    now = 6.0
    assert rig.client.send(now)
    assert rig.client.send(now)
    pending.add_credit(ours)
    pending.accepted(1, 1, now)
    wait = sender.pacer.wait(now)
    assert 0 < wait <= RIDE_WAIT
    assert not rig.client.send(now)
    kinds = {type(frame) for frame in rig.client.next_frames(now + wait)}
    assert {Ack, Credit, Data} <= kinds
    assert theirs.id == ours.id
