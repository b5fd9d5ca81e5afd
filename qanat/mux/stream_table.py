"""The streams of one lane: their ids, how many there may be, and which are open.

A stream is in the table while it is open on the wire.  One whose reader still drains it afterwards is only counted,
so that a peer cannot hold memory by opening and resetting.  Pure, and not thread-safe: the lane's lock guards it.
"""

from __future__ import annotations

from collections.abc import Iterator

from qanat.base.errors import ProtocolError, StreamReset
from qanat.mux import frames as wire
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream_state import StreamPhase, StreamState
from qanat.mux.window import ReceiveWindow, WindowBudget

CLOSED_GRACE = 1024
"""How many closed streams may still be draining before they count against the limit of open ones."""


class StreamTable:
    """The open streams, by id; iterates over them in the order in which they were opened."""

    def __init__(self, parameters: LaneParameters) -> None:
        self.budget = WindowBudget(parameters.window_budget)
        self.draining = 0
        """Streams that are over on the wire and whose reader has not released them."""
        self.opened = 0
        """How many there have been."""
        self._parameters = parameters
        self._open: dict[int, StreamState] = {}
        self._next_own_id = 1 if parameters.client else 2
        self._last_peer_id = 0
        self._own_open = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[StreamState]:
        return iter(self._open.values())

    def find(self, number: int) -> StreamState | None:
        """Return the stream, or None when it is over.  Raises ProtocolError when it never was."""
        stream = self._open.get(number)
        if stream is None:
            last = self._next_own_id - 1 if self.is_own(number) else self._last_peer_id
            if not 0 < number <= last:
                raise ProtocolError(f"a frame for stream {number}, which was never opened")
        return stream

    def find_open(self, number: int) -> StreamState | None:
        """Return the stream, or None when it is over or never was."""
        return self._open.get(number)

    def is_own(self, number: int) -> bool:
        """Return whether this end opens the streams of this number."""
        return bool(number % 2) == self._parameters.client

    def is_open(self, stream: StreamState) -> bool:
        """Return whether the stream is open on the wire."""
        return self._open.get(stream.id) is stream

    def next_own_id(self) -> int:
        """Return the id for our next stream.  Raises StreamReset(LIMIT) when the peer allows no more."""
        limit = self._parameters.peer_max_streams
        if self._own_open >= limit:
            raise StreamReset(f"the other end allows {limit} streams at once", code=wire.Reason.LIMIT)
        return self._next_own_id

    def open_own(self, request: bytes, now: float) -> StreamState:
        """Add the stream that `next_own_id` has named."""
        number = self._next_own_id
        self._next_own_id += 2
        self._own_open += 1
        return self._add(number, request, now)

    def open_peer(self, number: int, request: bytes, now: float) -> StreamState | None:
        """Add a stream that the peer opened; None when it has as many as it may.

        Raises ProtocolError for a number that is not the peer's to use, or not above all earlier ones.
        """
        if not number or self.is_own(number) or number <= self._last_peer_id:
            raise ProtocolError(f"OPEN of stream {number} after {self._last_peer_id}")
        self._last_peer_id = number
        peer_open = len(self._open) - self._own_open
        if peer_open + max(0, self.draining - CLOSED_GRACE) >= self._parameters.max_streams:
            return None
        return self._add(number, request, now)

    def _add(self, number: int, request: bytes, now: float) -> StreamState:
        parameters = self._parameters
        window = ReceiveWindow(parameters.initial_window, parameters.max_window, self.budget, now)
        stream = StreamState(number, request, parameters.peer_initial_window, window, now)
        self._open[number] = stream
        self.opened += 1
        return stream

    def remove(self, stream: StreamState) -> None:
        """Forget a stream that is over on the wire; its reader may still be draining it.  Idempotent."""
        stream.phase = StreamPhase.CLOSED
        if self._open.pop(stream.id, None) is not None:
            if self.is_own(stream.id):
                self._own_open -= 1
            if not stream.released:
                self.draining += 1

    def release(self, stream: StreamState) -> None:
        """Give the stream's window back to the budget: nobody reads it any more.  Idempotent."""
        if not stream.released:
            stream.released = True
            stream.window.release()
            stream.inbox.clear()
            if not self.is_open(stream):
                self.draining -= 1

    def check_invariants(self) -> None:
        """Raise AssertionError when the table contradicts itself or its streams.  Slow; for tests."""
        for number, stream in self._open.items():
            assert number == stream.id, f"{stream.id} is kept as {number}"
            assert stream.phase is not StreamPhase.CLOSED, f"{stream.id} is over and yet open"
            stream.check_invariants()
        assert self._own_open == sum(map(self.is_own, self._open)), "own streams miscounted"
        assert self.draining >= 0, "more streams drained than there were"
        assert 0 <= self.budget.used <= self.budget.limit, f"{self.budget.used} bytes of the budget are used"
