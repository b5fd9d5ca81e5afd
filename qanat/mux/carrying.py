"""How a pipe carries a lane: who gets it, the two threads that run it, and how it ends.

While a pipe is attached, two threads work on it: the *reader*, which blocks in `recv` alone and never writes, and
the *writer*, which waits for work, takes a record from the core under the lock, and seals and sends it outside.
One pipe after the other carries the lane: a newer one is granted it by `take`, which ends the older one, and `run`
carries it; in between, whoever has something to send waits for room.

A part of `qanat.mux.lane.Lane`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, ProtocolError, QanatError, SessionEnded, TransportError
from qanat.base.threads import start_thread
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, CloseReason, RecordKind
from qanat.mux.attachment import Attachment, State, Step
from qanat.mux.frames import Reason
from qanat.mux.lane_waking import LaneWaking
from qanat.mux.parameters import ControlReceived, LaneParameters, Opened
from qanat.mux.stream_io import StreamIO
from qanat.mux.trace import describe_frames

log = logging.getLogger("qanat.mux")
frame_log = logging.getLogger("qanat.frames")

FAREWELL = 2.0
"""Seconds that the peer gets to end the pipe after our CLOSE, before we do."""
YIELD = 0.5
"""Seconds that the writer of a pipe that has to yield gets to come to the end of its record and say CLOSE."""


class Superseded(QanatError):
    """Another pipe has the lane, or more has been acknowledged than this one's end knows: it came too late."""


@dataclass(frozen=True, slots=True)
class PipeResult:
    """How a pipe ended: with the peer's sealed CLOSE (`close`), by our own, or by a cut (`cause`).

    `fault` is set when the peer broke the protocol inside the sealed channel, or this program failed: there is
    no point in going on over another pipe.
    """

    cause: str
    close: Close | None = None
    by_us: bool = False
    fault: bool = False


class Carrying(LaneWaking):
    """See the module's docstring, and `Lane` for the parameters."""

    def __init__(
        self,
        name: str,
        parameters: LaneParameters,
        *,
        on_open: Callable[[StreamIO], None],
        on_control: Callable[[bytes], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, parameters, clock)
        self._attachment = Attachment()
        self._on_open = on_open
        self._on_control = on_control
        self._flush_due = False
        self._held = False
        self._sending = False
        self._closing: Close | None = None  # after all that is queued
        self._last_word: Close | None = None  # after the present record
        self._close_sent = False
        self._sealed: SealedPipe | None = None
        self._detached_at = clock()

    # --- which pipe, and until when ---------------------------------------------------------------

    def take(self, epoch: int, peer_expects: int | None, deadline: Deadline) -> int:
        """Grant the lane to the pipe of `epoch`; return the number of the frame that we expect on it first.

        Ends the pipe that the lane is on, with CLOSE (leaving) where that is possible, and blocks until no thread
        of it touches the lane any more.  `peer_expects` is what the peer's HELLO said; None when it has yet to say so.
        Raises Superseded, with nothing changed, for an epoch that is not the highest, and when the peer expects
        what it has acknowledged already, which a HELLO does that was long on its way; ProtocolError when it expects
        what was never sent; SessionEnded when the lane is over.
        """
        with self.lock:
            if self.core.ended is not None:
                raise SessionEnded(self.core.ended)
            if peer_expects is not None and peer_expects < self.core.outbox.first:
                raise Superseded("the peer has acknowledged more than this HELLO expects")
            if epoch <= self._attachment.epoch:
                raise Superseded(f"a pipe of epoch {self._attachment.epoch} has the lane, this one is of {epoch}")
            if peer_expects is not None:
                self.core.outbox.check_resume(peer_expects)
            self._attachment.grant(epoch)
            old = self._sealed
            if old is not None:
                self._last_word = self._last_word or Close(CloseReason.LEAVING, "a newer connection takes over")
                self._work.notify_all()
                if not self._wait_until_gone_locked(old, Deadline(YIELD)):
                    old.close("a newer connection takes over")
                if not self._wait_until_gone_locked(old, deadline):
                    raise TransportError("the old connection did not end in time")
            if self._attachment.epoch != epoch:
                raise Superseded("a later pipe has taken the lane meanwhile")
            return self.core.received

    def run(
        self,
        sealed: SealedPipe,
        *,
        silence: float,
        epoch: int = 0,
        peer_expects: int = 0,
        receive_from: int | None = None,
        on_attached: Callable[[], None] = lambda: None,
    ) -> PipeResult:
        """Carry the lane on this pipe until it ends; blocks, and is the pipe's reader thread meanwhile.

        `epoch` is what `take` has granted (0, for a lane's first pipe, needs no grant), `peer_expects` and
        `receive_from` are what the two ends said in HELLO and READY (see `LaneCore.attach`).  `silence` is
        the number of seconds after which the pipe counts as dead when not one raw byte came, or when nothing could be
        sent.  `on_attached` is called once the lane is on the pipe.  Never raises for what the peer or the path did:
        the PipeResult says it.
        """
        writer: threading.Thread | None = None
        ending = PipeResult("the connection's thread failed", by_us=True, fault=True)
        try:
            with self.lock:
                if self.core.ended is not None:
                    return (ending := PipeResult("the session is over", by_us=True))
                if self._attachment.epoch < 0:
                    self._attachment.grant(epoch)
                if self._attachment.epoch != epoch:
                    return (ending := PipeResult("a later connection has the lane", by_us=True))
                self.core.attach(self.clock(), peer_expects=peer_expects, receive_from=receive_from)
                self._attachment.advance(Step.ATTACH)
                self._sealed = sealed
                self._flush_due = self._held = self._sending = self._close_sent = False
                self._last_word = None
                failed = self.wake_locked()
            self.tell(failed)
            on_attached()
            sealed.pipe.set_wakeup(self._pipe_owes)
            sealed.set_timeouts(silence)
            writer = start_thread(f"{self.name}-writer", lambda: self._writer_loop(sealed))
            ending = self._reader_loop(sealed)
        except ProtocolError as error:
            ending = PipeResult(f"the peer broke the protocol: {error}", fault=True)
        except NoThread as error:
            if writer is not None:
                raise
            ending = PipeResult(str(error), by_us=True)
        finally:
            self._detach(sealed, writer, ending)
        return ending

    def _detach(self, sealed: SealedPipe, writer: threading.Thread | None, ending: PipeResult) -> None:
        if ending.fault and writer is not None:
            with self.lock:
                self._last_word = self._last_word or Close(CloseReason.PROTOCOL, ending.cause)
                self._work.notify_all()
            writer.join(YIELD)
        sealed.close("the pipe's reader has ended")
        with self.lock:
            if self._sealed is sealed:
                self.core.detach()
            self._work.notify_all()
        if writer is not None:
            writer.join()  # before another pipe is attached: it may be reading a block that will be replayed
        with self.lock:
            if self._sealed is sealed:
                self._sealed = None
                self._detached_at = self.clock()
                self._attachment.advance(Step.PIPE_ENDED)
            self._settled.notify_all()

    def hold(self) -> int:
        """Have the writer begin no further record, until the pipe ends, `close` or `release_hold`; does not block.

        Returns the number of the frame that we expect next.  What this end then says in HELLO, on another pipe, is no
        less than what it has acknowledged on this one, though the writer may still be busy with its last record.
        """
        with self.lock:
            self._held = True
            return self.core.received

    def release_hold(self) -> None:
        """Let the writer go on.  Idempotent; does not block."""
        with self.lock:
            self._held = False
            self._work.notify_all()

    def close(self, reason: CloseReason, text: str) -> None:
        """Send what is queued, then a sealed CLOSE, and let the pipe end.  Idempotent; does not block.

        Streams take no more from now on.  The pipe is closed by force when the peer has not ended it FAREWELL
        seconds after CLOSE; a peer that does not even take what is queued is the caller's to `cut`.
        """
        with self.lock:
            if self._closing is None:
                self._closing = Close(reason, text)
            self.core.close()
            self._work.notify_all()
            self._room.notify_all()

    def cut(self, cause: str) -> None:
        """End the present pipe, if there is one, without a word.  Idempotent; does not block."""
        with self.lock:
            sealed = self._sealed
        if sealed is not None:
            sealed.close(cause)

    def end(self, reason: Reason, text: str, close: Close | None = None) -> None:
        """The lane is over: reset every stream here, and end the pipe if there is one.

        With `close` the peer is told so, if the writer is free to; otherwise the pipe just ends.  Idempotent;
        does not block.
        """
        with self.lock:
            sealed = self._sealed
            self.core.end(reason, text)
            self._attachment.advance(Step.END)
            told = close is not None and sealed is not None and not self._sending and not self._close_sent
            if told:
                self._last_word = self._last_word or close
            self._pong.notify_all()
            self._settled.notify_all()
            self._work.notify_all()
            failed = self.wake_locked()
        if sealed is not None and not told:
            sealed.close(text)
        self.tell(failed)

    def _wait_until_gone_locked(self, old: SealedPipe, deadline: Deadline) -> bool:
        """Wait until the lane is not on `old` any more; False at the deadline.  Another pipe may have it by then."""
        while self._sealed is old:
            if deadline.passed:
                return False
            self._settled.wait(deadline.remaining())
        return True

    # --- the reader -------------------------------------------------------------------------------

    def _reader_loop(self, sealed: SealedPipe) -> PipeResult:
        while True:
            try:
                kind, content = sealed.recv_record()
            except ProtocolError as error:
                # Whoever is on the path can do this, so it is a cut like any other.
                return PipeResult(f"something broke the connection: {error}")
            except QanatError as error:
                return PipeResult(sealed.cause or str(error), by_us=self._close_sent)
            if kind is RecordKind.FRAMES:
                self._receive(content)
            elif kind is RecordKind.CLOSE:
                close = Close.decode(content)
                return PipeResult(close.text or close.reason.name.lower().replace("_", " "), close)
            else:
                raise ProtocolError(f"a {kind.name} record in the middle of a session")

    def _receive(self, content: memoryview) -> None:
        if frame_log.isEnabledFor(logging.DEBUG):
            self._trace("<", content)
        failed: list[StreamIO] = []
        try:
            with self.lock:
                if self._attachment.state is State.YIELDING:
                    return  # The next pipe goes on where this one was when it had to yield.
                try:
                    events = self.core.receive(content, self.clock())
                    # Made under the lock: a stream is not to fail before there is somebody to tell.
                    opened = [StreamIO(self, e.stream) if isinstance(e, Opened) else e for e in events]
                finally:
                    # Also after a ProtocolError: the frames before the faulty one have taken effect.
                    if self._closing is not None:
                        self.core.work_made = True
                    failed = self.wake_locked()
                    self._pong.notify_all()
        finally:
            self.tell(failed)
        for event in opened:
            if isinstance(event, ControlReceived):
                self._on_control(event.message)
            else:
                self._on_open(event)

    def _pipe_owes(self) -> None:
        with self.lock:
            self._flush_due = True
            self._work.notify()

    # --- the writer -------------------------------------------------------------------------------

    def _writer_loop(self, sealed: SealedPipe) -> None:
        try:
            while self._send_next(sealed):
                pass
            close = self._last_word or self._closing
            if close is not None and sealed.cause is None:
                self._close_sent = True
                sealed.send_record(bytes((RecordKind.CLOSE,)) + close.encode())
                if close.reason is not CloseReason.LEAVING:
                    self._wait_for_farewell(sealed)
                sealed.close(close.text or "closed by this side")
        except TransportError as error:
            # The reader returns what the peer had still sent, then ends with the pipe's first cause.
            log.debug("%s: writing ended: %s", self.name, error)
        except BaseException as error:
            # A fault of this program: without its writer the pipe would live on in silence.
            sealed.close(f"the pipe's writer failed: {error}")
            raise
        finally:
            with self.lock:
                self._sending = False

    def _send_next(self, sealed: SealedPipe) -> bool:
        """Block for something to send, and send it.  False when the pipe has ended, or it is time for CLOSE."""
        with self.lock:
            self._sending = False
            while True:
                if sealed.cause is not None or self._last_word is not None:
                    return False
                if self._held and self._closing is None:  # a goodbye does not wait for the pipe that will not be
                    self._work.wait()
                    continue
                now = self.clock()
                record = self.core.next_record(now)
                failed = self.wake_locked()
                flush, self._flush_due = self._flush_due, False
                if record is not None or flush or failed:
                    break
                if not self.core.attached:
                    return False
                if self._closing is not None and self.core.idle:
                    return False
                self._work.wait(self.core.next_timeout(now))
            self._sending = True
        self.tell(failed)
        if flush:
            sealed.pipe.flush()
        if record is not None:
            if frame_log.isEnabledFor(logging.DEBUG):
                self._trace(">", record[1:])
            sealed.send_record(record)
        return True

    def _trace(self, direction: str, content: memoryview) -> None:
        for line in describe_frames(content):
            frame_log.debug("%s %s %s", self.name, direction, line)

    def _wait_for_farewell(self, sealed: SealedPipe) -> None:
        deadline = Deadline(FAREWELL)
        with self.lock:
            while sealed.cause is None and not deadline.passed:
                self._work.wait(deadline.remaining())
