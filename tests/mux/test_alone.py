"""What comes alone takes a shorter way, and nobody can tell: the same records, the same state at both ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qanat.base.errors import ProtocolError
from qanat.mux import frames as wire
from qanat.mux.pending_control import ACK_DELAY, LITTLE_CREDIT
from qanat.mux.sender import RIDE_ROOM
from qanat.mux.stream_state import StreamState
from tests.support.mux.cores import KIB, Rig, fill

Prepare = Callable[[Rig, StreamState, StreamState], object]


def rig() -> tuple[Rig, StreamState, StreamState]:
    """Two cores that have nothing left to say, and one stream."""
    both = Rig()
    ours, theirs = both.open()
    both.settle(ACK_DELAY)
    return both, ours, theirs


def state_of(both: Rig, stream: StreamState) -> tuple[object, ...]:
    sender, receiver = both.client.core.sender, both.server.core.receiver
    there = both.server.stream(stream.id).window
    return (
        stream.sent,
        stream.promised,
        stream.queued_bytes,
        sender.payload_sent,
        sender.idle,
        sender.retransmit_buffer.next_number,
        sender.retransmit_buffer.charged,
        receiver.expected,
        receiver.payload_received,
        there.received,
        there.consumed,
    )


@pytest.mark.parametrize("ack", [False, True])
@pytest.mark.parametrize("bulk", [False, True])
def test_the_record_and_all_that_is_counted_are_those_of_the_queue(ack: bool, bulk: bool) -> None:
    sent, payload = [], b"payload" * 5000
    for alone in (False, True):
        both, ours, theirs = rig()
        if ack:  # is due at the client, and rides
            both.server.core.sender.send(theirs, b"before")
            both.server.send(1.0)
            both.deliver(both.server, 1.0)
        theirs.direct = alone
        if bulk:
            assert both.client.write_buffer(ours, payload, alone_at=1.001 if alone else None)
        elif not alone:
            both.client.core.sender.send(ours, payload)
        else:
            assert both.client.send_alone(ours, payload, 1.001)
        assert both.client.send(1.001) != alone
        record = both.client.wire[0]
        kinds = [type(frame) for frame in wire.parse_frames(memoryview(record))]
        assert kinds == ([wire.Ack, wire.Data] if ack else [wire.Data])
        assert both.server.take_alone(record, 1.002) == alone
        if not alone:
            both.server.feed(record, now=1.002)
        assert both.server.read(theirs, 1.002) == payload
        sent.append((record, state_of(both, ours), both.server.next_frames(1.0 + 2 * ACK_DELAY)))
        for peer in both.ends:
            peer.core.check_invariants()
    assert sent[0] == sent[1]


def something_queued(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.sender.send(ours, b"first")


def bulk_queued(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    other = both.client.core.open_stream(b"", 1.0)
    both.settle(1.0)
    both.client.write_buffer(other, bytes(KIB))


def an_open_to_be_sent(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.open_stream(b"", 1.0)


def a_datagram(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.sender.send_datagram(ours, b"datagram", 1.0)


def a_replay(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.sender.send(ours, b"first")
    both.client.send(1.0)
    both.cut(1.0)


def no_pipe(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.detach()


def no_credit(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    fill(both.client, ours)
    both.client.send_all(1.0)
    room = ours.send_limit - ours.promised
    if room:
        both.client.core.sender.send(ours, bytes(room))
        both.client.send_all(1.0)


def a_half_closed_stream(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.sender.finish(ours)
    both.client.send_all(1.0)


def a_lane_that_closes(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.sender.close()


def a_pace(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.sender.pacer.record = 8 * KIB


@pytest.mark.parametrize(
    "prepare",
    [
        something_queued,
        bulk_queued,
        an_open_to_be_sent,
        a_datagram,
        a_replay,
        no_pipe,
        no_credit,
        a_half_closed_stream,
        a_lane_that_closes,
        a_pace,
    ],
)
def test_whatever_else_waits_it_has_to_be_queued(prepare: Prepare) -> None:
    both, ours, theirs = rig()
    prepare(both, ours, theirs)
    before = ours.sent, ours.promised, both.client.core.sender.retransmit_buffer.next_number
    assert not both.client.send_alone(ours, b"payload", 1.0)
    assert (ours.sent, ours.promised, both.client.core.sender.retransmit_buffer.next_number) == before
    both.client.core.check_invariants()


def test_what_may_go_in_front_of_a_buffer_fits_there() -> None:
    most = (
        wire.Pong(1).encode()
        + wire.Clock(1).encode()
        + wire.Ping(1).encode()
        + LITTLE_CREDIT * wire.credit(1, 1)
        + wire.ack(1)
    )
    assert len(most) <= RIDE_ROOM


def test_a_buffer_waits_where_much_has_to_go_in_front_of_it() -> None:
    both, ours, _ = rig()
    pending = both.client.core.pending
    for _ in range(LITTLE_CREDIT + 1):
        pending.add_credit(both.client.core.open_stream(b"", 1.0))
    both.client.send_all(0.5)  # the streams are known, their CREDITs have gone
    for stream in list(both.client.core.streams):
        pending.add_credit(stream)
    buffer = both.client.core.sender.take_buffer(ours, 1)
    assert buffer is not None
    buffer.length = 1
    before = ours.sent, both.client.core.sender.retransmit_buffer.next_number
    assert not both.client.send_alone(ours, buffer, 1.0)
    assert (ours.sent, both.client.core.sender.retransmit_buffer.next_number) == before
    assert both.client.send_alone(ours, b"small", 1.0), "what is copied has the room"
    both.client.core.sender.return_buffer(buffer)


def no_reader_delivers(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    theirs.direct = False


def somebody_delivers(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    theirs.delivering = True


def some_is_in_the_inbox(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    theirs.inbox.append(bytearray(b"before"))


def a_duplicate(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.client.core.sender.send(ours, b"first")
    both.client.send(1.0)
    both.deliver(both.client, 1.0)
    theirs.inbox.clear()
    both.cut(1.0, stale=(1, 0))


def an_ended_lane(both: Rig, ours: StreamState, theirs: StreamState) -> None:
    both.server.core.receiver.end()


@pytest.mark.parametrize(
    "prepare", [no_reader_delivers, somebody_delivers, some_is_in_the_inbox, a_duplicate, an_ended_lane]
)
def test_a_record_that_is_not_handed_on_directly_is_left_untouched(prepare: Prepare) -> None:
    both, ours, theirs = rig()
    theirs.direct = True
    prepare(both, ours, theirs)
    receiver = both.server.core.receiver
    before = receiver.expected, receiver.payload_received, theirs.window.received
    record = wire.data_header(ours.id, 3) + b"abc"
    assert not both.server.take_alone(record, 1.0)
    assert (receiver.expected, receiver.payload_received, theirs.window.received) == before


@pytest.mark.parametrize(
    "more", [wire.fin(1, 3), wire.ack(0), wire.data_header(1, 1) + b"d"], ids=["FIN", "ACK", "more DATA"]
)
def test_a_record_with_anything_behind_its_data_takes_the_usual_way(more: bytes) -> None:
    both, ours, theirs = rig()
    theirs.direct = True
    assert ours.id == 1
    assert not both.server.take_alone(wire.data_header(1, 3) + b"abc" + more)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        wire.data_header(1, 3) + b"ab",
        wire.data_header(1, 0),
        wire.data_header(1, 3)[:-1],
        wire.data_header(99, 1) + b"a",
        wire.data_header(1, 200 * KIB) + bytes(200 * KIB),
        wire.ack(7) + wire.data_header(1, 1) + b"a",
        wire.ack(7)[:-1],
    ],
    ids=["empty", "cut", "no payload", "cut header", "no such stream", "beyond credit", "ACK of nothing", "cut ACK"],
)
def test_what_a_peer_does_wrong_ends_the_pipe_as_ever(record: bytes) -> None:
    both, _, theirs = rig()
    theirs.direct = True
    theirs.window.granted = 100 * KIB
    both.client.wire.append(record)
    with pytest.raises(ProtocolError):
        both.deliver(both.client)
    assert theirs.window.received == 0
    assert not theirs.delivering
