"""What the core promises about memory and time: windows, the retransmit buffer, and when ACK and PING are due."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.mux import frames as wire
from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.parameters import LaneParameters
from qanat.mux.path_queue import PATH_TIME, PathQueue
from qanat.mux.pending_control import FIRST_PINGS, PINGS_KEPT
from qanat.mux.sender import STREAM_QUEUE
from qanat.mux.stream_state import StreamState
from qanat.mux.window import BESIDE_LEAST, BESIDE_SECONDS, BESIDE_TIME, LEAST_TIME, LITTLE, ReceiveWindow, WindowBudget
from tests.support.mux.cores import KIB, Peer, Rig, data_order, fill
from tests.support.mux.slow_line import SlowLine

MIB = 1024 * KIB


# --- windows ----------------------------------------------------------------------------------------


def pour(rig: Rig, stream: StreamState, theirs: StreamState, size: int, seconds: float, now: float = 0.0) -> float:
    """Send `size` bytes as fast as credit allows to a reader that takes `seconds` for each round."""
    end = stream.promised + size
    while stream.promised < end:
        now += seconds
        while fill(rig.client, stream):
            rig.settle(now)
        rig.server.read(theirs, now)
        rig.settle(now)
    return now


def test_the_window_grows_while_its_reader_keeps_up_and_comes_back_afterwards() -> None:
    rig = Rig()
    ours, theirs = rig.open()
    now = pour(rig, ours, theirs, 40 * MIB, 0.001)
    grown = theirs.window.size
    assert grown >= 8 * MIB
    assert rig.server.core.streams.budget.used >= grown - theirs.window.initial
    for _ in range(100):
        fill(rig.client, ours)
        rig.settle(now)
        payload = rig.server.core.receiver.take(theirs)
        assert payload is not None
        now += 1.0
        rig.server.core.receiver.consumed(theirs, len(payload), now)
    assert theirs.window.size <= grown // 4  # A reader that became slow gives it back by halves,
    rig.server.core.reset(theirs, wire.Reason.CANCELED, "")
    rig.server.core.streams.release(theirs)
    assert rig.server.core.streams.budget.used == 0  # and its end gives all of it.


def test_a_window_never_grows_above_its_maximum() -> None:
    server = LaneParameters(client=False, max_window=MIB)
    rig = Rig(LaneParameters(client=True), server)
    ours, theirs = rig.open()
    pour(rig, ours, theirs, 20 * MIB, 0.001)
    assert theirs.window.size == MIB


def test_the_window_follows_the_round_trip_of_a_long_path() -> None:
    rig = Rig()
    line = SlowLine(rig, rate=125e6, delay=0.05)
    ours = rig.client.core.open_stream(b"", line.now)
    line.run(0.3)
    theirs = rig.server.stream(ours.id)
    line.run(2.0, writers=[(rig.client, ours)], readers=[(rig.server, theirs)])
    assert rig.server.core.pending.least_round_trip == pytest.approx(0.1, abs=0.005)
    assert theirs.window.size >= 4 * MIB


@pytest.mark.parametrize("late", [0.0, 0.004])
def test_on_a_long_path_a_window_grows_nearly_as_quickly_as_that_of_tcp(late: float) -> None:
    """Which doubles with each round trip: 100 ms here, and seven doublings to what the path holds.

    Nor does it matter that a PING took half as long again, for what came before, and that threads are `late` seconds.
    """
    rig = Rig(*(LaneParameters(client=client, tell_clock=True) for client in (True, False)))
    line = SlowLine(rig, rate=125e6, delay=0.05)
    ours = rig.client.core.open_stream(b"", line.now)
    line.run(0.3)
    theirs = rig.server.stream(ours.id)
    line.others = 10 * late
    for peer in rig.ends:
        peer.core.pending.ping_now(line.now)
    line.run(0.2)
    line.others = late
    line.run(1.1, writers=[(rig.client, ours)], readers=[(rig.server, theirs)])
    before = rig.server.core.receiver.payload_received
    took = line.run(0.5, writers=[(rig.client, ours)], readers=[(rig.server, theirs)])
    assert (rig.server.core.receiver.payload_received - before) / took / 125e6 > 0.85


def steady(window: ReceiveWindow, rate: float, least_round_trip: float, seconds: float = 5.0) -> None:
    """Have a reader consume `rate` bytes a second in steps of a millisecond, however much has been granted."""
    now, step = window.since, int(rate / 1000)
    while now < seconds:
        now += 0.001
        if window.consume(step, now, least_round_trip):
            window.grant()


@pytest.mark.parametrize(("rate", "least_round_trip"), [(250e6, 0.0005), (125e6, 0.02), (30e6, 0.1)])
def test_a_window_holds_twice_what_the_path_does_and_makes_no_longer_queue(
    rate: float, least_round_trip: float
) -> None:
    window = ReceiveWindow(128 * KIB, 16 * MIB, WindowBudget(64 * MIB), 0.0)
    steady(window, rate, least_round_trip)
    assert window.size == pytest.approx(2 * rate * max(least_round_trip, LEAST_TIME), rel=0.02)


def test_a_reader_that_becomes_slower_keeps_its_window_since_a_late_thread_looks_the_same() -> None:
    window = ReceiveWindow(128 * KIB, 16 * MIB, WindowBudget(64 * MIB), 0.0)
    steady(window, 250e6, 0.0005)
    size = window.size
    steady(window, 10e6, 0.0005, 20.0)
    assert window.size == size


def in_flight(window: ReceiveWindow, rate: float, begin: float, end: float, beside: ReceiveWindow | None = None) -> int:
    """Return the most that may be on its way to a reader of at most `rate`, in the last second of these."""
    most = 0
    for turn in range(round((end - begin) * 1000)):
        now = begin + turn / 1000
        if beside is not None and not turn % 10:
            beside.consume(64, now, 0.0005)
        if window.consume(min(int(rate / 1000), window.granted - window.consumed), now, 0.0005):
            window.grant()
        if now >= end - 1.0:
            most = max(most, window.granted - window.consumed)
    return most


def test_bulk_beside_a_stream_that_carries_little_has_less_in_flight_and_all_again_afterwards() -> None:
    budget, rate = WindowBudget(64 * MIB), 250e6
    bulk, little = (ReceiveWindow(128 * KIB, 16 * MIB, budget, 0.0) for _ in range(2))
    alone = in_flight(bulk, rate, 0.0, 2.0)
    assert alone == pytest.approx(2 * rate * LEAST_TIME, rel=0.02)
    assert in_flight(bulk, rate, 2.0, 4.0, little) == pytest.approx(2 * rate * BESIDE_TIME, rel=0.02)
    assert in_flight(bulk, rate, 4.0, 6.0 + BESIDE_SECONDS) == alone


def test_bulk_beside_little_keeps_two_records_however_slow_its_reader() -> None:
    budget = WindowBudget(64 * MIB)
    bulk, little = (ReceiveWindow(128 * KIB, 16 * MIB, budget, 0.0) for _ in range(2))
    in_flight(bulk, 250e6, 0.0, 2.0)
    assert in_flight(bulk, 10e6, 2.0, 6.0, little) == pytest.approx(BESIDE_LEAST, rel=0.02)


def test_bulk_on_a_long_path_keeps_its_window_beside_others() -> None:
    budget = WindowBudget(64 * MIB)
    bulk, little = (ReceiveWindow(128 * KIB, 16 * MIB, budget, 0.0) for _ in range(2))
    steady(bulk, 125e6, 0.02)
    little.consume(LITTLE, bulk.since, 0.02)
    bulk.consume(bulk.size, bulk.since, 0.02)
    assert bulk.grant() - bulk.consumed == bulk.size


class SomePath(PathQueue):
    """A path that is what a test says it is."""

    state = ""

    def narrow(self, least_round_trip: float, now: float) -> bool:
        return self.state in ("narrow", "held")

    def shared(self, now: float) -> bool:
        return self.state == "shared"

    def holding(self, now: float) -> bool:
        return self.state == "held"


@given(
    st.lists(
        st.tuples(
            st.sampled_from((0.0002, 0.002, 0.02, 1.5)),  # seconds that pass
            st.sampled_from((0.0, 0.0005, 0.002, 0.006, 0.1)),  # the least round trip
            st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)),  # the part that is handed on of what has been granted
            st.tuples(st.sampled_from(("", "narrow", "held", "shared")), st.sampled_from((0, 2**10, 2**17, 2**22))),
            st.booleans(),  # whether a stream beside it carries little
            st.booleans(),  # whether a CREDIT that is due leaves at once
        ),
        max_size=60,
    )
)
def test_a_stream_that_has_used_up_its_credit_gets_more_whatever_has_made_its_window_smaller(
    moments: list[tuple[float, float, float, tuple[str, int], bool, bool]],
) -> None:
    budget, path, now = WindowBudget(2 * MIB), SomePath(), 0.0
    bulk, little = (ReceiveWindow(128 * KIB, 16 * MIB, budget, 0.0) for _ in range(2))
    for passed, least, part, (path.state, path.window), beside, at_once in [
        *moments,
        (1.0, 0.0005, 1.0, ("", 0), True, False),
    ]:
        now += passed
        path.rate = 100.0 * path.window
        if beside:
            little.consume(LITTLE, now, least, path)
        count = int(part * (bulk.granted - bulk.consumed))
        path.received += count
        due = bulk.consume(count, now, least, path)
        used_up = bulk.granted == bulk.consumed
        assert due or not used_up
        if due and (at_once or used_up):  # else it waits for others, and says what counts when it leaves
            assert bulk.grant() > bulk.consumed


def test_credit_for_a_large_window_comes_early_enough_to_fill_a_long_path() -> None:
    window = ReceiveWindow(16 * MIB, 16 * MIB, WindowBudget(0), 0.0)
    assert not window.consume(4 * MIB - 1, 1.0, 0.1)
    assert window.consume(1, 1.0, 0.1)
    small = ReceiveWindow(128 * KIB, 128 * KIB, WindowBudget(0), 0.0)
    assert not small.consume(64 * KIB - 1, 1.0, 0.1)
    assert small.consume(1, 1.0, 0.1)


def test_many_fast_streams_stay_within_the_budget() -> None:
    rig = Rig(LaneParameters(client=True, outbox=64 * MIB), LaneParameters(client=False, window_budget=3 * MIB))
    streams = [rig.open() for _ in range(50)]
    now = 0.0
    for _ in range(30):
        now += 0.001
        for ours, _ in streams:
            fill(rig.client, ours)
        rig.settle(now)
        core = rig.server.core
        held = sum(theirs.window.received - theirs.window.consumed for _, theirs in streams)
        outstanding = sum(theirs.window.granted - theirs.window.consumed for _, theirs in streams)
        assert held <= outstanding <= 50 * 128 * KIB + 3 * MIB
        core.check_invariants()
        for _, theirs in streams:
            rig.server.read(theirs, now)
        rig.settle(now)
    assert rig.server.core.streams.budget.used > 2 * MIB


def test_memory_is_at_its_limit_when_no_reader_consumes() -> None:
    """100 streams push at readers that stopped: what is held is what was granted, and then all is still."""
    rig = Rig(LaneParameters(client=True, outbox=4 * MIB))
    streams = [rig.open() for _ in range(100)]
    for _ in range(100):
        for ours, _ in streams:
            fill(rig.client, ours)
        rig.settle(1.0)
    assert sum(theirs.window.received for _, theirs in streams) == 100 * 128 * KIB
    assert rig.client.core.sender.queued_bytes == 0
    assert all(rig.client.core.sender.sendable(ours) == 0 for ours, _ in streams)
    assert rig.server.core.streams.budget.used == 0


def test_a_slow_reader_stops_only_its_own_stream() -> None:
    rig = Rig()
    slow, _ = rig.open()
    fast, theirs = rig.open()
    fill(rig.client, slow)
    rig.settle()
    assert rig.client.core.sender.sendable(slow) == 0
    pour(rig, fast, theirs, 20 * MIB, 0.001)
    assert rig.client.core.sender.sendable(slow) == 0
    assert theirs.window.received >= 20 * MIB


# --- the retransmit buffer -------------------------------------------------------------------------------------


@pytest.fixture
def full() -> Rig:
    """A client whose retransmit buffer is full, whose stream 1 has more queued, and whose stream 3 has nothing."""
    rig = Rig(LaneParameters(client=True, outbox=4 * BUFFER_PAYLOAD, peer_initial_window=16 * MIB))
    first, _ = rig.open()
    rig.open()
    while not rig.client.core.sender.retransmit_buffer.full:
        rig.client.write_buffer(first, bytes(BUFFER_PAYLOAD))
        rig.client.next_frames()
    fill(rig.client, first)
    rig.client.all_frames()
    assert rig.client.core.sender.queued_bytes
    return rig


def test_a_full_retransmit_buffer_holds_back_data(full: Rig) -> None:
    charged = full.client.core.sender.retransmit_buffer.charged
    assert full.client.next_frames() == []
    assert charged <= full.client.core.parameters.outbox + 2 * BUFFER_PAYLOAD
    full.client.core.check_invariants()


def test_a_full_retransmit_buffer_holds_back_no_end_no_reset_and_nothing_that_is_pending(full: Rig) -> None:
    core = full.client.core
    core.sender.finish(full.client.stream(3))
    core.reset(full.client.stream(1), wire.Reason.CANCELED, "")
    full.client.feed(wire.Open(2, b"").encode(), wire.Ping(9).encode(), wire.data_header(3, 70_000) + bytes(70_000))
    full.client.read(full.client.stream(3))
    core.accept(full.client.stream(2), "there")
    kinds = {type(frame) for frame in full.client.all_frames(1.0)}
    assert kinds >= {wire.Fin, wire.Reset, wire.Accept, wire.Pong, wire.Ack, wire.Credit}
    core.check_invariants()


def test_an_ack_makes_room_and_says_so(full: Rig) -> None:
    core = full.client.core
    core.wakeups.room = core.wakeups.work = False
    full.client.feed(wire.Ack(core.sender.retransmit_buffer.next_number).encode())
    assert core.wakeups.room
    assert core.wakeups.work
    assert data_order(full.client.next_frames()) == [1]


def test_opening_and_closing_without_a_pipe_fills_the_retransmit_buffer_so_that_openers_wait() -> None:
    client = Peer(LaneParameters(client=True, outbox=64 * KIB))
    opened = 0
    while not client.core.sender.retransmit_buffer.full:
        stream = client.core.open_stream(b"x" * 100, 0.0)
        client.core.reset(stream, wire.Reason.CANCELED, "")
        opened += 1
    assert 50 <= opened <= 300
    client.core.attach(0.0)
    client.all_frames()
    client.feed(wire.Ack(client.core.sender.retransmit_buffer.next_number).encode())
    assert not client.core.sender.retransmit_buffer.full
    client.core.check_invariants()


def test_streams_that_wait_for_the_queue_get_their_turn_in_order_and_in_the_end_all_at_once() -> None:
    rig = Rig(LaneParameters(client=True, outbox=8 * BUFFER_PAYLOAD, peer_initial_window=16 * MIB))
    core = rig.client.core
    streams = [rig.open()[0] for _ in range(6)]
    for stream in streams:
        while core.sender.sendable(stream) and rig.client.write_buffer(stream, bytes(BUFFER_PAYLOAD)):
            pass
    waiting = [stream for stream in streams if not stream.queue]
    assert [stream.id for stream in waiting] == [5, 7, 9, 11]
    core.wakeups.writers.clear()
    woken: list[list[int]] = []
    while core.sender.queued_bytes:
        assert rig.client.next_frames()
        woken.append([stream.id for stream in core.wakeups.writers if stream in waiting])
        core.wakeups.writers.clear()
    assert woken == [[5], [7], [9, 11], []]


def test_a_look_without_the_lock_never_allows_more_than_may_be_queued() -> None:
    rig = Rig(LaneParameters(client=True, outbox=8 * BUFFER_PAYLOAD, peer_initial_window=256 * KIB))
    sender = rig.client.core.sender
    streams = [rig.open()[0] for _ in range(8)]
    looks: list[int] = []

    def look_and_ask() -> None:
        for stream in streams:
            look = sender.sendable_at_least(stream)
            assert 0 <= look <= sender.sendable(stream)
            looks.append(look)

    for stream in streams:
        look_and_ask()
        sender.send(stream, b"a little")
        look_and_ask()
    while rig.client.next_frames():
        look_and_ask()
    assert set(looks) == {0, 256 * KIB, 256 * KIB - len(b"a little")}
    for stream in streams:
        while sender.sendable(stream) and rig.client.write_buffer(stream, bytes(BUFFER_PAYLOAD // 2)):
            look_and_ask()
    while rig.client.next_frames():  # nobody reads: credit and the retransmit buffer run out
        look_and_ask()
    rig.client.core.reset(streams[0], wire.Reason.CANCELED, "")
    look_and_ask()
    sender.close()
    assert [sender.sendable_at_least(stream) for stream in streams] == [0] * 8


def test_a_stream_waits_for_its_own_queue_before_it_takes_the_lanes() -> None:
    rig = Rig(LaneParameters(client=True, outbox=64 * MIB, peer_initial_window=16 * MIB))
    stream = rig.client.core.open_stream(b"", 0.0)
    assert fill(rig.client, stream) == STREAM_QUEUE


# --- time -------------------------------------------------------------------------------------------


@pytest.fixture
def quiet() -> Rig:
    rig = Rig(replace(LaneParameters(client=True), outbox=MIB))
    rig.open()
    rig.settle(0.0)
    for now in (0.1, 0.2):
        rig.settle(now)
    return rig


def test_an_ack_waits_20_ms_for_something_to_ride_on(quiet: Rig) -> None:
    server = quiet.server
    server.feed(wire.data_header(1, 4) + b"data", now=1.0)
    assert server.core.sender.next_timeout(1.0) == pytest.approx(0.020)
    assert server.next_frames(1.019) == []
    assert server.core.sender.next_timeout(1.019) == pytest.approx(0.001)
    assert server.next_frames(1.0201) == [wire.Ack(server.core.receiver.expected)]
    assert server.next_frames(1.1) == []


def test_an_ack_rides_on_data(quiet: Rig) -> None:
    server = quiet.server
    server.feed(wire.data_header(1, 4) + b"data", now=1.0)
    server.core.sender.send(server.stream(1), b"echo")
    assert [type(frame) for frame in server.next_frames(1.0)] == [wire.Ack, wire.Data]
    assert server.core.sender.next_timeout(1.0) > 1.0


def test_an_ack_goes_at_once_after_a_quarter_of_the_retransmit_buffer(quiet: Rig) -> None:
    server = quiet.server
    server.stream(1).window.granted = 16 * MIB
    server.core.wakeups.work = server.core.wakeups.timer = False
    for part in range(1, 5):
        assert server.next_frames(1.0) == []
        assert server.core.wakeups.timer is (part > 1)  # The first frame starts the 20 ms,
        assert not server.core.wakeups.work
        server.core.wakeups.timer = False
        server.feed(wire.data_header(1, 64 * KIB) + bytes(64 * KIB), now=1.0)
    assert server.core.wakeups.work  # and the quarter is due at once.
    assert server.next_frames(1.0) == [wire.Ack(server.core.receiver.expected)]


def test_a_lost_ack_is_said_again_after_a_cut(quiet: Rig) -> None:
    server = quiet.server
    quiet.client.core.sender.send(quiet.client.stream(1), b"data")
    quiet.client.send(1.0)
    quiet.deliver(quiet.client, 1.0)
    assert wire.Ack(server.core.receiver.expected) in server.next_frames(2.0)  # This one goes nowhere.
    quiet.cut(3.0)
    assert wire.Ack(server.core.receiver.expected) in server.next_frames(3.0)


def test_an_ack_for_what_came_over_the_old_pipe_is_honored_once_it_has_been_replayed() -> None:
    """The peer may have taken more from the old pipe than it said when the new one began (make before break)."""
    rig = Rig(LaneParameters(client=True, outbox=4 * BUFFER_PAYLOAD))
    ours, theirs = rig.open()
    rig.client.write_buffer(ours, bytes(BUFFER_PAYLOAD))
    rig.client.send()
    rig.deliver(rig.client)
    core = rig.client.core
    first = core.sender.retransmit_buffer.first
    rig.cut(1.0, stale=(1, 0))
    assert rig.server.send(1.0)
    rig.deliver(rig.server, 1.0)
    assert core.sender.retransmit_buffer.first == first  # The buffer is still to be sealed.
    rig.settle(1.0)
    assert len(core.sender.retransmit_buffer) == 0
    assert core.sender.buffers.lent == 0
    assert theirs.window.received == BUFFER_PAYLOAD
    core.check_invariants()


def test_a_ping_goes_every_15_s_and_first_of_all_when_a_pipe_begins(quiet: Rig) -> None:
    client = Peer(LaneParameters(client=True))
    client.core.attach(100.0)
    assert wire.Ping(1) in client.next_frames(100.0)
    client.feed(wire.Pong(1).encode(), now=100.2)
    assert client.core.pending.round_trip == client.core.pending.least_round_trip == pytest.approx(0.2)
    assert client.core.sender.next_timeout(100.2) == pytest.approx(14.8)
    assert client.next_frames(114.9) == []
    assert client.next_frames(115.0) == [wire.Ping(2)]
    client.core.detach()
    assert client.next_frames(200.0) == []
    client.core.attach(300.0)
    assert wire.Ping(3) in client.next_frames(300.0)


def test_a_ping_that_waits_in_a_queue_does_not_lengthen_the_least_round_trip(quiet: Rig) -> None:
    client = Peer(LaneParameters(client=True))
    client.core.attach(0.0)
    for number, took in enumerate([0.02] + [0.5] * (PINGS_KEPT - 1), start=1):
        now = 20.0 * number
        client.core.pending.ping_now(now)
        client.next_frames(now)
        client.feed(wire.Pong(client.core.pending.ping_count).encode(), now=now + took)
        assert client.core.pending.least_round_trip == pytest.approx(0.02)
    client.core.pending.ping_now(500.0)  # The first has been forgotten: the path may have become longer.
    client.next_frames(500.0)
    client.feed(wire.Pong(client.core.pending.ping_count).encode(), now=500.5)
    assert client.core.pending.least_round_trip == pytest.approx(0.5)
    client.core.detach()
    client.core.attach(600.0)
    assert client.core.pending.least_round_trip == 0.0


def test_one_late_answer_does_not_make_a_path_long_for_bulk(quiet: Rig) -> None:
    client, (stream, _) = quiet.client, quiet.open()
    pending, now, late = client.core.pending, 100.0, 3 * PATH_TIME
    pending.restart(now, ())
    assert [frame for frame in client.all_frames(now) if isinstance(frame, wire.Ping)]
    client.feed(wire.Pong(pending.ping_count).encode(), now=now + late)
    assert pending.least_round_trip == pytest.approx(late)
    assert not client.all_frames(now + late), "nobody has bulk to send"
    small = client.core.sender.sendable(stream)
    assert small < stream.send_limit
    assert [frame for frame in client.all_frames(now + late) if isinstance(frame, wire.Ping)]
    client.feed(wire.Pong(pending.ping_count).encode(), now=now + late + PATH_TIME / 5)
    assert client.core.sender.sendable(stream) == stream.send_limit


def test_a_late_pong_proves_life_and_measures_nothing(quiet: Rig) -> None:
    client = Peer(LaneParameters(client=True))
    client.core.attach(0.0)
    client.next_frames(0.0)
    client.core.pending.ping_now(1.0)
    assert wire.Ping(2) in client.next_frames(1.0)
    client.feed(wire.Pong(1).encode(), wire.Pong(77).encode(), now=2.0)
    assert client.core.pending.pings_answered == 1
    assert client.core.pending.round_trip == 0.0


def test_credits_are_said_again_after_a_cut_but_for_streams_that_never_had_one() -> None:
    rig = Rig()
    ours, theirs = rig.open()
    pour(rig, ours, theirs, MIB, 0.001)
    fresh = rig.server.core.open_stream(b"", 0.0)  # The client has not heard of it when the pipe is cut.
    rig.cut(1.0)
    credits = [frame for frame in rig.server.all_frames(1.0) if isinstance(frame, wire.Credit)]
    assert credits == [wire.Credit(1, theirs.window.granted)]
    assert fresh.id not in {credit.stream for credit in credits}


@pytest.mark.parametrize(("first", "again"), [(1.2 * LEAST_TIME, FIRST_PINGS), (LEAST_TIME / 2, 1)])
def test_an_end_that_receives_bulk_asks_again_whether_its_path_is_short(first: float, again: int) -> None:
    """One PING that was answered late would else make a short path long for as long as it is remembered."""
    rig, now, asked = Rig(), 0.0, 0
    ours, _ = rig.open()
    rig.client.core.pending.restart(now, ())  # As on a new pipe.
    for _ in range(3 * FIRST_PINGS):
        for frame in rig.client.all_frames(now):
            if isinstance(frame, wire.Ping):
                asked += 1
                now += first
                rig.client.feed(wire.Pong(frame.value).encode(), now=now)
        now += 0.01
        payload = bytes(ours.window.granted - ours.window.consumed)
        rig.client.feed(wire.data_header(ours.id, len(payload)) + payload, now=now)
        rig.client.read(ours, now)
    assert asked == again
