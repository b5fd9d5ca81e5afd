"""One lane without sockets, threads or clocks: bytes and `now` in, events and records out.

A lane is an ordered sequence of frames in each direction that outlives the pipe it runs on.  Sending:
payload waits unnumbered in its stream's queue until `next_record` picks it, numbers it and keeps it in
the outbox until it is acknowledged.  Receiving: `receive` takes one record's frames, in order, exactly
once, whatever was replayed.  What is owed to the peer without a number (ACK, CREDIT, PING, PONG) is state,
not a queue, so a peer cannot make it grow.

Not thread-safe: `mux.lane` guards it with its lock.  Streams whose reader or writer should look again are
put into `wake_readers` and `wake_writers`; the lane empties those.
"""

from __future__ import annotations

from collections import deque

from base.errors import ProtocolError, SessionEnded, StreamReset

from . import frames as wire
from .outbox import Entry, Outbox
from .owed import Owed
from .parameters import ControlReceived, Event, LaneParameters, Opened
from .scheduler import Scheduler
from .slab import BLOCK_FRONT, BLOCK_PAYLOAD, Block, Slab
from .stream import Stream
from .stream_state import State, Step
from .window import ReceiveWindow, WindowBudget

FRAMES_KIND = 3
"""The record kind of everything `next_record` gives (docs/PROTOCOL.md §2)."""
STREAM_QUEUE = 2 * BLOCK_PAYLOAD
"""Bytes a stream may have waiting for the scheduler before its writer has to wait."""
SMALL_RECORD = 64 * 1024
"""Bytes of small frames that go into one record together."""
RIDE_ROOM = BLOCK_FRONT - 1 - wire.DATA_HEADER_SIZE
"""Bytes of other frames that fit in front of a block's payload."""
CLOSED_GRACE = 1024
"""How many closed streams may still be draining before they count against the limit of open ones."""


class LaneCore:
    """See the module's docstring.  Every method is called with the lane's lock held."""

    def __init__(self, parameters: LaneParameters, now: float) -> None:
        self.parameters = parameters
        self.budget = WindowBudget(parameters.window_budget)
        self.slab = Slab(parameters.outbox + parameters.outbox // 2)
        self.outbox = Outbox(parameters.outbox, self.slab)
        self.scheduler = Scheduler()
        self.streams: dict[int, Stream] = {}
        self.draining = 0
        self.queued_bytes = 0
        self.wake_readers: list[Stream] = []
        self.wake_writers: list[Stream] = []
        self.outbox_was_full = False
        self.attached = False
        self.ended: str | None = None
        self.owed = Owed(parameters.keepalive, parameters.outbox // 4, now)
        self.received = 0
        self._control: deque[Entry] = deque()
        self._replay: deque[Entry] = deque()
        self._sent = 0
        self._pipe_number = 0
        self._next_id = 1 if parameters.client else 2
        self._last_peer_id = 0
        self._own_open = 0
        self._waiting_for_queue: set[Stream] = set()

    # --- the pipe below -------------------------------------------------------------------------

    def attach(self, now: float, *, peer_expects: int = 0, receive_from: int | None = None) -> None:
        """A new pipe carries this lane: replay from `peer_expects` on.

        `receive_from` is the number of the first numbered frame that the peer will send on this pipe
        (None: what we expect); those below what we expect are dropped.  Raises ProtocolError when the
        peer expects what is not kept, and when a gap would follow.
        """
        self.outbox.check_resume(peer_expects)
        start = self.received if receive_from is None else receive_from
        if start > self.received:
            raise ProtocolError(f"the peer goes on at frame {start}, but {self.received} is the next expected")
        self._acknowledged(peer_expects)
        self._replay = deque(self.outbox.since(peer_expects))
        self._sent = peer_expects
        self._pipe_number = start
        self.owed.restart(now, self.streams.values() if self.received or peer_expects else ())
        self.attached = True

    def detach(self) -> None:
        """The pipe is gone; what was sent and not acknowledged waits for the next."""
        self.attached = False
        self._replay.clear()

    def end(self, reason: int, text: str) -> list[Stream]:
        """The session is over: every stream is reset here, nothing is sent.  Returns them.  Idempotent."""
        if self.ended is not None:
            return []
        self.ended = text
        self.attached = False
        over = list(self.streams.values())
        for stream in over:
            self._fail(stream, reason, text)
            self._drop(stream)
        self._control.clear()
        self._replay.clear()
        self.owed.credits.clear()
        self.scheduler.clear()
        self.outbox.clear()
        self.wake_writers.extend(self._waiting_for_queue)
        self._waiting_for_queue.clear()
        return over

    # --- streams, our side ----------------------------------------------------------------------

    def open_stream(self, request: bytes, now: float) -> Stream:
        """Open a stream towards the peer.  DATA may follow at once.

        Raises SessionEnded, and StreamReset(LIMIT) when the peer allows no more.  The caller waits
        while `outbox.full`.
        """
        if self.ended is not None:
            raise SessionEnded(self.ended)
        if self._own_open >= self.parameters.peer_max_streams:
            raise StreamReset(f"the other end allows {self.parameters.peer_max_streams} streams at once",
                              code=wire.Reason.LIMIT)  # fmt: skip
        number = self._next_id
        self._next_id += 2
        stream = self._new_stream(number, request, now)
        self._own_open += 1
        self._control.append(Entry(wire.Open(number, request).encode(), stream=number))
        return stream

    def accept(self, stream: Stream, text: str) -> None:
        """Tell the opener that its target was reached; nothing when the stream is over already."""
        if stream.state is not State.CLOSED:
            self._control.append(Entry(wire.Accept(stream.id, text).encode(), stream=stream.id))

    def sendable(self, stream: Stream) -> int:
        """Bytes that may be queued on `stream` now; 0 means wait until it is in `wake_writers`."""
        if stream.queued_bytes >= STREAM_QUEUE:
            return 0
        if self.queued_bytes >= self.parameters.outbox // 2:
            self._waiting_for_queue.add(stream)
            return 0
        return max(0, stream.send_limit - stream.promised)

    def send(self, stream: Stream, payload: Block | bytes) -> None:
        """Queue payload within `sendable`.  A block's ownership passes to the core.

        Raises LocalError for a stream that is not open for sending; nothing when it is over.
        """
        size = payload.length if isinstance(payload, Block) else len(payload)
        if stream.state is State.CLOSED:
            if isinstance(payload, Block):
                self.slab.give(payload)
            return
        if stream.fin_due:
            stream.advance(Step.SEND_FIN)
        stream.advance(Step.SEND_DATA)
        stream.queue.append(payload)
        stream.queued_bytes += size
        stream.promised += size
        self.queued_bytes += size
        self.scheduler.add(stream)

    def finish(self, stream: Stream) -> None:
        """Send FIN after all that is queued.  Idempotent; nothing when the stream is over."""
        if stream.state in (State.OPEN, State.HALF_CLOSED_REMOTE) and not stream.fin_due:
            stream.fin_due = True
            self.scheduler.add(stream)

    def reset(self, stream: Stream, reason: int, text: str) -> None:
        """End the stream abruptly, discarding what was not yet picked.  Idempotent."""
        if stream.state is State.CLOSED:
            return
        self._fail(stream, reason, text)
        stream.advance(Step.SEND_RESET)
        self._control.append(Entry(wire.Reset(stream.id, reason, text).encode(), stream=stream.id))
        self._drop(stream)

    def take(self, stream: Stream) -> memoryview | None:
        """The next payload for the stream's reader, or None when there is none now."""
        if not stream.inbox:
            return None
        payload = stream.inbox.popleft()
        stream.inbox_bytes -= len(payload)
        return payload

    def consumed(self, stream: Stream, count: int, now: float) -> bool:
        """The reader has handed on `count` bytes.  True when the peer is now owed a CREDIT."""
        if stream.released:
            return False
        due = stream.window.consume(count, now, self.owed.round_trip)
        if due and not stream.fin_received and self._is_open(stream):
            self.owed.credits[stream.id] = stream
            return True
        return False

    def release(self, stream: Stream) -> None:
        """Nobody reads this stream any more; its window goes back to the budget.  Idempotent."""
        if not stream.released:
            stream.released = True
            stream.window.release()
            stream.inbox.clear()
            stream.inbox_bytes = 0
            if not self._is_open(stream):
                self.draining -= 1

    def send_control(self, message: bytes) -> None:
        """Queue a control message.  The caller bounds how many there are (one for each forward)."""
        self._control.append(Entry(wire.Control(message).encode()))

    # --- receiving ------------------------------------------------------------------------------

    def receive(self, content: memoryview, now: float) -> list[Event]:
        """Take the frames of one FRAMES record.  Raises ProtocolError; the pipe is then over.

        Payload is kept as views into `content`, which must not change afterwards; that of frames far
        smaller than their record is copied, so that a byte cannot keep a quarter of a megabyte.
        """
        events: list[Event] = []
        for frame in wire.parse_frames(content):
            if isinstance(frame, wire.Data):
                if self._numbered(now, len(frame.payload)):
                    self._receive_data(frame, len(content))
            elif isinstance(frame, wire.Ack):
                self._receive_ack(frame.expected)
            elif isinstance(frame, wire.Credit):
                self._receive_credit(frame)
            elif isinstance(frame, wire.Ping):
                self.owed.pong = frame.value
            elif isinstance(frame, wire.Pong):
                self.owed.pong_received(frame.value, now)
            elif isinstance(frame, wire.Datagram):
                pass  # No stream of this version takes datagrams: dropped, as any datagram may be.
            elif self._numbered(now, 0):
                event = self._receive_numbered(frame, now)
                if event is not None:
                    events.append(event)
        return events

    def _numbered(self, now: float, size: int) -> bool:
        """Count one numbered frame; False when it is a duplicate from before the cut."""
        number = self._pipe_number
        self._pipe_number += 1
        if number < self.received:
            return False
        self.received += 1
        self.owed.accepted(size, now)
        return True

    def _receive_numbered(
        self, frame: wire.Open | wire.Fin | wire.Reset | wire.Accept | wire.Control, now: float
    ) -> Event | None:
        if isinstance(frame, wire.Control):
            return ControlReceived(frame.message)
        if isinstance(frame, wire.Open):
            return self._receive_open(frame, now)
        stream = self._find(frame.stream)
        if stream is None:
            return None
        if isinstance(frame, wire.Fin):
            came = stream.window.received
            if frame.offset != came:
                raise ProtocolError(f"FIN of stream {stream.id} says {frame.offset} bytes, {came} came")
            stream.advance(Step.RECV_FIN)
            stream.fin_received = True
            self.owed.credits.pop(stream.id, None)
            self.wake_readers.append(stream)
            if stream.state is State.CLOSED:
                self._drop(stream)
        elif isinstance(frame, wire.Reset):
            self._fail(stream, frame.reason, frame.text)
            stream.advance(Step.RECV_RESET)
            self._drop(stream)
        elif isinstance(frame, wire.Accept):
            if stream.accepted is not None or not self._is_own(stream.id):
                raise ProtocolError(f"ACCEPT of stream {stream.id} that was not to be accepted")
            stream.accepted = frame.text
            self.wake_readers.append(stream)
        return None

    def _receive_open(self, frame: wire.Open, now: float) -> Event | None:
        if self._is_own(frame.stream) or frame.stream <= self._last_peer_id or not frame.stream:
            raise ProtocolError(f"OPEN of stream {frame.stream} after {self._last_peer_id}")
        self._last_peer_id = frame.stream
        if len(self._control) + len(self.outbox) > 8 * self.parameters.max_streams + 4096:
            raise ProtocolError("the peer opens streams without acknowledging anything")
        peer_open = len(self.streams) - self._own_open
        if peer_open + max(0, self.draining - CLOSED_GRACE) >= self.parameters.max_streams:
            text = f"{self.parameters.max_streams} streams are open already"
            self._control.append(Entry(wire.Reset(frame.stream, wire.Reason.LIMIT, text).encode(), stream=frame.stream))
            return None
        return Opened(self._new_stream(frame.stream, frame.request, now))

    def _receive_data(self, frame: wire.Data, record_size: int) -> None:
        stream = self._find(frame.stream)
        if stream is None:
            return
        if stream.state not in (State.OPEN, State.HALF_CLOSED_LOCAL):
            stream.advance(Step.RECV_DATA)
        size = len(frame.payload)
        stream.window.received += size
        if stream.window.received > stream.window.granted:
            raise ProtocolError(f"{size} bytes on stream {stream.id} beyond its credit of {stream.window.granted}")
        if stream.released:
            return
        payload = frame.payload if 2 * size >= record_size else memoryview(bytes(frame.payload))
        stream.inbox.append(payload)
        stream.inbox_bytes += size
        self.wake_readers.append(stream)

    def _receive_ack(self, expected: int) -> None:
        if expected > self._sent:
            raise ProtocolError(f"an ACK for frame {expected} when {self._sent} is the next to be sent")
        self._acknowledged(expected)

    def _acknowledged(self, expected: int) -> None:
        was_full = self.outbox.full or self.slab.lent >= self.slab.capacity
        self.outbox.acknowledge(max(expected, self.outbox.first))
        self.outbox_was_full = self.outbox_was_full or was_full

    def _receive_credit(self, frame: wire.Credit) -> None:
        stream = self._find(frame.stream)
        if stream is not None and frame.offset > stream.send_limit:
            stream.send_limit = frame.offset
            self.wake_writers.append(stream)

    # --- sending --------------------------------------------------------------------------------

    def next_record(self, now: float) -> memoryview | None:
        """The plaintext of the next FRAMES record, or None when nothing is to be sent now.

        Everything it holds counts as sent.  The view is valid until the next call or ACK: seal it first.
        """
        if not self.attached:
            return None
        riding = self.owed.frames(now, self.received, riding=bool(self._control or len(self.scheduler)))
        room = SMALL_RECORD - sum(map(len, riding))
        while room > 0:
            entry = self._next_small(now)
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

    def _next_small(self, now: float) -> Entry | None:
        """The next numbered frame that is not a block, moved into the outbox."""
        if self._replay:
            if self._replay[0].block is not None:
                return None
            self._sent += 1
            return self._replay.popleft()
        if self._control:
            return self._keep(self._control.popleft())
        stream = None if self.outbox.full else self.scheduler.peek()
        if stream is None:
            return None
        if stream.queue:
            payload = stream.queue[0]
            if isinstance(payload, Block):
                return None
            self._dequeued(stream, len(payload))
            return self._keep(Entry(wire.data_header(stream.id, len(payload)) + payload, stream=stream.id))
        stream.fin_due = False
        stream.advance(Step.SEND_FIN)
        entry = self._keep(Entry(wire.Fin(stream.id, stream.sent).encode(), stream=stream.id))
        if stream.state is State.CLOSED:
            self._drop(stream)
        return entry

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
        if stream is None or not stream.queue or not isinstance(stream.queue[0], Block):
            return None
        block = stream.queue[0]
        self._dequeued(stream, block.length)
        return self._keep(Entry(wire.data_header(stream.id, block.length), block, stream.id))

    def _around_block(self, riding: list[bytes], header: bytes, block: Block) -> memoryview:
        front = b"".join((_KIND, *riding, header))
        start = BLOCK_FRONT - len(front)
        block.buffer[start:BLOCK_FRONT] = front
        return block.view[start : BLOCK_FRONT + block.length]

    def _keep(self, entry: Entry) -> Entry:
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

    # --- the life of a stream -------------------------------------------------------------------

    def _new_stream(self, number: int, request: bytes, now: float) -> Stream:
        window = ReceiveWindow(self.parameters.initial_window, self.parameters.max_window, self.budget, now)
        stream = Stream(number, request, self.parameters.peer_initial_window, window)
        self.streams[number] = stream
        return stream

    def _find(self, number: int) -> Stream | None:
        """The stream, None when it is over; ProtocolError when it never was."""
        stream = self.streams.get(number)
        if stream is None and (number >= self._next_id if self._is_own(number) else number > self._last_peer_id):
            raise ProtocolError(f"a frame for stream {number}, which was never opened")
        if stream is None and not number:
            raise ProtocolError("a frame for stream 0")
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
                self.slab.give(payload)
                self.outbox_was_full = True
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
        self._waiting_for_queue.discard(stream)
        self.wake_writers.append(stream)

    def _wake_queue_waiters(self) -> None:
        if self._waiting_for_queue and self.queued_bytes < self.parameters.outbox // 2:
            self.wake_writers.extend(self._waiting_for_queue)
            self._waiting_for_queue.clear()


_KIND = bytes((FRAMES_KIND,))
