"""What the core knows about one stream.  Pure state: `qanat.mux.core` and `qanat.mux.scheduler` are the only ones
who change it, under the lane's lock; `qanat.mux.stream_io` is the face that threads use.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from qanat.mux.slab import Block
from qanat.mux.stream_state import State, Step, advance
from qanat.mux.window import ReceiveWindow

if TYPE_CHECKING:
    from qanat.mux.stream_io import StreamIO


class Stream:
    """One stream, in absolute byte offsets for either direction.

    `queue` holds payload that waits, unnumbered, for the scheduler; `inbox` holds payload that waits
    for its reader.  `sent` counts bytes numbered so far, `promised` also those that still wait.
    """

    __slots__ = (
        "accepted",
        "deficit",
        "failure",
        "fin_due",
        "fin_received",
        "id",
        "in_fresh",
        "in_steady",
        "inbox",
        "io",
        "promised",
        "queue",
        "queued_bytes",
        "released",
        "request",
        "send_limit",
        "sent",
        "state",
        "window",
    )

    def __init__(self, number: int, request: bytes, send_limit: int, window: ReceiveWindow) -> None:
        self.id = number
        self.request = request
        self.state = State.OPEN
        self.send_limit = send_limit
        self.window = window
        self.sent = 0
        self.promised = 0
        self.queue: deque[Block | bytes | bytearray] = deque()
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
        self.io: StreamIO | None = None

    def advance(self, step: Step) -> None:
        """Make one step of the table in `stream_state`, or raise as it does."""
        self.state = advance(self.state, step)

    @property
    def ends_orderly(self) -> bool:
        """Whether the peer has finished, and we have too or will once what is queued has been sent."""
        return self.fin_received and (self.fin_due or self.state is State.CLOSED)
