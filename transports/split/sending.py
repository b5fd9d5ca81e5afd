"""The other half of what both ends of a split pipe share: messages that wait to be taken by requests or answers.

Who sends waits here for room, as for a socket's buffer; requests and answers take bytes from `outgoing` themselves.
`receiving` is the half that brings bytes.
"""

from __future__ import annotations

import math
import threading
import time

from qanat.base.errors import LocalError, PipeEnded
from qanat.base.lazy_waiting import LazyCondition
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import MAX_MESSAGE, stuck_for
from qanat.transports.split.receiving import Receiving
from qanat.transports.split.sequence import PREFIX, Outgoing

MAX_UNSENT, MAX_UNSENT_QUICK = 240 * 1024, 1000 * 1024
"""Bytes that nothing has taken yet, beyond which a sender waits: what is urgent could not overtake them.  Two usual
records of bulk, or one large one; more, up to the second, where they are taken within `Sending.unsent_time`."""
UNSENT_TIME = 0.008
"""Seconds of bytes, at the rate at which the other end acknowledges them: some round trips of a path on one machine."""
RATE_TIME, RATE_PAUSE = 0.02, 0.5
"""Seconds over which that is measured at least, and at most."""
HELD_UP = 0.5
"""Seconds that bytes wait for a request or an answer to take them until the path counts as held up: more than a round
trip of nearly every path, in which the next one comes."""


class Sending:
    """One pipe's bytes to send.  `lock` is the pipe's, which all that ends in `_locked` needs."""

    def __init__(self, lock: threading.Lock, receiving: Receiving, cause: FirstCause) -> None:
        self.outgoing = Outgoing()
        self.write_timeout: float | None = None
        self.unsent_time = UNSENT_TIME
        """The seconds of bytes that may wait; at a client as many as pass until the next request, if these are more."""
        self._receiving = receiving
        self._cause = cause
        self._room = LazyCondition(lock)
        self._moved_at = time.monotonic()  # when the other end last took something
        self._waits_since = math.inf  # since when nothing has taken the bytes that were never sent
        self._most_unsent = MAX_UNSENT
        self._rate_since, self._rate_from = -math.inf, 0  # when the rate was taken last, and what was acknowledged then

    @property
    def has_room(self) -> bool:
        """Whether a message may be queued without waiting."""
        return self.outgoing.unsent < self._most_unsent

    def append_locked(self, buffer: memoryview) -> None:
        """Queue the message `buffer[PREFIX.size:]`.  Raises LocalError, and PipeEnded."""
        length = len(buffer) - PREFIX.size
        if not 0 <= length <= MAX_MESSAGE:
            raise LocalError(f"a message of {length} bytes is outside the limit of {MAX_MESSAGE}")
        self._check_open_locked()
        PREFIX.pack_into(buffer, 0, length)
        if not self.outgoing.unsent:
            self._moved_at = self._waits_since = time.monotonic()
        self.outgoing.append(buffer)

    def take_locked(self, size: int) -> tuple[int, memoryview] | None:
        """Take at most `size` bytes for a request or an answer, see `Outgoing.take`; who waits for room is woken."""
        taken = self.outgoing.take(size)
        if taken is not None:
            self._waits_since = time.monotonic() if self.outgoing.unsent else math.inf
            self.wake_locked()
        return taken

    @property
    def held_up(self) -> bool:
        """Whether bytes have waited for HELD_UP, and nothing takes them.  Needs no lock."""
        return time.monotonic() - self._waits_since > HELD_UP

    def await_room_locked(self) -> str | None:
        """Block until there is room; return why the owner has to end the pipe once the write timeout has passed.

        Raises PipeEnded.
        """
        while True:
            self._check_open_locked()
            if self.has_room:
                return None
            remaining = None
            if self.write_timeout is not None:
                remaining = self._moved_at + self.write_timeout - time.monotonic()
                if remaining <= 0:
                    return stuck_for(self.write_timeout)
            self._room.wait(remaining)

    def acknowledge_locked(self, acknowledged: int, limit: int, now: float) -> bool:
        """Heed what the other end says of the bytes that it has, and takes; return whether anything moved.

        Raises ProtocolError.
        """
        if not self.outgoing.acknowledge(acknowledged, limit):
            return False
        self._moved_at = now
        elapsed = now - self._rate_since
        if elapsed >= RATE_TIME:
            if elapsed < RATE_PAUSE:
                taken = (self.outgoing.acknowledged - self._rate_from) / elapsed * self.unsent_time
                self._most_unsent = min(max(MAX_UNSENT, round(taken)), MAX_UNSENT_QUICK)
            self._rate_since, self._rate_from = now, self.outgoing.acknowledged
        self.wake_locked()
        return True

    def wake_locked(self) -> None:
        """Have who waits for room look again: some was taken, or the pipe has ended."""
        self._room.notify_all()

    def _check_open_locked(self) -> None:
        if self._cause.text is not None:
            raise self._cause.error()
        if self._receiving.peer_gone is not None:
            raise PipeEnded(self._receiving.peer_gone)
