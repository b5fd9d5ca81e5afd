"""One stream as the core knows it: its phase, what it has promised and what it holds (docs/PROTOCOL.md §4, Streams).

TRANSITIONS is the law: what is not in it is a ProtocolError when the peer does it and a LocalError when we do.

Pure.  Only the parts of `qanat.mux.core` change a StreamState, under the lane's lock; `qanat.mux.stream` is the face
that threads use.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from qanat.base.errors import LocalError, ProtocolError
from qanat.mux.buffer_pool import Buffer
from qanat.mux.window import ReceiveWindow


class StreamPhase(Enum):
    """How far a stream is on the wire; the value is for messages."""

    OPEN = "open"
    HALF_CLOSED_LOCAL = "half closed by us"
    HALF_CLOSED_REMOTE = "half closed by the peer"
    CLOSED = "closed"

    __hash__ = object.__hash__  # Enum's own is written in Python


OPEN, CLOSED = StreamPhase.OPEN, StreamPhase.CLOSED
"""For what is done for each record: looking a member up in its class takes longer than comparing it."""


class StreamStep(Enum):
    """What takes a stream from one phase to another; the value is for messages."""

    RECV_DATA = "receive DATA"
    SEND_FIN = "send FIN"
    RECV_FIN = "receive FIN"
    SEND_RESET = "send RESET"
    RECV_RESET = "receive RESET"

    __hash__ = object.__hash__  # as above


PEER_STEPS = frozenset({StreamStep.RECV_DATA, StreamStep.RECV_FIN, StreamStep.RECV_RESET})

TRANSITIONS: dict[tuple[StreamPhase, StreamStep], StreamPhase] = {
    (StreamPhase.OPEN, StreamStep.RECV_DATA): StreamPhase.OPEN,
    (StreamPhase.OPEN, StreamStep.SEND_FIN): StreamPhase.HALF_CLOSED_LOCAL,
    (StreamPhase.OPEN, StreamStep.RECV_FIN): StreamPhase.HALF_CLOSED_REMOTE,
    (StreamPhase.OPEN, StreamStep.SEND_RESET): StreamPhase.CLOSED,
    (StreamPhase.OPEN, StreamStep.RECV_RESET): StreamPhase.CLOSED,
    (StreamPhase.HALF_CLOSED_LOCAL, StreamStep.RECV_DATA): StreamPhase.HALF_CLOSED_LOCAL,
    (StreamPhase.HALF_CLOSED_LOCAL, StreamStep.RECV_FIN): StreamPhase.CLOSED,
    (StreamPhase.HALF_CLOSED_LOCAL, StreamStep.SEND_RESET): StreamPhase.CLOSED,
    (StreamPhase.HALF_CLOSED_LOCAL, StreamStep.RECV_RESET): StreamPhase.CLOSED,
    (StreamPhase.HALF_CLOSED_REMOTE, StreamStep.SEND_FIN): StreamPhase.CLOSED,
    (StreamPhase.HALF_CLOSED_REMOTE, StreamStep.SEND_RESET): StreamPhase.CLOSED,
    (StreamPhase.HALF_CLOSED_REMOTE, StreamStep.RECV_RESET): StreamPhase.CLOSED,
}
"""DATA that we send is checked where it is queued (`Sender.send`): it changes no phase."""


class StreamState:
    """One stream, in absolute byte offsets for either direction.

    `queue` holds payload that waits, unnumbered, for the scheduler; `inbox` holds payload that waits
    for its reader.  `sent` counts bytes numbered so far, `promised` also those that still wait.
    `writer_waits` is `qanat.mux.stream`'s to say: whether anybody has to hear that there may be room; so are `direct`,
    whether the lane's reader hands payload on itself, and `delivering`, whether somebody does so right now.
    """

    __slots__ = (
        "accepted",
        "datagram_bytes_received",
        "datagram_bytes_sent",
        "deficit",
        "delivering",
        "direct",
        "failure",
        "fin_due",
        "fin_received",
        "id",
        "in_fresh",
        "in_steady",
        "inbox",
        "opened_at",
        "phase",
        "promised",
        "queue",
        "queued_bytes",
        "released",
        "request",
        "send_limit",
        "sent",
        "takes_datagrams",
        "turn_spent",
        "window",
        "writer_waits",
    )

    def __init__(
        self, number: int, request: bytes, send_limit: int, window: ReceiveWindow, opened_at: float = 0.0
    ) -> None:
        self.id = number
        self.opened_at = opened_at
        self.request = request
        self.phase = StreamPhase.OPEN
        self.send_limit = send_limit
        self.window = window
        self.sent = 0
        self.promised = 0
        self.queue: deque[Buffer | bytes | bytearray] = deque()
        self.queued_bytes = 0
        self.inbox: deque[memoryview | bytearray] = deque()
        self.fin_due = False
        self.fin_received = False
        self.accepted: str | None = None
        self.failure: tuple[int, str] | None = None
        self.deficit = 0
        self.in_fresh = False
        self.in_steady = False
        self.released = False
        self.takes_datagrams = False
        self.writer_waits = False
        self.direct = self.delivering = False
        self.turn_spent = False  # in a crowd: it has queued what others take two turns for
        self.datagram_bytes_received = 0
        self.datagram_bytes_sent = 0

    def advance(self, step: StreamStep) -> None:
        """Make one step of the table; raises ProtocolError or LocalError when it has none."""
        following = TRANSITIONS.get((self.phase, step))
        if following is None:
            if step in PEER_STEPS:
                raise ProtocolError(f"the peer sent {step.value[8:]} on a stream that is {self.phase.value}")
            raise LocalError(f"cannot {step.value} on a stream that is {self.phase.value}")
        self.phase = following

    @property
    def ends_orderly(self) -> bool:
        """Whether the peer has finished, and we have too or will once what is queued has been sent."""
        return self.fin_received and (self.fin_due or self.phase is StreamPhase.CLOSED)

    def check_invariants(self) -> None:
        """Raise AssertionError when its numbers contradict each other.  Slow; for tests."""
        window = self.window
        queued = sum(p.length if isinstance(p, Buffer) else len(p) for p in self.queue)
        assert self.queued_bytes == queued, f"{self.id}: queued bytes do not add up"
        assert self.promised == self.sent + queued, f"{self.id}: promised is not sent and queued"
        assert self.promised <= self.send_limit, f"{self.id}: credit is overspent"
        assert not self.queue or self.in_fresh or self.in_steady, f"{self.id} has payload and no turn"
        assert not self.fin_due or self.queue, f"{self.id} owes a FIN and nothing before it"
        assert window.received <= window.granted, f"{self.id}: more came than was granted"
        if not self.released:
            waiting = sum(map(len, self.inbox))
            assert window.consumed + waiting <= window.received, f"{self.id}: more is in the inbox than came"
            uncharged = window.granted - window.consumed - window.initial - window.charged
            assert uncharged <= 0, f"{self.id}: memory uncharged"
