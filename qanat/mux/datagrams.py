"""The datagrams of one lane: those that wait for its pipe, those that came before anybody takes them, and their age.

A datagram is worth something while it is young, and whoever sends datagrams copes with the loss of one.  So nothing
here waits for long or grows: what is too old or too much is dropped, the oldest first, and what a pipe had is never
sent on another (docs/PROTOCOL.md §4, Datagrams).

    DatagramQueue  what streams have for the peer, until the sender has room for it in a record; streams take turns
    DatagramInbox  what came on a stream whose target is still being looked up; otherwise nothing waits on this side
    PathDelay      how long the path has held up what comes: what a pipe took and delivers late is dropped as well

Pure, and not thread-safe: `qanat.mux.sender` and `qanat.mux.receiver` call them with the lane's lock held.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

QUEUE_AGE = 0.2
"""Seconds that a datagram may wait for its pipe.  People who talk stop to bear more (ITU-T G.114), and a record of bulk
of the usual size that is being sent, which nothing overtakes, is through by then from 5 Mbit/s on."""
QUEUE_BYTES = 1024 * 1024
"""Bytes that wait on a lane at most: 40 Mbit/s for QUEUE_AGE."""
FLOW_BYTES = 256 * 1024
"""Bytes of one stream that wait at most."""
INBOX_AGE = 1.0
"""Seconds that a datagram may wait for its stream's target.  After that whoever sent it has sent it again."""
INBOX_BYTES = 256 * 1024
"""Bytes that wait so at most, on all streams of a lane."""
OVERHEAD = 256
"""Bytes that each datagram counts beyond its own, for the objects around it."""
LATE = 1.0
"""Seconds that a datagram may be on its way beyond the path's least delay, for the same reason.  Half of that would
take away what a retransmission of TCP's has held up, or a record of bulk on a slow line."""
DELAY_AGE = 10.0
"""Seconds after which the least delay is looked for anew; the one before counts for as long again."""
QUANTUM = 8 * 1024
"""Bytes a stream may send in one turn; a larger datagram is paid for by skipping turns."""


@dataclass(slots=True)
class _Flow:
    """What waits of one stream, as numbers of datagrams in the order of their coming."""

    waiting: deque[int] = field(default_factory=deque)
    charged: int = 0
    deficit: int = QUANTUM


class DatagramQueue:
    """See the module's docstring.  Streams take turns by deficit round robin (RFC 8290 §4.1.4)."""

    def __init__(self) -> None:
        self.charged = 0
        """Bytes that wait, with OVERHEAD for each datagram."""
        self.dropped = 0
        """How many datagrams were dropped here so far."""
        self._numbers = 0
        self._all: OrderedDict[int, tuple[int, bytes, float]] = OrderedDict()  # by number, the oldest first
        self._flows: OrderedDict[int, _Flow] = OrderedDict()  # those with something, in the order of their turns

    def __len__(self) -> int:
        return len(self._all)

    def add(self, stream: int, frame: bytes, now: float) -> None:
        """Have `frame`, a DATAGRAM of `stream`, wait for its turn; drops the oldest where too many bytes wait."""
        self._drop_old(now)
        flow = self._flows.get(stream)
        if flow is None:
            flow = self._flows[stream] = _Flow()
        charge = len(frame) + OVERHEAD
        self._all[self._numbers] = stream, frame, now
        flow.waiting.append(self._numbers)
        self._numbers += 1
        flow.charged += charge
        self.charged += charge
        while flow.charged > FLOW_BYTES:
            self._drop(flow.waiting[0])
        while self.charged > QUEUE_BYTES:
            self._drop(next(iter(self._all)))

    def take(self, room: int, now: float) -> bytes | None:
        """Return the next frame; None when there is none, or it has more than `room` bytes."""
        self._drop_old(now)
        while self._flows:
            stream, flow = next(iter(self._flows.items()))
            if flow.deficit <= 0:
                flow.deficit += QUANTUM
                self._flows.move_to_end(stream)
                continue
            number = flow.waiting[0]
            frame = self._all[number][1]
            if len(frame) > room:
                return None
            flow.deficit -= len(frame)
            self._remove(number)
            return frame
        return None

    def clear(self) -> None:
        """Drop everything: the pipe that it was for is gone."""
        self.dropped += len(self._all)
        self._all.clear()
        self._flows.clear()
        self.charged = 0

    def _drop_old(self, now: float) -> None:
        while self._all:
            number, (_, _, since) = next(iter(self._all.items()))
            if now - since <= QUEUE_AGE:
                return
            self._drop(number)

    def _drop(self, number: int) -> None:
        self.dropped += 1
        self._remove(number)

    def _remove(self, number: int) -> None:
        """Forget a datagram, which is the oldest of its stream."""
        stream, frame, _ = self._all.pop(number)
        flow = self._flows[stream]
        flow.waiting.popleft()
        flow.charged -= len(frame) + OVERHEAD
        self.charged -= len(frame) + OVERHEAD
        if not flow.waiting:
            del self._flows[stream]

    def check_invariants(self) -> None:
        """Raise AssertionError when its parts contradict each other.  Slow; for tests."""
        by_stream: dict[int, list[int]] = {}
        for number, (stream, _, _) in self._all.items():
            by_stream.setdefault(stream, []).append(number)
        assert by_stream == {stream: list(flow.waiting) for stream, flow in self._flows.items()}, "datagrams are astray"
        assert self.charged == sum(len(frame) + OVERHEAD for _, frame, _ in self._all.values()), "bytes do not add up"
        assert self.charged == sum(flow.charged for flow in self._flows.values()), "bytes of streams do not add up"
        assert self.charged <= QUEUE_BYTES, "too much waits"


class DatagramInbox:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.charged = 0
        """Bytes that wait, with OVERHEAD for each datagram."""
        self._waiting: deque[tuple[int, bytes, float]] = deque()

    def add(self, stream: int, payload: bytes, now: float) -> None:
        """Keep `payload` for whoever will take what comes on `stream`; drops the oldest where too many bytes wait."""
        self._waiting.append((stream, payload, now))
        self.charged += len(payload) + OVERHEAD
        while self.charged > INBOX_BYTES:
            self.charged -= len(self._waiting.popleft()[1]) + OVERHEAD

    def take(self, stream: int, now: float) -> list[bytes]:
        """Return what waits for `stream` and is not too old, in the order in which it came."""
        found = [payload for number, payload, since in self._waiting if number == stream and now - since <= INBOX_AGE]
        self._waiting = deque(one for one in self._waiting if one[0] != stream)
        self.charged = sum(len(payload) + OVERHEAD for _, payload, _ in self._waiting)
        return found

    def clear(self) -> None:
        """Drop everything: the pipe that brought it is gone."""
        self._waiting.clear()
        self.charged = 0


class PathDelay:
    """How much longer than at best something was on its way, by two clocks that show different times.

    Each end's clock runs on by itself, so the difference between them is unknown, but does not change: the least that
    was ever seen is the path's own delay, and what is above it was spent waiting (as RFC 6817 measures it).  Only the
    last while counts, so that a clock that stood still, in a computer asleep, is right again soon.
    """

    def __init__(self) -> None:
        self._least = self._before = math.inf
        self._since = -math.inf

    def excess(self, sent: float, now: float) -> float:
        """Return the seconds above the least, of what the peer says it has `sent` at that time by its clock."""
        difference = now - sent
        if now - self._since > DELAY_AGE:
            self._before, self._least, self._since = self._least, difference, now
        self._least = min(self._least, difference)
        return difference - min(self._least, self._before)
