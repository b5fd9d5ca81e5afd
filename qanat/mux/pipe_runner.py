"""One pipe while it carries a lane: who reads, who writes, and all state that ends with it.

While much moves, a pipe has two threads.  The *reader* blocks in `recv` alone.  The *writer* waits for work, takes a
record from the core under the lane's lock, and seals and sends it outside.

Where the kernel takes at once what there is, nothing crosses a thread.  Whoever has something to send does so itself
(`send_now`), which blocks nowhere: what the kernel does not take is left to the writer.  After QUIET_SECONDS without
work the writer's thread is given back, and one is taken when there is some; after as long without a byte, or a few
small records, so is the reader's, and the watcher (`qanat.base.watcher`) reads in its stead, until more comes at once
than BUSY_READ.  What the two would do when a time has come, an ACK, a PING, an end for silence, the watcher's timer
does.  A pipe that cannot be watched keeps both threads.

`PipeRunner` is made by `Lane.start` for each pipe and gone when the pipe is; which pipe has the lane is for
`qanat.mux.lane` to decide.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, ProtocolError, QanatError, TransportError
from qanat.base.lazy_waiting import LazyCondition
from qanat.base.unexpected import FAILED, log_unexpected
from qanat.base.watcher import Flushable, Timer, Watcher
from qanat.base.workers import WORKERS
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, CloseReason, RecordKind
from qanat.mux.buffer_pool import Buffer
from qanat.mux.frames import MAX_PLAINTEXT
from qanat.mux.pacer import UNBOUNDED
from qanat.mux.parameters import Event
from qanat.mux.pending_control import ACK_DELAY
from qanat.mux.stream import Calls, LaneOfStream, Stream
from qanat.mux.stream_state import StreamState
from qanat.mux.trace import describe_frames
from qanat.transports.readiness import Readiness

log = logging.getLogger("qanat.mux")
frame_log = logging.getLogger("qanat.frames")

CLOSE_TIMEOUT = 2.0
"""Seconds that the peer gets to end the pipe after our CLOSE, before we do."""
RECORDS_AT_ONCE = 4
"""Records that one call of `send_now` sends before it leaves the rest to the writer."""
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
"""Seconds after which a writer for which there was no thread is tried again."""
ACTIVE = 0.25
"""Seconds after the last record received during which the writer looks whether an ACK is due by itself, every
ACK_DELAY, so that no reader has to wake it for that."""
YIELD_TIMEOUT = 0.5
"""Seconds that the writer of a pipe that has to yield gets to come to the end of its record and say CLOSE."""


_FRAMES = RecordKind.FRAMES


@dataclass(frozen=True, slots=True)
class PipeResult:
    """How a pipe ended: with the peer's sealed CLOSE (`close`), or, by this end or a cut, without one.

    `cause` says it for people.  `fault` is set when the peer broke the protocol inside the sealed channel, or this
    program failed: there is no point in going on over another pipe.
    """

    cause: str
    close: Close | None = None
    fault: bool = False


class LaneOfPipe(LaneOfStream, Protocol):
    """What a pipe needs of the lane that it carries (`qanat.mux.lane.Lane`)."""

    def callbacks_locked(self, events: list[Event]) -> list[Callable[[], None]]:
        """Return what has to be called for these events once the lock is released; it may raise ProtocolError."""

    def stream_locked(self, state: StreamState) -> Stream:
        """Return the face of a stream that is open."""

    def take_deliveries_locked(self) -> list[tuple[Stream, memoryview | None]]:
        """Take what the reader hands on itself, by stream; the others' readers are woken later."""

    def take_datagrams_locked(self) -> list[tuple[Stream, bytes]]:
        """Take what the reader hands on of datagrams, by stream."""

    def pulls_locked(self) -> Calls:
        """Return what the writer has to call for the streams of a crowd whose turn it is."""


class PipeRunner:
    """See the module's docstring.  `…_locked` is for the lane, with its lock held."""

    def __init__(self, lane: LaneOfPipe, sealed: SealedPipe, watcher: Watcher | None) -> None:
        """`watcher` reads while little comes; None where threads should do so throughout."""
        self._lane = lane
        self._lock = lane.lock
        self._sender = lane.core.sender
        self._receiver = lane.core.receiver
        self._pending = lane.core.pending
        self._wakeups = lane.core.wakeups
        self._sealed = sealed
        self._pipe = sealed.pipe
        self._watcher = watcher
        self._readiness: Readiness | None = None  # what the watcher waits for, where it does
        self._timer: Timer | None = None
        self._silence = math.inf
        self._heard_at = 0.0  # when bytes came last, while the watcher reads
        self._watched = False  # the watcher reads
        self._without_thread = False  # nobody reads: there was no thread for it
        self._on_over: Callable[[PipeResult], None] = _nothing
        self._found: PipeResult | None = None  # how the pipe ended, when the watcher has seen that
        self._held = 0  # records in turn that have left to the next one what has to be sent
        # The lane's lock guards the rest.  One thread waits for work, the writer, so `notify` is enough.
        self._work = LazyCondition(lane.lock)
        self._settled = LazyCondition(lane.lock)  # for who waits until nobody sends
        self._flush_due = False
        self._paused = False
        self._started = False
        self._writing = False  # the writer has a thread
        self._sending = False  # it is in the middle of a record
        self._inline = False  # a thread is in `send_now` or `send_alone`
        self._missed = False  # there was work for it meanwhile
        self._waiting = False  # the writer waits
        self._waits_for_inline = False  # until nobody is
        self._retry_at = 0.0  # when the timer may look for work again: there was no thread for the writer
        self._worked_at = 0.0  # when it had something to do last
        self._wakes_at = 0.0  # when it does so by itself, while it waits
        self._received_at = 0.0
        self._writer_ended = False  # and no other will follow
        self._close_when_idle: Close | None = None  # after all that is queued
        self._close_next: Close | None = None  # after the present record
        self._close_sent = False
        self._alone = False  # only the writer may send: it is paused, has to close, or has ended

    def start(self, silence: float, on_over: Callable[[PipeResult], None]) -> None:
        """Carry the lane until the pipe ends; the calling thread reads until little comes, and returns then.

        `silence` is the number of seconds after which the pipe counts as dead when not one raw byte came, or when
        nothing could be sent.  `on_over` is called once, by some thread and perhaps before this returns: the pipe is
        closed then, and nobody sends on it any more.  Raises nothing: whatever happened, the PipeResult says it.
        """
        self._on_over = on_over
        self._silence = silence
        try:
            self._sealed.pipe.set_wakeup(self._flush_wanted)
            self._sealed.set_timeouts(silence)
            self._begin_watching()
            with self._lock:
                self._started = True
                self._start_writer_locked()
        except QanatError as error:
            self._end(PipeResult(self._sealed.cause or str(error)))
        else:
            self._read()

    def _begin_watching(self) -> None:
        if self._watcher is not None:
            try:
                self._watcher.start()
            except (NoThread, OSError) as error:  # threads of its own do without
                log.warning("%s: %s", self._lane.name, error)
                return
            self._readiness = self._sealed.pipe.readiness(self._watcher)
            if self._readiness is not None:
                self._timer = self._watcher.timer(self._time_has_come)

    def _stop(self, result: PipeResult) -> None:
        """End the pipe, after a CLOSE that says why when something is at fault; block until nobody sends any more."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if result.fault and self._started:
                self.close_next_locked(Close(CloseReason.PROTOCOL, result.cause))
                deadline = Deadline(YIELD_TIMEOUT)
                while self._writing and not deadline.passed:
                    self._settled.wait(deadline.remaining())
        self._sealed.close("the pipe's reader has ended")
        with self._lock:
            self._writer_ended = self._alone = True
            self._work.notify_all()
            # Before another pipe is attached: they may be reading a buffer that will be replayed.
            while self._writing or self._inline:
                self._settled.wait()
        if self._readiness is not None:
            self._readiness.close()
        self._sealed.pipe.set_wakeup(_nobody)

    def _end(self, result: PipeResult) -> None:
        """End the pipe, and say so."""
        on_over, self._on_over = self._on_over, _nothing
        try:
            self._stop(result)
        finally:
            on_over(result)

    # --- for the lane ---------------------------------------------------------------------------

    def wake_locked(self) -> None:
        """Have the writer look for something to send, unless somebody will when done with the present record."""
        if self._inline:
            self._missed = True
        else:
            self._wake_writer_locked()

    def _wake_writer_locked(self) -> None:
        """Have the writer look what there is to do, unless it will when done with the present record."""
        if self._waiting:
            self._work.notify()
        elif not self._writing and self._started:
            self._start_writer_locked()

    def _start_writer_locked(self) -> None:
        """Give the writer a thread, or try again after RETRY; without a watcher raises NoThread."""
        if self._writer_ended:
            return
        self._writing = True
        self._worked_at = self._lane.clock()
        try:
            WORKERS.start(f"{self._lane.name}-writer", self._writer_loop, reserved=True)
        except NoThread as error:
            self._writing = False
            if self._timer is None:
                raise
            log.warning("%s: %s", self._lane.name, error)
            self._retry_at = time.monotonic() + RETRY
            self._timer.set(self._retry_at)

    def _timer_locked(self, now: float) -> None:
        """Have an ACK sent within ACK_DELAY; nobody is woken who would look by then without it."""
        self._received_at = now
        if not self._writing:
            timer, at = self._timer, now + ACK_DELAY
            if timer is not None and at < timer.at:
                timer.set(at)
        elif self._waiting and self._wakes_at > now + 2 * ACK_DELAY:
            self._work.notify()

    def send_now(self, *, bulk: bool = False) -> None:
        """Send what is queued in the calling thread, as far as nothing blocks, and leave the rest to the writer.

        With `bulk` that too: by a thread that has nothing better to do.  Without the lane's lock.  Does not block, and
        raises nothing: a pipe that fails ends for its reader.
        """
        lane, sender = self._lane, self._sender
        for _ in range(RECORDS_AT_ONCE):
            with self._lock:
                if not sender.attached or not self._may_send_locked():
                    self.wake_locked()
                    return
                held_up = sender.datagrams.charged > 0 and self._pipe.held_up
                unsent = self._unsent_locked()
                record = sender.next_record(lane.clock(), small=not bulk, held_up=held_up, unsent=unsent)
                if record is None:
                    calls = lane.wake_locked(sending=True)
                    if not sender.idle or sender.crowd:
                        self.wake_locked()
                    break
                self._inline, self._missed = True, False
            if not self._send_one_now(record):
                return
        else:
            with self._lock:
                self.wake_locked()
            return
        lane.call(calls)

    def send_alone(self, stream: StreamState, payload: Buffer | bytes) -> bool:
        """Send `payload` at once in the calling thread, if nothing else waits and nothing blocks; else do nothing.

        Returns which.  Without the lane's lock; otherwise as `send_now`.
        """
        with self._lock:
            if not self._may_send_locked():
                return False
            record = self._sender.record_alone(stream, payload, self._lane.clock())
            if record is None:
                return False
            self._inline, self._missed = True, False
        if self._send_one_now(record):
            self.send_now(bulk=isinstance(payload, Buffer))
        return True

    def _may_send_locked(self) -> bool:
        """Whether a thread may send inline: nobody sends, nothing is the writer's alone, and the pipe takes it."""
        busy = self._sending or self._inline or self._flush_due or self._alone
        return not busy and self._sealed.can_send_now(MAX_PLAINTEXT)

    def _send_one_now(self, record: memoryview) -> bool:
        """Send the record for which this thread is `_inline`; return whether more waits that it may send."""
        lane = self._lane
        again = False  # when something is left for the writer to flush, or the pipe failed
        try:
            if frame_log.isEnabledFor(logging.DEBUG):
                self._trace(">", record[1:])
            again = self._sealed.send_record_now(record)
        except TransportError as error:
            log.debug("%s: writing ended: %s", lane.name, error)
        except BaseException as error:
            # As in the writer: a pipe that has used a nonce for nothing must not live on.
            self._sealed.close(f"sending failed: {error}")
            raise
        finally:
            with self._lock:
                self._inline = False
                calls = lane.wake_locked(sending=True)  # now: the peer waits for the record
                if not again:
                    self._flush_due = True
                again = again and (self._missed or not self._sender.idle)
                if self._flush_due or self._alone:  # there is something that only the writer does, or has to know
                    self._settled.notify_all()
                    self._wake_writer_locked()
                    again = False
                elif self._waits_for_inline:
                    self._work.notify()  # or it would never look what is due later, nor give its thread back
                elif self._sender.crowd and not again:
                    self._wake_writer_locked()  # who joined meanwhile has told us alone
        if calls:
            lane.call(calls)
        return again

    def _unsent_locked(self) -> int:
        """Return what the kernel has yet to send; it is asked only while bulk has a pace, which alone heeds that."""
        return 0 if self._sender.pacer.record == UNBOUNDED else self._pipe.unsent

    def pause_locked(self) -> None:
        """Have the writer begin no further record, unless it has to close."""
        self._paused = self._alone = True

    def resume_locked(self) -> None:
        """Have the writer go on."""
        self._paused = False
        closing = self._close_next is not None or self._close_when_idle is not None
        self._alone = closing or self._close_sent or self._writer_ended
        self._wake_writer_locked()

    def close_when_idle_locked(self, close: Close) -> None:
        """Have the writer send CLOSE after all that is queued, and end the pipe."""
        self._close_when_idle, self._alone = close, True
        self._wake_writer_locked()

    def close_next_locked(self, close: Close) -> None:
        """Have the writer send CLOSE after its present record, and end the pipe.  The first one counts."""
        self._close_next, self._alone = self._close_next or close, True
        self._wake_writer_locked()

    def close_if_free_locked(self, close: Close) -> bool:
        """Do the same if the writer is not in the middle of a record, nor past its CLOSE; False when it is."""
        if self._sending or self._close_sent:
            return False
        self.close_next_locked(close)
        return True

    def cut(self, cause: str) -> None:
        """End the pipe at once, without CLOSE.  Idempotent, from any thread; does not block."""
        self._sealed.close(cause)

    def trouble_locked(self, patience: float) -> str:
        """Return what has been due for `patience` seconds and is not done, though no peer keeps us from it; else ""."""
        if not self._started or self._writer_ended or self._sealed.cause is not None:
            return ""
        overdue = self._lane.core.pending.overdue(self._lane.clock())
        # Whoever is in the middle of sending may be kept there by the peer; how long is `set_write_timeout`'s to say.
        sends = self._sending or self._inline or self._paused or self._close_sent
        if overdue > patience and not sends:
            return f"a PING has been due for {overdue:.0f} s, and nobody sends it"
        quiet = time.monotonic() - self._heard_at
        if self._watched and quiet > self._silence + patience:
            return f"nothing has come for {quiet:.0f} s, and nobody ends its pipe"
        return ""

    # --- the reader -----------------------------------------------------------------------------

    def _read(self) -> None:
        """Read while much comes, in a thread that may block; then leave the pipe to the watcher, or end it."""
        try:
            result = self._reader_loop()
        except ProtocolError as error:
            result = PipeResult(f"the peer broke the protocol: {error}", fault=True)
        except Exception:
            result = self._own_fault()
        if result is None:
            result = self._leave_to_watcher()
        if result is not None:
            self._end(result)

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
                self._set_timer_locked()
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
                f"{self._lane.name}-reader", self._read if self._found is None else self._end_found, reserved=True
            )
        except NoThread as error:
            log.warning("%s: %s", self._lane.name, error)
            self._without_thread = True
            if self._timer is not None:
                self._timer.set(time.monotonic() + RETRY)

    def _end_found(self) -> None:
        assert self._found is not None
        self._end(self._found)

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
            self._trace("<", content)
        lane, wakeups = self._lane, self._wakeups
        with self._lock:
            if self._close_next is not None:
                return  # The next pipe goes on where this one was when it had to yield.
            now = lane.clock()
            alone = self._receiver.receive_alone(content, now)
            if alone is not None:
                state, payload = alone
                stream = lane.stream_locked(state)
                due, wakeups.work = wakeups.work or self._close_when_idle is not None, False
                calls = lane.wake_locked(sending=True) if wakeups.room else None
                if wakeups.timer:
                    wakeups.timer = False
                    self._timer_locked(now)
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
        lane, wakeups = self._lane, self._wakeups
        calls: Calls = []
        deliveries: list[tuple[Stream, memoryview | None]] = []
        datagrams: list[tuple[Stream, bytes]] = []
        callbacks: list[Callable[[], None]] = []
        due = False
        try:
            with self._lock:
                if self._close_next is not None:
                    return  # The next pipe goes on where this one was when it had to yield.
                now = lane.clock()
                try:
                    events = self._receiver.receive(content, now)
                    if events:
                        callbacks = lane.callbacks_locked(events)
                finally:
                    # Also after a ProtocolError: the frames before the faulty one have taken effect.
                    due = wakeups.work or self._close_when_idle is not None  # An ACK may have made it idle.
                    if wakeups.readers:
                        deliveries = lane.take_deliveries_locked()
                    if wakeups.datagrams:
                        datagrams = lane.take_datagrams_locked()
                    wakeups.work = False  # which is done below
                    if wakeups.readers or wakeups.writers or wakeups.room or wakeups.pong:
                        calls = lane.wake_locked(sending=True)
                    if wakeups.timer:
                        wakeups.timer = False
                        self._timer_locked(now)
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
            self.send_now()

    def _flush_wanted(self) -> None:
        """Have the writer flush what the pipe itself owes the peer: a pong, a window."""
        with self._lock:
            self._flush_due = True
            self._wake_writer_locked()

    # --- the timer ------------------------------------------------------------------------------

    def _time_has_come(self) -> Flushable | None:
        """Do what is due, by the watcher: an ACK, a PING, the end of a pipe on which nothing came."""
        now = time.monotonic()
        if self._without_thread:
            self._without_thread = False
            self._leave_watcher()
        if self._watched and now - self._heard_at >= self._silence and not self._something_has_come():
            self._sealed.close(f"nothing received for {self._silence:g} s")
            return None
        with self._lock:
            if self._flush_due or self._alone or self._pipe.cause is not None:
                self._wake_writer_locked()
        self.send_now()
        with self._lock:
            self._set_timer_locked()
        return None

    def _something_has_come(self) -> bool:
        """Whether there is something to read, to which the watcher has yet to come: this program was stopped, say."""
        assert self._readiness is not None  # it is watched
        return self._readiness.has_come()

    def _set_timer_locked(self) -> None:
        """Set the timer for what is due next and has nobody else who looks for it."""
        timer = self._timer
        if timer is None or self._writer_ended:
            return
        now = time.monotonic()
        due = math.inf if self._writing else self._sender.next_timeout(now)
        at = math.inf if due is None else max(now + due, self._retry_at)
        if self._watched:
            at = min(at, max(now, self._heard_at + self._silence))  # what is past would be called again at once
        if at < math.inf:
            timer.set(at)

    # --- the writer -----------------------------------------------------------------------------

    def _writer_loop(self) -> None:
        ended = True
        try:
            while (more := self._send_next()) is True:
                pass
            if more is None:
                ended = False
            else:
                self._send_close()
        except TransportError as error:
            # The reader returns what the peer had still sent, then ends with the pipe's first cause.
            log.debug("%s: writing ended: %s", self._lane.name, error)
        except BaseException as error:
            # A fault of this program: without its writer the pipe would live on in silence.
            self._sealed.close(f"the pipe's writer failed: {error}")
            raise
        finally:
            if ended:
                with self._lock:
                    self._sending = self._writing = False
                    self._writer_ended = self._alone = True
                    self._settled.notify_all()

    def _send_next(self) -> bool | None:
        """Block for something to send, and send it.

        False when the pipe has ended, or it is time for CLOSE; None when the thread is not the writer's any more.
        """
        lane, sender = self._lane, self._sender
        with self._lock:
            self._sending = False
            while True:
                if self._inline:
                    self._waits_for_inline = True
                    self._wait_locked(None)
                    self._waits_for_inline = False
                    continue
                if self._sealed.cause is not None or self._close_next is not None:
                    return False
                now = lane.clock()
                if self._paused and self._close_when_idle is None:  # CLOSE does not wait for a pipe that will not be
                    self._wait_locked(None)
                    continue
                record = sender.next_record(now, held_up=self._pipe.held_up, unsent=self._unsent_locked())
                calls = lane.wake_locked()
                if sender.crowd:
                    calls += lane.pulls_locked()
                flush, self._flush_due = self._flush_due, False
                if record is not None or flush or calls:
                    self._worked_at = now
                    break
                if not sender.attached or (self._close_when_idle is not None and sender.idle):
                    return False
                timeout = sender.next_timeout(now)
                if timeout is not None and now - self._received_at < ACTIVE:
                    timeout = min(timeout, ACK_DELAY)
                if self._readiness is not None:
                    quiet = self._worked_at + QUIET_SECONDS - now
                    if quiet <= 0:
                        self._retire_locked()
                        return None
                    timeout = quiet if timeout is None else min(timeout, quiet)
                self._wait_locked(timeout)
            self._sending = True
        lane.call(calls)
        self._send(record, flush=flush)
        return True

    def trim_sending(self) -> None:
        """Give memory back that sending bulk has needed, unless somebody sends.  Does not block."""
        with self._lock:
            if not (self._sending or self._inline or self._alone):  # alone it may be sending CLOSE
                self._sealed.trim_sending()

    def _retire_locked(self) -> None:
        """Give the writer's thread back."""
        self._writing = False
        self._sealed.trim_sending()
        self._settled.notify_all()
        self._set_timer_locked()

    def _wait_locked(self, timeout: float | None) -> None:
        """Wait for work; the writer does."""
        self._wakes_at = math.inf if timeout is None else self._lane.clock() + timeout
        self._waiting = True
        self._work.wait(timeout)
        self._waiting = False

    def _send(self, record: memoryview | None, *, flush: bool) -> None:
        """Seal and send, without the lock; blocks."""
        if flush:
            self._sealed.pipe.flush()
        if record is not None:
            if frame_log.isEnabledFor(logging.DEBUG):
                self._trace(">", record[1:])
            self._sealed.send_record(record)

    def _send_close(self) -> None:
        close = self._close_next or self._close_when_idle
        if close is None or self._sealed.cause is not None:
            return
        self._close_sent = True
        self._sealed.send_record(bytes((RecordKind.CLOSE,)) + close.encode())
        if close.reason is not CloseReason.LEAVING:
            self._wait_for_the_peer_to_close()
        self._sealed.close(close.text or "closed by this side")

    def _wait_for_the_peer_to_close(self) -> None:
        deadline = Deadline(CLOSE_TIMEOUT)
        with self._lock:
            while self._sealed.cause is None and not deadline.passed:
                self._work.wait(deadline.remaining())

    def _trace(self, direction: str, content: memoryview) -> None:
        for line in describe_frames(content):
            frame_log.debug("%s %s %s", self._lane.name, direction, line)


def _nobody() -> None:
    """Wake nobody: the pipe is over."""


def _nothing(result: PipeResult) -> None:
    """Do nothing: whoever wanted to know has been told."""
