"""One HTTP/2 connection for pipes, as a client or as a server: who reads it, who writes it, how it ends.

What bytes mean is `core`'s.  One lock guards that and every stream, and is never held during I/O.

Whichever thread waits for the connection reads it, unless another one does already (`wait_locked`), so that a client
needs no thread for it; a server has one, which leaves that to the pipe of a lone stream (`lend_reading_locked`).  While
all pipes are left to the watcher, it reads the connection too, which *rests* then, without any thread.  **A thread
that reads never waits to write**: what must be said to the peer because of what was read it sends where that does not
block (`tell`), and else announces (`on_pending_control`) to a thread that may wait.  Bytes are taken from the core
under the lock and handed to the wire under the write lock, which is fair, so that they leave in the order in which they
were made.  A writer waits, with neither, for a window *or* pending control *or* the end.

Used by `pipe`, `client` and `server`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from h2.errors import ErrorCodes

from qanat.base.errors import NoThread, PipeEnded, ProtocolError, TransportError
from qanat.base.untrusted import words
from qanat.base.watcher import Watcher
from qanat.transports.cause import FirstCause
from qanat.transports.http2.core import Http2Core
from qanat.transports.http2.dialect import Headers
from qanat.transports.http2.fair_lock import FairLock
from qanat.transports.http2.frames import HEADER_SIZE, Http2Error, data_frames, write_data_header
from qanat.transports.http2.limits import StreamBudget
from qanat.transports.http2.request import Http2Request, PlainAnswer, Router, encode_answer, no_budget
from qanat.transports.http2.stream import Http2Stream, Signal
from qanat.transports.pipe import Wire, stuck_for
from qanat.transports.readiness import readable

log = logging.getLogger("qanat.http2")

_CUT = "the connection was closed by the other end or the path"
_CLOSING_TIME = 0.5
"""Seconds that a writer gets to finish, so that GOAWAY can say what the other end did wrong."""
_CONTROLS_IN_TURN = 64
"""Frames that are no DATA, which the watcher takes from a resting connection before a thread has to go on."""
_READS_IN_TURN = 4
"""The same, in reads of a whole buffer."""
_EARLY = 0.005  # seconds by which the system may wake us before the time is up
_LATE = 0.05  # seconds by which a read may come back after its time was up


class Http2Engine:
    """Owns `wire`.  Methods that end in `_locked` need `lock`; the others take it."""

    def __init__(
        self,
        wire: Wire,
        *,
        window: int,
        first: bytes = b"",
        router: Router | None = None,
        budget_of: Callable[[Http2Request], StreamBudget | None] = no_budget,
    ) -> None:
        """Make a server's engine when there is a `router`, else a client's.

        `window` is how much a new stream's peer may send.  `first` came already, a client's preface included.
        `budget_of` is as for `Http2Server`.

        Sends nothing: our own preface or SETTINGS are pending.
        """
        self.wire = wire
        self.lock = threading.Lock()
        self.core = Http2Core(self.lock, window=window, first=first, router=router, budget_of=budget_of)
        self.cause = FirstCause()
        self.over = False
        """Whether the connection has ended."""
        self._on_pending_control: Callable[[], None] = _nothing
        self._on_leaving: Callable[[], None] | None = None
        self._write_lock = FairLock()
        self._told = False  # somebody was told to send what is pending, and nothing has been sent since
        self._work = threading.Condition(self.lock)  # for `writer_loop`
        self._flush_due = False
        self._send_failure: str | None = None
        self.sends = 0
        """How often the kernel has taken something; only the thread that has the write lock counts."""
        self._has_reader = (
            router is not None
        )  # a server has a thread that reads for all streams: see `lend_reading_locked`
        self._lone: Http2Stream | None = None  # whose pipe reads instead of that thread
        self._returned = threading.Condition(self.lock)  # for that thread: there is no such pipe any more
        self._reading = False
        self._read_over = threading.Condition(self.lock)  # for who waits until nobody reads
        self._watcher: Watcher | None = None
        self._fd: int | None = None  # the wire's, once it has been watched
        self.resting = False
        """Whether the watcher reads."""
        self._on_active: Callable[[], None] = _nothing
        self._writer_over = False  # `writer_loop` is to return
        self._read_timeout: float | None = None  # as the wire has it
        self._waiters: list[Signal] = []  # of the threads that wait while another reads

    # --- streams

    def answer(self, request: Http2Request, answer: PlainAnswer | Headers) -> None:
        """As a server: queue a whole answer; a bare list of headers has no body.  Does not block."""
        headers, body = (answer, b"") if isinstance(answer, list) else encode_answer(request, answer)
        with self.lock:
            if not self.over:
                self.core.answer(request.stream_id, headers, body)
        self.tell()

    def answer_head(self, request: Http2Request, headers: Headers) -> None:
        """As a server: queue the head of an answer whose body stays open.  Does not block."""
        with self.lock:
            if not self.over:
                self.core.answer(request.stream_id, headers, None)
        self.tell()

    def refuse(self, stream_id: int, code: ErrorCodes) -> None:
        """As a server: queue a reset.  Does not block."""
        with self.lock:
            self.core.refuse(stream_id, code)
        self.tell()

    def end_stream(self, stream: Http2Stream, cause: str) -> None:
        """End our side of a stream, and its pipe.  Idempotent; does not block."""
        with self.lock:
            stream.end(cause)
            stream.inbox.clear()
            if not self.over:
                self.core.finish(stream)
            if self._lone is stream and self._reading:
                self._end_locked(cause)  # nothing else would wake the pipe's reader; the connection carries only this
            elif self._lone is stream:
                self._take_reading_back_locked()
        self.tell()

    # --- the end

    def end(self, cause: str) -> None:
        """End the connection and wake everybody.  Idempotent; the first cause counts; does not block."""
        with self.lock:
            self._end_locked(cause)

    def _end_locked(self, cause: str) -> None:
        if self.cause.set(cause):
            self.over = True
            self._close_locked(cause, ErrorCodes.NO_ERROR, None, locked=self._write_lock.try_acquire())

    def _give_up_locked(self, error: Http2Error) -> None:
        """End the connection because the other end broke HTTP/2, and say so to it.

        By the thread that reads.  Waits a moment, without the lock, for what is half sent; the watcher does not.
        """
        cause = f"the other end broke HTTP/2: {words(str(error))}"
        if not self.cause.set(cause):
            return
        self.over = True
        patience = 0.0 if self.resting else _CLOSING_TIME
        self.lock.release()
        try:
            locked = self._write_lock.acquire_within(patience)
        finally:
            self.lock.acquire()
        self._close_locked(cause, error.code, ProtocolError(cause), locked=locked)

    def _close_locked(self, cause: str, code: int, fault: ProtocolError | None, *, locked: bool) -> None:
        """For whoever has set the cause.  Without the write lock something is half sent, so GOAWAY cannot follow it."""
        self._wake_locked()
        self.wire.close(self.core.closing_bytes(code) if locked and self._send_failure is None else b"")
        if locked:
            self._write_lock.release()
        for stream in self.core.streams.values():
            stream.end(cause, fault)
        self.core.close()
        self._on_pending_control, self._on_leaving = _nothing, None  # they hold the pipe, which holds this
        self._wake_waiters_locked()
        self._take_reading_back_locked()
        self._work.notify_all()

    # --- sending

    def send(self, stream: Http2Stream, buffer: memoryview, at: int) -> None:
        """Block until `buffer[at:]` has been handed to the kernel as DATA.  The nine bytes before `at` are scratch.

        Raises PipeEnded.  For one thread at a time of each stream.
        """
        with self._sending(stream):
            self._send_left(stream)
            self._send(stream, buffer, at)

    def send_now(self, stream: Http2Stream, buffer: memoryview, at: int) -> bool:
        """Take `buffer[at:]` without blocking; False when `flush_stream` has to send a part of it, which is copied.

        By the thread that may call `send`, and raises as that; only where `can_send_now`.
        """
        size, taken = 0, False
        if self._write_lock.try_acquire():
            try:
                size, taken = self._send_part_now(stream, buffer, at)
            finally:
                self._write_lock.release()
        if at + size < len(buffer):
            stream.left = bytes(buffer[at + size :])
        return taken and not stream.left

    def can_send_now(self, stream: Http2Stream) -> bool:
        """Whether `send_now` may be called: nothing of an earlier message is left, and nobody else is sending."""
        return not stream.left and not self._write_lock.taken and self.wire.can_send_now

    def flush_stream(self, stream: Http2Stream) -> None:
        """Send what `send_now` has left of a message, and do as `flush`.  By the thread that may call `send`."""
        with self._sending(stream):
            self._send_left(stream)
            self.flush()

    @contextmanager
    def _sending(self, stream: Http2Stream) -> Iterator[None]:
        with self.lock:
            stream.sending = True
        try:
            yield
        finally:
            with self.lock:
                stream.sending = False
                stream.writable.notify_all()

    def _send_left(self, stream: Http2Stream) -> None:
        if stream.left:
            buffer = memoryview(bytearray(HEADER_SIZE) + stream.left)
            stream.left = b""
            self._send(stream, buffer, HEADER_SIZE)

    def _send(self, stream: Http2Stream, buffer: memoryview, at: int) -> None:
        blocked: float | None = None  # since when no window is open
        while at < len(buffer):
            size = self._send_part(stream, buffer, at)
            at += size
            if size:
                blocked = None
            else:
                blocked = blocked or time.monotonic()
                self._await_window(stream, blocked)

    def _send_part(self, stream: Http2Stream, buffer: memoryview, at: int) -> int:
        """Send what is pending, and what the windows allow; return how much of DATA that was."""
        with self._write_lock:
            with self.lock:
                self._check_locked(stream)
                size = self.core.charge(stream, len(buffer) - at)
                pending = self._take_pending_locked()
                frame_size = self.core.frame_size
            if pending:
                self._send_wire(pending)
            if size:
                self._send_wire(_data(stream, buffer, at, size, frame_size))
        return size

    def _send_part_now(self, stream: Http2Stream, buffer: memoryview, at: int) -> tuple[int, bool]:
        """Do as `_send_part`, but leave to the wire's own next write what it does not take at once.

        Return how much of DATA left the caller's hands, and whether all of that is on its way.
        """
        with self.lock:
            self._check_locked(stream)
            if not self.wire.can_send_now:  # another stream has just left something half sent
                return 0, False
            size = self.core.charge(stream, len(buffer) - at)
            pending = self._take_pending_locked() if self.core.pending_control else b""
            frame_size = self.core.frame_size
        data = _data(stream, buffer, at, size, frame_size) if size else b""
        if pending:
            data = pending + data
        if not data:
            return 0, False
        try:
            taken = self.wire.send_now(data)
        except TransportError as error:
            raise self._failed(error) from error
        self.sends += 1
        return size, taken

    def _await_window(self, stream: Http2Stream, since: float) -> None:
        """Wait for something to do after no window was open at the time `since`, or until it is too late."""
        timeout = stream.write_timeout
        with self.lock:
            remaining = None if timeout is None else since + timeout - time.monotonic()
            if not self.wait_locked(stream, stream.writable, lambda: self._may_act_locked(stream), remaining):
                cause = stuck_for(timeout or 0)
                stream.end(cause)
                if not self._has_reader:  # a client's pipe reads, and has the connection for itself
                    self._end_locked(cause)

    def _check_locked(self, stream: Http2Stream) -> None:
        if stream.over:
            raise stream.cause.error()
        if self._send_failure is not None:
            raise PipeEnded(self._send_failure)

    def _may_act_locked(self, stream: Http2Stream) -> bool:
        return (
            stream.over
            or self._send_failure is not None
            or bool(self.core.pending_control)
            or self.core.may_send(stream)
        )

    def flush(self) -> None:
        """Send what is pending, and what `send_now` has left with the wire.

        Blocks and raises as `send` does; never by a thread that reads.
        """
        with self._write_lock:
            with self.lock:
                pending = self._take_pending_locked()
                if self.over:
                    raise self.cause.error()
            if pending:
                self._send_wire(pending)
            try:
                self.wire.flush()
            except TransportError as error:
                raise self._failed(error) from error

    def tell(self) -> None:
        """Send what is pending, where that does not block and there is a watcher: who has that flushes what is left.

        Else have it sent: by a writer that waits for a window, by `writer_loop`, or by what `on_pending_control` wakes.
        """
        if self._watcher is not None and self._send_pending_now():
            return
        with self.lock:
            due = bool(self.core.pending_control) and not self._told
            self._told |= due
            if due:
                for stream in self.core.streams.values():
                    stream.writable.notify_all()
        if due:
            self.wake_writer()
            self._on_pending_control()

    def _send_pending_now(self) -> bool:
        """Send what is pending without blocking; False when that could not be done, and somebody has to be told."""
        if not self._write_lock.try_acquire():
            return False
        try:
            with self.lock:
                if self.over or self._send_failure is not None or not self.wire.can_send_now:
                    return False
                pending = self._take_pending_locked()
            taken = True
            if pending:
                taken = self.wire.send_now(pending)
                self.sends += 1
        except TransportError as error:
            self._failed(error)
            return True  # receiving says why
        finally:
            self._write_lock.release()
        if not taken:  # whoever may wait flushes the wire
            self.wake_writer()
            self._on_pending_control()
        return True

    def on_pending_control(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when control frames become pending; now, if some are.

        It is called without the lock, by the thread that reads.
        """
        with self.lock:
            if self.over:
                return
            self._on_pending_control = callback
            self._told = False
        self.tell()

    def on_leaving(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, in the same way, when the peer is going away and still serves what runs."""
        with self.lock:
            if self.over:
                return
            self._on_leaving = callback
        self._tell_leaving()

    def _tell_leaving(self) -> None:
        with self.lock:
            callback = self._on_leaving
            if not self.core.leaving or self.core.goaway_reason or all(s.over for s in self.core.streams.values()):
                return
            self._on_leaving = None
        if callback is not None:
            callback()

    def wake_writer(self) -> None:
        """Have `writer_loop`, if it runs, send what connection and wire owe.  Does not block."""
        with self.lock:
            self._flush_due = True
            self._work.notify_all()
            if self._on_active is not _nothing:  # it runs only while there is something to do
                self._wake_locked()

    def writer_loop(self) -> None:
        """Send what is pending whenever something is, in a thread for that alone, until the connection is over.

        Or until `end_writer`.
        """
        while True:
            with self.lock:
                self._work.wait_for(lambda: self._flush_due or self.over or self._writer_over)
                if self.over or (self._writer_over and not self._flush_due):
                    return
                self._flush_due = False
            try:
                self.flush()
            except TransportError as error:  # the reader finds out, too, and has more to say about it
                log.debug("sending to %s failed: %s", self.wire.peer, error)

    def end_writer(self) -> None:
        """Have `writer_loop` return once it has sent what is due, until `begin_writer`.  Does not block."""
        with self.lock:
            self._writer_over = True
            self._work.notify_all()

    def begin_writer(self) -> None:
        """Say that `writer_loop` is to run from now on."""
        with self.lock:
            self._writer_over = False

    def _take_pending_locked(self) -> bytes:
        pending = bytes(self.core.pending_control)
        self.core.pending_control.clear()
        self._told = False
        return pending

    def _send_wire(self, data: bytes | memoryview) -> None:
        if self._send_failure is not None:
            raise PipeEnded(self._send_failure)
        try:
            self.wire.send_all(data)
        except TransportError as error:
            raise self._failed(error) from error
        self.sends += 1

    def _failed(self, error: TransportError) -> PipeEnded:
        """Note that the path failed while sending.  Reading goes on until its own end: the peer may have said why."""
        with self.lock:
            if self.cause.text is not None:
                return self.cause.error()
            self._send_failure = error.message
            for stream in self.core.streams.values():
                stream.writable.notify_all()
        return PipeEnded(error.message)

    # --- reading

    def wait_locked(
        self, stream: Http2Stream, signal: Signal, ready: Callable[[], bool], timeout: float | None
    ) -> bool:
        """Wait until `ready`, which is asked under the lock; False after `timeout` seconds.

        `signal`, one of the stream's, is notified when `ready` may have changed.  Reads the connection meanwhile if
        nobody does.
        """
        if self.resting and not ready():
            self._wake_locked()
        borrower = stream if signal is stream.readable else None
        until = None if timeout is None else time.monotonic() + timeout
        waited = False
        try:
            while not ready():
                remaining = None if until is None else until - time.monotonic()
                if remaining is not None and remaining <= (_EARLY if waited else 0):
                    return False
                waited = True
                if self._may_read_locked(stream):
                    self.read_locked(remaining, borrower)
                else:
                    self._waiters.append(signal)
                    signal.wait(remaining)
                    self._waiters.remove(signal)
            return True
        finally:
            if self._waiters and not self._reading:
                self._wake_waiters_locked()  # one of them reads from now on
            elif self._watcher is not None and not self._has_reader:
                self.leave_reading_locked(stream)

    def _may_read_locked(self, stream: Http2Stream) -> bool:
        """Whether a thread that would wait for something of `stream` is to read the connection instead."""
        return not self._reading and not self.over and (not self._has_reader or self._lone is stream)

    def lend_reading_locked(self) -> bool:
        """As a server's reader: leave the connection to the pipe of its one stream, until that is over or not alone.

        So what comes for it crosses no thread.  Blocks meanwhile, without the lock; False at once when there is no
        such stream, or its client is not authenticated yet: ending such a pipe, while it reads, ends the connection.
        Nor is it left to a pipe that is the watcher's.
        """
        core = self.core
        if len(core.streams) != 1 or core.requests:
            return False
        (stream,) = core.streams.values()
        if not stream.reads_alone or stream.over or stream.readable.listener is not None:
            return False
        self._lone = stream
        stream.readable.notify_all()
        while self._lone is not None:
            self._returned.wait()
        return True

    def _take_reading_back_locked(self) -> None:
        self._lone = None
        self._returned.notify_all()

    def read_locked(self, timeout: float | None, borrower: Http2Stream | None = None) -> None:
        """Block for more bytes, without the lock, and act on them; return also after `timeout` seconds of silence.

        `borrower` is as for `Http2Core.receive`.
        """
        count = 0
        while self._reading:  # the watcher, which has just been told to leave that to us
            self._read_over.wait()
        if not self.core.unread:
            received = self._receive_locked(timeout)
            if received is None:
                return
            count = received
        try:
            self.core.receive(count, borrower)
        except Http2Error as error:
            self._give_up_locked(error)
        except BaseException:
            self._end_locked("this program failed")  # in the middle of a frame, perhaps
            raise
        if self._lone is not None and (self._lone.over or self.core.requests):
            self._take_reading_back_locked()
        if (self.core.pending_control and not self._told) or (self._on_leaving is not None and self.core.leaving):
            self.lock.release()
            try:
                self.tell()
                self._tell_leaving()
            finally:
                self.lock.acquire()

    def _receive_locked(self, timeout: float | None) -> int | None:
        """How many bytes came; None after the time was up, and when the connection is over."""
        self._reading = True
        space = self.core.space()
        count, failure, began = 0, "", time.monotonic()
        self.lock.release()
        try:
            if not _about(timeout, self._read_timeout):
                self.wire.set_read_timeout(timeout)
                self._read_timeout = timeout
            count = self.wire.recv_into(space)
        except TransportError as error:
            failure = error.message
        finally:
            self.lock.acquire()
            self._reading = False
            self._read_over.notify_all()
        if self.over or (failure and timeout is not None and time.monotonic() - began >= timeout - _EARLY):
            return None
        if count == 0:
            self._end_locked(self.core.goaway_reason or failure or _CUT)
            return None
        return count

    # --- rest

    def watch_by(self, watcher: Watcher) -> bool:
        """Let `watcher` read while the connection rests; return False where its wire cannot be watched.

        Raises TransportError when it is over.
        """
        with self.lock:
            if self.over:
                raise self.cause.error()
            if self._fd is None:
                self._fd = self.wire.watch()
            if self._fd is None:
                return False
            self._watcher = watcher
            return True

    @property
    def watched(self) -> bool:
        """Whether a watcher may read."""
        return self._watcher is not None

    def set_on_active(self, callback: Callable[[], None]) -> None:
        """As a server: have `callback` called by the watcher when a thread has to read again."""
        self._on_active = callback

    def leave_reading_locked(self, stream: Http2Stream) -> None:
        """Say that nobody waits for `stream` any more: its pipe is left to the watcher."""
        if self._lone is stream:
            self._take_reading_back_locked()
        elif not self._has_reader and self._is_left_locked():
            try:
                self._rest_locked()
            except (NoThread, OSError) as error:
                self._end_locked(f"little comes, and nothing can watch for it: {error}")

    def may_rest_locked(self) -> bool:
        """As a server's reader: return whether nothing is being done, and all pipes are left to the watcher."""
        core = self.core
        busy = (
            self._lone is not None
            or self._flush_due
            or core.requests
            or core.pending_control
            or self._write_lock.taken
            or not self.wire.can_send_now
            or self._send_failure is not None
            or any(stream.sending for stream in core.streams.values())
        )
        return not busy and bool(core.streams) and self._is_left_locked()

    def rest_locked(self) -> bool:
        """Have the watcher read from now on, if `may_rest_locked` still; return whether it does."""
        if not self.may_rest_locked():
            return False
        try:
            self._rest_locked()
        except (NoThread, OSError) as error:
            log.warning("a thread goes on reading from %s: %s", self.wire.peer, error)
            return False
        return True

    def _is_left_locked(self) -> bool:
        """Whether nobody reads, and all pipes are left to the watcher."""
        return (
            self._watcher is not None
            and not (self.over or self.resting or self._reading or self._waiters)
            and all(map(_is_left, self.core.streams.values()))
        )

    def _rest_locked(self) -> None:
        assert self._watcher is not None
        assert self._fd is not None
        self.core.trim()
        self.wire.trim()
        self._watcher.add(self._fd, self._readable)
        self.resting, self._has_reader = True, False
        if self.core.unread or self.wire.buffered:  # of which the descriptor says nothing
            self._watcher.post(self._readable)

    def _wake_locked(self) -> None:
        """Rest no more: threads read, a server's own one as soon as it is there."""
        if not self.resting:
            return
        assert self._watcher is not None
        assert self._fd is not None
        self.resting = False
        self._watcher.remove(self._fd)
        if self._on_active is not _nothing:
            self._has_reader = True
            self._watcher.post(self._on_active)

    def try_again(self, seconds: float) -> None:
        """As a server: ask for a thread again after `seconds`.  By the watcher; does not block."""
        if self._watcher is not None:
            self._watcher.timer(self._on_active).set(time.monotonic() + seconds)

    def wake(self) -> None:
        """Rest no more, if it does.  Idempotent; does not block."""
        with self.lock:
            self._wake_locked()

    def forget_watcher(self) -> None:
        """Rest never more; blocks until the watcher is done with the connection.  Idempotent."""
        with self.lock:
            self._wake_locked()
            self._read_over.wait_for(lambda: not self._reading)
            fd, self._fd, self._watcher = self._fd, None, None
        if fd is not None:
            self.wire.unwatch()

    def has_come(self, stream: Http2Stream) -> bool:
        """Return whether there is something that the watcher has yet to read.  Does not block."""
        with self.lock:
            return stream.over or (self.resting and self._fd is not None and readable(self._fd))

    def _readable(self) -> None:
        """Read what has come, by the watcher; what is too much for it is left to a thread."""
        for _ in range(_READS_IN_TURN):
            with self.lock:
                if not self.resting or self._reading:
                    return
                full = self._read_now_locked()
                much = bool(self.core.unread or self.core.requests)
                if much:
                    self._leave_to_thread_locked()
            self.tell()
            self._tell_leaving()
            if much or not full:
                return
        with self.lock:
            self._leave_to_thread_locked()

    def _leave_to_thread_locked(self) -> None:
        """Have a server's thread read on.  A client's watcher does itself, until its pipe says that much comes."""
        if self._on_active is not _nothing:
            self._wake_locked()
        elif self.resting and self._watcher is not None:
            self._watcher.post(self._readable)

    def _read_now_locked(self) -> bool:
        """Read without blocking, and act on what came; return whether there may be more."""
        if self.core.unread:
            self._act_now_locked(0)
            return True
        self._reading = True
        space = self.core.space()
        count: int | None = None
        failure = ""
        self.lock.release()
        try:
            count = self.wire.recv_within(space, 0)
        except TransportError as error:
            failure = error.message
        finally:
            self.lock.acquire()
            self._reading = False
            self._read_over.notify_all()
            self._wake_waiters_locked()  # one of them reads, if this has to end
        if self.over:
            return False
        if failure or count == 0:
            self._end_locked(self.core.goaway_reason or failure or _CUT)
        elif count is not None:
            self._act_now_locked(count)
        return count is not None and (count == len(space) or self.wire.buffered)

    def _act_now_locked(self, count: int) -> None:
        try:
            self.core.receive(count, most=_CONTROLS_IN_TURN)
        except Http2Error as error:
            self._give_up_locked(error)
        except BaseException:
            self._end_locked("this program failed")
            raise

    def _wake_waiters_locked(self) -> None:
        for condition in self._waiters:
            condition.notify_all()


def _is_left(stream: Http2Stream) -> bool:
    """Whether no thread waits for a stream: its pipe is the watcher's, or it is a request that waits to be answered."""
    return stream.readable.listener is not None or stream.dialect.needs_no_thread


def _about(timeout: float | None, present: float | None) -> bool:
    """Whether the wire's `present` timeout does for `timeout`: what remains of one is a little less at each read."""
    if timeout is None or present is None:
        return timeout is present
    return timeout <= present <= timeout + _LATE


def _data(stream: Http2Stream, buffer: memoryview, at: int, size: int, frame_size: int) -> bytes | memoryview:
    """Return `buffer[at : at + size]` as DATA, where it stands if one frame takes it."""
    if size > frame_size:
        return data_frames(stream.id, buffer[at : at + size], frame_size)
    write_data_header(buffer, at - HEADER_SIZE, size, stream.id)
    return buffer[at - HEADER_SIZE : at + size]


def _nothing() -> None:
    """Whoever sends next will send what is pending, too."""
