"""The blocking face of one stream, for the two threads that pump it.

One thread (the uplink) calls `wait_writable`, `take_block`, `write…`, `finish`; another (the downlink)
calls `receive` and `consumed`; any thread calls `reset`.  When the stream is over, whoever waits is
woken with StreamReset, and the callback given to `on_failure` lets the owner of a socket wake a thread
that is blocked in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qanat.base.deadline import Deadline
from qanat.base.errors import StreamReset
from qanat.mux.frames import Reason, reason_name
from qanat.mux.slab import Block
from qanat.mux.stream import Stream
from qanat.mux.stream_state import State

if TYPE_CHECKING:
    from qanat.mux.lane_waking import LaneWaking


class StreamIO:
    """See the module's docstring.  Made by `Lane`, never by others."""

    def __init__(self, lane: LaneWaking, stream: Stream) -> None:
        self._lane = lane
        self._core = lane.core
        self._stream = stream
        self._lock = lane.lock
        self.readable = threading.Condition(lane.lock)
        self.writable = threading.Condition(lane.lock)
        self._on_failure: Callable[[], None] | None = None
        stream.io = self

    @property
    def id(self) -> int:
        return self._stream.id

    @property
    def label(self) -> str:
        """Its lane's name and its id: unique in this session, for threads and logs."""
        return f"{self._lane.name} {self._stream.id}"

    @property
    def request(self) -> bytes:
        """The stream request that OPEN carried."""
        return self._stream.request

    @property
    def failure(self) -> tuple[int, str] | None:
        """Why the stream was reset, as (qanat.mux.frames.Reason, text); None while it was not."""
        return self._stream.failure

    @property
    def counts(self) -> tuple[int, int]:
        """Bytes sent to and received from the peer so far."""
        return self._stream.sent, self._stream.window.received

    # --- towards the peer -----------------------------------------------------------------------

    def wait_writable(self) -> int:
        """Block until the peer takes more; return how many bytes.  Raises StreamReset."""
        with self._lock:
            while True:
                self._raise_if_over_locked()
                room = self._core.sendable(self._stream)
                if room:
                    return room
                self.writable.wait()

    def take_block(self) -> Block:
        """Block until the lane has a block to fill.  Raises StreamReset.

        It must come back with `write_block` or `return_block`.
        """
        with self._lock:
            while True:
                self._raise_if_over_locked()
                block = self._core.slab.take()
                if block is not None:
                    return block
                self._lane.wait_for_room_locked()

    def return_block(self, block: Block) -> None:
        """Give an unused block back.  Does not block."""
        with self._lock:
            self._core.give_block(block)
            failed = self._lane.wake_locked()
        self._lane.tell(failed)

    def write_block(self, block: Block) -> None:
        """Queue `block.length` bytes, within what `wait_writable` said.  The block is the lane's again."""
        with self._lock:
            self._core.send(self._stream, block)
            failed = self._lane.work_locked()
        self._lane.tell(failed)

    def write(self, data: bytes) -> None:
        """Queue at most 64 KiB, within what `wait_writable` said.  Does not block."""
        with self._lock:
            self._core.send(self._stream, data)
            failed = self._lane.work_locked()
        self._lane.tell(failed)

    def finish(self) -> None:
        """Half-close: the peer reads the end after all that was written.  Idempotent, does not block."""
        with self._lock:
            self._core.finish(self._stream)
            failed = self._lane.wake_locked()
        self._lane.tell(failed)

    def accept(self, text: str) -> None:
        """Tell the opener that its target was reached, and at which address."""
        with self._lock:
            self._core.accept(self._stream, text)
            failed = self._lane.wake_locked()
        self._lane.tell(failed)

    def reset(self, reason: Reason, text: str) -> None:
        """End both directions abruptly; the peer learns `reason` and `text`.  Idempotent, does not block."""
        with self._lock:
            self._core.reset(self._stream, reason, text)
            failed = self._lane.wake_locked()
        self._lane.tell(failed)

    # --- from the peer --------------------------------------------------------------------------

    def receive(self) -> memoryview | None:
        """Block for the next bytes; None at the orderly end.  Raises StreamReset after what came before it."""
        with self._lock:
            while True:
                payload = self._core.take(self._stream)
                if payload is not None:
                    return payload
                if self._stream.fin_received:
                    return None
                self._raise_if_over_locked()
                self.readable.wait()

    def consumed(self, count: int) -> None:
        """`count` bytes have been handed on: the peer may send as many more.  Does not block."""
        with self._lock:
            if not self._core.consumed(self._stream, count, self._lane.clock()):
                return
            failed = self._lane.work_locked()
        self._lane.tell(failed)

    def wait_accepted(self, deadline: Deadline) -> str | None:
        """Block until the peer has reached the target; its address, or None at the deadline.

        Raises StreamReset when it could not.
        """
        with self._lock:
            while self._stream.accepted is None:
                self._raise_if_over_locked()
                if deadline.passed:
                    return None
                self.readable.wait(deadline.remaining())
            return self._stream.accepted

    def release(self) -> None:
        """Both threads are done with this stream.  Idempotent; does not block.

        What was queued before `finish` is still sent; a stream that has not ended both ways is reset.
        """
        with self._lock:
            if not self._stream.ends_orderly:
                self._core.reset(self._stream, Reason.CANCELLED, "")
            self._core.release(self._stream)
            failed = self._lane.wake_locked()
        self._lane.tell(failed)

    def on_failure(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, by some thread, when the stream is reset; at once if it was.

        It must not block.
        """
        with self._lock:
            self._on_failure = callback
            over = self._stream.failure is not None
        if over:
            self.fail()

    def fail(self) -> None:
        """Call the failure callback, once.  For `Lane`."""
        with self._lock:
            callback, self._on_failure = self._on_failure, None
        if callback is not None:
            callback()

    def _raise_if_over_locked(self) -> None:
        if self._stream.failure is not None:
            code, text = self._stream.failure
            raise StreamReset(text or reason_name(code), code=code)
        if self._stream.state is State.CLOSED and not self._stream.fin_received:
            raise StreamReset("the stream is over", code=Reason.CANCELLED)
