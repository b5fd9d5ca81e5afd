"""The sending half of a lane's core: from streams' queues to records (docs/PROTOCOL.md §4).

Payload waits unnumbered in its stream's queue until `next_record` picks it, numbers it, and keeps it in the
retransmit buffer until the peer has acknowledged it; where nothing else waits, `record_alone` does so at once.  What
goes into a record, in this order: what is pending without a number, then after a cut what is replayed, then control
frames, then small payload of streams in the scheduler's turn, then datagrams, then bulk.  Only DATA waits for room in
the retransmit buffer.  Datagrams and bulk take turns where both do not fit into one record, so neither holds up the
other.

Pure, and not thread-safe: every method is called with the lane's lock held.
"""

from __future__ import annotations

from collections import deque

from qanat.base.errors import LocalError, ProtocolError
from qanat.mux import frames as wire
from qanat.mux.buffer_pool import BUFFER_FRONT, BUFFER_PAYLOAD, LARGE_PAYLOAD, Buffer, BufferPool
from qanat.mux.datagrams import DatagramQueue
from qanat.mux.pacer import UNBOUNDED, Pacer
from qanat.mux.parameters import LaneParameters
from qanat.mux.path_queue import PATH_TIME
from qanat.mux.pending_control import PendingControl
from qanat.mux.retransmit_buffer import Entry, RetransmitBuffer
from qanat.mux.scheduler import Scheduler
from qanat.mux.stream_state import CLOSED, OPEN, StreamPhase, StreamState, StreamStep
from qanat.mux.stream_table import StreamTable
from qanat.mux.wakeups import Wakeups

FRAMES_KIND = 3
"""The record kind of everything `next_record` gives (docs/PROTOCOL.md §2)."""
STREAM_QUEUE = 2 * BUFFER_PAYLOAD
"""Bytes a stream may have waiting for the scheduler before its writer has to wait."""
LARGE_CREDIT = 2 * LARGE_PAYLOAD
"""Bytes of credit from which on a stream on a short path may fill large buffers: a window has as much where its reader
takes 100 MB/s (`qanat.mux.window`), so that a small exchange waits 2.5 ms at most for such a record."""
CROWD_QUEUE = 512 * 1024
"""Bytes in all queues below which the writer has the next streams of a crowd read: as much as will be sent soon.  Where
their buffers are large it is little more than twice that."""
SMALL_RECORD = 64 * 1024
"""Bytes of small frames that go into one record together."""
MAX_SMALL = 64 * 1024
"""Bytes of payload in a frame that is copied; more must come in a buffer."""
JOINED = 16 * 1024
"""Bytes up to which small payloads that wait are joined, so that bytes written singly do not cost a frame each."""
SMALL_CREDIT = 256 * 1024
LEAST_PIECE = 16 * 1024
"""Bytes of credit below which a stream sends by quarters on a long path, and the least of them.  A record counts only
when it has come whole: one that is all of a small window would leave the path empty while its CREDIT is on the way."""
RIDE_WAIT = 0.005
"""Seconds that CREDIT and ACK wait at most for bulk that has to keep its pace, and so need no record of their own."""
RIDE_ROOM = BUFFER_FRONT - 1 - wire.DATA_HEADER_SIZE
"""Bytes of other frames that fit in front of a buffer's payload."""
DATAGRAM_ROOM = wire.CLOCK_SIZE + wire.DATAGRAM_HEADER_SIZE + wire.MAX_DATAGRAM
"""Bytes of datagrams that go into one record together, and of the CLOCK before them: the largest one fits."""
CONTROL_ROOM = 1024 * 1024
CONTROL_ROOM_PER_STREAM = 2048
"""Bytes, at all and for each stream that the peer may have open, that unacknowledged frames other than DATA may take
beyond the retransmit buffer's limit.  Only a peer that asks and never reads the answers makes them take more."""

_KIND = bytes((FRAMES_KIND,))


class Sender:
    """What waits to be sent, and what was sent and may have to be sent again.

    Others read the fields without an underscore, and none of them writes one.
    """

    def __init__(
        self, parameters: LaneParameters, streams: StreamTable, pending: PendingControl, wakeups: Wakeups
    ) -> None:
        limit = parameters.outbox
        self.buffers = BufferPool(limit + limit // 2)
        self.retransmit_buffer = RetransmitBuffer(limit, self.buffers)
        self.queued_bytes = 0
        """Payload in all streams' queues."""
        self.acknowledged = 0
        """The highest ACK that the peer has sent."""
        self.attached = False
        """Whether a pipe carries the lane."""
        self.datagrams = DatagramQueue()
        self.pacer = Pacer()
        """How fast bulk leaves on the present pipe."""
        self.payload_sent = 0
        """Bytes of streams' payload that records have taken so far, each once, datagrams included."""
        self.replayed_bytes = 0
        """Bytes of numbered frames that were sent again so far."""
        self._streams = streams
        self._pending = pending
        self._wakeups = wakeups
        self._scheduler = Scheduler()
        self._bulk_first = False  # the last record had datagrams in the place of bulk
        self._resumable = parameters.resumable
        self._closing = False
        self._control: deque[Entry] = deque()  # numbered frames other than DATA, before they are numbered
        self._replay: deque[Entry] = deque()
        self._sent = 0
        self._late_ack = 0
        self._queue_limit = limit // 2
        # In the order of their coming, which a set would not keep.
        self._waiting_for_queue: dict[StreamState, None] = {}
        self._crowd_limit = min(self._queue_limit // 2, CROWD_QUEUE)
        self.crowd: dict[StreamState, None] = {}
        """Streams whose sockets the writer has read, in turn, once it wants more; each has credit."""
        self._charge_limit = limit + CONTROL_ROOM + CONTROL_ROOM_PER_STREAM * parameters.max_streams

    # --- by streams' writers --------------------------------------------------------------------

    def sendable(self, stream: StreamState) -> int:
        """Return the bytes that may be queued on `stream` now; 0 means wait until `Wakeups` names it.

        That is where its `writer_waits`.
        """
        if stream.queued_bytes >= STREAM_QUEUE or self._closing:
            return 0
        if self.queued_bytes >= self._queue_limit:
            self._waiting_for_queue[stream] = None
            return 0
        if self._waiting_for_queue:
            # A place in that queue that is kept without need would swallow another's turn.
            self._waiting_for_queue.pop(stream, None)
        return self._piece(stream)

    def _piece(self, stream: StreamState) -> int:
        room = stream.send_limit - stream.promised
        if room > self.pacer.record:
            return self.pacer.record
        if LEAST_PIECE < room < SMALL_CREDIT and self._pending.path_is_long():
            return max(LEAST_PIECE, room // 4)
        return max(0, room)

    def sendable_at_least(self, stream: StreamState) -> int:
        """Return a part of what `sendable` would, 0 where that takes more than a look.

        Without the lane's lock, by the one thread that queues on the stream: the others only make it more.
        """
        if stream.queued_bytes or stream.phase is not OPEN or self._closing or self._waiting_for_queue:
            return 0
        return 0 if self.queued_bytes >= self._queue_limit else stream.send_limit - stream.promised

    def take_buffer(self, stream: StreamState, size: int) -> Buffer | None:
        """Return a buffer for `size` bytes of the stream, or for a part of them; None when all are lent."""
        large = size > BUFFER_PAYLOAD and stream.send_limit - stream.promised >= LARGE_CREDIT
        return self.buffers.take(large=large and self._pending.path_is_short())

    def sendable_to_crowd(self, stream: StreamState) -> int:
        """Return the same for one of a crowd whose turn it is: the queue has room."""
        return 0 if stream.queued_bytes >= STREAM_QUEUE or self._closing else self._piece(stream)

    def join_crowd(self, stream: StreamState) -> None:
        """Have the writer read the stream's socket when it is its turn; idempotent, and nothing without credit."""
        if stream not in self.crowd and self.sendable_to_crowd(stream) > 0:
            self.crowd[stream] = None
            self._wakeups.work = True

    def next_of_crowd(self) -> list[StreamState]:
        """Take the streams whose turn it is from `crowd`: as many as fill the queue with a usual buffer each."""
        crowd = self.crowd
        turns: list[StreamState] = []
        room = self._crowd_limit - self.queued_bytes
        passed: StreamState | None = None  # the first that was passed over
        while crowd and room > 0:
            stream = next(iter(crowd))
            if stream is passed and turns:
                break
            del crowd[stream]
            if stream.turn_spent:
                stream.turn_spent = False
                crowd[stream] = None  # behind the others
                passed = passed or stream
            else:
                turns.append(stream)
                room -= BUFFER_PAYLOAD
        return turns

    def send(self, stream: StreamState, payload: Buffer | bytes) -> None:
        """Queue payload within `sendable`; nothing when the stream is over.

        A buffer is the sender's from now on, whatever happens; bytes are at most MAX_SMALL.  Raises LocalError for a
        stream that is not open for sending.
        """
        if isinstance(payload, Buffer):
            size, most = payload.length, LARGE_PAYLOAD
            stream.turn_spent = size > BUFFER_PAYLOAD
        else:
            size, most = len(payload), MAX_SMALL
        phase, room = stream.phase, stream.send_limit - stream.promised
        open_ = phase is OPEN or phase is StreamPhase.HALF_CLOSED_REMOTE
        if not open_ or stream.fin_due or not 0 < size <= room or size > most:
            if isinstance(payload, Buffer):
                self.return_buffer(payload)
            if phase is CLOSED:
                return
            room = min(most, room)
            raise LocalError(f"{size} bytes on stream {stream.id}, which is {phase.value} and may take {room}")
        if not stream.queue:
            self._scheduler.add(stream, size)
            stream.queue.append(payload)
        elif isinstance(payload, Buffer) or not self._joined(stream, payload, min(JOINED, self.pacer.record)):
            stream.queue.append(payload)
        stream.queued_bytes += size
        stream.promised += size
        self.queued_bytes += size

    def record_alone(self, stream: StreamState, payload: Buffer | bytes, now: float) -> memoryview | None:
        """Return what `send` and then `next_record` would, where nothing else waits; else None, with nothing done.

        Most small payload comes so, one keystroke, one answer, and a single stream's bulk.  It has nobody to take turns
        with.  A buffer is the sender's from now on, unless None is returned.
        """
        kept = self.retransmit_buffer
        if isinstance(payload, Buffer):
            size, most, fits = payload.length, LARGE_PAYLOAD, self._pending.fits_before_buffer
        else:
            size, most, fits = len(payload), MAX_SMALL, True
        if (
            not self.idle
            or not 0 < size <= stream.send_limit - stream.promised
            or size > most
            or stream.phase is not OPEN
            or kept.charged >= kept.limit
            or self._late_ack > kept.first
            or self.pacer.record != UNBOUNDED
            or not (self.attached and self._resumable)
            or self._closing
            or not fits
        ):
            return None
        stream.promised += size
        self._count(stream, size, now)
        head = wire.data_header(stream.id, size)
        riding = self._pending.frames(now, riding=True)
        if isinstance(payload, Buffer):
            stream.turn_spent, self._bulk_first = size > BUFFER_PAYLOAD, False
            self._keep(Entry(head, payload))
            return self._around(riding, head, payload)
        head += payload
        self._keep(Entry(head))
        return memoryview(b"".join((_KIND, *riding, head)))

    def send_datagram(self, stream: StreamState, payload: bytes, now: float) -> None:
        """Queue a datagram of at most MAX_DATAGRAM bytes; drop it where no pipe takes it, or the stream is over."""
        if self.attached and not self._closing and stream.phase is not CLOSED:
            self.datagrams.add(stream.id, wire.datagram(stream.id, payload), now)
            stream.datagram_bytes_sent += len(payload)
            self.payload_sent += len(payload)

    @staticmethod
    def _joined(stream: StreamState, payload: bytes, most: int) -> bool:
        """Add `payload` to what waits last in the stream's queue, when both are small."""
        last = stream.queue[-1] if stream.queue else None
        if last is None or isinstance(last, Buffer) or len(last) + len(payload) > most:
            return False
        if isinstance(last, bytearray):
            last += payload
        else:
            stream.queue[-1] = bytearray(last) + payload
        return True

    def finish(self, stream: StreamState) -> None:
        """Send FIN after all that is queued.  Idempotent; nothing when the stream is over."""
        if stream.phase in (StreamPhase.OPEN, StreamPhase.HALF_CLOSED_REMOTE) and not stream.fin_due:
            if stream.queue:
                stream.fin_due = True
            else:
                self._queue_fin(stream)

    def _queue_fin(self, stream: StreamState) -> None:
        """Send FIN, since everything has been picked: with the control frames, which do not wait for room."""
        stream.fin_due = False
        stream.advance(StreamStep.SEND_FIN)
        self.queue_control(wire.fin(stream.id, stream.sent))
        if stream.phase is CLOSED:
            self.forget(stream)

    def return_buffer(self, buffer: Buffer) -> None:
        """Take a buffer of the pool back; whoever waits for one is woken."""
        if self.buffers.exhausted:
            self._wakeups.room = True
        self.buffers.give_back(buffer)

    # --- by the core and the receiver -----------------------------------------------------------

    def queue_control(self, frame: bytes) -> None:
        """Have a numbered `frame`, other than DATA, sent before all DATA.

        Its memory counts from now on, whenever it will be sent.
        """
        entry = Entry(frame)
        self.retransmit_buffer.reserve(entry)
        self._control.append(entry)
        self._wakeups.work = True

    def check_answers_are_read(self) -> None:
        """Raise ProtocolError when what the peer asked for has been answered at length, and not acknowledged."""
        if self.retransmit_buffer.charged > self._charge_limit:
            raise ProtocolError("the peer asks for more and more without acknowledging the answers")

    def ack_received(self, expected: int) -> None:
        """Forget what the peer has accepted.  Raises ProtocolError for what was never sent."""
        kept = self.retransmit_buffer
        if expected > self._sent and expected > kept.next_number:
            raise ProtocolError(f"an ACK for frame {expected} when {kept.next_number} is the next to be sent")
        if expected > self.acknowledged:
            self.acknowledged = expected
        if expected > self._sent:
            # These came over the pipe before.  They must be replayed all the same, since the peer counts frames.
            self._late_ack = max(self._late_ack, expected)
            expected = self._sent
        if expected > kept.first:
            self._acknowledged(expected)

    def credit_received(self, stream: StreamState, offset: int) -> None:
        """Note that the peer takes bytes of the stream up to `offset`."""
        if offset > stream.send_limit:
            stream.send_limit = offset
            if stream.writer_waits and stream not in self.crowd:
                self._wakeups.writers.append(stream)

    def abort(self, stream: StreamState, reason: int, text: str) -> None:
        """End both directions here: what waits to be sent is discarded, whoever waits is woken.

        What has already been received stays for its reader, as it does in a TCP socket that gets a RST.
        """
        stream.failure = (reason, text)
        for payload in stream.queue:
            if isinstance(payload, Buffer):
                self.return_buffer(payload)
        self.queued_bytes -= stream.queued_bytes
        stream.promised -= stream.queued_bytes
        stream.queue.clear()
        stream.queued_bytes = 0
        stream.fin_due = False
        self._wakeups.readers.append(stream)
        self._wake_queue_waiters()
        self.forget(stream)

    def forget(self, stream: StreamState) -> None:
        """Leave a stream that is over on the wire; its reader may still be draining it."""
        self._streams.remove(stream)
        self._pending.drop_credit(stream)
        self._waiting_for_queue.pop(stream, None)
        self.crowd.pop(stream, None)
        self._wakeups.writers.append(stream)

    def attach(self, peer_expects: int) -> None:
        """Replay from `peer_expects`, which has been checked, on a new pipe."""
        self._acknowledged(peer_expects)
        self._replay = deque(self.retransmit_buffer.since(peer_expects))
        self._sent = peer_expects
        self._late_ack = 0
        self.pacer = Pacer()
        self.attached = True

    def detach(self) -> None:
        """Keep what was sent and not acknowledged for the next pipe, and no datagram."""
        self.attached = False
        self._replay.clear()
        self.datagrams.clear()

    def close(self) -> None:
        """Take no more payload: once `idle`, all that was queued has been sent.  Idempotent."""
        self._closing = True

    def end(self) -> None:
        """Drop everything: the lane is over, and its streams have been aborted."""
        self.attached = False
        self._control.clear()
        self._replay.clear()
        self.datagrams.clear()
        self._scheduler.clear()
        self._pending.clear()
        self.retransmit_buffer.clear()
        self.buffers.clear()
        self._wakeups.writers.extend(self._waiting_for_queue)
        self._waiting_for_queue.clear()
        self.crowd.clear()
        self._wakeups.room = self._wakeups.work = True

    # --- by the lane's writer -------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether everything that was queued has been sent."""
        return not (self._replay or self._control or self.queued_bytes or self.datagrams.charged)

    def next_record(
        self, now: float, *, small: bool = False, held_up: bool = False, unsent: int = 0
    ) -> memoryview | None:
        """Return the plaintext of the next FRAMES record, or None when nothing has to be sent now.

        Everything it holds counts as sent.  The view is valid until the next call or ACK, which for
        what it holds no honest peer sends before it has come: seal it first.  With `small` it holds no bulk.  Datagrams
        are dropped where the pipe is `held_up`; bulk that has a pace waits while much is `unsent` (`Pacer.hold`).
        """
        if not self.attached:
            return None
        if held_up:
            self.datagrams.clear()
        if not self._resumable:
            self._acknowledged(self._sent)  # There will be no other pipe, and the last record has been sealed.
        elif self._late_ack > self.retransmit_buffer.first:
            self._acknowledged(min(self._late_ack, self._sent))
        held, most = False, UNBOUNDED
        if self.pacer.record != UNBOUNDED:
            if unsent > self.pacer.most_unsent:
                self.pacer.hold(now)
            held = self.queued_bytes > 0 and self.pacer.wait(now) > 0.0
            if held and self._can_wait(now):
                return None
            most = self.payload_sent + self.pacer.record
        riding = self._pending.frames(now, riding=not self.idle if not held else bool(self._control))
        room = SMALL_RECORD - sum(map(len, riding)) if riding else SMALL_RECORD
        while room > 0:
            held = held or self.payload_sent >= most
            head = self._next_small(now, sparse=held)
            if head is None:
                break
            riding.append(head)
            room -= len(head)
            if not (self.queued_bytes or self._control or self._replay):
                self._scheduler.clear()  # these streams have nothing more
                break
        bulk: Entry | None = None
        if self.datagrams.charged:
            bulk = self._add_datagrams_and_bulk(riding, now, small=small or held)
        elif not (small or held):
            self._bulk_first = False
            bulk = self._next_bulk(sum(map(len, riding)) if riding else 0, now)
        if bulk is not None and bulk.buffer is not None:
            return self._around(riding, bulk.head, bulk.buffer)
        if not riding:
            return None
        riding.insert(0, _KIND)
        return memoryview(b"".join(riding))

    def _can_wait(self, now: float) -> bool:
        """Whether all that is due may wait for the bulk that has to keep its pace, and ride in one record with it."""
        if self._control or self._replay or self.datagrams.charged or self._scheduler.sparse() is not None:
            return False
        return self.pacer.wait(now) <= RIDE_WAIT and not self._pending.urgent(now)

    def next_timeout(self, now: float) -> float | None:
        """Return the seconds until `next_record` may have something although nothing else has happened.

        None while there is no pipe.
        """
        if not self.attached:
            return None
        paced = self.pacer.record != UNBOUNDED
        wait = self.pacer.wait(now) if paced and self.queued_bytes else 0.0
        if wait:
            return min(wait, self._pending.timeout(now, ping_only=wait <= RIDE_WAIT))
        return self._pending.timeout(now)

    def _next_small(self, now: float, *, sparse: bool) -> bytes | None:
        """Return the next numbered frame that is not in a buffer, moved into the retransmit buffer.

        With `sparse` no payload but that of streams that have little.
        """
        if self._replay:
            if self._replay[0].buffer is not None:
                return None
            self._sent += 1
            return self._replayed(self._replay.popleft()).head
        if self._control:
            entry = self._control.popleft()
            self.retransmit_buffer.append(entry)
            self._sent += 1
            return entry.head
        kept = self.retransmit_buffer
        if kept.charged >= kept.limit:
            return None
        stream = self._scheduler.sparse() if sparse else self._scheduler.peek()
        if stream is None:
            return None
        payload = stream.queue[0]
        if isinstance(payload, Buffer):
            return None
        size = len(payload)
        self._dequeued(stream, size, now)
        head = wire.data_header(stream.id, size) + payload
        kept.keep(Entry(head))
        self._sent += 1
        return head

    def _add_datagrams_and_bulk(self, riding: list[bytes], now: float, *, small: bool) -> Entry | None:
        """Add the datagrams whose turn it is to `riding`, and return the bulk behind them, if there is any."""
        size = sum(map(len, riding))
        bulk: Entry | None = None
        if self._bulk_first and not small:
            self._bulk_first = False
            bulk = self._next_bulk(size, now)
        room = DATAGRAM_ROOM if bulk is None else RIDE_ROOM - size
        added = 0
        if self.datagrams:
            clock = self._pending.clock(now)
            room -= sum(map(len, clock))
            while (frame := self.datagrams.take(room - added, now)) is not None:
                if not added:
                    riding += clock
                    added = sum(map(len, clock))
                    room += added
                riding.append(frame)
                added += len(frame)
        if bulk is None and not small:
            bulk = self._next_bulk(size + added, now)
            self._bulk_first = bulk is None and added > 0
        return bulk

    def _next_bulk(self, riding: int, now: float) -> Entry | None:
        """Return the next numbered frame when it is in a buffer and `riding` bytes fit in front of it."""
        if riding > RIDE_ROOM:
            return None
        if self._replay:
            if self._replay[0].buffer is None:
                return None
            self._sent += 1
            return self._replayed(self._replay.popleft())
        stream = None if self._control or self.retransmit_buffer.full else self._scheduler.peek()
        buffer = None if stream is None else stream.queue[0]
        if stream is None or not isinstance(buffer, Buffer):
            return None
        self._dequeued(stream, buffer.length, now)
        return self._keep(Entry(wire.data_header(stream.id, buffer.length), buffer))

    @staticmethod
    def _around(riding: list[bytes], header: bytes, buffer: Buffer) -> memoryview:
        front = b"".join((_KIND, *riding, header))
        start = BUFFER_FRONT - len(front)
        buffer.storage[start:BUFFER_FRONT] = front
        return buffer.view[start : BUFFER_FRONT + buffer.length]

    def _replayed(self, entry: Entry) -> Entry:
        self.replayed_bytes += len(entry.head) + (entry.buffer.length if entry.buffer is not None else 0)
        return entry

    def _keep(self, entry: Entry) -> Entry:
        self.retransmit_buffer.keep(entry)
        self._sent += 1
        return entry

    def _dequeued(self, stream: StreamState, size: int, now: float) -> None:
        stream.queue.popleft()
        stream.queued_bytes -= size
        self.queued_bytes -= size
        self._scheduler.charge(stream, size)
        self._count(stream, size, now)
        if stream.queued_bytes + size >= STREAM_QUEUE and stream.writer_waits and stream not in self.crowd:
            self._wakeups.writers.append(stream)  # else it was credit that it waits for
        if self._waiting_for_queue:
            self._wake_queue_waiters()
        if stream.fin_due and not stream.queue:
            self._queue_fin(stream)

    def _count(self, stream: StreamState, size: int, now: float) -> None:
        """Count payload that the next number is for."""
        stream.sent += size
        self.payload_sent += size
        if self._pending.least_round_trip >= PATH_TIME:
            self.pacer.sent(self._sent + 1, size, now)

    def _acknowledged(self, expected: int) -> None:
        """Forget every frame below `expected`: the peer has accepted them."""
        kept, buffers = self.retransmit_buffer, self.buffers
        full, exhausted = kept.charged >= kept.limit, buffers.lent >= buffers.capacity
        kept.acknowledge(expected)
        if (full or exhausted) and ((full and not kept.full) or (exhausted and not buffers.exhausted)):
            self._wakeups.room = self._wakeups.work = True

    def _wake_queue_waiters(self) -> None:
        """Wake one more stream to queue payload, since some went; wake all of them once most has gone.

        Waking everybody each time would give hundreds of threads a turn for one buffer.  One at a time
        would not do either: a thread that is woken may find that its socket has nothing to read.
        """
        waiting = self._waiting_for_queue
        if not waiting or self.queued_bytes >= self._queue_limit:
            return
        if self.queued_bytes < self._queue_limit // 2:
            self._wakeups.writers.extend(waiting)
            waiting.clear()
        else:
            first = next(iter(waiting))
            del waiting[first]
            self._wakeups.writers.append(first)

    def check_invariants(self) -> None:
        """Raise AssertionError when its parts contradict each other.  Slow; for tests."""
        kept = list(self.retransmit_buffer.since(self.retransmit_buffer.first))
        queued = [payload for stream in self._streams for payload in stream.queue if isinstance(payload, Buffer)]
        charges = sum(entry.charge for entry in (*kept, *self._control))
        assert self.queued_bytes == sum(stream.queued_bytes for stream in self._streams), "queued bytes do not add up"
        assert self.retransmit_buffer.charged == charges, "the retransmit buffer is charged for what it does not hold"
        queued += [entry.buffer for entry in kept if entry.buffer is not None]
        in_use = sum(buffer.places for buffer in queued)
        assert in_use <= self.buffers.lent <= self.buffers.capacity, "a buffer came back in use, or too many are lent"
        assert self.retransmit_buffer.first <= self._sent <= self.retransmit_buffer.next_number, "sent and not kept"
        self.datagrams.check_invariants()
        assert self.attached or not self.datagrams, "a datagram waits for the next pipe"
        missing = self.retransmit_buffer.next_number - self._sent
        assert not self.attached or len(self._replay) == missing, "the replay is not what is missing"
        for stream in (*self._waiting_for_queue, *self.crowd, *self._pending.streams_with_credit):
            assert self._streams.is_open(stream), f"{stream.id} is over, and waits for the queue or for credit"
