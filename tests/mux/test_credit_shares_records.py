"""What a burst of records makes due is sent together: CREDIT for many streams does not cost a record each."""

from __future__ import annotations

import queue
from contextlib import ExitStack

import pytest

from qanat.base.watcher import Watcher
from qanat.handshake.hello import RecordKind
from qanat.mux import frames as wire
from qanat.mux.frames import Credit, parse_frames
from qanat.mux.lane import Lane
from qanat.mux.parameters import LaneParameters
from qanat.mux.pipe_runner import PipeResult
from qanat.mux.stream import Stream
from qanat.transports.websocket.pipe import WebSocketPipe
from qanat.transports.wire.tcp import TcpWire
from tests.mux.test_quiet_and_busy import NoLibrary
from tests.support.background import DEADLINE, Background
from tests.support.mux.rig import sealed_pair
from tests.support.transports.loopback import socket_pair

STREAMS = 40
WINDOW = 1024
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


@pytest.mark.parametrize("watched", [True, False], ids=["watcher", "thread"])
def test_credit_for_what_came_together_shares_records(watched: bool) -> None:
    with ExitStack() as stack:
        ends = socket_pair(stack)
        client, server = sealed_pair(
            WebSocketPipe(TcpWire(ends[0]), NoLibrary(), is_client=True),
            WebSocketPipe(TcpWire(ends[1]), NoLibrary(), is_client=False),
        )
        numbers = range(1, 2 * STREAMS, 2)
        client.send_record(FRAMES + b"".join(wire.Open(number, b"").encode() for number in numbers))
        for number in numbers:  # a record each, and all are there before anybody reads
            client.send_record(FRAMES + wire.data_header(number, WINDOW) + bytes(WINDOW))
        watcher = Watcher() if watched else None
        if watcher is not None:
            stack.callback(watcher.close)

        def opened(stream: Stream) -> None:
            stream.deliver_to(Taking())

        lane = Lane(
            "server",
            LaneParameters(client=False, initial_window=WINDOW),
            on_open=opened,
            on_control=lambda _: None,
            watcher=watcher,
        )
        results: queue.SimpleQueue[PipeResult] = queue.SimpleQueue()
        running = Background(lambda: lane.start(server, results.put, silence=DEADLINE))
        credited: set[int] = set()
        records = 0
        while len(credited) < STREAMS:
            _, content = client.recv_record()
            found = {frame.stream for frame in parse_frames(content) if isinstance(frame, Credit)}
            records += bool(found)
            credited |= found
        client.close("the test is over")
        running.result()
        results.get(timeout=DEADLINE)
        lane.end(wire.Reason.SESSION_ENDED, "the test is over")
        assert credited == set(numbers)
        assert records <= STREAMS // 4
