"""One lane without sockets, threads or clocks: bytes and `now` in, events and records out.

A lane is an ordered sequence of frames in each direction that outlives the pipe it runs on.  Its core is made of a
`Sender` (streams' queues to records), a `Receiver` (records to streams' inboxes), and the `StreamTable`; they share
what is pending without a number and the list of who must be woken.  Here is what concerns all of them: pipes that
begin and end, streams that begin or are reset, and the end of the lane.  Who writes to a stream or reads from it, and
who has a record or wants one, calls the sender or the receiver.

Pure, and not thread-safe: `qanat.mux.lane` guards it with its lock, and does what `wakeups` says.
"""

from __future__ import annotations

from qanat.base.errors import ProtocolError, SessionEnded
from qanat.mux import frames as wire
from qanat.mux.observer import reason_label
from qanat.mux.parameters import LaneParameters
from qanat.mux.pending_control import PendingControl
from qanat.mux.receiver import Receiver
from qanat.mux.sender import Sender
from qanat.mux.stream_state import StreamPhase, StreamState, StreamStep
from qanat.mux.stream_table import StreamTable
from qanat.mux.wakeups import Wakeups


class LaneCore:
    """See the module's docstring.  `now` is in seconds, of any clock that only rises."""

    def __init__(self, parameters: LaneParameters, now: float) -> None:
        self.parameters = parameters
        self.ended: str | None = None
        """Why the lane is over, or None."""
        self.wakeups = Wakeups()
        self.streams = StreamTable(parameters)
        self.pending = PendingControl(
            parameters.keepalive,
            parameters.outbox // 4,
            now,
            # The server asks first: its PINGs for many clients leave together, and theirs would wake it one by one.
            slack=parameters.keepalive_slack if parameters.client else 0.0,
            tell_clock=parameters.tell_clock,
        )
        self.sender = Sender(parameters, self.streams, self.pending, self.wakeups)
        self.receiver = Receiver(parameters, self.streams, self.sender, self.pending, self.wakeups)

    # --- the pipe below -------------------------------------------------------------------------

    def attach(self, now: float, *, peer_expects: int = 0, receive_from: int = 0, in_requests: bool = False) -> None:
        """Begin with a new pipe: replay from `peer_expects` on.

        `receive_from` is the number of the first numbered frame that the peer will send on this pipe; those below
        what we expect are dropped.  `in_requests`: see `Pipe.in_requests`.  Raises ProtocolError when the
        peer expects what is not kept, and when a gap would follow; nothing has changed then.
        """
        self.sender.retransmit_buffer.check_resume(peer_expects)
        expected = self.receiver.expected
        if receive_from > expected:
            raise ProtocolError(f"the peer goes on at frame {receive_from}, but {expected} is the next expected")
        self.sender.attach(peer_expects)
        self.receiver.attach(receive_from, in_requests=in_requests)
        self.pending.restart(now, self.streams, in_requests=in_requests)

    def detach(self) -> None:
        """Note that the pipe is gone; what was sent and not acknowledged waits for the next."""
        self.sender.detach()
        self.receiver.detach()

    # --- streams --------------------------------------------------------------------------------

    def open_stream(self, request: bytes, now: float) -> StreamState:
        """Open a stream towards the peer.  DATA may follow at once.

        Raises SessionEnded, StreamReset(LIMIT) when the peer allows no more, and LocalError for a request
        above 1,024 bytes.  The caller waits while the retransmit buffer is full.
        """
        if self.ended is not None:
            raise SessionEnded(self.ended)
        self.sender.queue_control(wire.open_stream(self.streams.next_own_id(), request))
        return self.streams.open_own(request, now)

    def accept(self, stream: StreamState, text: str) -> None:
        """Tell the opener that its target was reached; nothing when the stream is over already."""
        if stream.phase is not StreamPhase.CLOSED:
            stream.accepted = text
            self.sender.queue_control(wire.accept(stream.id, text))

    def reset(self, stream: StreamState, reason: int, text: str) -> None:
        """End the stream abruptly, discarding what was not yet picked.  Idempotent."""
        if stream.phase is StreamPhase.CLOSED:
            return
        stream.advance(StreamStep.SEND_RESET)
        self.parameters.observer.stream_reset(reason_label(reason), by_peer=False)
        self.sender.queue_control(wire.Reset(stream.id, reason, text).encode())
        self.sender.abort(stream, reason, text)

    # --- the lane -------------------------------------------------------------------------------

    def send_control(self, message: bytes) -> None:
        """Queue a control message of at most 1,024 bytes; nothing when the lane is over.

        The caller bounds how many of its own there are (one for each forward); how many a peer can make us answer is
        bounded by `receive`.
        """
        if self.ended is None:
            self.sender.queue_control(wire.Control(message).encode())

    def end(self, reason: int, text: str) -> list[StreamState]:
        """End the lane: every stream is reset here, nothing is sent.  Returns them.  Idempotent."""
        if self.ended is not None:
            return []
        self.ended = text
        over = list(self.streams)
        for stream in over:
            self.sender.abort(stream, reason, text)
        self.sender.end()
        self.receiver.end()
        self.wakeups.pong = True
        return over

    def check_invariants(self) -> None:
        """Raise AssertionError when the parts of this core contradict each other.  Slow; for tests."""
        self.streams.check_invariants()
        self.sender.check_invariants()
