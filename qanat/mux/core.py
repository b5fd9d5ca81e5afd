"""One lane without sockets, threads or clocks: bytes and `now` in, events and records out.

A lane is an ordered sequence of frames in each direction that outlives the pipe it runs on.  Sending
(`qanat.mux.sending`): payload waits unnumbered in its stream's queue until `next_record` picks it, numbers it and
keeps it in the outbox until it is acknowledged.  Receiving (`qanat.mux.receiving`): `receive` takes one record's
frames, in order, exactly once, whatever was replayed.  What is owed to the peer without a number (ACK, CREDIT,
PING, PONG) is state, not a queue, so a peer cannot make it grow.  Here is what begins and ends: pipes, streams
from our side, and the lane.

Not thread-safe: `qanat.mux.lane` guards it with its lock.  Streams whose reader or writer should look again are put
into `wake_readers` and `wake_writers`, `room_made` and `work_made` say that threads that wait for room in the
outbox or slab, or for something to send, should; the lane empties those.
"""

from __future__ import annotations

from collections import deque

from qanat.base.errors import ProtocolError, SessionEnded, StreamReset
from qanat.mux import frames as wire
from qanat.mux.invariants import check_invariants
from qanat.mux.receiving import Receiving
from qanat.mux.sending import Sending
from qanat.mux.stream import Stream
from qanat.mux.stream_state import State, Step


class LaneCore(Sending, Receiving):
    """See the module's docstring.  Every method is called with the lane's lock held."""

    # --- the pipe below -------------------------------------------------------------------------

    def attach(self, now: float, *, peer_expects: int = 0, receive_from: int | None = None) -> None:
        """A new pipe carries this lane: replay from `peer_expects` on.

        `receive_from` is the number of the first numbered frame that the peer will send on this pipe
        (None: what we expect); those below what we expect are dropped.  Raises ProtocolError when the
        peer expects what is not kept, and when a gap would follow; nothing has changed then.
        """
        self.outbox.check_resume(peer_expects)
        start = self.received if receive_from is None else receive_from
        if start > self.received:
            raise ProtocolError(f"the peer goes on at frame {start}, but {self.received} is the next expected")
        self._acknowledged(peer_expects)
        self._replay = deque(self.outbox.since(peer_expects))
        self._sent = peer_expects
        self._late_ack = 0
        self._pipe_number = start
        self.owed.restart(now, self.streams.values())
        self.attached = True

    def detach(self) -> None:
        """The pipe is gone; what was sent and not acknowledged waits for the next."""
        self.attached = False
        self._replay.clear()

    def close(self) -> None:
        """Take no more payload: once `idle`, all that was queued has been sent.  Idempotent."""
        self.closing = True

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
        self.slab.clear()
        self.wake_writers.extend(self._waiting_for_queue)
        self._waiting_for_queue.clear()
        self.room_made = self.work_made = True
        return over

    # --- streams --------------------------------------------------------------------------------

    def open_stream(self, request: bytes, now: float) -> Stream:
        """Open a stream towards the peer.  DATA may follow at once.

        Raises SessionEnded, StreamReset(LIMIT) when the peer allows no more, and LocalError for a request
        above 1,024 bytes.  The caller waits while `outbox.full`.
        """
        if self.ended is not None:
            raise SessionEnded(self.ended)
        if self._own_open >= self.parameters.peer_max_streams:
            raise StreamReset(
                f"the other end allows {self.parameters.peer_max_streams} streams at once", code=wire.Reason.LIMIT
            )
        number = self._next_id
        self._queue_control(wire.Open(number, request))
        self._next_id += 2
        self._own_open += 1
        return self._new_stream(number, request, now)

    def accept(self, stream: Stream, text: str) -> None:
        """Tell the opener that its target was reached; nothing when the stream is over already."""
        if stream.state is not State.CLOSED:
            self._queue_control(wire.Accept(stream.id, text))

    def reset(self, stream: Stream, reason: int, text: str) -> None:
        """End the stream abruptly, discarding what was not yet picked.  Idempotent."""
        if stream.state is State.CLOSED:
            return
        self._fail(stream, reason, text)
        stream.advance(Step.SEND_RESET)
        self._queue_control(wire.Reset(stream.id, reason, text))
        self._drop(stream)

    def send_control(self, message: bytes) -> None:
        """Queue a control message.  The caller bounds how many of its own there are (one for each forward);
        how many a peer can make us answer is bounded here, by `receive`."""
        if self.ended is None:
            self._queue_control(wire.Control(message))

    def check_invariants(self) -> None:
        """Raise AssertionError when the parts of this core contradict each other.  Slow; for tests."""
        check_invariants(self)
