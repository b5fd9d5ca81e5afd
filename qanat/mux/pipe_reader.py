"""Who reads one pipe, and what follows from what has come.

While much comes a thread reads, which blocks in `recv` alone.  After QUIET_SECONDS without a byte, or a few small
records, it is given back, and the watcher (`qanat.base.watcher`) reads in its stead, until more comes at once than
BUSY_READ.  A pipe that cannot be watched keeps its thread.

What has come is acted upon at once: threads are woken, what is small is handed on, and what that makes due is sent by
whoever reads, as far as nothing blocks.  Made by `qanat.mux.pipe_runner` for each pipe, which has the other half.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

from qanat.base.errors import NoThread, ProtocolError, QanatError
from qanat.base.unexpected import FAILED, log_unexpected
from qanat.base.watcher import Flushable, Watcher
from qanat.base.workers import WORKERS
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, RecordKind
from qanat.mux.parameters import Event
from qanat.mux.pipe_result import PipeResult
from qanat.mux.stream import Calls, LaneOfStream, Stream
from qanat.mux.stream_state import StreamState
from qanat.mux.trace import frame_log, log_frames
from qanat.transports.readiness import Readiness

log = logging.getLogger("qanat.mux")

QUIET_SECONDS = 0.2
"""Seconds with nothing to do after which the reader, and the writer, give their thread back."""
BUSY_READ = 64 * 1024
"""Bytes that come at once from which on the reader's thread reads, and not the watcher."""
RECORDS_IN_TURN = 16
"""The same, in records."""
SMALL_RECORDS = 16
"""Records in turn of at most a quarter of BUSY_READ, after which the watcher reads again, busy as the pipe may be."""
RECORDS_HELD = 8
"""Records that have come whole and are taken in turn before what they have made due, CREDIT mostly, is sent."""
RETRY = 1.0
"""Seconds after which a reader, or a writer, for which there was no thread is tried again."""

_FRAMES = RecordKind.FRAMES


class LaneOfReader(LaneOfStream, Protocol):
    """What the reader needs of the lane (`qanat.mux.lane.Lane`)."""

    def callbacks_locked(self, events: list[Event]) -> list[Callable[[], None]]:
        """Return what has to be called for these events once the lock is released; it may raise ProtocolError."""

    def stream_locked(self, state: StreamState) -> Stream:
        """Return the face of a stream that is open."""

    def take_deliveries_locked(self) -> list[tuple[Stream, memoryview | None]]:
        """Take what the reader hands on itself, by stream; the others' readers are woken later."""

    def take_datagrams_locked(self) -> list[tuple[Stream, bytes]]:
        """Take what the reader hands on of datagrams, by stream."""


class Writer(Protocol):
    """What the reader needs of the pipe's other half (`qanat.mux.pipe_runner.PipeRunner`)."""

    close_next: Close | None
    close_when_idle: Close | None
    """What it will end the pipe with, after the present record or after all that is queued.  Read with the lock."""

    def send_now(self) -> None:
        """Send what is due in the calling thread, as far as nothing blocks."""

    def acknowledge_soon_locked(self, now: float) -> None:
        """Have an ACK sent within ACK_DELAY."""

    def set_timer_locked(self) -> None:
        """Have `PipeReader.look` called when it wants to be."""

    def end(self, result: PipeResult) -> None:
        """End the pipe, and say so."""


class _NoWriter:
    """The other half of a pipe that has not begun, or is over."""

    close_next: Close | None = None
    close_when_idle: Close | None = None

    def send_now(self) -> None:
        """Nothing is due any more."""

    def acknowledge_soon_locked(self, now: float) -> None:
        """Nor is an ACK."""

    def set_timer_locked(self) -> None:
        """And nobody looks."""

    def end(self, result: PipeResult) -> None:
        """Do nothing: it has ended."""


_NO_WRITER = _NoWriter()


class PipeReader:
    """See the module's docstring.  One thread at a time reads; `look` is the watcher's."""

    def __init__(self, lane: LaneOfReader, sealed: SealedPipe) -> None:
        self._lane = lane
        self._lock = lane.lock
        self._receiver = lane.core.receiver
        self._pending = lane.core.pending
        self._wakeups = lane.core.wakeups
        self._sealed = sealed
        self._pipe = sealed.pipe
        self._writer: Writer = _NO_WRITER  # until there is one, which has this reader: a cycle while the pipe lives
        self._readiness: Readiness | None = None  # what the watcher waits for, where it does
        self._silence = math.inf
        self._heard_at = 0.0  # when bytes came last, while the watcher reads
        self._watched = False  # the watcher reads
        self._retry_at = math.inf  # nobody reads until then: there was no thread for it
        self._found: PipeResult | None = None  # how the pipe ended, when the watcher has seen that
        self._held = 0  # records in turn that have left to the next one what has to be sent

    def begin(self, writer: Writer, silence: float) -> None:
        """Take the pipe's other half; nothing for `silence` seconds is the end of a pipe.  Before all else."""
        self._writer = writer
        self._silence = silence

    def watch(self, watcher: Watcher) -> bool:
        """Have `watcher` read while little comes; return whether it can.  Before `read`."""
        try:
            watcher.start()
        except (NoThread, OSError) as error:  # threads of its own do without
            log.warning("%s: %s", self._lane.name, error)
            return False
        self._readiness = self._pipe.readiness(watcher)
        return self._readiness is not None

    def look(self, now: float) -> bool:
        """Do what is due by now; return whether the pipe goes on.  By the watcher; does not block."""
        if now >= self._retry_at:
            self._retry_at = math.inf
            self._leave_watcher()
        if self._watched and now - self._heard_at >= self._silence and not self._something_has_come():
            self._sealed.close(f"nothing received for {self._silence:g} s")
            return False
        return True

    def next_look(self, now: float) -> float:
        """Return when `look` wants to be called, `now` for what is overdue; infinite for never."""
        at = self._heard_at + self._silence if self._watched else math.inf
        return max(now, min(at, self._retry_at))

    def trouble(self, patience: float) -> str:
        """Return what is wrong if silence should have ended the pipe more than `patience` seconds ago; else ""."""
        quiet = time.monotonic() - self._heard_at
        if self._watched and quiet > self._silence + patience:
            return f"nothing has come for {quiet:.0f} s, and nobody ends its pipe"
        return ""

    def close(self) -> None:
        """Give back what reading needed: the pipe is over, and nobody reads any more."""
        if self._readiness is not None:
            self._readiness.close()
        self._writer = _NO_WRITER

    def read(self) -> None:
        """Read in the calling thread while much comes, then leave the pipe to the watcher, or end it.  Blocks."""
        try:
            result = self._reader_loop()
        except ProtocolError as error:
            result = PipeResult(f"the peer broke the protocol: {error}", fault=True)
        except Exception:
            result = self._own_fault()
        if result is None:
            result = self._leave_to_watcher()
        if result is not None:
            self._writer.end(result)

    def _reader_loop(self) -> PipeResult | None:
        """Read until the pipe ends; None when little comes and the watcher can read.

        That is nothing for QUIET_SECONDS, or only small records for a while.
        """
        sealed = self._sealed
        watched = self._readiness is not None
        small = 0
        while True:
            try:
                record = sealed.recv_record_within(QUIET_SECONDS) if watched else sealed.recv_record()
            except QanatError as error:
                return self._cut(error)
            if record is None:
                return None
            result = self._take(*record)
            if result is not None:
                return result
            small = small + 1 if len(record[1]) <= BUSY_READ // 4 else 0
            if watched and small >= SMALL_RECORDS and not sealed.pipe.buffered:
                return None

    def _leave_to_watcher(self) -> PipeResult | None:
        """Have the watcher read from now on; the result when it cannot."""
        assert self._readiness is not None
        self._sealed.trim_reading()
        self._heard_at = time.monotonic()
        self._watched = True
        try:
            with self._lock:
                self._writer.set_timer_locked()
            self._readiness.add(self._readable)
        except (NoThread, OSError) as error:
            return PipeResult(f"little comes, and nothing can watch for it: {error}")
        return None

    def _readable(self) -> Flushable | None:
        """Read what has come, by the watcher; what is too much for it is left to a thread."""
        try:
            busy = self._read_now()
        except ProtocolError as error:
            self._found, busy = PipeResult(f"the peer broke the protocol: {error}", fault=True), True
        except Exception:
            self._found, busy = self._own_fault(), True
        if busy:
            self._leave_watcher()
        return None

    def _leave_watcher(self) -> None:
        """Have a thread read on, or end the pipe; where there is none, nobody reads until RETRY.  By the watcher."""
        assert self._readiness is not None
        self._readiness.remove()
        self._watched = False
        try:
            WORKERS.start(
                f"{self._lane.name}-reader", self.read if self._found is None else self._end_found, reserved=True
            )
        except NoThread as error:
            log.warning("%s: %s", self._lane.name, error)
            self._retry_at = time.monotonic() + RETRY
            with self._lock:
                self._writer.set_timer_locked()

    def _end_found(self) -> None:
        assert self._found is not None
        self._writer.end(self._found)

    def _own_fault(self) -> PipeResult:
        log_unexpected(f"{self._lane.name}: reading ended")
        return PipeResult(FAILED, fault=True)

    def _read_now(self) -> bool:
        """Take the records that have come; whether the reader's thread should go on."""
        receive = self._sealed.recv_record_within
        self._heard_at = time.monotonic()
        size = 0
        for _ in range(RECORDS_IN_TURN):
            try:
                record = receive(0)
            except QanatError as error:
                self._found = self._cut(error)
                return True
            if record is None:
                return self._pipe.flooded
            kind, content = record
            if kind is _FRAMES:
                self._receive(content)
            else:
                self._found = self._take(kind, content)
                if self._found is not None:
                    return True
            size += len(content)
            if size > BUSY_READ:
                return True
            if not self._pipe.buffered:
                return False
        return True

    def _cut(self, error: QanatError) -> PipeResult:
        """How the pipe ended, when receiving did."""
        if isinstance(error, ProtocolError):
            # Whoever is on the path can do this, so it is a cut like any other.
            return PipeResult(f"something broke the connection: {error}")
        return PipeResult(self._sealed.cause or str(error))

    def _take(self, kind: RecordKind, content: memoryview) -> PipeResult | None:
        """Act on one record; the result when it was the last."""
        if kind is _FRAMES:
            self._receive(content)
            return None
        if kind is RecordKind.CLOSE:
            close = Close.decode(content)
            return PipeResult(close.text or close.reason.name.lower().replace("_", " "), close)
        raise ProtocolError(f"a {kind.name} record in the middle of a session")

    def _receive(self, content: memoryview) -> None:
        """Take the frames of one record, and act on them: wake threads, hand on what is small, send what is due.

        Most records have payload for one stream alone, which is handed on without further ado.
        """
        if frame_log.isEnabledFor(logging.DEBUG):
            log_frames(self._lane.name, "<", content)
        lane, wakeups, writer = self._lane, self._wakeups, self._writer
        with self._lock:
            if writer.close_next is not None:
                return  # The next pipe goes on where this one was when it had to yield.
            now = lane.clock()
            alone = self._receiver.receive_alone(content, now)
            if alone is not None:
                state, payload = alone
                stream = lane.stream_locked(state)
                due, wakeups.work = wakeups.work or writer.close_when_idle is not None, False
                calls = lane.wake_locked(sending=True) if wakeups.room else None
                if wakeups.timer:
                    wakeups.timer = False
                    writer.acknowledge_soon_locked(now)
        if alone is None:
            self._receive_frames(content)
            return
        due = (stream.deliver(payload) and not self._pending.credit_can_wait) or due
        if calls:
            lane.call(calls)
        if due or self._held:
            self._send_or_hold()

    def _receive_frames(self, content: memoryview) -> None:
        """Do so for a record with more, or with payload that the stream's own thread hands on."""
        lane, wakeups, writer = self._lane, self._wakeups, self._writer
        calls: Calls = []
        deliveries: list[tuple[Stream, memoryview | None]] = []
        datagrams: list[tuple[Stream, bytes]] = []
        callbacks: list[Callable[[], None]] = []
        due = False
        try:
            with self._lock:
                if writer.close_next is not None:
                    return  # The next pipe goes on where this one was when it had to yield.
                now = lane.clock()
                try:
                    events = self._receiver.receive(content, now)
                    if events:
                        callbacks = lane.callbacks_locked(events)
                finally:
                    # Also after a ProtocolError: the frames before the faulty one have taken effect.
                    due = wakeups.work or writer.close_when_idle is not None  # An ACK may have made it idle.
                    if wakeups.readers:
                        deliveries = lane.take_deliveries_locked()
                    if wakeups.datagrams:
                        datagrams = lane.take_datagrams_locked()
                    wakeups.work = False  # which is done below
                    if wakeups.readers or wakeups.writers or wakeups.room or wakeups.pong:
                        calls = lane.wake_locked(sending=True)
                    if wakeups.timer:
                        wakeups.timer = False
                        writer.acknowledge_soon_locked(now)
        finally:
            credit = False
            for stream, payload in deliveries:
                credit = stream.deliver(payload) or credit
            due = due or (credit and not self._pending.credit_can_wait)
            if calls:
                lane.call(calls)
            if due or self._held:
                self._send_or_hold()
        for callback in callbacks:
            callback()
        for stream, datagram in datagrams:
            stream.deliver_datagram(datagram)

    def _send_or_hold(self) -> None:
        """Send what is due, or leave that to the next record, which has come: the CREDITs of several share one."""
        if self._held < RECORDS_HELD and self._pipe.holds_message:
            self._held += 1
        else:
            self._held = 0
            self._writer.send_now()

    def _something_has_come(self) -> bool:
        """Whether there is something to read, to which the watcher has yet to come: this program was stopped, say."""
        assert self._readiness is not None  # it is watched
        return self._readiness.has_come()
