"""One pipe while it carries a lane: who writes, how it ends, and all state that ends with it.

While much moves, a pipe has two threads.  The *reader* blocks in `recv` alone (`qanat.mux.pipe_reader`).  The *writer*
waits for work, takes a record from the core under the lane's lock, and seals and sends it outside.

Where the kernel takes at once what there is, nothing crosses a thread.  Whoever has something to send does so itself
(`send_now`), which blocks nowhere: what the kernel does not take is left to the writer.  After QUIET_SECONDS without
work the writer's thread is given back, and one is taken when there is some.  What the two would do when a time has
come, an ACK, a PING, an end for silence, the watcher's timer does.  A pipe that cannot be watched keeps both threads.

`PipeRunner` is made by `Lane.start` for each pipe and gone when the pipe is; which pipe has the lane is for
`qanat.mux.lane` to decide.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, QanatError, TransportError
from qanat.base.lazy_waiting import LazyCondition
from qanat.base.watcher import Flushable, Timer, Watcher
from qanat.base.workers import WORKERS
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, CloseReason, RecordKind
from qanat.mux.buffer_pool import Buffer
from qanat.mux.frames import MAX_PLAINTEXT
from qanat.mux.pacer import UNBOUNDED
from qanat.mux.pending_control import ACK_DELAY
from qanat.mux.pipe_reader import QUIET_SECONDS, RETRY, LaneOfReader, PipeReader
from qanat.mux.pipe_result import PipeResult
from qanat.mux.stream import Calls
from qanat.mux.stream_state import StreamState
from qanat.mux.trace import frame_log, log_frames

log = logging.getLogger("qanat.mux")

CLOSE_TIMEOUT = 2.0
"""Seconds that the peer gets to end the pipe after our CLOSE, before we do."""
RECORDS_AT_ONCE = 4
"""Records that one call of `send_now` sends before it leaves the rest to the writer."""
ACTIVE = 0.25
"""Seconds after the last record received during which the writer looks whether an ACK is due by itself, every
ACK_DELAY, so that no reader has to wake it for that."""
YIELD_TIMEOUT = 0.5
"""Seconds that the writer of a pipe that has to yield gets to come to the end of its record and say CLOSE."""


class LaneOfPipe(LaneOfReader, Protocol):
    """What a pipe needs of the lane that it carries (`qanat.mux.lane.Lane`)."""

    def pulls_locked(self) -> Calls:
        """Return what the writer has to call for the streams of a crowd whose turn it is."""


class PipeRunner:
    """See the module's docstring.  `…_locked` is for the lane, with its lock held."""

    def __init__(self, lane: LaneOfPipe, sealed: SealedPipe, watcher: Watcher | None) -> None:
        """`watcher` reads while little comes; None where threads should do so throughout."""
        self._lane = lane
        self._lock = lane.lock
        self._sender = lane.core.sender
        self._sealed = sealed
        self._pipe = sealed.pipe
        self._watcher = watcher
        self._reader = PipeReader(lane, sealed)
        self._timer: Timer | None = None  # where the watcher can read
        self._on_over: Callable[[PipeResult], None] = _nothing
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
        self.close_when_idle: Close | None = None  # after all that is queued
        self.close_next: Close | None = None  # after the present record
        self._close_sent = False
        self._alone = False  # only the writer may send: it is paused, has to close, or has ended

    def start(self, silence: float, on_over: Callable[[PipeResult], None]) -> None:
        """Carry the lane until the pipe ends; the calling thread reads until little comes, and returns then.

        `silence` is the number of seconds after which the pipe counts as dead when not one raw byte came, or when
        nothing could be sent.  `on_over` is called once, by some thread and perhaps before this returns: the pipe is
        closed then, and nobody sends on it any more.  Raises nothing: whatever happened, the PipeResult says it.
        """
        self._on_over = on_over
        try:
            self._sealed.pipe.set_wakeup(self._flush_wanted)
            self._sealed.set_timeouts(silence)
            self._reader.begin(self, silence)
            if self._watcher is not None and self._reader.watch(self._watcher):
                self._timer = self._watcher.timer(self._time_has_come)
            with self._lock:
                self._started = True
                self._start_writer_locked()
        except QanatError as error:
            self.end(PipeResult(self._sealed.cause or str(error)))
        else:
            self._reader.read()

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
        self._reader.close()
        self._sealed.pipe.set_wakeup(_nobody)

    def end(self, result: PipeResult) -> None:
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

    def acknowledge_soon_locked(self, now: float) -> None:
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
                log_frames(lane.name, ">", record[1:])
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
        closing = self.close_next is not None or self.close_when_idle is not None
        self._alone = closing or self._close_sent or self._writer_ended
        self._wake_writer_locked()

    def close_when_idle_locked(self, close: Close) -> None:
        """Have the writer send CLOSE after all that is queued, and end the pipe."""
        self.close_when_idle, self._alone = close, True
        self._wake_writer_locked()

    def close_next_locked(self, close: Close) -> None:
        """Have the writer send CLOSE after its present record, and end the pipe.  The first one counts."""
        self.close_next, self._alone = self.close_next or close, True
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
        return self._reader.trouble(patience)

    # --- what the pipe itself owes --------------------------------------------------------------

    def _flush_wanted(self) -> None:
        """Have the writer flush what the pipe itself owes the peer: a pong, a window."""
        with self._lock:
            self._flush_due = True
            self._wake_writer_locked()

    # --- the timer ------------------------------------------------------------------------------

    def _time_has_come(self) -> Flushable | None:
        """Do what is due, by the watcher: an ACK, a PING, the end of a pipe on which nothing came."""
        if not self._reader.look(time.monotonic()):
            return None
        with self._lock:
            if self._flush_due or self._alone or self._pipe.cause is not None:
                self._wake_writer_locked()
        self.send_now()
        with self._lock:
            self.set_timer_locked()
        return None

    def set_timer_locked(self) -> None:
        """Set the timer for what is due next and has nobody else who looks for it."""
        timer = self._timer
        if timer is None:
            return
        now = time.monotonic()
        due = math.inf if self._writing or self._writer_ended else self._sender.next_timeout(now)
        at = min(math.inf if due is None else max(now + due, self._retry_at), self._reader.next_look(now))
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
                if self._sealed.cause is not None or self.close_next is not None:
                    return False
                now = lane.clock()
                if self._paused and self.close_when_idle is None:  # CLOSE does not wait for a pipe that will not be
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
                if not sender.attached or (self.close_when_idle is not None and sender.idle):
                    return False
                timeout = sender.next_timeout(now)
                if timeout is not None and now - self._received_at < ACTIVE:
                    timeout = min(timeout, ACK_DELAY)
                if self._timer is not None:
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
        self.set_timer_locked()

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
                log_frames(self._lane.name, ">", record[1:])
            self._sealed.send_record(record)

    def _send_close(self) -> None:
        close = self.close_next or self.close_when_idle
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


def _nobody() -> None:
    """Wake nobody: the pipe is over."""


def _nothing(result: PipeResult) -> None:
    """Do nothing: whoever wanted to know has been told."""
