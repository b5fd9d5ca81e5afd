"""What a lane keeps of what it has sent, whose fault an end is, and what the other end is told of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from qanat.base.errors import PipeEnded
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, CloseReason, RecordKind
from qanat.mux import frames as wire
from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.frames import Reason
from qanat.mux.parameters import LaneParameters
from qanat.mux.pipe_result import PipeResult
from tests.support.background import Background, wait_until
from tests.support.mux.resuming_rig import MIB, Bulk, End, Lanes
from tests.support.mux.rig import sealed_pair, waiting_in, write_all
from tests.support.transports.memory import memory_pair

# --- what is kept -----------------------------------------------------------------------------------


@contextlib.contextmanager
def against_a_reader(parameters: LaneParameters) -> Iterator[tuple[End, SealedPipe, Background[PipeResult]]]:
    """A lane whose other end only reads, and acknowledges nothing."""
    end = End(parameters)
    ours, theirs = sealed_pair(*memory_pair())
    running = end.run(ours)
    try:
        yield end, theirs, running
    finally:
        theirs.close("the test is over")
        running.result()
        end.lane.end(Reason.SESSION_ENDED, "the test is over")


def frames_until(sealed: SealedPipe, kind: type[wire.Frame]) -> None:
    """Read until a frame of this kind has come."""
    while True:
        record, content = sealed.recv_record()
        assert record is RecordKind.FRAMES
        if any(isinstance(frame, kind) for frame in wire.parse_frames(content)):
            return


@pytest.mark.parametrize("resumable", [True, False])
def test_what_was_sent_is_kept_until_acknowledged_only_where_it_could_be_sent_again(resumable: bool) -> None:
    parameters = LaneParameters(client=True, peer_initial_window=16 * MIB, outbox=4 * MIB, resumable=resumable)
    with against_a_reader(parameters) as (end, theirs, _):
        stream = end.lane.open_stream(b"")
        size = 16 * MIB if not resumable else MIB  # four times the limit, where nothing may stay
        writing = Background(lambda: (write_all(stream, bytes(size)), stream.finish()))
        frames_until(theirs, wire.Fin)
        writing.result()
        core = end.lane.core
        if resumable:
            assert len(core.sender.retransmit_buffer) >= 2 + size // BUFFER_PAYLOAD
            assert core.sender.buffers.lent >= size // BUFFER_PAYLOAD
        else:
            wait_until(lambda: len(core.sender.retransmit_buffer) == 0, "the retransmit buffer is empty")
            assert core.sender.retransmit_buffer.charged == 0
            assert core.sender.buffers.lent == 0
        stream.release()


# --- faults and ends --------------------------------------------------------------------------------


def close_from(sealed: SealedPipe) -> Close:
    """Read until CLOSE."""
    while True:
        kind, content = sealed.recv_record()
        if kind is RecordKind.CLOSE:
            return Close.decode(content)


def test_a_fault_of_the_peer_is_told_to_it_and_is_the_end_of_more_than_the_pipe() -> None:
    with against_a_reader(LaneParameters(client=False)) as (_, theirs, running):
        theirs.send_record(bytes((RecordKind.FRAMES,)) + wire.Fin(99, 0).encode())
        close = close_from(theirs)
        assert close.reason is CloseReason.PROTOCOL
        assert "a frame for stream 99, which was never opened" in close.text
        assert running.result().fault


def test_a_record_whose_tag_does_not_hold_is_a_cut_and_not_a_fault() -> None:
    """Whoever is on the path can do this; the session must not be theirs to end."""
    with Lanes() as lanes:
        bulk = Bulk(lanes, 2 * MIB)
        bulk.wait_received(MIB)
        old = lanes.pipes[0]
        lanes.client.lane.pause_writer()  # so that its own writer does not send at the same time
        sending = waiting_in("send", thread="client-writer")
        wait_until(lambda: waiting_in("run", thread="client-writer")() and not sending(), "its writer is idle")
        raw = old.client.pipe
        raw.send(memoryview(bytearray(raw.headroom) + b"\x5a" * 100))
        ending = old.ends()[1]
        assert not ending.fault
        assert ending.close is None
        assert "something broke the connection" in ending.cause
        lanes.connect()
        bulk.check()


@pytest.mark.parametrize("reason", [CloseReason.REPLACED, CloseReason.REVOKED, CloseReason.PROTOCOL])
def test_the_end_of_a_lane_is_told_with_its_reason(reason: CloseReason) -> None:
    with Lanes() as lanes:
        ours, theirs = lanes.open()
        lanes.server.lane.end(Reason.SESSION_ENDED, "it is over", Close(reason, "because"))
        at_client, at_server = lanes.pipes[0].ends()
        assert at_client.close == Close(reason, "because")
        assert not at_client.fault
        assert at_server.close is None
        assert not at_server.fault
        assert theirs.failure == (Reason.SESSION_ENDED, "it is over")
        ours.reset(Reason.CANCELED, "")
        ours.release()
        theirs.release()


def test_without_a_reason_the_end_of_a_lane_is_a_cut_for_the_other_end() -> None:
    with Lanes() as lanes:
        lanes.server.lane.end(Reason.SESSION_ENDED, "it is over")
        at_client, _ = lanes.pipes[0].ends()
        assert at_client.close is None


def test_the_end_of_a_lane_whose_writer_is_stuck_does_not_wait_for_it() -> None:
    server = End(LaneParameters(client=False, peer_initial_window=16 * MIB))
    client_sealed, server_sealed = sealed_pair(*memory_pair())
    running = server.run(server_sealed)
    wait_until(lambda: server.lane.attached, "it is on the pipe")
    stream = server.lane.open_stream(b"")
    writing = Background(lambda: write_all(stream, bytes(8 * MIB)))
    wait_until(waiting_in("send", thread="server-writer"), "the writer is stuck")
    began = time.monotonic()
    server.lane.end(Reason.SESSION_ENDED, "it is over", Close(CloseReason.REPLACED, "because"))
    running.result()
    assert time.monotonic() - began < 10, "nobody will ever read"
    writing.error()
    stream.release()
    with pytest.raises(PipeEnded):
        close_from(client_sealed)
    client_sealed.close("the test is over")
