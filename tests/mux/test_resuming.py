"""Promises of a lane that goes from pipe to pipe: nothing is lost, nothing comes twice, and one pipe has it."""

from __future__ import annotations

import contextlib
import random
import threading
import time

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, SessionEnded
from qanat.handshake.hello import Close, CloseReason
from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.frames import Reason
from qanat.mux.lane import Superseded
from qanat.mux.parameters import LaneParameters, ResumePoint
from qanat.mux.pipe_result import PipeResult
from qanat.mux.pipe_runner import YIELD_TIMEOUT
from tests.support.background import Background, wait_until
from tests.support.mux.resuming_rig import MIB, Bulk, End, Lanes
from tests.support.mux.rig import DEADLINE, pattern, read, read_all, sealed_pair, waiting_in, write_all
from tests.support.transports.memory import memory_pair

# --- cuts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_bytes_go_on_both_ways_where_they_were_whenever_the_pipe_is_cut(seed: int) -> None:
    chance = random.Random(seed)
    with Lanes() as lanes:
        bulks = [Bulk(lanes, 8 * MIB) for _ in range(3)]
        cuts = 0
        while not all(bulk.over for bulk in bulks):
            bulk = chance.choice([each for each in bulks if not each.over])
            bulk.wait_received(bulk.received + chance.randrange(2 * MIB))
            pipe = lanes.pipes[-1]
            for sealed in chance.choice(((pipe.client,), (pipe.server,), (pipe.client, pipe.server))):
                sealed.close("the network was cut")
            for ending in pipe.ends():
                assert ending.close is None
                assert not ending.fault
            lanes.connect()
            cuts += 1
        assert cuts >= 5
        for bulk in bulks:
            bulk.check()
        for lane in lanes.both:
            assert lane.ping(DEADLINE)
            wait_until(lambda lane=lane: len(lane.core.sender.retransmit_buffer) == 0, "all is acknowledged")


def test_what_is_opened_and_written_without_a_pipe_arrives_with_the_next() -> None:
    with Lanes() as lanes:
        lanes.pipes[-1].cut()
        lanes.pipes[-1].ends()
        assert not lanes.client.lane.attached
        ours = lanes.client.lane.open_stream(b"a request")
        ours.write(b"hello")
        ours.finish()
        lanes.connect()
        wait_until(lambda: bool(lanes.server.opened), "the stream is there")
        theirs = lanes.server.opened[0]
        assert theirs.request == b"a request"
        assert read_all(theirs) == b"hello"
        theirs.release()
        ours.release()


def test_a_cut_before_anything_was_said_loses_nothing() -> None:
    with Lanes() as lanes:
        for _ in range(5):
            lanes.connect().cut()
        lanes.connect()
        ours, theirs = lanes.open()
        write_all(ours, b"after all")
        ours.finish()
        theirs.finish()
        assert read_all(theirs) == b"after all"
        assert read_all(ours) == b""
        ours.release()
        theirs.release()


def test_a_writer_that_has_filled_the_outbox_without_a_pipe_goes_on_with_the_next() -> None:
    parameters = {"outbox": 4 * BUFFER_PAYLOAD, "initial_window": 16 * MIB, "peer_initial_window": 16 * MIB}
    with Lanes(LaneParameters(client=True, **parameters), LaneParameters(client=False, **parameters)) as lanes:
        ours, theirs = lanes.open()
        lanes.pipes[-1].cut()
        lanes.pipes[-1].ends()
        data = pattern(3 * MIB)
        writing = Background(lambda: (write_all(ours, data), ours.finish()))
        wait_until(lambda: waiting_in("take_buffer")() or waiting_in("wait_writable")(), "the writer waits")
        reading = Background(lambda: read_all(theirs))
        lanes.connect()
        assert reading.result() == data
        writing.result()
        ours.release()
        theirs.finish()
        theirs.release()


# --- make before break ------------------------------------------------------------------------------


def test_a_new_pipe_takes_over_from_one_that_works_while_bulk_flows_both_ways() -> None:
    with Lanes() as lanes:
        bulk = Bulk(lanes, 24 * MIB)
        moved = 0
        while not bulk.over:
            bulk.wait_received(bulk.received + MIB)
            old = lanes.pipes[-1]
            lanes.connect()
            moved += 1
            at_client, at_server = old.ends()
            assert at_client.close == Close(CloseReason.LEAVING, "a newer connection takes over")
            assert at_server.close is None
            assert not at_server.fault
        assert moved >= 5
        bulk.check()


def test_a_lane_that_is_held_begins_no_further_record_until_it_is_let_go() -> None:
    with Lanes() as lanes:
        ours, theirs = lanes.open()
        assert lanes.client.lane.ping(DEADLINE)
        lanes.client.lane.pause_writer()
        ours.write(b"later")
        assert not lanes.client.lane.ping(0.1)
        assert theirs.counts[1] == 0
        lanes.client.lane.resume_writer()
        lanes.client.lane.resume_writer()
        assert read(theirs, 5) == b"later"
        ours.release()
        theirs.release()


def test_a_close_does_not_wait_for_a_lane_that_is_held() -> None:
    with Lanes() as lanes:
        ours, theirs = lanes.open()
        assert lanes.client.lane.ping(DEADLINE)
        lanes.client.lane.pause_writer()
        ours.write(b"the last of it")
        lanes.client.lane.close(CloseReason.SHUTDOWN, "going home")
        assert lanes.pipes[0].ends()[1].close == Close(CloseReason.SHUTDOWN, "going home")
        assert read(theirs, 14) == b"the last of it"
        for stream in (ours, theirs):
            stream.release()


def test_a_lane_that_is_held_still_receives_and_the_next_pipe_repeats_nothing() -> None:
    with Lanes() as lanes:
        ours, theirs = lanes.open()
        client, server = lanes.both
        expects = client.pause_writer()
        theirs.write(b"still on the old one")
        assert read(ours, 20) == b"still on the old one"
        assert client.core.receiver.expected == expects + 1
        pipe = lanes.new_pipe()
        lanes.epoch = 1
        server_expects = server.acquire(1, expects, Deadline(DEADLINE))
        lanes.server.run(pipe.server, ResumePoint(1, expects, server_expects))
        client.acquire(1, server_expects, Deadline(DEADLINE))
        lanes.client.run(pipe.client, ResumePoint(1, server_expects, expects))
        theirs.write(b"and on")
        theirs.finish()
        assert read_all(ours) == b"and on"
        ours.release()
        theirs.release()


def test_what_a_pipe_still_acknowledges_while_it_yields_does_not_count_against_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A HELLO was long on its way, and its client goes on with the old pipe until it comes again."""
    with Lanes() as lanes:
        ours, theirs = lanes.open()
        client, server = lanes.both
        assert client.ping(DEADLINE)
        assert server.ping(DEADLINE)
        expects = client.pause_writer()
        old, new = lanes.pipes[0].server.pipe, lanes.new_pipe()
        send = old.send

        def send_without_room(buffer: memoryview) -> None:
            wait_until(lambda: old.cause is not None, "the pipe is closed")
            send(buffer)

        theirs.write(b"one")
        assert read(ours, 3) == b"one"
        monkeypatch.setattr(old, "send", send_without_room)
        theirs.write(b"two")
        taking = Background(lambda: server.acquire(1, expects, Deadline(DEADLINE)))
        wait_until(lambda: server.epoch == 1, "the old pipe yields")
        client.resume_writer()
        wait_until(lambda: client.core.pending.timeout(client.clock()) > 1, "the client has acknowledged on it")
        serving = lanes.server.run(new.server, ResumePoint(1, expects, taking.result()))
        lanes.pipes[0].ends()
        new.cut()
        assert not serving.result().fault
        lanes.epoch = 1
        lanes.connect()
        assert read(ours, 3) == b"two"
        for stream in (ours, theirs):
            stream.release()


# --- who has the lane -------------------------------------------------------------------------------


def assert_the_old_pipe_goes_on(lanes: Lanes) -> None:
    for lane in lanes.both:
        assert lane.attached
        assert lane.ping(DEADLINE)
    ours, theirs = lanes.open()
    write_all(ours, b"still here")
    assert read(theirs, 10) == b"still here"
    ours.reset(Reason.CANCELED, "")
    ours.release()
    theirs.release()


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_that_is_not_the_highest_changes_nothing(epoch: int) -> None:
    with Lanes() as lanes:
        for _ in range(2):
            lanes.connect()
        with pytest.raises(Superseded, match="a pipe of epoch 2 has the lane"):
            lanes.server.lane.acquire(epoch, lanes.client.lane.core.receiver.expected, Deadline(DEADLINE))
        assert_the_old_pipe_goes_on(lanes)


def test_a_stale_epoch_is_no_fault_whatever_else_it_says() -> None:
    """docs/PROTOCOL.md §3 judges in this order."""
    with Lanes() as lanes:
        lanes.connect()
        with pytest.raises(Superseded):
            lanes.server.lane.acquire(1, 10**6, Deadline(DEADLINE))
        assert_the_old_pipe_goes_on(lanes)


def test_a_hello_that_expects_what_it_has_acknowledged_since_changes_nothing() -> None:
    """It was long on its way: its sender has gone on over the present pipe."""
    with Lanes() as lanes:
        ours, theirs = lanes.open()
        write_all(theirs, b"x" * 100)
        assert read(ours, 100) == b"x" * 100
        server = lanes.server.lane
        wait_until(lambda: server.core.sender.retransmit_buffer.first > 0, "it is acknowledged")
        with pytest.raises(Superseded, match="acknowledged more"):
            server.acquire(1, 0, Deadline(DEADLINE))
        ours.release()
        theirs.release()
        assert_the_old_pipe_goes_on(lanes)
        lanes.connect()  # with epoch 1, which is not used up
        assert_the_old_pipe_goes_on(lanes)


def test_expecting_what_was_never_sent_is_an_error_and_changes_nothing() -> None:
    with Lanes() as lanes:
        server = lanes.server.lane
        with pytest.raises(ProtocolError, match="the peer expects frame"):
            server.acquire(1, server.core.sender.retransmit_buffer.next_number + 1, Deadline(DEADLINE))
        assert_the_old_pipe_goes_on(lanes)
        lanes.connect()
        assert_the_old_pipe_goes_on(lanes)


def test_a_lane_that_is_over_is_taken_by_nobody() -> None:
    with Lanes() as lanes:
        lanes.server.lane.end(Reason.SESSION_ENDED, "it is over")
        with pytest.raises(SessionEnded, match="it is over"):
            lanes.server.lane.acquire(1, 0, Deadline(DEADLINE))


@pytest.mark.parametrize("attempt", range(8))
def test_of_two_that_take_it_at_once_the_higher_epoch_has_it_in_the_end(attempt: int) -> None:
    with Lanes() as lanes:
        bulk = Bulk(lanes, 2 * MIB)
        server = lanes.server.lane
        begin = threading.Barrier(2)
        expects = lanes.client.lane.pause_writer()

        def take(epoch: int) -> int:
            begin.wait(DEADLINE)
            return server.acquire(epoch, expects, Deadline(DEADLINE))

        lower, higher = Background(lambda: take(1)), Background(lambda: take(2))
        server_expects = higher.result()
        with contextlib.suppress(Superseded):  # unless it was quick enough to have it for a moment
            lower.result()
        stale, pipe = lanes.new_pipe(), lanes.new_pipe()
        late = lanes.server.run(stale.server, ResumePoint(1, expects, server_expects))
        assert late.result() == PipeResult("a later connection has the lane")
        lanes.server.run(pipe.server, ResumePoint(2, expects, server_expects))
        lanes.client.lane.acquire(2, server_expects, Deadline(DEADLINE))
        lanes.client.run(pipe.client, ResumePoint(2, server_expects, expects))
        lanes.epoch = 2
        bulk.check()


def test_a_pipe_that_was_granted_the_lane_and_not_yet_run_yields_to_the_next() -> None:
    with Lanes() as lanes:
        server = lanes.server.lane
        expects = lanes.client.lane.pause_writer()
        server.acquire(1, expects, Deadline(DEADLINE))
        server.acquire(2, expects, Deadline(DEADLINE))
        stale = lanes.new_pipe()
        assert lanes.server.run(stale.server, ResumePoint(1)).result() == PipeResult("a later connection has the lane")
        assert stale.server.cause is not None
        lanes.epoch = 2
        lanes.connect()
        assert_the_old_pipe_goes_on(lanes)


def test_an_old_pipe_whose_writer_is_stuck_is_left_within_about_a_second() -> None:
    """Its other end does not read, as behind a path that has silently gone."""
    parameters = LaneParameters(client=False, initial_window=16 * MIB, peer_initial_window=16 * MIB)
    server = End(parameters)
    client_sealed, server_sealed = sealed_pair(*memory_pair())
    running = server.run(server_sealed)
    wait_until(lambda: server.lane.attached, "it is on the pipe")
    stream = server.lane.open_stream(b"")
    writing = Background(lambda: write_all(stream, bytes(8 * MIB)))
    wait_until(waiting_in("send", thread="server-writer"), "the writer is stuck in send")
    began = time.monotonic()
    server.lane.acquire(1, 0, Deadline(DEADLINE))
    assert YIELD_TIMEOUT <= time.monotonic() - began < DEADLINE / 2
    assert not running.result().fault
    assert not server.lane.attached
    server.lane.end(Reason.SESSION_ENDED, "the test is over")
    writing.error()
    stream.release()
    client_sealed.close("the test is over")
