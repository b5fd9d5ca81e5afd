"""The sending half of a lane's core: from streams' queues to records (docs/PROTOCOL.md §4).

What goes into a record, in this order: what is owed without a number, then after a cut what is replayed,
then control frames, then streams in the scheduler's turn.  Only DATA waits for room in the outbox.
A part of `qanat.mux.core.LaneCore`; pure.
"""

from __future__ import annotations

from qanat.base.errors import LocalError
from qanat.mux import frames as wire
from qanat.mux.lane_state import LaneState
from qanat.mux.outbox import Entry
from qanat.mux.slab import BLOCK_FRONT, BLOCK_PAYLOAD, Block
from qanat.mux.stream import Stream
from qanat.mux.stream_state import State, Step

FRAMES_KIND = 3
"""The record kind of everything `next_record` gives (docs/PROTOCOL.md §2)."""
STREAM_QUEUE = 2 * BLOCK_PAYLOAD
"""Bytes a stream may have waiting for the scheduler before its writer has to wait."""
SMALL_RECORD = 64 * 1024
"""Bytes of small frames that go into one record together."""
MAX_SMALL = 64 * 1024
"""Bytes of payload in a frame that is copied; more must come in a block."""
JOINED = 16 * 1024
"""Bytes up to which small payloads that wait are joined, so that bytes written singly do not cost a frame each."""
RIDE_ROOM = BLOCK_FRONT - 1 - wire.DATA_HEADER_SIZE
"""Bytes of other frames that fit in front of a block's payload."""

_KIND = bytes((FRAMES_KIND,))


class Sending(LaneState):
    """See the module's docstring.  Every method is called with the lane's lock held."""

    # --- by streams' writers --------------------------------------------------------------------

    def sendable(self, stream: Stream) -> int:
        """Bytes that may be queued on `stream` now; 0 means wait until it is in `wake_writers`."""
        if stream.queued_bytes >= STREAM_QUEUE or self.closing:
            return 0
        if self.queued_bytes >= self._queue_limit:
            self._waiting_for_queue[stream] = None
            return 0
        if self._waiting_for_queue:
            # A place in that queue that is kept without need would swallow another's turn.
            self._waiting_for_queue.pop(stream, None)
        return max(0, stream.send_limit - stream.promised)

    def send(self, stream: Stream, payload: Block | bytes) -> None:
        """Queue payload within `sendable`.  A block is the core's from now on, whatever happens.

        Raises LocalError for a stream that is not open for sending; nothing when it is over.
        """
        size = payload.length if isinstance(payload, Block) else len(payload)
        if stream.state is State.CLOSED:
            if isinstance(payload, Block):
                self.give_block(payload)
            return
        room = min(BLOCK_PAYLOAD if isinstance(payload, Block) else MAX_SMALL, stream.send_limit - stream.promised)
        if stream.fin_due or stream.state is State.HALF_CLOSED_LOCAL or not 0 < size <= room:
            if isinstance(payload, Block):
                self.give_block(payload)
            raise LocalError(f"{size} bytes on stream {stream.id}, which is {stream.state.value} and may take {room}")
        if not stream.queue:
            self.scheduler.add(stream)
        if isinstance(payload, Block) or not self._joined(stream, payload):
            stream.queue.append(payload)
        stream.queued_bytes += size
        stream.promised += size
        self.queued_bytes += size

    def finish(self, stream: Stream) -> None:
        """Send FIN after all that is queued.  Idempotent; nothing when the stream is over."""
        if stream.state in (State.OPEN, State.HALF_CLOSED_REMOTE) and not stream.fin_due:
            if stream.queue:
                stream.fin_due = True
            else:
                self._queue_fin(stream)

    @staticmethod
    def _joined(stream: Stream, payload: bytes) -> bool:
        """Add `payload` to what waits last in the stream's queue, when both are small."""
        last = stream.queue[-1] if stream.queue else None
        if last is None or isinstance(last, Block) or len(last) + len(payload) > JOINED:
            return False
        if isinstance(last, bytearray):
            last += payload
        else:
            stream.queue[-1] = bytearray(last) + payload
        return True

    def _queue_fin(self, stream: Stream) -> None:
        """Everything has been picked: FIN goes with the control frames, which do not wait for room."""
        stream.fin_due = False
        stream.advance(Step.SEND_FIN)
        self._queue_control(wire.Fin(stream.id, stream.sent))
        if stream.state is State.CLOSED:
            self._drop(stream)

    # --- by the lane's writer -------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether everything that was queued has been sent."""
        return not (self._replay or self._control or self.queued_bytes)

    def next_record(self, now: float) -> memoryview | None:
        """The plaintext of the next FRAMES record, or None when nothing is to be sent now.

        Everything it holds counts as sent.  The view is valid until the next call or ACK, which for
        what it holds no honest peer sends before it has come: seal it first.
        """
        if not self.attached:
            return None
        if not self.parameters.resumable:
            self._acknowledged(self._sent)  # There will be no other pipe, and the last record has been sealed.
        elif self._late_ack > self.outbox.first:
            self._acknowledged(min(self._late_ack, self._sent))
        riding = self.owed.frames(now, self.received, riding=bool(self._replay or self._control or self.queued_bytes))
        room = SMALL_RECORD - sum(map(len, riding))
        while room > 0:
            entry = self._next_small()
            if entry is None:
                break
            riding.append(entry.head)
            room -= len(entry.head)
        block_entry = self._next_block(sum(map(len, riding)))
        if block_entry is not None and block_entry.block is not None:
            return self._around_block(riding, block_entry.head, block_entry.block)
        if not riding:
            return None
        return memoryview(b"".join((_KIND, *riding)))

    def next_timeout(self, now: float) -> float | None:
        """Seconds until `next_record` may have something although nothing else has happened."""
        if not self.attached:
            return None
        return self.owed.timeout(now)

    def _next_small(self) -> Entry | None:
        """The next numbered frame that is not a block, moved into the outbox."""
        if self._replay:
            if self._replay[0].block is not None:
                return None
            self._sent += 1
            return self._replay.popleft()
        if self._control:
            entry = self._control.popleft()
            self.outbox.append(entry)
            self._sent += 1
            return entry
        stream = None if self.outbox.full else self.scheduler.peek()
        if stream is None:
            return None
        payload = stream.queue[0]
        if isinstance(payload, Block):
            return None
        self._dequeued(stream, len(payload))
        return self._keep(Entry(wire.data_header(stream.id, len(payload)) + payload))

    def _next_block(self, riding: int) -> Entry | None:
        """The next numbered frame when it is a block and `riding` bytes fit in front of it."""
        if riding > RIDE_ROOM:
            return None
        if self._replay:
            if self._replay[0].block is None:
                return None
            self._sent += 1
            return self._replay.popleft()
        stream = None if self._control or self.outbox.full else self.scheduler.peek()
        block = None if stream is None else stream.queue[0]
        if stream is None or not isinstance(block, Block):
            return None
        self._dequeued(stream, block.length)
        return self._keep(Entry(wire.data_header(stream.id, block.length), block))

    @staticmethod
    def _around_block(riding: list[bytes], header: bytes, block: Block) -> memoryview:
        front = b"".join((_KIND, *riding, header))
        start = BLOCK_FRONT - len(front)
        block.buffer[start:BLOCK_FRONT] = front
        return block.view[start : BLOCK_FRONT + block.length]

    def _keep(self, entry: Entry) -> Entry:
        self.outbox.reserve(entry)
        self.outbox.append(entry)
        self._sent += 1
        return entry

    def _dequeued(self, stream: Stream, size: int) -> None:
        stream.queue.popleft()
        stream.queued_bytes -= size
        stream.sent += size
        self.queued_bytes -= size
        self.scheduler.charge(stream, size)
        self.wake_writers.append(stream)
        self._wake_queue_waiters()
        if stream.fin_due and not stream.queue:
            self._queue_fin(stream)
