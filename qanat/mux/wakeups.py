"""Which threads of a lane must look again.

The parts of the core note it here; the lane does it, and empties this, before it releases its lock
(`Lane.wake_locked`).  So the core wakes nobody, and knows no thread.  Pure.
"""

from __future__ import annotations

from qanat.mux.stream_state import StreamState


class Wakeups:
    """A mailbox: everybody may add, the lane alone takes out."""

    __slots__ = ("datagrams", "pong", "readers", "room", "timer", "work", "writers")

    def __init__(self) -> None:
        self.datagrams: list[tuple[StreamState, bytes]] = []
        """What one record brought for streams that take datagrams, in order."""
        self.readers: list[StreamState] = []
        """Streams that have something for their reader, or are over."""
        self.writers: list[StreamState] = []
        """Streams whose writer waits and may have room, and each once more when it is over on the wire, as the last."""
        self.pong = False
        """A PING of ours was answered, or never will be."""
        self.room = False
        """A buffer came back, or the retransmit buffer is no longer full."""
        self.work = False
        """There is something to send."""
        self.timer = False
        """There will be something to send, sooner than `Sender.next_timeout` has said before."""
