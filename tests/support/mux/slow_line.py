"""Two cores and a line between them that is long or slow, by a clock that the test moves: seconds, bytes a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.stream_state import StreamState
from tests.support.mux.cores import Peer, Rig

STEP = 0.001
FRAMING = 40
"""Bytes that a record costs beyond its frames, about: seal, WebSocket, TCP."""
_PAYLOAD = bytes(BUFFER_PAYLOAD)

Ends = Sequence[tuple[Peer, StreamState]]


class SlowLine:
    """Carries what `rig`'s ends send: each way has a queue that is emptied at `rate`, and arrives `delay` later."""

    def __init__(self, rig: Rig, rate: float, delay: float) -> None:
        self.now = 0.0
        self.waits: dict[Peer, list[float]] = {peer: [] for peer in rig.ends}
        """How long what an end would have sent would have waited for its turn, in each step of the last `run`."""
        self.others = 0.0
        """Seconds of a queue each way that others keep filled, as a download over plain TCP does."""
        self._rig = rig
        self._rate, self._delay = rate, delay
        self._under_way: dict[Peer, deque[tuple[float, bytes]]] = {peer: deque() for peer in rig.ends}
        self._free = dict.fromkeys(rig.ends, 0.0)

    def run(self, seconds: float, writers: Ends = (), readers: Ends = ()) -> float:
        """Let time go by, in which `writers` send all that they may and `readers` read what comes; return how much."""
        for waits in self.waits.values():
            waits.clear()
        end = self.now + seconds
        while self.now < end:
            self._step(writers, readers)
        return self.now - end + seconds

    def _step(self, writers: Ends, readers: Ends) -> None:
        self.now += STEP
        for peer, stream in writers:
            while peer.write_buffer(stream, _PAYLOAD):
                pass
        for peer in self._rig.ends:
            under_way = self._under_way[peer]
            while under_way and under_way[0][0] <= self.now:
                self._rig.other(peer).feed(under_way.popleft()[1], now=self.now)
        for peer, stream in readers:
            peer.read(stream, self.now)
        for peer in self._rig.ends:
            self.waits[peer].append(max(0.0, self._free[peer] - self.now))
            peer.send_all(self.now)
            while peer.wire:
                record = peer.wire.popleft()
                self._free[peer] = max(self._free[peer], self.now) + (len(record) + FRAMING) / self._rate
                self._under_way[peer].append((self._free[peer] + self._delay, record))
            self._free[peer] = max(self._free[peer], self.now + self.others)
