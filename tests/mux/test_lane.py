"""What a lane carries: whole, in both directions, past slow readers and full pipes, and leaving nothing behind."""

from __future__ import annotations

import gc
import queue
import random
import threading
from collections.abc import Callable

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import StreamReset
from qanat.handshake.exchange import SealedPipe, client_handshake, server_handshake
from qanat.handshake.hello import RecordKind
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.frames import Reason
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream import Stream
from qanat.mux.stream_state import StreamState
from qanat.transports.pipe import Pipe
from tests.support.background import Background, wait_until
from tests.support.handshake.pipes import socket_pipes
from tests.support.handshake.scenario import make_client, make_server
from tests.support.mux.cores import KIB, held
from tests.support.mux.rig import DEADLINE, Pair, pattern, read, read_all, waiting_in, write_all
from tests.support.transports.memory import memory_pair

MIB = 1024 * KIB


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
        write_all(ours, b"through it all", buffers=False)
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
        wait_until(waiting_in("wait_writable"), "the writer of the slow stream waits")
        assert slow.counts[0] == 128 * KIB
        assert len(read(slow_theirs, MIB)) == MIB  # It goes on when its reader does.
        stuck.result()
        for stream in (slow, slow_theirs, fast, fast_theirs):
            stream.release()


def test_two_ends_that_both_fill_their_pipe_do_not_wait_for_each_other() -> None:
    """Both writers block in a full pipe while credits and acknowledgments are due in both directions."""
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
        ours.reset(Reason.CANCELED, "gone")
        wait_until(lambda: theirs.failure is not None, "the reset has come")
        assert read(theirs, 10) == b"last words"
        with pytest.raises(StreamReset, match="gone") as caught:
            theirs.receive()
        assert caught.value.code == Reason.CANCELED
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


def test_whoever_must_not_wait_is_called_when_the_target_was_reached_and_otherwise_when_it_was_not() -> None:
    with Pair() as pair:
        calls: queue.SimpleQueue[str] = queue.SimpleQueue()
        ours = pair.client.lane.open_stream(b"")
        ours.on_failure(lambda: calls.put("failed"))
        ours.when_accepted(lambda: calls.put(f"accepted by {ours.accepted}"))
        theirs = pair.server.next_stream()
        theirs.accept("there")
        theirs.write(b"after that")
        assert calls.get(timeout=DEADLINE) == "accepted by there"
        ours.when_accepted(lambda: calls.put("already"))
        assert calls.get(timeout=DEADLINE) == "already"
        assert read(ours, 10) == b"after that"
        refused = pair.client.lane.open_stream(b"")
        refused.when_accepted(lambda: calls.put("accepted though it was refused"))
        refused.on_failure(lambda: calls.put("refused"))
        pair.server.next_stream().reset(Reason.REFUSED, "connection refused")
        assert calls.get(timeout=DEADLINE) == "refused"
        for stream in (ours, theirs, refused):
            stream.release()


# --- under random timing ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_streams_under_random_timing_all_end_and_leave_nothing(seed: int) -> None:
    """Small retransmit buffer, few buffers, many streams that write, stop, reset and finish whenever they like."""
    parameters = [
        LaneParameters(client=client, outbox=6 * BUFFER_PAYLOAD, window_budget=MIB, max_streams=64, peer_max_streams=64)
        for client in (True, False)
    ]
    with Pair(*parameters, pipes=socket_pipes()) as pair:

        def serve_loop() -> None:
            for _ in range(120):
                stream = pair.server.next_stream()
                stream.accept("there")
                carriers.append(Background(lambda s=stream: carry(s, random.Random(seed * 7 + s.id))))

        def carry(stream: Stream, dice: random.Random) -> None:
            """Write some and read some, in two threads, then end in one of the ways there are."""
            reading = Background(lambda: consume(stream, dice.choice((0, 100 * KIB, None))))
            try:
                write_all(stream, bytes(dice.choice((0, 1, 3000, 50 * KIB, 700 * KIB))), buffers=dice.random() < 0.7)
                if dice.random() < 0.25:
                    stream.reset(Reason.CANCELED, "the dice")
                stream.finish()
            except StreamReset:
                pass
            reading.result()
            stream.release()

        def consume(stream: Stream, limit: int | None) -> None:
            total = 0
            try:
                while (payload := stream.receive()) is not None:
                    total += len(payload)
                    stream.consumed(len(payload))
                    if limit is not None and total > limit:
                        stream.reset(Reason.CANCELED, "enough")
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
            wait_until(lambda core=end.lane.core: not held(core), "all streams have ended, and all is acknowledged")


def test_nothing_is_left_after_many_streams_in_turn() -> None:
    before = stream_states()
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
        del stream
        for end in (pair.client, pair.server):
            wait_until(lambda core=end.lane.core: not held(core), "all is over")
        wait_until(lambda: stream_states() == before, "nothing remembers a stream")


def stream_states() -> int:
    """How many streams some object still refers to, wherever that is."""
    gc.collect()
    return sum(isinstance(thing, StreamState) for thing in gc.get_objects())
