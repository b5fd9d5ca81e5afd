"""The receiving half of a lane's core: records become payload for readers, events, and debts to the peer.

Everything a peer can do wrong ends here as ProtocolError, and everything it can do too much of is bounded
here: payload by credit, streams by their limit, answers by the memory they take (docs/PROTOCOL.md §4 and §5).
A part of `qanat.mux.core.LaneCore`; pure.
"""

from __future__ import annotations

from qanat.base.errors import ProtocolError
from qanat.mux import frames as wire
from qanat.mux.lane_state import LaneState
from qanat.mux.parameters import ControlReceived, Event, Opened
from qanat.mux.stream import Stream
from qanat.mux.stream_state import State, Step

CLOSED_GRACE = 1024
"""How many closed streams may still be draining before they count against the limit of open ones."""
SMALL_PAYLOAD = 2048
"""Payload below this is copied and joined: a Python object for each byte that a peer sends singly would take
a hundred times the memory that its credit stands for."""
JOINED = 16 * 1024
"""Bytes up to which small payloads are joined."""


class Receiving(LaneState):
    """See the module's docstring.  Every method is called with the lane's lock held."""

    # --- by the lane's reader -------------------------------------------------------------------

    def receive(self, content: memoryview, now: float) -> list[Event]:
        """Take the frames of one FRAMES record.  Raises ProtocolError; the pipe is then over.

        Payload is kept as views into `content`, which must not change afterwards; that of frames far
        smaller than their record is copied, so that a byte cannot keep a quarter of a megabyte.
        """
        events: list[Event] = []
        if self.ended is not None:
            return events
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
                self.work_made = True
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
        if self.owed.accepted(size, now):
            self.work_made = True
        return True

    def _receive_data(self, frame: wire.Data, record_size: int) -> None:
        stream = self._find(frame.stream)
        if stream is None:
            return
        if stream.state is not State.OPEN:
            stream.advance(Step.RECV_DATA)
        size, window = len(frame.payload), stream.window
        if window.received + size > window.granted:
            raise ProtocolError(f"{size} bytes on stream {stream.id} beyond its credit of {window.granted}")
        window.received += size
        if stream.released:
            return
        inbox = stream.inbox
        if size >= SMALL_PAYLOAD:
            inbox.append(frame.payload if 2 * size >= record_size else memoryview(bytes(frame.payload)))
        elif inbox and isinstance(last := inbox[-1], bytearray) and len(last) + size <= JOINED:
            last += frame.payload
        else:
            inbox.append(bytearray(frame.payload))
        self.wake_readers.append(stream)

    def _receive_numbered(
        self, frame: wire.Open | wire.Fin | wire.Reset | wire.Accept | wire.Control, now: float
    ) -> Event | None:
        if isinstance(frame, wire.Control):
            self._check_answers_are_read()
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
            stream.advance(Step.RECV_RESET)
            self._fail(stream, frame.reason, frame.text)
            self._drop(stream)
        else:
            if stream.accepted is not None or not self._is_own(stream.id):
                raise ProtocolError(f"ACCEPT of stream {stream.id} that was not to be accepted")
            stream.accepted = frame.text
            self.wake_readers.append(stream)
        return None

    def _receive_open(self, frame: wire.Open, now: float) -> Event | None:
        if not frame.stream or self._is_own(frame.stream) or frame.stream <= self._last_peer_id:
            raise ProtocolError(f"OPEN of stream {frame.stream} after {self._last_peer_id}")
        self._check_answers_are_read()
        self._last_peer_id = frame.stream
        peer_open = len(self.streams) - self._own_open
        if peer_open + max(0, self.draining - CLOSED_GRACE) >= self.parameters.max_streams:
            text = f"{self.parameters.max_streams} streams are open already"
            self._queue_control(wire.Reset(frame.stream, wire.Reason.LIMIT, text))
            return None
        return Opened(self._new_stream(frame.stream, frame.request, now))

    def _check_answers_are_read(self) -> None:
        """Raise ProtocolError when what the peer asked for has been answered at length, and not acknowledged."""
        if self.outbox.charged > self._charge_limit:
            raise ProtocolError("the peer asks for more and more without acknowledging the answers")

    def _receive_ack(self, expected: int) -> None:
        if expected > self.outbox.next_number:
            raise ProtocolError(f"an ACK for frame {expected} when {self.outbox.next_number} is the next to be sent")
        self.acknowledged = max(self.acknowledged, expected)
        if expected > self._sent:
            # These came over the pipe before.  They must be replayed all the same, since the peer counts frames.
            self._late_ack = max(self._late_ack, expected)
            expected = self._sent
        if expected > self.outbox.first:
            self._acknowledged(expected)

    def _receive_credit(self, frame: wire.Credit) -> None:
        stream = self._find(frame.stream)
        if stream is not None and frame.offset > stream.send_limit:
            stream.send_limit = frame.offset
            self.wake_writers.append(stream)

    # --- by streams' readers --------------------------------------------------------------------

    def take(self, stream: Stream) -> memoryview | None:
        """The next payload for the stream's reader, or None when there is none now."""
        return memoryview(stream.inbox.popleft()) if stream.inbox else None

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
            if not self._is_open(stream):
                self.draining -= 1
