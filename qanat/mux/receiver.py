"""The receiving half of a lane's core: records become payload for readers, events, and frames for the peer.

`receive` takes one record's frames, in order, exactly once, whatever was replayed.  Everything a peer can do wrong ends
here as ProtocolError, and everything it can do too much of is bounded here: payload by credit, streams by their
limit, answers by the memory they take (docs/PROTOCOL.md §4 and §5).

Pure, and not thread-safe: every method is called with the lane's lock held.
"""

from __future__ import annotations

from qanat.base.errors import ProtocolError
from qanat.base.text import decode_text
from qanat.mux import frames as wire
from qanat.mux.datagrams import LATE, DatagramInbox, PathDelay
from qanat.mux.observer import reason_label
from qanat.mux.parameters import ControlReceived, Event, LaneParameters, Opened
from qanat.mux.path_queue import PathQueue
from qanat.mux.pending_control import PendingControl
from qanat.mux.sender import Sender
from qanat.mux.stream_state import CLOSED, OPEN, StreamState, StreamStep
from qanat.mux.stream_table import StreamTable
from qanat.mux.wakeups import Wakeups

SMALL_PAYLOAD = 2048
"""Payload below this is copied and joined: a Python object for each byte that a peer sends singly would take
a hundred times the memory that its credit stands for."""
JOINED = 16 * 1024
"""Bytes up to which small payloads are joined."""


class Receiver:
    """What has come: which frames, and the payload that streams' readers have not taken."""

    def __init__(
        self,
        parameters: LaneParameters,
        streams: StreamTable,
        sender: Sender,
        pending: PendingControl,
        wakeups: Wakeups,
    ) -> None:
        self.expected = 0
        """The number of the frame that is expected next, and how many have been accepted.  Others only read it."""
        self.payload_received = 0
        """Bytes of streams' payload that have come so far, each once, datagrams included."""
        self.early_datagrams = DatagramInbox()
        """Those for streams on which nobody takes them yet."""
        self._delay = PathDelay()
        self._path = PathQueue()
        self._late = False  # the datagrams of this record have come too late
        self._moved = 0  # frames with a number and bytes of payload, both ways, when the peer's last PING came
        self._told: float | None = None  # when the peer made this record, by its own clock
        self._refusal = f"{parameters.max_streams} streams are open already"
        self._observer = parameters.observer
        self._streams = streams
        self._sender = sender
        self._pending = pending
        self._wakeups = wakeups
        self._pipe_number = 0
        self._ended = False

    # --- by the lane's reader -------------------------------------------------------------------

    def attach(self, start: int, *, in_requests: bool) -> None:
        """Count the frames of a new pipe from `start`, which has been checked; those below `expected` are dropped."""
        self._pipe_number = start
        self._delay = PathDelay()  # the next pipe's path has its own, and a clock may have stood still
        self._path = PathQueue(in_requests=in_requests)

    def end(self) -> None:
        """Take no more frames: the lane is over."""
        self._ended = True
        self.early_datagrams.clear()

    def detach(self) -> None:
        """Drop the datagrams that nobody has taken: the pipe that brought them is gone."""
        self.early_datagrams.clear()

    def receive(self, content: memoryview, now: float) -> list[Event]:
        """Take the frames of one FRAMES record; nothing after `end`.  Raises ProtocolError; the pipe is then over.

        Payload is kept as views into `content`, which must not change afterwards; that of frames far
        smaller than their record is copied, so that a byte cannot keep a quarter of a megabyte.
        """
        events: list[Event] = []
        if self._ended:
            return events
        self._late, self._told = False, None
        position, end = 0, len(content)
        if not end:
            raise ProtocolError(wire.EMPTY)
        before, size = self.expected, 0
        try:
            while position < end:
                kind = content[position]
                # These four without an object: nearly all records have no others.
                if kind == wire.DATA:
                    number, start, position = wire.parse_data(content, position)
                    if self._is_new():
                        size += position - start
                        stream = self._streams.find(number)
                        if stream is not None:
                            self._receive_data(stream, content[start:position], end)
                elif kind == wire.ACK:
                    below, position = wire.parse_ack(content, position)
                    self._sender.ack_received(below)
                    if self._told is not None:
                        self._sender.pacer.acknowledged(below, self._told, self._pending.least_round_trip)
                elif kind == wire.CREDIT:
                    number, offset, position = wire.parse_credit(content, position)
                    stream = self._streams.find(number)
                    if stream is not None:
                        self._sender.credit_received(stream, offset)
                elif kind == wire.DATAGRAM:
                    number, datagram, position = wire.parse_datagram(content, position)
                    self._receive_datagram(number, datagram, now)
                elif kind < wire.UNNUMBERED:
                    position = self._receive_numbered(kind, content, position, now, events)
                else:
                    frame, position = wire.parse_frame(content, position)
                    self._receive_other(frame, now)
        finally:  # what came before a frame that is at fault has been accepted
            if self.expected > before:
                self._accepted(size, now)
        return events

    def receive_alone(self, content: memoryview, now: float) -> tuple[StreamState, memoryview] | None:
        """Take one record if it is what most are: DATA, and perhaps an ACK, for a stream that is `direct` and has room.

        Returns the stream, `delivering` now, and its payload, which is the caller's to hand on and never in the inbox.
        None, with nothing done, for other records, which `receive` takes or refuses.  Otherwise as that.
        """
        end = len(content)
        front = wire.ACK_SIZE if end > wire.ACK_SIZE and content[0] == wire.ACK else 0
        if not end or content[front] != wire.DATA:
            return None
        number, position, after = wire.parse_data(content, front)
        stream = self._streams.find_open(number)
        if stream is None or not stream.direct or stream.delivering or after != end:
            return None
        size, window = end - position, stream.window
        received = window.received + size
        new = self._pipe_number == self.expected
        if not new or stream.phase is not OPEN or stream.inbox or received > window.granted or self._ended:
            return None
        if front:
            self._sender.ack_received(wire.parse_ack(content, 0)[0])
        window.received = received
        self.payload_received += size
        self.expected += 1
        self._pipe_number = self.expected
        self._accepted(size, now)
        stream.delivering = True
        return stream, content[position:]

    def _accepted(self, size: int, now: float) -> None:
        """Have the frames before `expected` acknowledged, the new ones with `size` bytes of DATA."""
        if self._pending.accepted(self.expected, size, now):
            self._wakeups.work = True
        else:
            self._wakeups.timer = True

    def _receive_other(self, frame: wire.Frame, now: float) -> None:
        if isinstance(frame, wire.Ping):
            sender = self._sender
            moved = self.expected + self.payload_received + sender.retransmit_buffer.next_number + sender.payload_sent
            self._pending.ping_received(frame.value, now, quiet=moved == self._moved)
            self._moved = moved
            if self._path.ping_received(self._sender.payload_sent, self._pending.least_round_trip, now):
                self._pending.ping_now(now)
            self._wakeups.work = True
        elif isinstance(frame, wire.Pong):
            round_trip = self._pending.pong_received(frame.value, now)
            if round_trip is not None:
                self._path.answered(round_trip, self._pending.least_round_trip, now)
                self._sender.pacer.loaded(self._path.paced_until(now), self._pending.least_round_trip)
                self._observer.answered(round_trip)
            self._wakeups.pong = True
        elif isinstance(frame, wire.Clock):
            self._told = frame.value / 1000
            excess = self._delay.excess(self._told, now)
            self._late = excess > LATE
            self._path.waited(excess, self._pending.least_round_trip, now)

    def _is_new(self) -> bool:
        """Count one numbered frame; False when it is a duplicate from before the cut."""
        number = self._pipe_number
        self._pipe_number = number + 1
        if number < self.expected:
            return False
        self.expected += 1
        return True

    def _receive_data(self, stream: StreamState, payload: memoryview, record_size: int) -> None:
        if stream.phase is not OPEN:
            stream.advance(StreamStep.RECV_DATA)
        size, window = len(payload), stream.window
        if window.received + size > window.granted:
            raise ProtocolError(f"{size} bytes on stream {stream.id} beyond its credit of {window.granted}")
        window.received += size
        self.payload_received += size
        if stream.released:
            return
        inbox = stream.inbox
        if size >= SMALL_PAYLOAD:
            inbox.append(payload if 2 * size >= record_size else memoryview(bytes(payload)))
        elif inbox and isinstance(last := inbox[-1], bytearray) and len(last) + size <= JOINED:
            last += payload
        else:
            inbox.append(bytearray(payload))
        self._wakeups.readers.append(stream)

    def _receive_datagram(self, number: int, payload: bytes, now: float) -> None:
        """Hand a datagram on.

        Drop it where it has come too late, or its stream is over, or not known yet, since OPEN has yet to be replayed.
        """
        stream = self._streams.find_open(number)
        if stream is None or stream.released or self._late:
            return
        stream.datagram_bytes_received += len(payload)
        self.payload_received += len(payload)
        if stream.takes_datagrams:
            self._wakeups.datagrams.append((stream, payload))
        else:
            self.early_datagrams.add(number, payload, now)

    def _receive_numbered(self, kind: int, content: memoryview, position: int, now: float, events: list[Event]) -> int:
        """Take the numbered frame at `position` that is no DATA; return where the next one begins.

        Those of which each stream has one, without an object.
        """
        if kind == wire.FIN:
            number, offset, position = wire.parse_fin(content, position)
            if self._is_new() and (stream := self._streams.find(number)) is not None:
                self._receive_fin(stream, offset)
        elif kind == wire.OPEN:
            number, request, position = wire.parse_text(content, position)
            if self._is_new():
                self._receive_open(number, request, now, events)
        elif kind == wire.ACCEPT:
            number, text, position = wire.parse_text(content, position)
            if self._is_new() and (stream := self._streams.find(number)) is not None:
                self._receive_accept(stream, decode_text(text), now)
        else:
            frame, position = wire.parse_frame(content, position)
            if not self._is_new():
                return position
            if isinstance(frame, wire.Control):
                self._sender.check_answers_are_read()
                events.append(ControlReceived(frame.message))
            elif isinstance(frame, wire.Reset) and (stream := self._streams.find(frame.stream)) is not None:
                stream.advance(StreamStep.RECV_RESET)
                self._observer.stream_reset(reason_label(frame.reason), by_peer=True)
                self._sender.abort(stream, frame.reason, frame.text)
        return position

    def _receive_open(self, number: int, request: bytes, now: float, events: list[Event]) -> None:
        self._sender.check_answers_are_read()
        stream = self._streams.open_peer(number, request, now)
        if stream is not None:
            events.append(Opened(stream))
            return
        self._sender.queue_control(wire.Reset(number, wire.Reason.LIMIT, self._refusal).encode())
        self._observer.stream_reset(reason_label(wire.Reason.LIMIT), by_peer=False)

    def _receive_accept(self, stream: StreamState, text: str, now: float) -> None:
        if stream.accepted is not None or not self._streams.is_own(stream.id):
            raise ProtocolError(f"ACCEPT of stream {stream.id} that was not to be accepted")
        stream.accepted = text
        self._observer.stream_opened(now - stream.opened_at)
        self._wakeups.readers.append(stream)

    def _receive_fin(self, stream: StreamState, offset: int) -> None:
        came = stream.window.received
        if offset != came:
            raise ProtocolError(f"FIN of stream {stream.id} says {offset} bytes, {came} came")
        stream.advance(StreamStep.RECV_FIN)
        stream.fin_received = True
        self._pending.drop_credit(stream)
        self._wakeups.readers.append(stream)
        if stream.phase is CLOSED:
            self._sender.forget(stream)

    # --- by streams' readers --------------------------------------------------------------------

    def take(self, stream: StreamState) -> memoryview | None:
        """Return the next payload for the stream's reader, or None when there is none now."""
        return memoryview(stream.inbox.popleft()) if stream.inbox else None

    def put_back(self, stream: StreamState, payload: memoryview) -> None:
        """Return what `take` gave, or the end of it: it comes first again."""
        if not stream.released:
            stream.inbox.appendleft(payload)

    def consumed(self, stream: StreamState, count: int, now: float) -> bool:
        """Note that the reader has handed on `count` bytes.  True when a CREDIT is due."""
        if stream.released:
            return False
        pending, path = self._pending, self._path
        least = pending.least_round_trip
        path.received = self.payload_received
        due = stream.window.consume(count, now, least, path)
        if due and not stream.fin_received and self._streams.is_open(stream):
            pending.add_credit(stream)
            if path.bulk(least, now, ping_waits=pending.ping_waits(now) is not None):
                pending.ping_now(now)
            return True
        return False
