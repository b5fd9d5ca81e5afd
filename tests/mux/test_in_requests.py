"""What a lane promises on a pipe whose messages wait for requests: that is no queue, and holds back no bulk."""

from __future__ import annotations

from collections import deque

import pytest

from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.frames import Pong
from qanat.mux.pacer import UNBOUNDED
from qanat.mux.parameters import LaneParameters
from qanat.mux.pending_control import PINGS_KEPT
from qanat.mux.stream_state import StreamState
from tests.support.mux.cores import Rig

STEP, DELAY = 0.001, 0.05
REQUESTS = 6
"""Requests with bytes at once, each on a connection of its own."""
FIRST = 14 * 1024
"""Bytes that a TCP connection sends before it waits for an acknowledgment; each time after that twice as many."""
BODY = 64 * 1024
MEBI = 1024 * 1024
_PAYLOAD = bytes(BUFFER_PAYLOAD)


class RequestLine:
    """Carries what the client's end sends in requests, what the server's sends in one answer that goes on."""

    def __init__(self, rig: Rig) -> None:
        self.now = 0.0
        self._rig = rig
        self._waiting: deque[bytes] = deque()
        self._up: list[tuple[float, list[bytes]]] = []
        self._free = [(0.0, FIRST)] * REQUESTS  # from when on each connection has no request, and what it sends at once
        self._down: deque[tuple[float, bytes]] = deque()

    def run(self, seconds: float, stream: StreamState) -> None:
        """Let time go by, in which the client's end sends all that it may on `stream`, and the server's reads it."""
        client, server = self._rig.ends
        end = self.now + seconds
        while self.now < end:
            self.now += STEP
            while client.write_buffer(stream, _PAYLOAD):
                pass
            arrived = [request for request in self._up if request[0] <= self.now]
            self._up = [request for request in self._up if request[0] > self.now]
            for record in (record for _, records in arrived for record in records):
                server.feed(record, now=self.now)
            while self._down and self._down[0][0] <= self.now:
                client.feed(self._down.popleft()[1], now=self.now)
            for came in server.core.streams:
                server.read(came, self.now)
            for peer in self._rig.ends:
                peer.send_all(self.now)
            self._waiting += client.wire
            client.wire.clear()
            self._down += ((self.now + DELAY, record) for record in server.wire)
            server.wire.clear()
            while self._waiting and min(self._free)[0] <= self.now:
                self._request()

    def _request(self) -> None:
        records = [self._waiting.popleft()]
        while self._waiting and sum(map(len, records)) + len(self._waiting[0]) <= BODY:
            records.append(self._waiting.popleft())
        self._free.sort()
        _, at_once = self._free.pop(0)
        size, sent, at = sum(map(len, records)), at_once, self.now + DELAY
        while sent < size:
            at_once *= 2
            sent, at = sent + at_once, at + 2 * DELAY
        # One sequence: what comes out of order waits for what is missing.
        self._up.append((max([at, *(before for before, _ in self._up)]), records))
        self._free.append((at + DELAY, at_once))


def rate() -> tuple[float, Rig]:
    """Bytes a second that one stream carries after some seconds, and the two ends."""
    rig = Rig(*(LaneParameters(client=client, tell_clock=True) for client in (True, False)))
    for peer in rig.ends:
        peer.core.detach()
        peer.core.attach(0.0, in_requests=True)
    line = RequestLine(rig)
    stream = rig.client.core.open_stream(b"", 0.0)
    line.run(8.0, stream)
    before = rig.server.core.receiver.payload_received
    line.run(2.0, stream)
    for peer in rig.ends:
        peer.core.check_invariants()
    return (rig.server.core.receiver.payload_received - before) / 2.0, rig


def test_a_long_path_whose_requests_wait_is_no_slow_one() -> None:
    found, rig = rate()
    assert found > 4 * MEBI
    assert rig.client.core.sender.pacer.record == UNBOUNDED


def test_the_least_round_trip_of_a_pipe_in_requests_is_that_of_its_life() -> None:
    """Nothing empties the path for a PING, so all of a few minutes may have waited in what our windows let through."""
    client = Rig().client
    client.core.detach()
    client.core.attach(0.0, in_requests=True)
    pending = client.core.pending
    for number, took in enumerate([0.04] + [0.5] * 3 * PINGS_KEPT):
        now = 20.0 * number
        pending.ping_now(now)
        client.all_frames(now)
        client.feed(Pong(pending.ping_count).encode(), now=now + took)
    assert pending.least_round_trip == pytest.approx(0.04)
    client.core.detach()
    client.core.attach(9000.0, in_requests=True)
    assert pending.least_round_trip == 0.0
