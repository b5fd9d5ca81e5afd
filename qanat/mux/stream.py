"""The blocking face of one stream, for the two threads that pump it.

One thread (the uplink) calls `wait_writable`, `take_buffer`, `write…`, `finish`; another (the downlink)
calls `receive` and `consumed`; any thread calls `reset`.  When the stream is over, whoever waits is
woken with StreamReset, and the callback given to `on_failure` lets the owner of a socket wake a thread
that is blocked in it.

What a stream is on the wire is `qanat.mux.stream_state`; the lane, with its lock, is `qanat.mux.lane`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from qanat.base.deadline import Deadline
from qanat.base.errors import StreamReset
from qanat.mux.buffer_pool import Buffer
from qanat.mux.core import LaneCore
from qanat.mux.frames import Reason, reason_name
from qanat.mux.stream_state import StreamPhase, StreamState


class LaneOfStream(Protocol):
    """What a stream needs of its lane (`qanat.mux.lane.Lane`)."""

    name: str
    lock: threading.Lock
    core: LaneCore
    clock: Callable[[], float]

    def wake_locked(self) -> list[Stream]:
        """Wake the threads that the core has named; return the streams to `report` once the lock is released."""

    def report(self, failed: list[Stream]) -> None:
        """Call the failure callbacks, without the lock."""

    def wait_for_room_locked(self) -> None:
        """Block until a buffer or room in the retransmit buffer may be there."""


class Stream:
    """One stream as its two threads see it.  Made by `Lane`, never by others."""

    def __init__(self, lane: LaneOfStream, state: StreamState) -> None:
        self._lane = lane
        self._lock = lane.lock
        self._core = lane.core
        self._sender = lane.core.sender
        self._receiver = lane.core.receiver
        self._state = state
        self._readable = threading.Condition(lane.lock)
        self._writable = threading.Condition(lane.lock)
        self._on_failure: Callable[[], None] | None = None

    @property
    def id(self) -> int:
        """Its number, unique in its lane."""
        return self._state.id

    @property
    def label(self) -> str:
        """Its lane's name and its id: unique in this session, for threads and logs."""
        return f"{self._lane.name} {self._state.id}"

    @property
    def request(self) -> bytes:
        """The stream request that OPEN carried."""
        return self._state.request

    @property
    def failure(self) -> tuple[int, str] | None:
        """Why the stream was reset, as (qanat.mux.frames.Reason, text); None while it was not."""
        return self._state.failure

    @property
    def counts(self) -> tuple[int, int]:
        """Bytes sent to and received from the peer so far."""
        return self._state.sent, self._state.window.received

    # --- towards the peer -----------------------------------------------------------------------

    def wait_writable(self) -> int:
        """Block until the peer takes more; return how many bytes.  Raises StreamReset."""
        with self._lock:
            while True:
                self._raise_if_over_locked()
                room = self._sender.sendable(self._state)
                if room:
                    return room
                self._writable.wait()

    def take_buffer(self) -> Buffer:
        """Block until the lane has a buffer to fill.  Raises StreamReset.

        It must come back with `write_buffer` or `return_buffer`.
        """
        with self._lock:
            while True:
                self._raise_if_over_locked()
                buffer = self._sender.buffers.take()
                if buffer is not None:
                    return buffer
                self._lane.wait_for_room_locked()

    def return_buffer(self, buffer: Buffer) -> None:
        """Give an unused buffer back.  Does not block."""
        with self._lock:
            self._sender.return_buffer(buffer)
            failed = self._lane.wake_locked()
        self._lane.report(failed)

    def write_buffer(self, buffer: Buffer) -> None:
        """Queue `buffer.length` bytes, within what `wait_writable` said.  Does not block.

        The buffer is the lane's again.  Raises LocalError beyond that or after `finish`.
        """
        self._write(buffer)

    def write(self, data: bytes) -> None:
        """Queue at most 64 KiB, within what `wait_writable` said.  Does not block.

        Raises LocalError beyond that or after `finish`.
        """
        self._write(data)

    def _write(self, payload: Buffer | bytes) -> None:
        with self._lock:
            self._sender.send(self._state, payload)
            self._core.wakeups.work = True
            failed = self._lane.wake_locked()
        self._lane.report(failed)

    def finish(self) -> None:
        """Half-close: the peer reads the end after all that was written.  Idempotent; does not block."""
        with self._lock:
            self._sender.finish(self._state)
            failed = self._lane.wake_locked()
        self._lane.report(failed)

    def accept(self, text: str) -> None:
        """Tell the opener that its target was reached, and at which address.  Does not block."""
        with self._lock:
            self._core.accept(self._state, text)
            failed = self._lane.wake_locked()
        self._lane.report(failed)

    def reset(self, reason: Reason, text: str) -> None:
        """End both directions abruptly; the peer learns `reason` and `text`.  Idempotent; does not block."""
        with self._lock:
            self._core.reset(self._state, reason, text)
            failed = self._lane.wake_locked()
        self._lane.report(failed)

    # --- from the peer --------------------------------------------------------------------------

    def receive(self) -> memoryview | None:
        """Block for the next bytes; None at the orderly end.  Raises StreamReset after what came before it."""
        with self._lock:
            while True:
                payload = self._receiver.take(self._state)
                if payload is not None:
                    return payload
                if self._state.fin_received:
                    return None
                self._raise_if_over_locked()
                self._readable.wait()

    def consumed(self, count: int) -> None:
        """Let the peer send `count` bytes more: as many have been handed on.  Does not block."""
        with self._lock:
            if not self._receiver.consumed(self._state, count, self._lane.clock()):
                return
            self._core.wakeups.work = True
            failed = self._lane.wake_locked()
        self._lane.report(failed)

    def wait_accepted(self, deadline: Deadline) -> str | None:
        """Block until the peer has reached the target; return its address, or None at the deadline.

        Raises StreamReset when the peer could not.
        """
        with self._lock:
            while self._state.accepted is None:
                self._raise_if_over_locked()
                if deadline.passed:
                    return None
                self._readable.wait(deadline.remaining())
            return self._state.accepted

    # --- the end --------------------------------------------------------------------------------

    def release(self) -> None:
        """Leave the stream: both threads are done with it.  Idempotent; does not block.

        What was queued before `finish` is still sent; a stream that has not ended both ways is reset.
        """
        with self._lock:
            if not self._state.ends_orderly:
                self._core.reset(self._state, Reason.CANCELLED, "")
            self._core.streams.release(self._state)
            failed = self._lane.wake_locked()
        self._lane.report(failed)

    def on_failure(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, by some thread, when the stream is reset; at once if it was.

        It must not block.
        """
        with self._lock:
            self._on_failure = callback
            over = self._state.failure is not None
        if over:
            self.fail()

    def _raise_if_over_locked(self) -> None:
        if self._state.failure is not None:
            code, text = self._state.failure
            raise StreamReset(text or reason_name(code), code=code)
        if self._state.phase is StreamPhase.CLOSED and not self._state.fin_received:
            raise StreamReset("the stream is over", code=Reason.CANCELLED)

    # --- for Lane -------------------------------------------------------------------------------

    def wake_reader_locked(self) -> None:
        """Wake who waits in `receive` or `wait_accepted`: two threads may, so both."""
        self._readable.notify_all()

    def wake_writer_locked(self) -> None:
        """Wake the one thread that may wait in `wait_writable`."""
        self._writable.notify()

    def fail(self) -> None:
        """Call the failure callback, once, without the lane's lock."""
        with self._lock:
            callback, self._on_failure = self._on_failure, None
        if callback is not None:
            callback()
