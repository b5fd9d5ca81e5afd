"""What a burst of records makes due is sent together: CREDIT for many streams does not cost a record each."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from qanat.base.watcher import Watcher
from qanat.handshake.hello import RecordKind
from qanat.mux import frames as wire
from qanat.mux.core import LaneCore
from qanat.mux.frames import Credit, parse_frames
from qanat.mux.lane import Lane
from qanat.mux.parameters import LaneParameters
from qanat.mux.path_queue import PATH_TIME
from qanat.mux.pending_control import RIDING_SECONDS, PendingControl
from qanat.mux.pipe_result import PipeResult
from qanat.mux.stream import Stream
from qanat.mux.stream_state import StreamState
from qanat.transports.websocket.pipe import WebSocketPipe
from qanat.transports.wire.tcp import TcpWire
from tests.mux.test_quiet_and_busy import NoLibrary
from tests.support.background import DEADLINE, Background
from tests.support.mux.rig import sealed_pair
from tests.support.transports.loopback import socket_pair

STREAMS = 40
WINDOW = 1024
NOW = 5.0
FRAMES = bytes((RecordKind.FRAMES,))


class Taking:
    """An application that takes everything at once."""

    takes_bulk = True

    def deliver(self, payload: memoryview) -> int:
        return len(payload)

    def backlog(self) -> None:
        raise AssertionError("everything was taken")

    def ended(self) -> None:
        """Nothing has to be done."""

    def stopped(self) -> None:
        """Nothing has to be done."""


class Peer:
    """A client that is made of records, at the other end of a lane that carries on in another thread."""

    def __init__(self, stack: ExitStack) -> None:
        ends = socket_pair(stack)
        self.sealed, self.server = sealed_pair(
            WebSocketPipe(TcpWire(ends[0]), NoLibrary(), is_client=True),
            WebSocketPipe(TcpWire(ends[1]), NoLibrary(), is_client=False),
        )

    def open(self, numbers: Iterable[int]) -> None:
        self.sealed.send_record(FRAMES + b"".join(wire.Open(number, b"").encode() for number in numbers))

    def fill(self, numbers: Iterable[int]) -> None:
        """Send each stream a window, in a record of its own."""
        for number in numbers:
            self.sealed.send_record(FRAMES + wire.data_header(number, WINDOW) + bytes(WINDOW))

    def credited(self, numbers: Iterable[int]) -> int:
        """Block until each of these has credit again; return how many records that took."""
        missing, records = set(numbers), 0
        while missing:
            _, content = self.sealed.recv_record()
            frames = list(parse_frames(content))
            for frame in frames:
                if isinstance(frame, wire.Ping):
                    self.sealed.send_record(FRAMES + wire.Pong(frame.value).encode())
            found = {frame.stream for frame in frames if isinstance(frame, Credit)}
            records += bool(found)
            missing -= found
        return records


@contextmanager
def carried(peer: Peer, watcher: Watcher | None) -> Iterator[Lane]:
    """Carry a lane on the peer's other end, whose applications take everything at once."""

    def opened(stream: Stream) -> None:
        stream.deliver_to(Taking())

    lane = Lane(
        "server",
        LaneParameters(client=False, initial_window=WINDOW, max_window=WINDOW),  # so that each payload makes CREDIT due
        on_open=opened,
        on_control=lambda _: None,
        watcher=watcher,
    )
    results: queue.SimpleQueue[PipeResult] = queue.SimpleQueue()
    running = Background(lambda: lane.start(peer.server, results.put, silence=DEADLINE))
    try:
        yield lane
    finally:
        peer.sealed.close("the test is over")
        running.result()
        results.get(timeout=DEADLINE)
        lane.end(wire.Reason.SESSION_ENDED, "the test is over")


def reader(stack: ExitStack, *, watched: bool) -> Watcher | None:
    watcher = Watcher() if watched else None
    if watcher is not None:
        stack.callback(watcher.close)
    return watcher


@pytest.mark.parametrize("watched", [True, False], ids=["watcher", "thread"])
def test_credit_for_what_came_together_shares_records(watched: bool) -> None:
    with ExitStack() as stack:
        peer = Peer(stack)
        numbers = range(1, 2 * STREAMS, 2)
        peer.open(numbers)
        peer.fill(numbers)  # all are there before anybody reads
        stack.enter_context(carried(peer, reader(stack, watched=watched)))
        assert peer.credited(numbers) <= STREAMS // 4


@pytest.mark.parametrize("watched", [True, False], ids=["watcher", "thread"])
def test_the_last_of_many_streams_in_turn_still_get_their_credit(watched: bool) -> None:
    with ExitStack() as stack:
        peer = Peer(stack)
        stack.enter_context(carried(peer, reader(stack, watched=watched)))
        numbers = range(1, 2 * STREAMS, 2)
        peer.open(numbers)
        for some in (numbers, numbers, numbers[:9], numbers[:2], numbers[:1], numbers[:1]):
            peer.fill(some)
            peer.credited(some)  # by the ACK's time at the latest, however few it is for


def in_turn(
    streams: Iterable[StreamState], least_round_trip: float, *, pressing: bool = True
) -> tuple[PendingControl, list[int]]:
    """Have three turns of CREDIT for these streams; return how many CREDITs each record has.

    `pressing` ones have used up what they may send.
    """
    pending = PendingControl(15.0, 1 << 20, 0.0)
    pending.frames(0.0, riding=False)
    if least_round_trip:
        pending.pong_received(1, least_round_trip)
    records = []
    for number, stream in enumerate((*streams, *streams, *streams), 1):
        stream.window.received = stream.window.granted if pressing else stream.window.received
        pending.accepted(number, WINDOW, 0.5)
        pending.add_credit(stream)
        if not pending.credit_can_wait:
            records.append(len(pending.streams_with_credit))
            pending.frames(1.0, riding=False)
    return pending, records


def streams_of(count: int) -> list[StreamState]:
    core = LaneCore(LaneParameters(client=True), 0.0)
    return [core.open_stream(b"", 0.0) for _ in range(count)]


def test_credit_of_many_streams_in_turn_waits_for_each_other() -> None:
    _, records = in_turn(streams_of(64), 0.001)
    assert records[:64] == [1] * 64, "nobody knows yet how many there are"
    assert records[64:] == [16] * 8


@pytest.mark.parametrize(("count", "each"), [(64, 16), (8, 8), (2, 2)])
def test_credit_of_streams_that_have_some_left_waits_for_a_whole_turn(count: int, each: int) -> None:
    _, records = in_turn(streams_of(count), 0.001, pressing=False)
    assert records[:count] == [1] * count, "nobody knows yet how many there are"
    assert records[count:] == [each] * (2 * count // each)


def test_how_long_credit_waits_follows_how_many_streams_move() -> None:
    pending, records = in_turn(streams_of(16), 0.001)
    assert records[16:] == [4] * 8
    one = streams_of(1)[0]
    pending.accepted(100, WINDOW, 1.0)
    pending.add_credit(one)
    assert pending.credit_can_wait
    pending.add_credit(one)
    assert not pending.credit_can_wait, "it moves alone now"


def test_credit_does_not_wait_for_an_ack_that_has_gone_before_it() -> None:
    pending, _ = in_turn(streams_of(64), 0.001)
    pending.accepted(193, WINDOW, 2.0)
    pending.frames(3.0, riding=False)  # by the timer, while the payload was being handed on
    pending.add_credit(streams_of(1)[0])
    assert not pending.credit_can_wait


@pytest.mark.parametrize(
    ("count", "least_round_trip"), [(7, 0.001), (1, 0.001), (64, PATH_TIME), (64, 0.0)], ids=["7", "1", "long", "new"]
)
def test_credit_does_not_wait_with_few_streams_or_on_a_path_that_may_be_long(
    count: int, least_round_trip: float
) -> None:
    _, records = in_turn(streams_of(count), least_round_trip)
    assert records == [1] * 3 * count


def test_credit_that_will_be_due_soon_rides_with_one_that_is() -> None:
    streams = streams_of(2)
    pending, _ = in_turn(streams, 0.001)
    first, second = (stream.window for stream in streams)
    second.since = NOW  # it has just been measured

    def due(*, of_second: int) -> set[int]:
        first.consumed += first.part
        second.consumed += of_second
        pending.add_credit(streams[0])
        return credited(pending)

    both = {stream.id for stream in streams}
    for _ in range(3):
        assert due(of_second=second.part // 2) == both
    assert due(of_second=second.part // 4) == {streams[0].id}, "that is not soon"
    pending.add_credit(streams[1])
    assert streams[1].id in credited(pending)
    second.since = NOW - 2 * RIDING_SECONDS
    assert due(of_second=second.part) == {streams[0].id}, "it has to be measured again"
    second.since = NOW
    pending.add_credit(streams[1])
    assert streams[1].id in credited(pending)
    pending.drop_credit(streams[1])
    assert due(of_second=second.part) == {streams[0].id}, "nothing more comes on the other"


def credited(pending: PendingControl) -> set[int]:
    """The streams for which CREDIT is sent now."""
    frames = parse_frames(memoryview(b"".join(pending.frames(NOW, riding=True))))
    return {frame.stream for frame in frames if isinstance(frame, Credit)}
