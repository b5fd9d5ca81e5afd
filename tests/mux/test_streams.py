"""What the core promises its streams: how they begin and end, and that each gets its turn."""

from __future__ import annotations

import pytest

from qanat.base.errors import SessionEnded, StreamReset
from qanat.mux import frames as wire
from qanat.mux.buffer_pool import BUFFER_PAYLOAD, LARGE_PAYLOAD
from qanat.mux.parameters import LaneParameters
from qanat.mux.sender import CROWD_QUEUE, LARGE_CREDIT
from qanat.mux.stream_state import StreamPhase
from qanat.mux.window import LEAST_TIME
from tests.support.mux.cores import KIB, Rig, data_order, fill

MIB = 1024 * KIB


# --- opening and ending -----------------------------------------------------------------------------


def test_data_follows_open_at_once_up_to_the_initial_credit() -> None:
    rig = Rig(LaneParameters(client=True, peer_initial_window=10), LaneParameters(client=False, initial_window=10))
    stream = rig.client.core.open_stream(b"request", 0.0)
    assert rig.client.core.sender.sendable(stream) == 10
    rig.client.core.sender.send(stream, b"0123456789")
    assert rig.client.core.sender.sendable(stream) == 0
    frames = rig.client.next_frames()
    assert [f for f in frames if isinstance(f, wire.Open | wire.Data)] == frames[-2:]
    rig.server.feed(wire.Open(1, b"request").encode(), wire.data_header(1, 10) + b"0123456789")
    assert rig.server.opened[0].request == b"request"
    assert rig.server.read(rig.server.opened[0]) == b"0123456789"


def test_accept_tells_the_opener_what_was_reached() -> None:
    rig = Rig()
    ours, theirs = rig.open()
    assert ours.accepted is None
    rig.server.core.accept(theirs, "[::1]:443")
    rig.settle()
    assert ours.accepted == "[::1]:443"


@pytest.mark.parametrize("client_first", [True, False])
def test_either_end_may_finish_and_still_be_answered(client_first: bool) -> None:
    rig = Rig()
    ours, theirs = rig.open()
    first, second = (ours, theirs) if client_first else (theirs, ours)
    asking, answering = (rig.client, rig.server) if client_first else (rig.server, rig.client)
    asking.core.sender.send(first, b"question")
    asking.core.sender.finish(first)
    asking.core.sender.finish(first)
    rig.settle()
    assert second.fin_received
    assert second.phase is StreamPhase.HALF_CLOSED_REMOTE
    assert first.phase is StreamPhase.HALF_CLOSED_LOCAL
    assert answering.read(second) == b"question"
    answering.core.sender.send(second, b"a long answer")
    rig.settle()
    assert asking.read(first) == b"a long answer"
    answering.core.sender.finish(second)
    rig.settle()
    assert first.phase is second.phase is StreamPhase.CLOSED
    assert not rig.client.core.streams
    assert not rig.server.core.streams


def test_a_reset_carries_its_reason_and_discards_what_was_not_picked() -> None:
    rig = Rig()
    ours, theirs = rig.open()
    rig.client.core.sender.send(ours, b"picked")
    rig.settle()
    assert fill(rig.client, ours)
    rig.client.core.reset(ours, wire.Reason.CANCELED, "it went away")
    assert rig.client.core.sender.buffers.lent == 0
    assert rig.client.core.sender.queued_bytes == 0
    rig.settle()
    assert theirs.failure == (wire.Reason.CANCELED, "it went away")
    assert rig.server.read(theirs) == b"picked"  # What came before the reset is still delivered.
    assert rig.server.core.sender.sendable(theirs) >= 0
    rig.server.core.sender.send(theirs, b"nobody listens")
    rig.server.core.sender.finish(theirs)
    rig.server.core.reset(theirs, wire.Reason.INTERNAL, "too late")
    assert theirs.failure == (wire.Reason.CANCELED, "it went away")
    assert rig.server.core.sender.idle
    for peer in rig.ends:
        peer.core.check_invariants()


@pytest.mark.parametrize("reason", list(wire.Reason))
def test_a_refusal_says_why(reason: wire.Reason) -> None:
    rig = Rig()
    ours, theirs = rig.open()
    rig.server.core.reset(theirs, reason, "because")
    rig.settle()
    assert ours.failure == (reason, "because")


def test_a_buffer_for_a_stream_that_is_over_comes_back_and_wakes_who_waits_for_one() -> None:
    rig = Rig(LaneParameters(client=True, outbox=2 * BUFFER_PAYLOAD))
    core = rig.client.core
    ours, _ = rig.open()
    buffers = [
        buffer for _ in range(core.sender.buffers.capacity) if (buffer := core.sender.buffers.take()) is not None
    ]
    assert core.sender.buffers.take() is None
    core.reset(ours, wire.Reason.CANCELED, "")
    core.wakeups.room = False
    buffers[0].length = 100
    core.sender.send(ours, buffers[0])
    assert core.wakeups.room
    assert core.sender.buffers.take() is not None


def test_the_peers_limit_of_streams_is_kept_by_the_opener() -> None:
    rig = Rig(LaneParameters(client=True, peer_max_streams=2), LaneParameters(client=False, max_streams=2))
    first, _ = rig.open()
    rig.open()
    with pytest.raises(StreamReset) as caught:
        rig.client.core.open_stream(b"", 0.0)
    assert caught.value.code == wire.Reason.LIMIT
    rig.client.core.reset(first, wire.Reason.CANCELED, "")
    _, theirs = rig.open()
    assert theirs.failure is None


def test_the_end_resets_every_stream_and_gives_everything_back() -> None:
    rig = Rig()
    streams = [rig.open() for _ in range(5)]
    for ours, _ in streams:
        fill(rig.client, ours)
    rig.client.send()
    over = rig.client.core.end(wire.Reason.SESSION_ENDED, "the session is over")
    assert {stream.id for stream in over} == {ours.id for ours, _ in streams}
    assert all(stream.failure == (wire.Reason.SESSION_ENDED, "the session is over") for stream in over)
    core = rig.client.core
    assert core.sender.next_record(0.0) is None
    assert core.end(wire.Reason.INTERNAL, "again") == []
    with pytest.raises(SessionEnded):
        core.open_stream(b"", 0.0)
    assert core.sender.buffers.lent == 0
    assert core.sender.retransmit_buffer.charged == 0
    core.check_invariants()


def test_closing_takes_no_more_and_comes_to_an_end() -> None:
    rig = Rig()
    ours, theirs = rig.open()
    queued = rig.client.write_buffer(ours, bytes(1000))
    assert rig.client.core.sender.sendable(ours)
    rig.client.core.sender.close()
    assert rig.client.core.sender.sendable(ours) == 0
    assert not rig.client.core.sender.idle
    rig.settle()
    assert rig.client.core.sender.idle
    assert theirs.window.received == queued


# --- fairness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bulk_streams", [1, 20, 60])
def test_an_interactive_stream_gets_through_beside_bulk_within_a_few_records(bulk_streams: int) -> None:
    rig = Rig(LaneParameters(client=True, outbox=64 * MIB))
    bulk = [rig.open()[0] for _ in range(bulk_streams)]
    shell = rig.open()[0]
    waits = []
    for _ in range(30):
        for stream in bulk:
            fill(rig.client, stream)
            stream.send_limit += 512 * KIB
        rig.client.core.sender.send(shell, b"k")
        for records in range(1, 200):
            if shell.id in data_order(rig.client.next_frames()):
                waits.append(records)
                break
        rig.client.feed(wire.Ack(rig.client.core.sender.retransmit_buffer.next_number).encode())
        rig.client.next_frames()
    assert len(waits) == 30
    assert max(waits) <= bulk_streams + 2  # Never more than one turn of the others,
    assert sorted(waits)[15] <= 3  # and mostly at once.


def test_bulk_streams_share_evenly_whatever_the_size_of_their_writes() -> None:
    rig = Rig(LaneParameters(client=True, outbox=64 * MIB, peer_initial_window=16 * MIB))
    buffers, small = rig.client.core.open_stream(b"", 0.0), rig.client.core.open_stream(b"", 0.0)
    sent = {buffers.id: 0, small.id: 0}
    for _ in range(400):
        fill(rig.client, buffers)
        while room := rig.client.core.sender.sendable(small):
            rig.client.core.sender.send(small, bytes(min(room, 16 * KIB)))
        for frame in rig.client.next_frames():
            if isinstance(frame, wire.Data):
                sent[frame.stream] += len(frame.payload)
        rig.client.feed(wire.Ack(rig.client.core.sender.retransmit_buffer.next_number).encode())
        if max(sent.values()) > 8 * MIB:
            break
    assert abs(sent[buffers.id] - sent[small.id]) <= 512 * KIB


def test_nobody_starves_the_others_by_being_quiet_often() -> None:
    rig = Rig(LaneParameters(client=True, outbox=64 * MIB, peer_initial_window=16 * MIB))
    bulk, often = rig.client.core.open_stream(b"", 0.0), rig.client.core.open_stream(b"", 0.0)
    sent = {bulk.id: 0, often.id: 0}
    while sent[often.id] < MIB:
        fill(rig.client, bulk)
        rig.client.core.sender.send(often, bytes(4 * KIB))  # Its queue is empty each time.
        while often.queue:
            for frame in rig.client.next_frames():
                if isinstance(frame, wire.Data):
                    sent[frame.stream] += len(frame.payload)
            rig.client.feed(wire.Ack(rig.client.core.sender.retransmit_buffer.next_number).encode())
    assert sent[bulk.id] >= sent[often.id] - 256 * KIB


def test_a_crowd_is_read_in_turn_and_no_more_of_it_than_will_be_sent_soon() -> None:
    rig = Rig(LaneParameters(client=True, outbox=64 * MIB, peer_initial_window=16 * MIB))
    sender, at_once = rig.client.core.sender, CROWD_QUEUE // BUFFER_PAYLOAD
    streams = [rig.client.core.open_stream(b"", 0.0) for _ in range(2 * at_once + 1)]
    for stream in streams:
        sender.join_crowd(stream)
    turns = []
    while len(turns) < 4 * len(streams):
        now_read = sender.next_of_crowd()
        assert len(now_read) == at_once
        for stream in now_read:
            assert rig.client.write_buffer(stream, bytes(BUFFER_PAYLOAD)) == BUFFER_PAYLOAD
            sender.join_crowd(stream)
        assert not sender.next_of_crowd(), "enough is queued"
        turns += now_read
        rig.client.send_all()
        rig.client.feed(wire.Ack(sender.retransmit_buffer.next_number).encode())
    assert turns == (streams * 5)[: len(turns)]


@pytest.mark.parametrize(("count", "most"), [(2, 1.1), (3, 1.4), (8, 1.3), (16, 1.2)])
def test_who_fills_large_buffers_has_every_second_turn_of_a_crowd(count: int, most: float) -> None:
    rig = Rig(LaneParameters(client=True, outbox=64 * MIB, peer_initial_window=64 * MIB))
    sender = rig.client.core.sender
    rig.client.core.pending.least_round_trip = 0.001
    large, *usual = (rig.client.core.open_stream(b"", 0.0) for _ in range(count))
    for stream in (large, *usual):
        sender.join_crowd(stream)
    while usual[0].sent < 8 * MIB:
        for stream in sender.next_of_crowd():
            buffer = sender.take_buffer(stream, LARGE_PAYLOAD if stream is large else BUFFER_PAYLOAD)
            assert buffer is not None
            buffer.length = len(buffer.payload)
            sender.send(stream, buffer)
            sender.join_crowd(stream)
        rig.client.send_all()
        rig.client.feed(wire.Ack(sender.retransmit_buffer.next_number).encode())
    for stream in usual[1:]:
        assert stream.sent == pytest.approx(usual[0].sent, abs=2 * BUFFER_PAYLOAD)
    assert 0.9 < large.sent / usual[0].sent < most  # and no twice as much


@pytest.mark.parametrize(
    ("credit", "size", "least", "expected"),
    [
        pytest.param(LARGE_CREDIT, LARGE_PAYLOAD, 0.001, LARGE_PAYLOAD, id="a stream that has much to send"),
        pytest.param(LARGE_CREDIT - 1, LARGE_PAYLOAD, 0.001, BUFFER_PAYLOAD, id="a small window"),
        pytest.param(LARGE_CREDIT, BUFFER_PAYLOAD, 0.001, BUFFER_PAYLOAD, id="no more to send"),
        pytest.param(LARGE_CREDIT, LARGE_PAYLOAD, LEAST_TIME, BUFFER_PAYLOAD, id="no short path"),
        pytest.param(LARGE_CREDIT, LARGE_PAYLOAD, 0.0, BUFFER_PAYLOAD, id="a path that is unknown"),
    ],
)
def test_a_buffer_is_large_where_nobody_waits_for_it(credit: int, size: int, least: float, expected: int) -> None:
    rig = Rig(LaneParameters(client=True, peer_initial_window=credit))
    rig.client.core.pending.least_round_trip = least
    buffer = rig.client.core.sender.take_buffer(rig.client.core.open_stream(b"", 0.0), size)
    assert buffer is not None
    assert len(buffer.payload) == expected


def test_who_has_no_credit_or_is_over_is_not_read() -> None:
    rig = Rig(LaneParameters(client=True, peer_initial_window=BUFFER_PAYLOAD))
    sender = rig.client.core.sender
    spent, over, left = (rig.client.core.open_stream(b"", 0.0) for _ in range(3))
    fill(rig.client, spent)
    for stream in (spent, over, left):
        sender.join_crowd(stream)
    rig.client.core.reset(over, wire.Reason.CANCELED, "")
    assert sender.next_of_crowd() == [left]
    rig.client.core.end(wire.Reason.SESSION_ENDED, "")
    assert not sender.crowd


def test_control_frames_go_before_bulk() -> None:
    rig = Rig()
    bulk = [rig.open()[0] for _ in range(3)]
    for stream in bulk:
        fill(rig.client, stream)
    new = rig.client.core.open_stream(b"", 0.0)
    rig.client.core.send_control(b"listen")
    rig.client.core.reset(bulk[0], wire.Reason.CANCELED, "")
    rig.client.core.sender.finish(new)
    frames = rig.client.next_frames()
    kinds = [type(frame) for frame in frames if not isinstance(frame, wire.Ack)]
    assert kinds[:4] == [wire.Open, wire.Control, wire.Reset, wire.Fin]


def test_what_is_owed_rides_in_front_of_a_buffer_without_a_record_of_its_own() -> None:
    rig = Rig()
    ours, theirs = rig.open()
    rig.server.core.sender.send(theirs, b"makes an ACK due")
    rig.settle()
    rig.client.core.receiver.consumed(ours, 0, 0.0)
    rig.client.feed(wire.Ping(5).encode())
    fill(rig.client, ours)
    frames = rig.client.next_frames()
    assert [type(frame) for frame in frames] == [wire.Pong, wire.Ack, wire.Data]


def test_more_than_fits_in_front_of_a_buffer_goes_in_a_record_before_it() -> None:
    rig = Rig()
    streams = [rig.open() for _ in range(30)]
    for _, theirs in streams:
        rig.server.write_buffer(theirs, bytes(BUFFER_PAYLOAD))
    rig.settle()
    for ours, _ in streams:
        rig.client.read(ours)
    fill(rig.client, streams[0][0])
    first, second = rig.client.next_frames(), rig.client.next_frames()
    assert sum(isinstance(frame, wire.Credit) for frame in first) == 30
    assert data_order(first) == []
    assert data_order(second) == [streams[0][0].id]
