"""How a lane's threads are woken and how a pipe ends: nobody waits for ever, and everybody is told why."""

from __future__ import annotations

import threading
import time

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, SessionEnded, StreamReset
from qanat.handshake.hello import Close, CloseReason, RecordKind
from qanat.mux import frames as wire
from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.frames import Reason
from qanat.mux.parameters import LaneParameters
from qanat.mux.pipe_result import PipeResult
from tests.support.background import Background, wait_until
from tests.support.mux.cores import KIB
from tests.support.mux.rig import DEADLINE, Pair, pattern, read_all, waiting_in, write_all
from tests.support.transports.memory import memory_pair

MIB = 1024 * KIB


# --- waking -----------------------------------------------------------------------------------------


def test_the_end_wakes_every_blocked_thread() -> None:
    outbox = 4 * BUFFER_PAYLOAD
    with Pair(
        LaneParameters(client=True, outbox=outbox, peer_initial_window=16 * MIB),
        LaneParameters(client=False, initial_window=16 * MIB),
    ) as pair:
        lane = pair.client.lane
        reading, _ = pair.open()
        full, _ = pair.open()
        accepting = lane.open_stream(b"")
        blocked: dict[str, Background[object]] = {
            "receive": Background(reading.receive),
            "wait_accepted": Background(lambda: accepting.wait_accepted(Deadline(None))),
        }
        for name in blocked:
            wait_until(waiting_in(name), f"{name} waits")
        with pair.server.lane.lock:  # It neither reads nor acknowledges while we hold this.
            blocked["wait_writable"] = Background(lambda: write_all(full, bytes(64 * MIB)))
            sender = lane.core.sender
            wait_until(lambda: sender.retransmit_buffer.full and sender.buffers.exhausted, "all is full")
            wait_until(waiting_in("wait_writable"), "the writer waits")
            blocked["take_buffer"] = Background(accepting.take_buffer)
            wait_until(waiting_in("take_buffer"), "take_buffer waits")
            blocked["open_stream"] = Background(lambda: lane.open_stream(b""))
            wait_until(waiting_in("open_stream"), "open_stream waits")
            lane.end(Reason.SESSION_ENDED, "the session is over")
            for name, thread in blocked.items():
                error = thread.error()
                expected = SessionEnded if name == "open_stream" else StreamReset
                assert isinstance(error, expected), f"{name}: {error!r}"


def test_a_buffer_that_comes_back_wakes_its_waiter_past_one_who_waits_for_something_else() -> None:
    with Pair(LaneParameters(client=True, outbox=2 * BUFFER_PAYLOAD)) as pair:
        lane = pair.client.lane
        ours, theirs = pair.open()
        buffers = [ours.take_buffer() for _ in range(lane.core.sender.buffers.capacity)]
        with pair.server.lane.lock:  # It acknowledges nothing while we hold this.
            while not lane.core.sender.retransmit_buffer.full:
                lane.send_control(bytes(1024))
            opening = Background(lambda: lane.open_stream(b""))
            wait_until(waiting_in("open_stream"), "open_stream waits first")
            taking = Background(ours.take_buffer)
            wait_until(waiting_in("take_buffer"), "take_buffer waits second")
            ours.return_buffer(buffers.pop())
            buffers.append(taking.result())
            wait_until(waiting_in("open_stream"), "open_stream waits again")
        for buffer in buffers:
            ours.return_buffer(buffer)
        opening.result().release()
        ours.release()
        theirs.release()


def test_a_buffer_written_to_a_stream_that_was_reset_wakes_who_waits_for_one() -> None:
    with Pair(LaneParameters(client=True, outbox=2 * BUFFER_PAYLOAD)) as pair:
        lane = pair.client.lane
        dead, dead_theirs = pair.open()
        ours, theirs = pair.open()
        buffers = [dead.take_buffer() for _ in range(lane.core.sender.buffers.capacity)]
        dead.reset(Reason.CANCELED, "")
        taking = Background(ours.take_buffer)
        wait_until(waiting_in("take_buffer"), "take_buffer waits")
        buffers[0].length = 1
        dead.write_buffer(buffers.pop(0))
        buffers.append(taking.result())
        for buffer in buffers:
            ours.return_buffer(buffer)
        for stream in (dead, dead_theirs, ours, theirs):
            stream.release()


def test_the_owner_of_a_socket_is_told_of_a_failure_exactly_once() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        told: list[str] = []
        theirs.on_failure(lambda: told.append("theirs"))
        ours.on_failure(lambda: told.append("ours"))
        ours.reset(Reason.CANCELED, "")
        wait_until(lambda: sorted(told) == ["ours", "theirs"], "both are told")
        theirs.on_failure(lambda: told.append("late"))
        assert told[-1] == "late"
        ours.reset(Reason.CANCELED, "")
        ours.release()
        theirs.release()
        assert len(told) == 3


def test_streams_that_were_reset_before_a_fault_in_the_same_record_are_told() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        told = threading.Event()
        theirs.on_failure(told.set)
        reset, impossible = wire.Reset(theirs.id, 1, "").encode(), wire.Fin(99, 0).encode()
        with pair.client.lane.lock:  # So that our own writer does not send at the same time.
            pair.client.sealed.send_record(bytes((RecordKind.FRAMES,)) + reset + impossible)
            assert told.wait(DEADLINE)
        assert pair.server.join().fault
        ours.release()
        theirs.release()


# --- pings and ends ---------------------------------------------------------------------------------


def test_a_ping_is_answered_by_the_other_end() -> None:
    with Pair() as pair:
        assert pair.client.lane.ping(DEADLINE)
        assert pair.server.lane.ping(DEADLINE)
        assert 0 < pair.client.lane.round_trip < DEADLINE


def test_a_ping_fails_when_the_other_end_is_silent_and_when_the_lane_ends() -> None:
    with Pair() as pair:
        assert pair.client.lane.ping(DEADLINE)
        with pair.server.lane.lock:  # It neither reads nor writes while we hold this.
            assert not pair.client.lane.ping(0.05)
            asking = Background(lambda: pair.client.lane.ping(10 * DEADLINE))
            wait_until(waiting_in("ping"), "ping waits")
            pair.client.lane.end(Reason.SESSION_ENDED, "over")
            assert asking.result() is False


def test_a_ping_asked_for_before_the_pipe_is_there_is_answered_when_it_is() -> None:
    pair = Pair()
    asking = Background(lambda: pair.server.lane.ping(DEADLINE))
    wait_until(waiting_in("ping"), "ping waits")
    with pair:
        assert asking.result()


def test_close_sends_what_is_queued_and_then_close() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        data = pattern(128 * KIB)
        write_all(ours, data)
        ours.finish()
        pair.client.lane.close(CloseReason.SHUTDOWN, "going home")
        ending = pair.server.join()
        assert ending.close is not None
        assert (ending.close.reason, ending.cause) == (CloseReason.SHUTDOWN, "going home")
        assert read_all(theirs) == data
        assert pair.client.join().close is None
        assert not pair.client.join().fault
        with pytest.raises(SessionEnded):
            pair.client.lane.open_stream(b"")


def test_close_ends_although_applications_go_on_writing() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        writing = Background(lambda: write_all(ours, bytes(1024 * MIB)))
        reading = Background(lambda: read_all(theirs))
        wait_until(lambda: theirs.counts[1] > MIB, "bytes flow")
        pair.client.lane.close(CloseReason.SHUTDOWN, "going home")
        assert pair.server.join().close is not None
        assert isinstance(writing.error(), StreamReset)
        assert isinstance(reading.error(), StreamReset)


def test_close_waits_for_acknowledgments_when_the_retransmit_buffer_is_full() -> None:
    outbox = 2 * BUFFER_PAYLOAD
    with Pair(LaneParameters(client=True, outbox=outbox), LaneParameters(client=False, outbox=64 * MIB)) as pair:
        streams = [pair.open() for _ in range(3)]
        pending = pair.client.lane.core.pending
        wait_until(lambda: pending.ping_waits(0.0) is None, "the first PING is answered")
        with pair.server.lane.lock:  # So that no ACK comes before all is queued.
            pending.least_round_trip = 0.0  # However late the first PONG was: in whole buffers.
            for ours, _ in streams:
                Background(lambda s=ours: (write_all(s, pattern(60 * KIB)), s.finish())).result()
            pair.client.lane.close(CloseReason.SHUTDOWN, "")
        for _, theirs in streams:
            assert read_all(theirs) == pattern(60 * KIB)
        assert pair.server.join().close is not None


def test_a_lane_that_is_closed_before_it_runs_says_so_at_once() -> None:
    pair = Pair()
    pair.client.lane.close(CloseReason.SHUTDOWN, "going")
    with pair:
        assert pair.client.join().close is None
        assert not pair.client.join().fault
        assert pair.server.join().close == Close(CloseReason.SHUTDOWN, "going")


def test_a_cut_is_for_the_present_pipe_and_not_for_the_next() -> None:
    pair = Pair()
    pair.client.lane.cut("there is none yet")
    with pair:
        assert pair.client.lane.ping(DEADLINE)


def test_a_lane_that_is_over_before_it_runs_leaves_its_pipe_without_a_word() -> None:
    pair = Pair()
    pair.client.lane.end(Reason.SESSION_ENDED, "another took its place")
    with pair:
        assert pair.client.join() == PipeResult("the session is over")
        assert pair.server.join().close is None


def test_a_cut_is_told_from_a_finished_session() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        pair.client.lane.cut("the network is gone")
        assert pair.client.join() == PipeResult("the network is gone")
        ending = pair.server.join()
        assert ending.close is None
        assert not ending.fault
        for stream in (ours, theirs):
            with pytest.raises(StreamReset) as caught:
                stream.receive()
            assert caught.value.code == Reason.SESSION_ENDED
            stream.release()


def test_a_peer_that_is_silent_too_long_is_a_dead_pipe() -> None:
    client_pipe, server_pipe = memory_pair()
    pair = Pair(LaneParameters(client=True, keepalive=60.0), pipes=(client_pipe, server_pipe), silence=0.1)
    pair.client.thread.start()
    assert "nothing received" in pair.client.join().cause
    pair.server.sealed.close("never ran")


def test_keepalive_keeps_a_quiet_pipe_alive() -> None:
    parameters = LaneParameters(client=True, keepalive=0.05), LaneParameters(client=False, keepalive=0.05)
    with Pair(*parameters, silence=2.0) as pair:
        started = time.monotonic()
        wait_until(lambda: pair.client.lane.core.pending.pings_answered >= 60, "sixty pings are answered")
        assert time.monotonic() - started > 2.0
        assert pair.client.thread.is_alive()


def test_a_protocol_error_of_the_peer_ends_the_pipe_and_says_so() -> None:
    with Pair() as pair:
        pair.client.sealed.send_record(bytes((RecordKind.FRAMES,)) + wire.Ack(10**6).encode())
        ending = pair.server.join()
        assert ending.fault
        assert "an ACK for frame 1000000" in ending.cause


def test_a_control_message_that_is_refused_ends_the_pipe() -> None:
    with Pair() as pair:

        def refuse(message: bytes) -> None:
            raise ProtocolError("not in this session")

        pair.server.on_control = refuse
        pair.client.lane.send_control(b"listen")
        ending = pair.server.join()
        assert ending.fault
        assert "not in this session" in ending.cause


def test_a_writer_that_fails_does_not_leave_a_silent_pipe() -> None:
    with Pair() as pair:

        def fail(plaintext: memoryview | bytes) -> None:
            raise ValueError("a bug")

        pair.client.sealed.send_record = fail  # type: ignore[method-assign]
        pair.client.lane.send_control(b"x")
        assert "a bug" in pair.client.join().cause
