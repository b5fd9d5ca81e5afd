"""What the threads around a core promise: nobody waits for ever, nobody is woken in vain, nothing is left."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from base.deadline import Deadline
from base.errors import ProtocolError, SessionEnded, StreamReset
from handshake.client_keys import ClientKey
from handshake.exchange import SealedPipe, client_handshake, server_handshake
from handshake.hello import Close, CloseReason, RecordKind
from handshake.identity import ServerIdentity
from mux import frames as wire
from mux.frames import Reason
from mux.lane import Ending
from mux.parameters import LaneParameters
from mux.slab import BLOCK_PAYLOAD
from mux.stream_io import StreamIO
from tests.handshake.pipes import socket_pipes
from tests.handshake.scenario import make_client, make_server
from tests.transports.background import Background, wait_until
from transports.memory import memory_pair
from transports.pipe import Pipe

from .cores import KIB
from .rig import DEADLINE, Pair, read, read_all, write_all

MIB = 1024 * KIB


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which a shift by anything but 256 KiB shows."""
    unit = bytes((at * 31 + (at >> 8) + seed) % 251 for at in range(64 * KIB))
    return (unit * (size // len(unit) + 1))[:size]


def waiting(condition: threading.Condition) -> Callable[[], bool]:
    """Whether a thread waits on `condition`: the only way to know that a call blocks, without sleeping."""
    return lambda: bool(condition._waiters)  # type: ignore[attr-defined]


# --- carrying ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_pipes", [memory_pair, socket_pipes])
def test_bytes_travel_both_ways_at_once_and_both_ends_end(make_pipes: Callable[[], tuple[Pipe, Pipe]]) -> None:
    there, back = pattern(8 * MIB), pattern(8 * MIB, 7)
    with Pair(pipes=make_pipes()) as pair:
        ours, theirs = pair.open()
        ways = ((ours, there), (theirs, back))
        writers = [Background(lambda s=s, d=d: (write_all(s, d), s.finish())) for s, d in ways]
        readers = [Background(lambda s=s: read_all(s)) for s in (theirs, ours)]
        assert readers[0].result() == there
        assert readers[1].result() == back
        for writer in writers:
            writer.result()
        ours.release()
        theirs.release()
        assert ours.counts == (8 * MIB, 8 * MIB)


def test_a_lane_runs_on_what_a_real_handshake_has_sealed() -> None:
    identity, key = ServerIdentity.generate(), ClientKey.generate()
    client_pipe, server_pipe = memory_pair()
    serving = Background(lambda: server_handshake(server_pipe, make_server(identity), Deadline(DEADLINE)))
    client_end = client_handshake(client_pipe, make_client(key), Deadline(DEADLINE))
    server_end = serving.result()

    class Established(Pair):
        """A pair on sealed pipes that exist already."""

        def __init__(self, client: SealedPipe, server: SealedPipe) -> None:
            super().__init__()
            for end, sealed in ((self.client, client), (self.server, server)):
                end.sealed.close("replaced")
                end.sealed = sealed

    client_end.send_record(bytes((RecordKind.HELLO,)))
    server_end.send_record(bytes((RecordKind.READY,)))
    server_end.recv_record()
    client_end.recv_record()
    with Established(client_end, server_end) as pair:
        ours, theirs = pair.open()
        write_all(ours, b"through it all", blocks=False)
        assert read(theirs, 14) == b"through it all"
        ours.release()
        theirs.release()


def test_a_thousand_streams_at_once_all_echo() -> None:
    parameters = LaneParameters(client=True), LaneParameters(client=False)
    with Pair(*parameters) as pair:
        def echo_loop() -> None:
            for _ in range(1000):
                stream = pair.server.next_stream()
                stream.accept("echo")
                payload = stream.receive()
                assert payload is not None
                stream.consumed(len(payload))
                stream.write(bytes(payload))
                stream.finish()

        echoing = Background(echo_loop)
        streams = [pair.client.lane.open_stream(b"") for _ in range(1000)]
        assert pair.client.lane.open_streams == 1000
        for stream in streams:
            stream.write(b"stream %d" % stream.id)
            stream.finish()
        for stream in streams:
            assert read_all(stream) == b"stream %d" % stream.id
            stream.release()
        echoing.result()
        wait_until(lambda: pair.server.lane.open_streams == 0, "all streams have ended")


def test_a_slow_reader_stops_only_its_own_stream() -> None:
    with Pair() as pair:
        slow, slow_theirs = pair.open()
        stuck = Background(lambda: write_all(slow, bytes(MIB)))
        fast, fast_theirs = pair.open()
        writing = Background(lambda: (write_all(fast, pattern(16 * MIB)), fast.finish()))
        assert read_all(fast_theirs) == pattern(16 * MIB)
        writing.result()
        wait_until(waiting(slow.writable), "the writer of the slow stream waits")
        assert slow.counts[0] == 128 * KIB
        assert len(read(slow_theirs, MIB)) == MIB  # It goes on when its reader does.
        stuck.result()
        for stream in (slow, slow_theirs, fast, fast_theirs):
            stream.release()


def test_two_ends_that_both_fill_their_pipe_do_not_wait_for_each_other() -> None:
    """Both writers block in a full pipe while credits and acknowledgements are due in both directions."""
    small = LaneParameters(client=True, outbox=2 * MIB)
    with Pair(small, LaneParameters(client=False, outbox=2 * MIB)) as pair:
        streams = [pair.open() for _ in range(12)]
        data = pattern(2 * MIB)
        writers = [Background(lambda s=s: (write_all(s, data), s.finish())) for both in streams for s in both]
        readers = [Background(lambda s=s: read_all(s)) for both in streams for s in both]
        for reader in readers:
            assert reader.result() == data
        for writer in writers:
            writer.result()
        for both in streams:
            for stream in both:
                stream.release()


def test_the_reader_never_writes() -> None:
    pipes = memory_pair()
    senders: set[str] = set()
    for pipe in pipes:
        send = pipe.send

        def noting(buffer: memoryview, send: Callable[[memoryview], None] = send) -> None:
            senders.add(threading.current_thread().name)
            send(buffer)

        pipe.send = noting  # type: ignore[method-assign]
    with Pair(pipes=pipes) as pair:
        senders.clear()
        ours, theirs = pair.open()
        writing = Background(lambda: (write_all(ours, bytes(4 * MIB)), ours.finish()))
        assert len(read_all(theirs)) == 4 * MIB
        writing.result()
        assert pair.client.lane.ping(DEADLINE)
        ours.release()
        theirs.release()
    assert senders == {"client-writer", "server-writer"}


def test_bytes_received_before_a_reset_are_still_delivered() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        ours.write(b"last words")
        wait_until(lambda: theirs.counts[1] == 10, "they have come")
        ours.reset(Reason.CANCELLED, "gone")
        wait_until(lambda: theirs.failure is not None, "the reset has come")
        assert read(theirs, 10) == b"last words"
        with pytest.raises(StreamReset, match="gone") as caught:
            theirs.receive()
        assert caught.value.code == Reason.CANCELLED
        ours.release()
        theirs.release()


def test_what_was_written_before_finish_and_release_is_still_sent() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        theirs.finish()
        assert ours.receive() is None
        data = pattern(100 * KIB)
        write_all(ours, data)
        ours.finish()
        ours.release()
        assert read_all(theirs) == data
        assert ours.failure is None
        theirs.release()


def test_releasing_a_stream_that_has_not_ended_resets_it() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        ours.release()
        with pytest.raises(StreamReset):
            theirs.receive()
        theirs.release()


def test_a_refusal_reaches_whoever_waits_for_the_target() -> None:
    with Pair() as pair:
        ours = pair.client.lane.open_stream(b"")
        answer = Background(lambda: ours.wait_accepted(Deadline(DEADLINE)))
        pair.server.next_stream().reset(Reason.REFUSED, "connection refused")
        error = answer.error()
        assert isinstance(error, StreamReset)
        assert (error.code, error.message) == (Reason.REFUSED, "connection refused")
        other, _ = pair.open()
        assert other.wait_accepted(Deadline(DEADLINE)) == "there"
        unanswered = pair.client.lane.open_stream(b"")
        assert unanswered.wait_accepted(Deadline(0)) is None
        for stream in (ours, other, unanswered):
            stream.release()


# --- waking -----------------------------------------------------------------------------------------


def test_the_end_wakes_every_blocked_thread() -> None:
    outbox = 4 * BLOCK_PAYLOAD
    with Pair(LaneParameters(client=True, outbox=outbox, peer_initial_window=16 * MIB),
              LaneParameters(client=False, initial_window=16 * MIB)) as pair:  # fmt: skip
        lane = pair.client.lane
        reading, _ = pair.open()
        full, _ = pair.open()
        accepting = lane.open_stream(b"")
        blocked: dict[str, Background[object]] = {
            "receive": Background(reading.receive),
            "wait_accepted": Background(lambda: accepting.wait_accepted(Deadline(None))),
        }
        wait_until(waiting(reading.readable), "receive waits")
        wait_until(waiting(accepting.readable), "wait_accepted waits")
        # Hold the lane's writer in a pipe that nobody reads, so that nothing is acknowledged any more.
        with pair.server.lane.lock:
            blocked["wait_writable"] = Background(lambda: write_all(full, bytes(64 * MIB)))
            wait_until(lambda: bool(waiting(full.writable)()) or bool(waiting(lane._room)()), "the writer waits")
            blocks = [block for _ in range(lane.core.slab.capacity) if (block := lane.core.slab.take())]
            blocked["take_block"] = Background(accepting.take_block)
            wait_until(waiting(lane._room), "take_block waits")
            with lane.lock:
                lane.core.outbox.charged += outbox
            before = len(lane._room._waiters)  # type: ignore[attr-defined]
            blocked["open_stream"] = Background(lambda: lane.open_stream(b""))
            wait_until(lambda: len(lane._room._waiters) > before, "open_stream waits")  # type: ignore[attr-defined]
            lane.end(Reason.SESSION_ENDED, "the session is over")
            for name, thread in blocked.items():
                error = thread.error()
                expected = SessionEnded if name == "open_stream" else StreamReset
                assert isinstance(error, expected), f"{name}: {error!r}"
            for block in blocks:
                accepting.return_block(block)


def test_a_block_that_comes_back_wakes_its_waiter_past_one_who_waits_for_something_else() -> None:
    with Pair(LaneParameters(client=True, outbox=2 * BLOCK_PAYLOAD)) as pair:
        lane = pair.client.lane
        ours, theirs = pair.open()
        blocks = [ours.take_block() for _ in range(lane.core.slab.capacity)]
        with lane.lock:
            lane.core.outbox.charged += 100 * MIB
        opening = Background(lambda: lane.open_stream(b""))
        wait_until(waiting(lane._room), "open_stream waits first")
        taking = Background(ours.take_block)
        wait_until(lambda: len(lane._room._waiters) == 2, "take_block waits second")  # type: ignore[attr-defined]
        ours.return_block(blocks.pop())
        blocks.append(taking.result())
        with lane.lock:
            lane.core.outbox.charged -= 100 * MIB
        for block in blocks:
            ours.return_block(block)
        opening.result().release()
        ours.release()
        theirs.release()


def test_a_block_written_to_a_stream_that_was_reset_wakes_who_waits_for_one() -> None:
    with Pair(LaneParameters(client=True, outbox=2 * BLOCK_PAYLOAD)) as pair:
        lane = pair.client.lane
        dead, dead_theirs = pair.open()
        ours, theirs = pair.open()
        blocks = [dead.take_block() for _ in range(lane.core.slab.capacity)]
        dead.reset(Reason.CANCELLED, "")
        taking = Background(ours.take_block)
        wait_until(waiting(lane._room), "take_block waits")
        blocks[0].length = 1
        dead.write_block(blocks.pop(0))
        blocks.append(taking.result())
        for block in blocks:
            ours.return_block(block)
        for stream in (dead, dead_theirs, ours, theirs):
            stream.release()


def test_the_owner_of_a_socket_is_told_of_a_failure_exactly_once() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        told: list[str] = []
        theirs.on_failure(lambda: told.append("theirs"))
        ours.on_failure(lambda: told.append("ours"))
        ours.reset(Reason.CANCELLED, "")
        wait_until(lambda: sorted(told) == ["ours", "theirs"], "both are told")
        theirs.on_failure(lambda: told.append("late"))
        assert told[-1] == "late"
        ours.reset(Reason.CANCELLED, "")
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
            wait_until(waiting(pair.client.lane._pong), "ping waits")
            pair.client.lane.end(Reason.SESSION_ENDED, "over")
            assert asking.result() is False


def test_a_ping_asked_for_before_the_pipe_is_there_is_answered_when_it_is() -> None:
    pair = Pair()
    asking = Background(lambda: pair.server.lane.ping(DEADLINE))
    wait_until(waiting(pair.server.lane._pong), "ping waits")
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
        assert pair.client.join().by_us
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


def test_close_waits_for_acknowledgements_when_the_outbox_is_full() -> None:
    outbox = 2 * BLOCK_PAYLOAD
    with Pair(LaneParameters(client=True, outbox=outbox), LaneParameters(client=False, outbox=64 * MIB)) as pair:
        streams = [pair.open() for _ in range(3)]
        with pair.server.lane.lock:  # So that no ACK comes before all is queued.
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
        assert pair.client.join().by_us
        assert pair.server.join().close == Close(CloseReason.SHUTDOWN, "going")


def test_a_lane_that_is_cut_before_it_runs_ends_without_a_word() -> None:
    pair = Pair()
    pair.client.lane.cut("another took its place")
    with pair:
        assert pair.client.join() == Ending("another took its place", by_us=True)
        assert pair.server.join().close is None


def test_a_cut_is_told_from_a_finished_session() -> None:
    with Pair() as pair:
        ours, theirs = pair.open()
        pair.client.lane.cut("the network is gone")
        assert pair.client.join() == Ending("the network is gone")
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
    with Pair(*parameters, silence=0.5) as pair:
        started = time.monotonic()
        wait_until(lambda: pair.client.lane.core.owed.pings_answered >= 20, "twenty pings are answered")
        assert time.monotonic() - started > 0.5
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
        def fail(buffer: memoryview) -> None:
            raise ValueError("a bug")

        pair.client.sealed.pipe.send = fail  # type: ignore[method-assign]
        pair.client.lane.send_control(b"x")
        assert "a bug" in pair.client.join().cause


# --- under random timing ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_streams_under_random_timing_all_end_and_leave_nothing(seed: int) -> None:
    """Small outbox, small slab, many streams that write, stop, reset and finish whenever they like."""
    parameters = [
        LaneParameters(client=client, outbox=6 * BLOCK_PAYLOAD, window_budget=MIB, max_streams=64)
        for client in (True, False)
    ]
    with Pair(*parameters, pipes=socket_pipes()) as pair:
        def serve_loop() -> None:
            for _ in range(120):
                stream = pair.server.next_stream()
                stream.accept("there")
                carriers.append(Background(lambda s=stream: carry(s, random.Random(seed * 7 + s.id))))

        def carry(stream: StreamIO, dice: random.Random) -> None:
            """Write some and read some, in two threads, then end in one of the ways there are."""
            reading = Background(lambda: consume(stream, dice.choice((0, 100 * KIB, None))))
            try:
                write_all(stream, bytes(dice.choice((0, 1, 3000, 50 * KIB, 700 * KIB))), blocks=dice.random() < 0.7)
                if dice.random() < 0.25:
                    stream.reset(Reason.CANCELLED, "the dice")
                stream.finish()
            except StreamReset:
                pass
            reading.result()
            stream.release()

        def consume(stream: StreamIO, limit: int | None) -> None:
            total = 0
            try:
                while (payload := stream.receive()) is not None:
                    total += len(payload)
                    stream.consumed(len(payload))
                    if limit is not None and total > limit:
                        stream.reset(Reason.CANCELLED, "enough")
            except StreamReset:
                pass

        carriers: list[Background[None]] = []
        serving = Background(serve_loop)
        for number in range(120):
            while True:
                try:
                    stream = pair.client.lane.open_stream(b"request")
                    break
                except StreamReset:  # The limit; one of those that are open ends.
                    wait_until(lambda: pair.client.lane.open_streams < 64, "a stream has ended")
            carriers.append(Background(lambda s=stream, n=number: carry(s, random.Random(seed * 1000 + n))))
        serving.result()
        for carrier in carriers:
            carrier.result()
        for end in (pair.client, pair.server):
            wait_until(lambda lane=end.lane: lane.open_streams == 0, "all streams have ended")
            wait_until(lambda core=end.lane.core: core.outbox.charged == 0, "all is sent and acknowledged")
            core = end.lane.core
            assert (core.slab.lent, core.budget.used, core.draining, core.queued_bytes) == (0, 0, 0, 0)


def test_nothing_is_left_after_many_streams_in_turn() -> None:
    with Pair() as pair:
        def echo_loop() -> None:
            for _ in range(2000):
                stream = pair.server.next_stream()
                while (payload := stream.receive()) is not None:
                    stream.consumed(len(payload))
                    stream.write(bytes(payload))
                stream.finish()
                stream.release()

        echoing = Background(echo_loop)
        for number in range(2000):
            stream = pair.client.lane.open_stream(b"")
            stream.write(b"%d" % number)
            stream.finish()
            assert read_all(stream) == b"%d" % number
            stream.release()
        echoing.result()
        for end in (pair.client, pair.server):
            wait_until(lambda core=end.lane.core: not core.streams and not core.outbox.charged, "all is over")
            core = end.lane.core
            assert not core._waiting_for_queue
            assert not core.scheduler._fresh
            assert not core.scheduler._steady
            assert not core.owed.credits
            assert core.draining == 0
