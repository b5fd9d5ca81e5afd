"""One pipe while it carries a lane: its two threads, and all state that ends with it.

The *reader* blocks in `recv` alone and never writes; it is the thread that calls `run`.  The *writer* waits for work,
takes a record from the core under the lane's lock, and seals and sends it outside.  `PipeRunner` is made by
`Lane.run` for each pipe and gone when the pipe is; which pipe has the lane is for `qanat.mux.lane` to decide.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, ProtocolError, QanatError, TransportError
from qanat.base.threads import start_thread
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, CloseReason, RecordKind
from qanat.mux.parameters import Event
from qanat.mux.stream import LaneOfStream, Stream
from qanat.mux.trace import describe_frames

log = logging.getLogger("qanat.mux")
frame_log = logging.getLogger("qanat.frames")

CLOSE_TIMEOUT = 2.0
"""Seconds that the peer gets to end the pipe after our CLOSE, before we do."""
YIELD_TIMEOUT = 0.5
"""Seconds that the writer of a pipe that has to yield gets to come to the end of its record and say CLOSE."""


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


class PipeRunner:
    """See the module's docstring.  `…_locked` is for the lane, with its lock held."""

    def __init__(self, lane: LaneOfPipe, sealed: SealedPipe) -> None:
        self._lane = lane
        self._lock = lane.lock
        self._sender = lane.core.sender
        self._receiver = lane.core.receiver
        self._sealed = sealed
        # The lane's lock guards the rest.  One thread waits for work, the writer, so `notify` is enough.
        self._work = threading.Condition(lane.lock)
        self._flush_due = False
        self._paused = False
        self._sending = False
        self._close_when_idle: Close | None = None  # after all that is queued
        self._close_next: Close | None = None  # after the present record
        self._close_sent = False

    def run(self, silence: float) -> PipeResult:
        """Carry the lane until the pipe ends; blocks, and is the pipe's reader meanwhile.

        `silence` is the number of seconds after which the pipe counts as dead when not one raw byte came, or when
        nothing could be sent.  On return the pipe is closed and its writer has ended.  Never raises for what the peer
        or the path did: the PipeResult says it.
        """
        writer: threading.Thread | None = None
        result = PipeResult("the connection's thread failed", fault=True)
        try:
            self._sealed.pipe.set_wakeup(self._flush_wanted)
            self._sealed.set_timeouts(silence)
            try:
                writer = start_thread(f"{self._lane.name}-writer", self._writer_loop)
            except NoThread as error:
                result = PipeResult(str(error))
            else:
                result = self._reader_loop()
        except ProtocolError as error:
            result = PipeResult(f"the peer broke the protocol: {error}", fault=True)
        finally:
            self._stop(writer, result)
        return result

    def _stop(self, writer: threading.Thread | None, result: PipeResult) -> None:
        """End the pipe, after a CLOSE that says why when something is at fault; block until the writer has ended."""
        if result.fault and writer is not None:
            with self._lock:
                self.close_next_locked(Close(CloseReason.PROTOCOL, result.cause))
            writer.join(YIELD_TIMEOUT)
        self._sealed.close("the pipe's reader has ended")
        with self._lock:
            self._work.notify()
        if writer is not None:
            writer.join()  # before another pipe is attached: it may be reading a buffer that will be replayed

    # --- for the lane ---------------------------------------------------------------------------

    def wake_locked(self) -> None:
        """Have the writer look for something to send."""
        self._work.notify()

    def pause_locked(self) -> None:
        """Have the writer begin no further record, unless it has to close."""
        self._paused = True

    def resume_locked(self) -> None:
        """Let the writer go on."""
        self._paused = False
        self._work.notify()

    def close_when_idle_locked(self, close: Close) -> None:
        """Have the writer send CLOSE after all that is queued, and end the pipe."""
        self._close_when_idle = close
        self._work.notify()

    def close_next_locked(self, close: Close) -> None:
        """Have the writer send CLOSE after its present record, and end the pipe.  The first one counts."""
        self._close_next = self._close_next or close
        self._work.notify()

    def close_if_free_locked(self, close: Close) -> bool:
        """Do the same if the writer is not in the middle of a record, nor past its CLOSE; False when it is."""
        if self._sending or self._close_sent:
            return False
        self.close_next_locked(close)
        return True

    def cut(self, cause: str) -> None:
        """End the pipe at once, without CLOSE.  Idempotent, from any thread; does not block."""
        self._sealed.close(cause)

    # --- the reader -----------------------------------------------------------------------------

    def _reader_loop(self) -> PipeResult:
        while True:
            try:
                kind, content = self._sealed.recv_record()
            except ProtocolError as error:
                # Whoever is on the path can do this, so it is a cut like any other.
                return PipeResult(f"something broke the connection: {error}")
            except QanatError as error:
                return PipeResult(self._sealed.cause or str(error))
            if kind is RecordKind.FRAMES:
                if frame_log.isEnabledFor(logging.DEBUG):
                    self._trace("<", content)
                self._receive(content)
            elif kind is RecordKind.CLOSE:
                close = Close.decode(content)
                return PipeResult(close.text or close.reason.name.lower().replace("_", " "), close)
            else:
                raise ProtocolError(f"a {kind.name} record in the middle of a session")

    def _receive(self, content: memoryview) -> None:
        lane = self._lane
        failed: list[Stream] = []
        try:
            with self._lock:
                if self._close_next is not None:
                    return  # The next pipe goes on where this one was when it had to yield.
                try:
                    events = self._receiver.receive(content, lane.clock())
                    callbacks = lane.callbacks_locked(events)
                finally:
                    # Also after a ProtocolError: the frames before the faulty one have taken effect.
                    if self._close_when_idle is not None:  # An ACK may have made it idle.
                        self._work.notify()
                    failed = lane.wake_locked()
        finally:
            lane.report(failed)
        for callback in callbacks:
            callback()

    def _flush_wanted(self) -> None:
        """Have the writer flush what the pipe itself owes the peer: a pong, a window."""
        with self._lock:
            self._flush_due = True
            self._work.notify()

    # --- the writer -----------------------------------------------------------------------------

    def _writer_loop(self) -> None:
        try:
            while self._send_next():
                pass
            self._send_close()
        except TransportError as error:
            # The reader returns what the peer had still sent, then ends with the pipe's first cause.
            log.debug("%s: writing ended: %s", self._lane.name, error)
        except BaseException as error:
            # A fault of this program: without its writer the pipe would live on in silence.
            self._sealed.close(f"the pipe's writer failed: {error}")
            raise
        finally:
            with self._lock:
                self._sending = False

    def _send_next(self) -> bool:
        """Block for something to send, and send it.  False when the pipe has ended, or it is time for CLOSE."""
        lane, sender = self._lane, self._sender
        with self._lock:
            self._sending = False
            while True:
                if self._sealed.cause is not None or self._close_next is not None:
                    return False
                if self._paused and self._close_when_idle is None:  # CLOSE does not wait for a pipe that will not be
                    self._work.wait()
                    continue
                now = lane.clock()
                record = sender.next_record(now)
                failed = lane.wake_locked()
                flush, self._flush_due = self._flush_due, False
                if record is not None or flush or failed:
                    break
                if not sender.attached or (self._close_when_idle is not None and sender.idle):
                    return False
                self._work.wait(sender.next_timeout(now))
            self._sending = True
        lane.report(failed)
        self._send(record, flush=flush)
        return True

    def _send(self, record: memoryview | None, *, flush: bool) -> None:
        """Seal and send, without the lock; blocks.  The one place where frames leave this program."""
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
