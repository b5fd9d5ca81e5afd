"""The threads and the lock around one lane's core.

One lock guards the core and all streams of the lane.  While a pipe is attached, two threads work on it:
the *reader*, which blocks in `recv` alone and never writes, and the *writer*, which waits for work, takes
a record from the core under the lock, and seals and sends it outside.  Streams' own threads come and go
through `StreamIO`.  Who wakes whom: the core notes it, `_wake_locked` does it before the lock is released.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from base.deadline import Deadline
from base.errors import ProtocolError, QanatError, SessionEnded, TransportError
from base.threads import start_thread
from handshake.exchange import SealedPipe
from handshake.hello import Close, CloseReason, RecordKind

from .core import LaneCore
from .frames import Reason
from .parameters import ControlReceived, LaneParameters, Opened
from .stream_io import StreamIO

log = logging.getLogger("qanat.mux")

FAREWELL = 2.0
"""Seconds that the peer gets to end the pipe after our CLOSE, before we do."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a pipe ended: with the peer's sealed CLOSE (`close`), by our own, or by a cut or fault (`cause`)."""

    cause: str
    close: Close | None = None
    by_us: bool = False
    fault: bool = False


class Lane:
    """See the module's docstring.

    `on_open` is called by the reader for each stream that the peer opens, `on_control` for each control
    message; neither may block.  What `on_control` raises as ProtocolError ends the pipe.
    """

    def __init__(
        self,
        name: str,
        parameters: LaneParameters,
        *,
        on_open: Callable[[StreamIO], None],
        on_control: Callable[[bytes], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.clock = clock
        self.lock = threading.Lock()
        self.core = LaneCore(parameters, clock())
        self._on_open = on_open
        self._on_control = on_control
        self._work = threading.Condition(self.lock)
        self._room = threading.Condition(self.lock)
        self._pong = threading.Condition(self.lock)
        self._flush_due = False
        self._closing: Close | None = None
        self._close_sent = False
        self._sealed: SealedPipe | None = None

    # --- the life of a pipe ---------------------------------------------------------------------

    def run(self, sealed: SealedPipe, *, silence: float) -> Ending:
        """Carry the lane on this pipe until it ends; blocks, and is the pipe's reader thread meanwhile.

        `silence` is the number of seconds without one raw byte after which the pipe counts as dead.
        Never raises for what the peer or the path did: the Ending says it.
        """
        with self.lock:
            if self._closing is not None:
                sealed.close("the session is closing")
            self._sealed = sealed
            self._flush_due = False
            self.core.attach(self.clock())
        sealed.pipe.set_wakeup(self._pipe_owes)
        sealed.set_read_timeout(silence)
        writer = start_thread(f"{self.name}-writer", lambda: self._writer_loop(sealed))
        try:
            return self._reader_loop(sealed)
        finally:
            sealed.close("the pipe's reader has ended")
            with self.lock:
                self.core.detach()
                self._sealed = None
                self._work.notify_all()
                self._pong.notify_all()
            writer.join()

    def close(self, reason: CloseReason, text: str) -> None:
        """Send what is queued, then a sealed CLOSE, and let the pipe end.  Idempotent; does not block.

        The pipe is closed by force when the peer has not ended it FAREWELL seconds after CLOSE.
        """
        with self.lock:
            if self._closing is None:
                self._closing = Close(reason, text)
            self._work.notify_all()

    def cut(self, cause: str) -> None:
        """End the pipe, if there is one, without a word.  Idempotent; does not block."""
        with self.lock:
            sealed = self._sealed
        if sealed is not None:
            sealed.close(cause)

    def end(self, reason: Reason, text: str) -> None:
        """The session is over: reset every stream here.  Idempotent; does not block."""
        with self.lock:
            self.core.end(reason, text)
            self._work.notify_all()
            self._room.notify_all()
            failed = self._wake_locked()
        self.tell(failed)

    def ping(self, timeout: float) -> bool:
        """Send a sealed PING at once; block until it is answered, or False after `timeout` seconds."""
        deadline = Deadline(timeout)
        with self.lock:
            owed = self.core.owed
            target = owed.ping_count + 1
            owed.ping_now(self.clock())
            self._work.notify()
            while not (owed.ping_count >= target and owed.ping_answered):
                if deadline.passed or not self.core.attached:
                    return False
                self._pong.wait(deadline.remaining())
            return True

    # --- streams --------------------------------------------------------------------------------

    def open_stream(self, request: bytes) -> StreamIO:
        """Open a stream; blocks while the outbox is full.  Raises SessionEnded or StreamReset(LIMIT)."""
        with self.lock:
            while self.core.outbox.full and self.core.ended is None:
                self._room.wait()
            if self._closing is not None:
                raise SessionEnded("the session is closing")
            stream = StreamIO(self, self.core.open_stream(request, self.clock()))
            self.work_locked()
            return stream

    def send_control(self, message: bytes) -> None:
        """Queue a control message.  Does not block; the caller bounds how many there are."""
        with self.lock:
            if self.core.ended is None:
                self.core.send_control(message)
                self._work.notify()

    @property
    def open_streams(self) -> int:
        """How many streams are open on the wire."""
        with self.lock:
            return len(self.core.streams)

    @property
    def acknowledged(self) -> int:
        """How many of our frames the peer has acknowledged."""
        with self.lock:
            return self.core.outbox.first

    @property
    def round_trip(self) -> float:
        """Seconds that a PING takes, smoothed; 0 before the first answer."""
        return self.core.owed.round_trip

    # --- for StreamIO, with the lock held -------------------------------------------------------

    def work_locked(self) -> list[StreamIO]:
        """There may be something to send, and someone to wake; returns what to `tell` without the lock."""
        self._work.notify()
        return self._wake_locked()

    def wait_for_room_locked(self) -> None:
        """Wait until blocks or outbox room came back, or the session ended; spurious wake-ups happen."""
        self._room.wait()

    def room_made_locked(self) -> None:
        self._room.notify()

    def tell(self, failed: list[StreamIO]) -> None:
        """Call the failure callbacks, without the lock."""
        for stream in failed:
            stream.fail()

    def _wake_locked(self) -> list[StreamIO]:
        core = self.core
        failed: list[StreamIO] = []
        if core.wake_readers:
            for stream in core.wake_readers:
                if stream.io is not None:
                    stream.io.readable.notify_all()
            core.wake_readers.clear()
        if core.wake_writers:
            for stream in core.wake_writers:
                if stream.io is not None:
                    stream.io.writable.notify()
                    if stream.failure is not None:
                        failed.append(stream.io)
            core.wake_writers.clear()
            if failed:
                self._room.notify_all()
        if core.outbox_was_full:
            core.outbox_was_full = False
            self._room.notify_all()
        return failed

    # --- the reader -----------------------------------------------------------------------------

    def _reader_loop(self, sealed: SealedPipe) -> Ending:
        try:
            while True:
                kind, content = sealed.recv_record()
                if kind is RecordKind.FRAMES:
                    self._receive(content)
                elif kind is RecordKind.CLOSE:
                    close = Close.decode(content)
                    return Ending(close.text or close.reason.name.lower().replace("_", " "), close)
                else:
                    raise ProtocolError(f"a {kind.name} record in the middle of a session")
        except ProtocolError as error:
            return Ending(f"the peer broke the protocol: {error}", fault=True)
        except QanatError as error:
            return Ending(sealed.cause or str(error), by_us=self._close_sent)

    def _receive(self, content: memoryview) -> None:
        with self.lock:
            events = self.core.receive(content, self.clock())
            opened = [
                StreamIO(self, event.stream) if isinstance(event, Opened) else event for event in events
            ]
            failed = self._wake_locked()
            self._pong.notify_all()
            self._work.notify()
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

    # --- the writer -----------------------------------------------------------------------------

    def _writer_loop(self, sealed: SealedPipe) -> None:
        try:
            while True:
                record, flush, failed = self._next_work(sealed)
                self.tell(failed)
                if flush:
                    sealed.pipe.flush()
                if record is not None:
                    sealed.send_record(record)
                elif not flush:
                    break
            if self._closing is not None and sealed.cause is None:
                self._close_sent = True
                sealed.send_record(memoryview(bytes((RecordKind.CLOSE,)) + self._closing.encode()))
                self._wait_for_farewell()
                sealed.close("closed by this side")
        except TransportError as error:
            # The reader returns what the peer had still sent, then ends with the pipe's first cause.
            log.debug("%s: writing ended: %s", self.name, error)
        except QanatError as error:
            sealed.close(str(error))

    def _next_work(self, sealed: SealedPipe) -> tuple[memoryview | None, bool, list[StreamIO]]:
        """Block for something to send.  Nothing at all means: the pipe ended, or it is time to close."""
        with self.lock:
            while True:
                now = self.clock()
                record = self.core.next_record(now)
                failed = self._wake_locked()
                flush, self._flush_due = self._flush_due, False
                if record is not None or flush or failed:
                    return record, flush or record is None, failed
                if not self.core.attached or sealed.cause is not None or self._closing is not None:
                    return None, False, failed
                self._work.wait(self.core.next_timeout(now))

    def _wait_for_farewell(self) -> None:
        deadline = Deadline(FAREWELL)
        with self.lock:
            while self.core.attached and not deadline.passed:
                self._work.wait(deadline.remaining())
