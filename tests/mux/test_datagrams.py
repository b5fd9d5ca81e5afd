"""Datagrams on a lane: in turn, young, bounded, never twice, and in nobody's way."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.mux import frames as wire
from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.datagrams import (
    DELAY_AGE,
    FLOW_BYTES,
    INBOX_AGE,
    INBOX_BYTES,
    LATE,
    OVERHEAD,
    QUEUE_AGE,
    QUEUE_BYTES,
    DatagramInbox,
    DatagramQueue,
    PathDelay,
)
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream import Stream
from qanat.mux.stream_state import StreamState
from tests.support.background import wait_until
from tests.support.mux.cores import KIB, Peer, Rig, fill, held
from tests.support.mux.rig import Pair

LARGEST = 65_507
ROOM = 100_000


# --- the queue ------------------------------------------------------------------------------------

Steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.sampled_from((0, 1, 1200, 9000, LARGEST)), st.integers(1, 40)),
        st.tuples(st.just("take"), st.integers(1, 30), st.sampled_from((1500, 65_600)), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from((10, 150, 250)), st.just(0), st.just(0)),
        st.tuples(st.just("clear"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=60,
)


class NaiveQueue:
    """The same by looking at everything each time; whose turn it is, it does not know."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, bytes, float]] = []

    def charged(self, stream: int | None = None) -> int:
        return sum(len(frame) + OVERHEAD for number, frame, _ in self.waiting if stream in (None, number))

    def expire(self, now: float) -> None:
        self.waiting = [one for one in self.waiting if now - one[2] <= QUEUE_AGE]

    def add(self, stream: int, frame: bytes, now: float) -> None:
        self.expire(now)
        self.waiting.append((stream, frame, now))
        while self.charged(stream) > FLOW_BYTES:
            self.waiting.remove(self.oldest(stream))
        while self.charged() > QUEUE_BYTES:
            del self.waiting[0]

    def oldest(self, stream: int) -> tuple[int, bytes, float]:
        return next(one for one in self.waiting if one[0] == stream)


@given(steps=Steps)
def test_the_queue_does_what_a_naive_one_does(steps: list[tuple[str, int, int, int]]) -> None:
    """What comes out was put in, comes once, in its stream's order, and young; what is kept stays within its bounds."""
    queue, model, now, serial = DatagramQueue(), NaiveQueue(), 0.0, 0
    for what, first, second, times in steps:
        if what == "add":
            for _ in range(times):
                serial += 1
                frame = serial.to_bytes(4) + bytes(second)
                queue.add(first, frame, now)
                model.add(first, frame, now)
        elif what == "take":
            model.expire(now)
            for _ in range(first):
                taken = queue.take(second, now)
                heads = [model.oldest(stream) for stream in sorted({one[0] for one in model.waiting})]
                if taken is None:
                    assert not heads or any(len(head[1]) > second for head in heads)
                    break
                (head,) = (head for head in heads if head[1] == taken)
                model.waiting.remove(head)
        elif what == "wait":
            now += first / 1000
        else:
            queue.clear()
            model.waiting.clear()
        queue.check_invariants()
        if what != "wait":
            assert (len(queue), queue.charged) == (len(model.waiting), model.charged())


def test_streams_take_turns_by_bytes() -> None:
    queue = DatagramQueue()
    for at in range(200):
        queue.add(1, bytes([1]) * 1200, 0.0)
        if at < 3:
            queue.add(2, bytes([2]) * LARGEST, 0.0)
    sent: Counter[int] = Counter()
    for _ in range(100):
        frame = queue.take(ROOM, 0.0)
        assert frame is not None
        sent[frame[0]] += len(frame)
        if sent[2] == 2 * LARGEST:
            break
    assert sent[1] >= LARGEST / 2, "the stream of large datagrams had it all"
    assert sent[2] == 2 * LARGEST, "the stream of small ones had it all"


def test_one_that_floods_does_not_make_another_wait() -> None:
    queue = DatagramQueue()
    for _ in range(10_000):
        queue.add(1, bytes(1200), 0.0)
    queue.add(2, b"query", 0.0)
    taken = [queue.take(ROOM, 0.0) for _ in range(20)]
    assert b"query" in taken


def test_the_oldest_of_a_stream_gives_way_and_no_other_stream_s() -> None:
    queue = DatagramQueue()
    queue.add(2, b"other", 0.0)
    for number in range(1000):
        queue.add(1, number.to_bytes(2) + bytes(1200), 0.0)
    assert queue.charged <= FLOW_BYTES + 5 + OVERHEAD
    taken = []
    while (frame := queue.take(ROOM, 0.0)) is not None:
        taken.append(frame)
    assert b"other" in taken
    numbers = [int.from_bytes(frame[:2]) for frame in taken if frame != b"other"]
    assert numbers == list(range(1000 - len(numbers), 1000))
    assert queue.dropped == 1000 - len(numbers)


def test_many_streams_together_stay_within_the_lane_s_bound() -> None:
    queue = DatagramQueue()
    for stream in range(100):
        for _ in range(100):
            queue.add(stream, bytes(1200), 0.0)
    assert queue.charged <= QUEUE_BYTES
    queue.check_invariants()


def test_what_has_waited_too_long_is_dropped() -> None:
    queue = DatagramQueue()
    queue.add(1, b"old", 0.0)
    queue.add(1, b"young", QUEUE_AGE)
    assert queue.take(ROOM, QUEUE_AGE + 0.001) == b"young"
    assert queue.take(ROOM, QUEUE_AGE + 0.001) is None
    assert queue.charged == 0


def test_the_inbox_is_bounded_and_forgets() -> None:
    inbox = DatagramInbox()
    for number in range(2000):
        inbox.add(number % 2, number.to_bytes(2) + bytes(1000), 0.0)
        assert inbox.charged <= INBOX_BYTES
    assert [int.from_bytes(payload[:2]) for payload in inbox.take(1, 0.0)][-1] == 1999
    assert inbox.take(1, 0.0) == []
    inbox.add(0, b"young", 1.0)
    assert inbox.take(0, 1.0 + INBOX_AGE / 2) == [b"young"]
    assert inbox.charged == 0


# --- on a lane --------------------------------------------------------------------------------------


def sent_datagrams(peer: Peer, now: float = 0.0) -> list[bytes]:
    return [frame.payload for frame in peer.all_frames(now) if isinstance(frame, wire.Datagram)]


def received(peer: Peer) -> list[bytes]:
    """What came for streams that take datagrams, since the last call."""
    found = [payload for _, payload in peer.core.wakeups.datagrams]
    peer.core.wakeups.datagrams.clear()
    return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def ends(rig: Rig) -> tuple[StreamState, StreamState]:
    ours, theirs = rig.open()
    theirs.takes_datagrams = ours.takes_datagrams = True
    return ours, theirs


def test_the_first_datagram_rides_with_open(rig: Rig) -> None:
    rig.settle()
    stream = rig.client.core.open_stream(b"to", 0.0)
    rig.client.core.sender.send_datagram(stream, b"query", 0.0)
    assert [type(frame) for frame in rig.client.next_frames()] == [wire.Open, wire.Datagram]


def test_a_datagram_goes_after_control_and_before_bulk(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    ours, _ = ends
    bulk, _ = rig.open()
    fill(rig.client, bulk)
    rig.client.core.sender.send_datagram(ours, bytes(1200), 0.0)
    rig.client.core.open_stream(b"next", 0.0)
    assert [type(frame) for frame in rig.client.next_frames()] == [wire.Open, wire.Datagram]


def test_a_small_one_shares_its_record_with_bulk(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    ours, _ = ends
    bulk, _ = rig.open()
    fill(rig.client, bulk)
    rig.client.core.sender.send_datagram(ours, b"keystroke", 0.0)
    assert [type(frame) for frame in rig.client.next_frames()] == [wire.Datagram, wire.Data]


def test_a_flood_of_datagrams_and_bulk_take_turns(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    ours, _ = ends
    bulk, _ = rig.open()
    data = datagrams = 0
    for _ in range(20):
        for _ in range(100):
            rig.client.core.sender.send_datagram(ours, bytes(1200), 0.0)
        fill(rig.client, bulk)
        for frame in rig.client.next_frames():
            if isinstance(frame, wire.Data):
                data += len(frame.payload)
            elif isinstance(frame, wire.Datagram):
                datagrams += len(frame.payload)
        rig.client.core.check_invariants()
        bulk.send_limit += BUFFER_PAYLOAD  # as if the reader had consumed it
    assert data >= 9 * BUFFER_PAYLOAD
    assert datagrams >= 9 * 60_000


def test_a_full_record_with_the_largest_datagram_is_within_the_limit(
    rig: Rig, ends: tuple[StreamState, StreamState]
) -> None:
    ours, _ = ends
    sender = rig.client.core.sender
    for _ in range(3):
        small, _ = rig.open()
        small.send_limit = 10**9
        sender.send(small, bytes(64 * KIB))
    for _ in range(10):
        sender.send_datagram(ours, bytes(wire.MAX_DATAGRAM), 0.0)
    sizes = []
    while (record := sender.next_record(0.0)) is not None:
        sizes.append(len(record))
    assert max(sizes) <= wire.MAX_PLAINTEXT


@pytest.mark.parametrize("size", [0, 1, 1472, LARGEST])
def test_a_datagram_of_any_size_comes_whole(rig: Rig, ends: tuple[StreamState, StreamState], size: int) -> None:
    payload = bytes(at % 251 for at in range(size))
    rig.client.core.sender.send_datagram(ends[0], payload, 0.0)
    rig.settle()
    assert received(rig.server) == [payload]


def test_datagrams_cost_no_number_no_credit_and_no_memory(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    before = rig.server.core.receiver.expected
    for _ in range(100):
        rig.client.core.sender.send_datagram(ends[0], bytes(60_000), 0.0)
        rig.settle()
    assert len(received(rig.server)) == 100
    assert rig.server.core.receiver.expected == before
    rig.settle(1.0)
    assert "unacknowledged" not in " ".join(held(rig.client.core))


def test_nothing_is_sent_after_a_cut_that_was_queued_before(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    ours, theirs = ends
    for stream, peer in ((ours, rig.client), (theirs, rig.server)):
        peer.core.sender.send_datagram(stream, b"sent and lost", 0.0)
        peer.send()
        peer.core.sender.send_datagram(stream, b"queued", 0.0)
    rig.cut(0.0)
    for stream, peer in ((ours, rig.client), (theirs, rig.server)):
        peer.core.sender.send_datagram(stream, b"fresh", 0.0)
    rig.settle()
    assert received(rig.server) == received(rig.client) == [b"fresh"]


def test_nothing_is_kept_while_there_is_no_pipe(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    rig.client.core.detach()
    for _ in range(1000):
        rig.client.core.sender.send_datagram(ends[0], bytes(1200), 0.0)
    assert len(rig.client.core.sender.datagrams) == 0


def test_a_stream_whose_open_is_replayed_loses_datagrams_and_lives(rig: Rig) -> None:
    ours = rig.client.core.open_stream(b"", 0.0)
    rig.client.core.sender.send_datagram(ours, b"first", 0.0)
    rig.client.send_all()
    rig.cut(0.0)  # OPEN and the first datagram were on the wire
    rig.settle()
    (theirs,) = rig.server.opened
    assert rig.server.core.receiver.early_datagrams.take(theirs.id, 0.0) == []
    theirs.takes_datagrams = True
    rig.client.core.sender.send_datagram(ours, b"second", 0.0)
    rig.settle()
    assert received(rig.server) == [b"second"]


def test_a_datagram_before_its_replayed_open_is_dropped(rig: Rig) -> None:
    """It went ahead of the replay, as it may: the peer does not know the stream yet."""
    rig.settle()
    rig.server.feed(wire.Datagram(9, b"early").encode())
    assert received(rig.server) == []
    assert rig.server.core.receiver.early_datagrams.charged == 0


def test_what_nobody_takes_yet_is_kept_for_a_while_and_bounded(rig: Rig) -> None:
    rig.settle()
    ours, theirs = rig.open()
    rig.client.core.sender.send_datagram(ours, b"query", 0.0)
    rig.settle()
    inbox = rig.server.core.receiver.early_datagrams
    assert inbox.take(theirs.id, INBOX_AGE + 1) == []
    for _ in range(3000):
        rig.server.feed(wire.Datagram(theirs.id, bytes(1000)).encode())
    assert inbox.charged <= INBOX_BYTES
    rig.cut(0.0)
    assert inbox.charged == 0, "a datagram of a pipe that is gone was kept"


def test_a_reset_stream_takes_none(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    rig.client.core.reset(ends[0], wire.Reason.CANCELED, "")
    rig.client.core.sender.send_datagram(ends[0], b"late", 0.0)
    assert sent_datagrams(rig.client) == []
    rig.server.core.sender.send_datagram(ends[1], b"crossed", 0.0)
    rig.settle()
    assert received(rig.client) == []


def test_none_is_sent_once_the_lane_is_closing(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    rig.client.core.sender.close()
    rig.client.core.sender.send_datagram(ends[0], b"late", 0.0)
    assert rig.client.core.sender.idle


def test_old_ones_do_not_keep_a_lane_from_being_idle(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    rig.client.core.sender.send_datagram(ends[0], b"old", 0.0)
    rig.client.core.sender.next_record(QUEUE_AGE + 1)
    assert rig.client.core.sender.idle


def test_early_ones_of_a_stream_that_is_over_take_no_more_than_all(rig: Rig) -> None:
    peer = Peer(replace(LaneParameters(client=False), max_streams=10_000))
    peer.core.attach(0.0)
    for number in range(1, 4000, 2):
        peer.feed(wire.Open(number, b"").encode(), wire.Datagram(number, bytes(60_000)).encode())
    assert peer.core.receiver.early_datagrams.charged <= INBOX_BYTES


# --- what the path has held up ----------------------------------------------------------------------


@pytest.fixture
def telling() -> Rig:
    return Rig(LaneParameters(client=True, tell_clock=True))


def test_what_a_pipe_took_and_delivers_late_is_dropped_and_streams_are_whole(telling: Rig) -> None:
    """Whatever held it up: a connection that stalled, a proxy, or a request that had to be repeated."""
    ours, theirs = telling.open()
    theirs.takes_datagrams = True
    telling.client.core.sender.send_datagram(ours, b"old", 1.0)
    telling.client.core.sender.send(ours, b"kept")
    telling.client.send_all(1.0)
    telling.client.core.sender.send_datagram(ours, b"young", 1.0 + LATE)
    telling.client.send_all(1.0 + LATE)
    while telling.client.wire:
        telling.deliver(telling.client, now=1.1 + LATE)
    assert received(telling.server) == [b"young"]
    assert telling.server.read(theirs) == b"kept"


def test_clocks_that_differ_by_years_tell_the_same() -> None:
    delay = PathDelay()
    for sent, came, excess in ((5.0, 1e9, 0.0), (6.0, 1e9 + 1.25, 0.25), (7.0, 1e9 + 1.9, 0.0), (8.0, 1e9 + 6.9, 4.0)):
        assert delay.excess(sent, came) == pytest.approx(excess)


def test_a_clock_that_stood_still_is_right_again_after_a_while() -> None:
    """A computer slept, and the connection lived on."""
    delay = PathDelay()
    assert [delay.excess(at, at) for at in range(100)] == [0.0] * 100
    late = [delay.excess(at, at + 30.0) for at in range(100, 100 + 2 * int(DELAY_AGE) + 3)]
    assert (late[0], late[-1]) == (30.0, 0.0)


def test_a_rare_one_that_comes_late_does_not_pass_for_the_path_s_delay() -> None:
    delay = PathDelay()
    delay.excess(0.0, 0.0)
    assert delay.excess(100.0, 103.0) == 3.0
    assert delay.excess(101.0, 103.0) == 2.0
    assert delay.excess(200.0, 200.0) == 0.0
    assert delay.excess(300.0, 303.0) == 3.0


def test_each_record_with_datagrams_tells_when_it_was_made_and_so_does_a_pipe_s_first(telling: Rig) -> None:
    first = telling.client.next_frames(7.0)
    assert [frame for frame in first if isinstance(frame, wire.Clock)] == [wire.Clock(7000)]
    ours = telling.client.core.open_stream(b"", 8.0)
    for _ in range(3):
        telling.client.core.sender.send_datagram(ours, b"", 8.0)
    kinds = [type(frame) for frame in telling.client.next_frames(8.0)]
    assert kinds == [wire.Open, wire.Clock, wire.Datagram, wire.Datagram, wire.Datagram]


def test_the_largest_one_fits_behind_the_clock(telling: Rig) -> None:
    ours, theirs = telling.open()
    theirs.takes_datagrams = True
    telling.client.core.sender.send_datagram(ours, bytes(wire.MAX_DATAGRAM), 0.0)
    telling.settle()
    assert received(telling.server) == [bytes(wire.MAX_DATAGRAM)]


def test_an_end_that_does_not_know_clocks_is_told_none(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    rig.client.core.sender.send_datagram(ends[0], b"query", 0.0)
    assert [type(frame) for frame in rig.client.all_frames(100.0)] == [wire.Ping]
    rig.client.core.sender.send_datagram(ends[0], b"query", 100.0)
    assert [type(frame) for frame in rig.client.all_frames(100.0)] == [wire.Datagram]


def test_a_new_pipe_has_a_delay_of_its_own(telling: Rig) -> None:
    ours, theirs = telling.open()
    theirs.takes_datagrams = True
    telling.cut(50.0)
    telling.client.send_all(50.0)
    while telling.client.wire:
        telling.deliver(telling.client, now=55.0)  # as by a clock that stood still, or over a satellite
    telling.client.core.sender.send_datagram(ours, b"query", 56.0)
    telling.client.send_all(56.0)
    telling.deliver(telling.client, now=61.0)
    assert received(telling.server) == [b"query"]


def test_nothing_is_given_to_a_pipe_that_is_held_up(rig: Rig, ends: tuple[StreamState, StreamState]) -> None:
    sender = rig.client.core.sender
    sender.send_datagram(ends[0], b"would wait", 0.0)
    sender.send(ends[0], b"can wait")
    record = sender.next_record(0.0, held_up=True)
    assert record is not None
    assert [type(frame) for frame in wire.parse_frames(memoryview(bytes(record[1:])))] == [wire.Data]
    assert sender.idle


# --- with threads -----------------------------------------------------------------------------------


def send(stream: Stream, payload: bytes) -> None:
    stream.queue_datagram(payload)
    stream.lane.flush()


def test_datagrams_travel_both_ways() -> None:
    there: list[bytes] = []
    back: list[bytes] = []
    with Pair() as pair:
        ours, theirs = pair.open()
        ours.datagrams_to(back.append)
        send(ours, b"early")
        theirs.datagrams_to(there.append)
        send(ours, bytes(LARGEST))
        send(theirs, b"")
        send(theirs, b"answer")
        wait_until(lambda: len(there) == 2 and len(back) == 2, "all have come")
        assert there == [b"early", bytes(LARGEST)]
        assert back == [b"", b"answer"]
        ours.reset(wire.Reason.CANCELED, "over")
        send(ours, b"late")
        wait_until(lambda: theirs.failure is not None, "the reset has come")
        theirs.release()
        ours.release()
        send(theirs, b"later")
    assert len(there) == len(back) == 2


def test_those_that_come_while_the_first_are_handed_on_stay_behind_them() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        for payload in (b"1", b"2"):
            ours.queue_datagram(payload)
        ours.lane.flush()
        inbox = pair.server.lane.core.receiver.early_datagrams
        wait_until(lambda: inbox.charged >= 2 * OVERHEAD, "two have come")
        came: list[bytes] = []

        def take(payload: bytes) -> None:
            if not came:
                before = theirs.traffic()
                ours.queue_datagram(b"3")
                ours.lane.flush()
                wait_until(lambda: theirs.traffic() != before, "the third has come as well")
            came.append(payload)

        theirs.datagrams_to(take)
        wait_until(lambda: len(came) == 3, "all have been handed on")
        assert came == [b"1", b"2", b"3"]
        ours.release()
        theirs.release()
