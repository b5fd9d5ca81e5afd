"""One lane: a core, its lock, its streams, and the pipes that carry it, one after the other.

One lock guards the core, all streams of the lane, and the present pipe's runner; it is never held while sealing,
sending, receiving, or calling back.  A newer pipe is granted the lane by `acquire`, which ends the older one, and
`start` carries it (`qanat.mux.pipe_runner`); in between, whoever has something to send waits for room.

Who is woken: the core notes it (`qanat.mux.wakeups`), `wake_locked` does it before the lock is released, whatever
was raised meanwhile.  The writer's condition is its pipe's, a stream's two are the stream's.  The lane's own:
`_room`, whose waiters wait for a buffer or for the retransmit buffer (both get `notify_all`: woken one by one, the
wrong one might take the turn and go back to sleep); `_pong`, for whoever waits for an answer; `_settled`, for
whoever waits until a pipe is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, QanatError, SessionEnded, TransportError, WouldBlock
from qanat.base.lazy_waiting import LazyCondition
from qanat.base.watcher import Watcher
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, CloseReason
from qanat.mux.attachment import Attachment, AttachmentStep
from qanat.mux.buffer_pool import Buffer
from qanat.mux.core import LaneCore
from qanat.mux.figures import LaneFigures
from qanat.mux.frames import Reason
from qanat.mux.parameters import FIRST_PIPE, ControlReceived, Event, LaneParameters, ResumePoint
from qanat.mux.pipe_result import PipeResult
from qanat.mux.pipe_runner import YIELD_TIMEOUT, PipeRunner
from qanat.mux.stream import Calls, Stream
from qanat.mux.stream_state import CLOSED, StreamState


class Superseded(QanatError):
    """Another pipe has the lane, or more has been acknowledged than this one's end knows: it came too late."""


class Lane:
    """See the module's docstring.  Every method may be called from any thread.

    `on_open` is called by the reader for each stream that the peer opens, `on_control` for each control
    message; neither may block.  What `on_control` raises as ProtocolError ends the lane.  `watcher` reads the lane's
    pipes while little comes; without one each has a thread that does.  `clock` gives seconds, as `time.monotonic` does.
    """

    def __init__(
        self,
        name: str,
        parameters: LaneParameters,
        *,
        on_open: Callable[[Stream], None],
        on_control: Callable[[bytes], None],
        watcher: Watcher | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.clock = clock
        self.lock = threading.Lock()
        self.core = LaneCore(parameters, clock())
        self._wakeups = self.core.wakeups
        self._on_open = on_open
        self._on_control = on_control
        self._watcher = watcher
        self._room = LazyCondition(self.lock)
        self._pong = LazyCondition(self.lock)
        self._settled = LazyCondition(self.lock)
        self._streams: dict[int, Stream] = {}  # by id, until they are over on the wire
        self._attachment = Attachment()
        self._runner: PipeRunner | None = None
        self._closing: Close | None = None
        self._changed_at = clock()  # when it got its pipe, or lost it
        self._pipes = 0
        self._taken_over = False  # the next pipe follows one that still worked
        self._recoveries = 0
        self._last_recovery: float | None = None

    # --- streams and messages -------------------------------------------------------------------

    def open_stream(self, request: bytes, *, wait: bool = True, flush: bool = True) -> Stream:
        """Open a stream; blocks while the retransmit buffer is full, or raises WouldBlock without `wait`.

        Without `flush` the peer does not hear of it before the lane is flushed.  Raises SessionEnded,
        StreamReset(LIMIT) when the peer allows no more, and LocalError for a request above 1,024 bytes.
        """
        core = self.core
        with self.lock:
            while core.sender.retransmit_buffer.full and core.ended is None and self._closing is None:
                if not wait:
                    raise WouldBlock
                self._room.wait()
            if self._closing is not None:
                raise SessionEnded("the session is closing")
            stream = self._add_stream_locked(core.open_stream(request, self.clock()))
            calls = self.wake_locked(sending=True)
        if calls:
            self.call(calls)
        if flush:
            self.flush()
        return stream

    def send_control(self, message: bytes) -> None:
        """Queue a control message of at most 1,024 bytes.  Does not block; the caller bounds how many there are."""
        with self.lock:
            self.core.send_control(message)
            calls = self.wake_locked(sending=True)
        self.call(calls)
        self.flush()

    def flush(self) -> None:
        """Send what is queued now if that can be done without blocking; otherwise the pipe's writer does.

        Nothing while there is no pipe.  Does not block.
        """
        runner = self._runner
        if runner is not None:
            runner.send_now()

    def send_alone(self, stream: StreamState, payload: Buffer | bytes) -> bool:
        """Send `payload` of `stream` now, if nothing else waits and that does not block; whether it was sent."""
        runner = self._runner
        return runner is not None and runner.send_alone(stream, payload)

    def flush_bulk(self) -> None:
        """Do as `flush`, for bulk too.  By a thread of a stream that has nothing else to do meanwhile."""
        runner = self._runner
        if runner is not None:
            runner.send_now(bulk=True)

    def bulk_over(self) -> None:
        """Give memory back that `flush_bulk` has needed.  Does not block."""
        runner = self._runner
        if runner is not None:
            runner.trim_sending()

    # --- the pipe that carries the lane ---------------------------------------------------------

    def acquire(self, epoch: int, peer_expects: int | None, deadline: Deadline) -> int:
        """Grant the lane to the pipe of `epoch`; return the number of the frame that we expect on it first.

        Ends the pipe that the lane is on, with CLOSE (leaving) where that is possible, and blocks until no thread
        of it touches the lane any more.  `peer_expects` is what the peer's HELLO said; None when it has yet to say so.
        Raises Superseded, with nothing changed, for an epoch that is not the highest, and when the peer expects
        what it has acknowledged already, which a HELLO does that was long on its way; ProtocolError when it expects
        what was never sent; SessionEnded when the lane is over; TransportError at the deadline.
        """
        with self.lock:
            kept = self.core.sender.retransmit_buffer
            if self.core.ended is not None:
                raise SessionEnded(self.core.ended)
            if peer_expects is not None and peer_expects < kept.first:
                raise Superseded("the peer has acknowledged more than this HELLO expects")
            if epoch <= self._attachment.epoch:
                raise Superseded(f"a pipe of epoch {self._attachment.epoch} has the lane, this one is of {epoch}")
            if peer_expects is not None:
                kept.check_resume(peer_expects)
            self._attachment.grant(epoch)
            old = self._runner
            self._taken_over = old is not None
            if old is not None:
                old.close_next_locked(Close(CloseReason.LEAVING, "a newer connection takes over"))
                if not self._wait_until_gone_locked(old, Deadline(YIELD_TIMEOUT)):
                    old.cut("a newer connection takes over")
                if not self._wait_until_gone_locked(old, deadline):
                    raise TransportError("the old connection did not end in time")
            if self._attachment.epoch != epoch:
                raise Superseded("a later pipe has taken the lane meanwhile")
            return self.core.receiver.expected

    def start(
        self,
        sealed: SealedPipe,
        on_over: Callable[[PipeResult], None],
        resume: ResumePoint = FIRST_PIPE,
        *,
        silence: float,
        on_attached: Callable[[], None] = lambda: None,
    ) -> None:
        """Carry the lane on this pipe until it ends; the calling thread reads until little comes, and returns then.

        `resume` is what `acquire` has granted, and where both ends go on; a lane's first pipe needs no grant.
        `silence` is the number of seconds after which the pipe counts as dead when not one raw byte came, or when
        nothing could be sent.  `on_attached` is called once the lane is on the pipe.  `on_over` is called once, by some
        thread and perhaps before this returns: the pipe is closed then, and the lane is on no pipe or on another.
        What the peer or the path did, or a fault of this program, the PipeResult says; what `on_attached` raises is
        raised, and nobody is called then.
        """
        runner = PipeRunner(self, sealed, self._watcher)

        def over(result: PipeResult) -> None:
            self._detach()
            sealed.close("the pipe's reader has ended")
            on_over(result)

        try:
            refused = self._attach(runner, resume, in_requests=sealed.pipe.in_requests)
            if refused is None:
                try:
                    on_attached()
                except BaseException:
                    self._detach()
                    raise
        except BaseException:
            sealed.close("the pipe was never read")
            raise
        if refused is None:
            runner.start(silence, over)
        else:
            sealed.close("the lane was not on this pipe")
            on_over(refused)

    def pause_writer(self) -> int:
        """Have the writer begin no further record, until the pipe ends, `close` or `resume_writer`; does not block.

        Returns the number of the frame that we expect next.  What this end then says in HELLO, on another pipe, is no
        less than what it has acknowledged on this one, though the writer may still be busy with its last record.
        """
        with self.lock:
            if self._runner is not None:
                self._runner.pause_locked()
            return self.core.receiver.expected

    def resume_writer(self) -> None:
        """Have the writer go on.  Idempotent; does not block."""
        with self.lock:
            if self._runner is not None:
                self._runner.resume_locked()

    def close(self, reason: CloseReason, text: str) -> None:
        """Send what is queued, then a sealed CLOSE, and let the pipe end.  Idempotent; does not block.

        Streams take no more from now on.  The pipe is closed by force when the peer has not ended it CLOSE_TIMEOUT
        seconds after CLOSE; a peer that does not even take what is queued is the caller's to `cut`.
        """
        with self.lock:
            if self._closing is None:
                self._closing = Close(reason, text)
            self.core.sender.close()
            if self._runner is not None:
                self._runner.close_when_idle_locked(self._closing)
            self._room.notify_all()

    def cut(self, cause: str) -> None:
        """End the present pipe, if there is one, without CLOSE.  Idempotent; does not block."""
        with self.lock:
            runner = self._runner
        if runner is not None:
            runner.cut(cause)

    def end(self, reason: Reason, text: str, close: Close | None = None) -> None:
        """End the lane for good: reset every stream here, and end the pipe if there is one.

        With `close` the peer is told so, if the writer is free to; otherwise the pipe just ends.  Idempotent;
        does not block.
        """
        with self.lock:
            runner = self._runner
            self.core.end(reason, text)
            self._attachment.advance(AttachmentStep.END)
            told = close is not None and runner is not None and runner.close_if_free_locked(close)
            self._settled.notify_all()
            calls = self.wake_locked()
            self._on_open = self._on_control = _nobody  # they hold the session, which holds its lanes
        if runner is not None and not told:
            runner.cut(text)
        self.call(calls)

    def shrink(self) -> bool:
        """Give back free buffers that were not needed since the last call; return whether to call again.

        Does not block.
        """
        with self.lock:
            return self.core.sender.buffers.shrink()

    # --- how it is ------------------------------------------------------------------------------

    def ping(self, timeout: float) -> bool:
        """Send a sealed PING at once; block until it is answered, or False after `timeout` seconds.

        False as soon as the lane has ended; a lane without a pipe may still get one in time.
        """
        return self.wait_pong(self.send_ping(), timeout)

    def send_ping(self) -> int:
        """Have a sealed PING sent at once, or with the next pipe; return its number.  Does not block."""
        with self.lock:
            number = self.core.pending.ping_now(self.clock())
            if self._runner is not None:
                self._runner.wake_locked()
            return number

    def wait_pong(self, number: int, timeout: float) -> bool:
        """Block until the PING of this number, or a later one, is answered.

        False after `timeout` seconds, or as soon as the lane has ended.
        """
        deadline = Deadline(timeout)
        with self.lock:
            while self.core.pending.pings_answered < number:
                if deadline.passed or self.core.ended is not None:
                    return False
                self._pong.wait(deadline.remaining())
            return True

    @property
    def over(self) -> bool:
        """Whether the lane has ended for good."""
        with self.lock:
            return self.core.ended is not None

    @property
    def attached(self) -> bool:
        """Whether the lane is on a pipe."""
        return self.core.sender.attached

    @property
    def away(self) -> float:
        """For how many seconds the lane has been on no pipe; 0 while it is on one."""
        with self.lock:
            return 0.0 if self._runner is not None else self.clock() - self._changed_at

    @property
    def epoch(self) -> int:
        """That of the newest pipe that was granted the lane; -1 before the first."""
        with self.lock:
            return self._attachment.epoch

    @property
    def open_streams(self) -> int:
        """How many streams are open on the wire."""
        with self.lock:
            return len(self.core.streams)

    @property
    def progress(self) -> int:
        """How many frames have got through: ours that the peer has acknowledged, and the peer's that have come."""
        with self.lock:
            return self.core.sender.acknowledged + self.core.receiver.expected

    @property
    def load(self) -> tuple[bool, int, int]:
        """How much there is on the lane, to compare it with others: without a pipe, open streams, bytes that wait."""
        with self.lock:
            sender = self.core.sender
            waiting = sender.queued_bytes + sender.retransmit_buffer.charged
            return not sender.attached, len(self.core.streams), waiting

    @property
    def round_trip(self) -> float:
        """Seconds that a PING takes, smoothed; 0 before the first answer."""
        return self.core.pending.round_trip

    def figures(self) -> LaneFigures:
        """Return how it is.  Holds the lane's lock for a few microseconds, however many streams there are."""
        with self.lock:
            core = self.core
            sender, kept = core.sender, core.sender.retransmit_buffer
            return LaneFigures(
                sender.attached,
                self._changed_at,
                core.pending.round_trip,
                core.receiver.payload_received,
                sender.payload_sent,
                sender.queued_bytes,
                kept.charged,
                kept.limit,
                self._pipes,
                core.streams.opened,
                self._recoveries,
                self._last_recovery,
                sender.replayed_bytes,
                core.pending.ping_waits(self.clock()),
                len(core.streams),
            )

    def trouble(self, patience: float, lock_seconds: float) -> str:
        """Return in words what this end of the lane should do and does not; "" while it moves, or has no pipe.

        What has been due for less than `patience` seconds is none.  Blocks for the lane's lock, `lock_seconds` at most.
        """
        if not self.lock.acquire(timeout=lock_seconds):
            return f"{self.name}: its lock has been held for more than {lock_seconds:g} s"
        try:
            runner = self._runner
            attached = runner is not None and self.core.sender.attached and self.core.ended is None
            what = runner.trouble_locked(patience) if runner is not None and attached else ""
        finally:
            self.lock.release()
        return f"{self.name}: {what}" if what else ""

    @property
    def streams(self) -> list[Stream]:
        """The streams that are open on the wire."""
        with self.lock:
            return list(self._streams.values())

    # --- for PipeRunner and Stream --------------------------------------------------------------

    def callbacks_locked(self, events: list[Event]) -> list[Callable[[], None]]:
        """Return what has to be called for these events once the lock is released; it may raise ProtocolError."""
        # Streams are made under the lock: one must not fail before there is somebody to report it to.
        return [
            partial(self._on_control, event.message)
            if isinstance(event, ControlReceived)
            else partial(self._on_open, self._add_stream_locked(event.stream))
            for event in events
        ]

    def stream_locked(self, state: StreamState) -> Stream:
        """Return the face of a stream that is open."""
        return self._streams[state.id]

    def take_deliveries_locked(self) -> list[tuple[Stream, memoryview | None]]:
        """Take what the reader hands on itself, by stream; the others' readers are woken later."""
        wakeups, streams = self._wakeups, self._streams
        deliveries: list[tuple[Stream, memoryview | None]] = []
        waiting: list[StreamState] = []
        for state in wakeups.readers:
            stream = streams.get(state.id)
            if stream is not None and stream.delivers_locked():
                inbox = state.inbox
                deliveries.append((stream, memoryview(inbox.popleft()) if inbox else None))  # as `Receiver.take`
            else:
                waiting.append(state)
        wakeups.readers = waiting
        return deliveries

    def take_datagrams_locked(self) -> list[tuple[Stream, bytes]]:
        """Take what the reader hands on of datagrams, by stream."""
        wakeups, streams = self._wakeups, self._streams
        found = [(streams[state.id], payload) for state, payload in wakeups.datagrams if state.id in streams]
        wakeups.datagrams.clear()
        return found

    def wake_locked(self, *, sending: bool = False) -> Calls:
        """Wake the threads that the core has named; return what to `call` once the lock is released.

        The writer is left alone by who is `sending`: the caller sends, or calls `flush`, without the lock.
        """
        wakeups, streams = self._wakeups, self._streams
        calls: Calls = []
        if wakeups.readers:
            for state in wakeups.readers:
                stream = streams.get(state.id)
                if stream is not None:
                    callback = stream.wake_reader_locked()
                    if callback is not None:
                        calls.append(callback)
            wakeups.readers.clear()
        failed = False
        if wakeups.writers:
            for state in wakeups.writers:
                stream = streams.get(state.id)
                if stream is not None:
                    callback = stream.wake_writer_locked() if state.writer_waits else None
                    if callback is not None:
                        calls.append(callback)
                    if state.phase is CLOSED:  # Nobody waits for a stream that is over.
                        del streams[state.id]
                        if state.failure is not None:
                            failed = True
                            calls.append(stream.fail)
            wakeups.writers.clear()
        if wakeups.room or failed:
            wakeups.room = False
            self._room.notify_all()
        if wakeups.pong:
            wakeups.pong = False
            self._pong.notify_all()
        if wakeups.work:
            wakeups.work = False
            if self._runner is not None and not (sending and not self.core.sender.crowd):
                self._runner.wake_locked()
        return calls

    def pulls_locked(self) -> Calls:
        """Return what the writer has to call for the streams of a crowd whose turn it is."""
        calls: Calls = []
        for state in self.core.sender.next_of_crowd():
            stream = self._streams.get(state.id)
            callback = None if stream is None else stream.take_pull_locked()
            if callback is not None:
                calls.append(callback)
        return calls

    def call(self, calls: Calls) -> None:
        """Call what `wake_locked` has returned, without the lock."""
        for callback in calls:
            callback()

    def wait_for_room_locked(self) -> None:
        """Block until a buffer or room in the retransmit buffer came back, or a stream failed; or without a cause."""
        self._room.wait()

    # --- inside ---------------------------------------------------------------------------------

    def _add_stream_locked(self, state: StreamState) -> Stream:
        stream = self._streams[state.id] = Stream(self, state)
        return stream

    def _attach(self, runner: PipeRunner, resume: ResumePoint, *, in_requests: bool) -> PipeResult | None:
        """Put the lane on the runner's pipe, or say why not."""
        try:
            with self.lock:
                if self.core.ended is not None:
                    return PipeResult("the session is over")
                if self._attachment.epoch < 0:
                    self._attachment.grant(resume.epoch)
                if self._attachment.epoch != resume.epoch:
                    return PipeResult("a later connection has the lane")
                self.core.attach(
                    self.clock(),
                    peer_expects=resume.peer_expects,
                    receive_from=resume.receive_from,
                    in_requests=in_requests,
                )
                self._attachment.advance(AttachmentStep.ATTACH)
                self._runner = runner
                self._count_pipe_locked(self.clock())
                if self._closing is not None:
                    runner.close_when_idle_locked(self._closing)
                calls = self.wake_locked()
        except ProtocolError as error:
            return PipeResult(f"the peer broke the protocol: {error}", fault=True)
        self.call(calls)
        return None

    def _count_pipe_locked(self, now: float) -> None:
        if self._pipes and not self._taken_over:
            self._recoveries += 1
            self._last_recovery = now - self._changed_at
            self.core.parameters.observer.recovered(self._last_recovery)
        self._pipes += 1
        self._taken_over = False
        self._changed_at = now

    def _detach(self) -> None:
        """Take the lane off its pipe, whose threads have ended."""
        with self.lock:
            self.core.detach()
            self._runner = None
            self._changed_at = self.clock()
            self._attachment.advance(AttachmentStep.PIPE_ENDED)
            self._settled.notify_all()

    def _wait_until_gone_locked(self, old: PipeRunner, deadline: Deadline) -> bool:
        """Wait until the lane is not on `old` any more; False at the deadline.  Another pipe may have it by then."""
        while self._runner is old:
            if deadline.passed:
                return False
            self._settled.wait(deadline.remaining())
        return True


def _nobody(what: Stream | bytes) -> None:
    """Whoever had the lane is gone with it, and nothing is received on it any more."""
