"""What one lane's core holds, and the life of its streams.

The part of `LaneCore` that sending (`qanat.mux.sending`) and receiving (`qanat.mux.receiving`) share.  Nothing outside
this room uses it, except through `qanat.mux.core`.
"""

from __future__ import annotations

from collections import deque

from qanat.base.errors import ProtocolError
from qanat.mux import frames as wire
from qanat.mux.outbox import Entry, Outbox
from qanat.mux.owed import Owed
from qanat.mux.parameters import LaneParameters
from qanat.mux.scheduler import Scheduler
from qanat.mux.slab import Block, Slab
from qanat.mux.stream import Stream
from qanat.mux.stream_state import State
from qanat.mux.window import ReceiveWindow, WindowBudget

CONTROL_ROOM = 1024 * 1024
CONTROL_ROOM_PER_STREAM = 2048
"""Bytes, at all and for each stream that the peer may have open, that unacknowledged frames other than DATA
may take beyond the outbox's limit.  Only a peer that asks and never reads the answers makes them take more."""


class LaneState:
    """The fields of a core.  Every method is called with the lane's lock held."""

    def __init__(self, parameters: LaneParameters, now: float) -> None:
        self.parameters = parameters
        self.budget = WindowBudget(parameters.window_budget)
        self.slab = Slab(parameters.outbox + parameters.outbox // 2)
        self.outbox = Outbox(parameters.outbox, self.slab)
        self.scheduler = Scheduler()
        self.owed = Owed(parameters.keepalive, parameters.outbox // 4, now)
        self.streams: dict[int, Stream] = {}
        """Open on the wire, by id."""
        self.draining = 0
        """Streams that are over on the wire and whose reader has not released them."""
        self.queued_bytes = 0
        """Payload in all streams' queues."""
        self.received = 0
        """Numbered frames accepted: the number of the next one expected."""
        self.acknowledged = 0
        """The highest ACK that the peer has sent."""
        self.attached = False
        self.closing = False
        """No more payload is taken, so that what is queued comes to an end."""
        self.ended: str | None = None

        # What the lane's threads have to be told; `qanat.mux.lane` empties these before it releases the lock.
        self.wake_readers: list[Stream] = []
        self.wake_writers: list[Stream] = []
        self.room_made = False
        self.work_made = False

        self._control: deque[Entry] = deque()
        self._replay: deque[Entry] = deque()
        self._sent = 0
        self._late_ack = 0
        self._pipe_number = 0
        self._next_id = 1 if parameters.client else 2
        self._last_peer_id = 0
        self._own_open = 0
        self._queue_limit = parameters.outbox // 2
        # In the order of their coming, which a set would not keep.
        self._waiting_for_queue: dict[Stream, None] = {}
        self._charge_limit = parameters.outbox + CONTROL_ROOM + CONTROL_ROOM_PER_STREAM * parameters.max_streams

    # --- the life of a stream -------------------------------------------------------------------

    def _new_stream(self, number: int, request: bytes, now: float) -> Stream:
        window = ReceiveWindow(self.parameters.initial_window, self.parameters.max_window, self.budget, now)
        stream = Stream(number, request, self.parameters.peer_initial_window, window)
        self.streams[number] = stream
        return stream

    def _find(self, number: int) -> Stream | None:
        """The stream, None when it is over; ProtocolError when it never was."""
        stream = self.streams.get(number)
        if stream is None:
            last = self._next_id - 1 if self._is_own(number) else self._last_peer_id
            if not 0 < number <= last:
                raise ProtocolError(f"a frame for stream {number}, which was never opened")
        return stream

    def _is_own(self, number: int) -> bool:
        return bool(number % 2) == self.parameters.client

    def _is_open(self, stream: Stream) -> bool:
        return self.streams.get(stream.id) is stream

    def _fail(self, stream: Stream, reason: int, text: str) -> None:
        """Both directions are over: what waits to be sent is discarded, whoever waits is woken.

        What has already been received stays for its reader, as it does in a TCP socket that gets a RST.
        """
        stream.failure = (reason, text)
        for payload in stream.queue:
            if isinstance(payload, Block):
                self.give_block(payload)
        self.queued_bytes -= stream.queued_bytes
        stream.promised -= stream.queued_bytes
        stream.queue.clear()
        stream.queued_bytes = 0
        stream.fin_due = False
        self.wake_readers.append(stream)
        self.wake_writers.append(stream)
        self._wake_queue_waiters()

    def _drop(self, stream: Stream) -> None:
        """Forget a stream that is over on the wire; its reader may still be draining it."""
        stream.state = State.CLOSED
        if self.streams.pop(stream.id, None) is not None:
            if self._is_own(stream.id):
                self._own_open -= 1
            if not stream.released:
                self.draining += 1
        self.owed.credits.pop(stream.id, None)
        self._waiting_for_queue.pop(stream, None)
        self.wake_writers.append(stream)

    # --- queues and room ------------------------------------------------------------------------

    def give_block(self, block: Block) -> None:
        """A block comes back to the slab; whoever waits for one is woken."""
        if self.slab.exhausted:
            self.room_made = True
        self.slab.give(block)

    def _queue_control(self, frame: wire.Open | wire.Accept | wire.Reset | wire.Fin | wire.Control) -> None:
        """Have `frame` sent before all DATA.  Its memory counts from now on, whenever it will be sent."""
        entry = Entry(frame.encode())
        self.outbox.reserve(entry)
        self._control.append(entry)
        self.work_made = True

    def _acknowledged(self, expected: int) -> None:
        """The peer has accepted every frame below `expected`."""
        full, exhausted = self.outbox.full, self.slab.exhausted
        self.outbox.acknowledge(expected)
        if (full and not self.outbox.full) or (exhausted and not self.slab.exhausted):
            self.room_made = self.work_made = True

    def _wake_queue_waiters(self) -> None:
        """Some queued payload went: let one more be queued, and let everybody try once most has gone.

        Waking everybody each time would give hundreds of threads a turn for one block.  One at a time
        would not do either: a thread that is woken may find that its socket has nothing to read.
        """
        waiting = self._waiting_for_queue
        if not waiting or self.queued_bytes >= self._queue_limit:
            return
        if self.queued_bytes < self._queue_limit // 2:
            self.wake_writers.extend(waiting)
            waiting.clear()
        else:
            first = next(iter(waiting))
            del waiting[first]
            self.wake_writers.append(first)
