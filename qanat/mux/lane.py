"""One lane: a core, its lock, and the pipes that carry it, one after the other.

One lock guards the core and all streams of the lane (`qanat.mux.lane_waking`).  What a pipe's threads do is in
`qanat.mux.carrying`; here is what streams and sessions ask of a lane.  Streams' own threads come and go through
`StreamIO`.
"""

from __future__ import annotations

from qanat.base.deadline import Deadline
from qanat.base.errors import SessionEnded
from qanat.mux.carrying import Carrying
from qanat.mux.stream_io import StreamIO


class Lane(Carrying):
    """See the module's docstring.

    `on_open` is called by the reader for each stream that the peer opens, `on_control` for each control
    message; neither may block.  What `on_control` raises as ProtocolError ends the lane.
    """

    def open_stream(self, request: bytes) -> StreamIO:
        """Open a stream; blocks while the outbox is full.  Raises SessionEnded or StreamReset(LIMIT)."""
        with self.lock:
            while self.core.outbox.full and self.core.ended is None and self._closing is None:
                self._room.wait()
            if self._closing is not None:
                raise SessionEnded("the session is closing")
            stream = StreamIO(self, self.core.open_stream(request, self.clock()))
            failed = self.wake_locked()
        self.tell(failed)
        return stream

    def send_control(self, message: bytes) -> None:
        """Queue a control message.  Does not block; the caller bounds how many there are."""
        with self.lock:
            self.core.send_control(message)
            failed = self.wake_locked()
        self.tell(failed)

    @property
    def open_streams(self) -> int:
        """How many streams are open on the wire."""
        with self.lock:
            return len(self.core.streams)

    @property
    def progress(self) -> int:
        """How many frames have got through: ours that the peer has acknowledged, and the peer's that have come."""
        with self.lock:
            return self.core.acknowledged + self.core.received

    @property
    def attached(self) -> bool:
        """Whether the lane is on a pipe."""
        with self.lock:
            return self.core.attached

    @property
    def away(self) -> float:
        """For how many seconds the lane has been on no pipe; 0 while it is on one."""
        with self.lock:
            return 0.0 if self._sealed is not None else self.clock() - self._detached_at

    @property
    def epoch(self) -> int:
        """That of the newest pipe that was granted the lane; -1 before the first."""
        with self.lock:
            return self._attachment.epoch

    @property
    def load(self) -> tuple[bool, int, int]:
        """How much there is on the lane, to be compared with others: without a pipe, open streams, bytes that wait."""
        with self.lock:
            core = self.core
            return not core.attached, len(core.streams), core.queued_bytes + core.outbox.charged

    @property
    def round_trip(self) -> float:
        """Seconds that a PING takes, smoothed; 0 before the first answer."""
        return self.core.owed.round_trip

    # --- how it is ----------------------------------------------------------------------------------

    def ping(self, timeout: float) -> bool:
        """Send a sealed PING at once; block until it is answered, or False after `timeout` seconds.

        False as soon as the lane has ended; a lane without a pipe may still get one in time.
        """
        return self.answered(self.ask(), timeout)

    def ask(self) -> int:
        """Have a sealed PING sent at once, or with the next pipe; returns its number.  Does not block."""
        with self.lock:
            owed = self.core.owed
            owed.ping_now(self.clock())
            self._work.notify()
            return owed.ping_count + 1

    def answered(self, number: int, timeout: float) -> bool:
        """Block until the PING of this number, or a later one, is answered; False after `timeout` seconds, or at the
        lane's end."""
        deadline = Deadline(timeout)
        with self.lock:
            while self.core.owed.pings_answered < number:
                if deadline.passed or self.core.ended is not None:
                    return False
                self._pong.wait(deadline.remaining())
            return True

    @property
    def over(self) -> bool:
        """Whether the lane has ended for good."""
        with self.lock:
            return self.core.ended is not None
