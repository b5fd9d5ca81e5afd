"""The face of one stream, for what it is joined to.

Towards the peer, one thread at a time: either it blocks (`wait_writable`, `take_buffer`, then `write…` and `finish`),
or it never does (`room`, `queue`, and `when_writable` where there is no room).  From the peer likewise: either a thread
blocks in `receive` and says `consumed`, or there is a `Sink` to which the lane's reader hands small payload in its own
thread, until the sink does not take all of it.  Any thread calls `reset`.  When the stream is over, whoever waits is
woken with StreamReset, and the callback given to `on_failure` lets the owner of a socket wake a thread that is blocked
in it.

Datagrams go beside all that, by any thread: `queue_datagram`, and `datagrams_to` for what comes.

What a stream is on the wire is `qanat.mux.stream_state`; the lane, with its lock, is `qanat.mux.lane`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import StreamReset
from qanat.mux.buffer_pool import BUFFER_PAYLOAD, Buffer
from qanat.mux.core import LaneCore
from qanat.mux.figures import StreamFigures
from qanat.mux.frames import Reason, reason_name
from qanat.mux.stream_state import CLOSED, StreamState

DIRECT_PAYLOAD = 16 * 1024
"""Bytes of payload that the lane's reader hands to a sink itself; more is for a thread of the stream's own, unless the
sink `takes_bulk`."""


Calls = list[Callable[[], None]]
"""What has to be called once the lane's lock is released."""


class Sink(Protocol):
    """Where a stream's payload goes while it is little.  Called by the lane's reader, and must not block."""

    @property
    def takes_bulk(self) -> bool:
        """Whether `deliver` should be called for more than DIRECT_PAYLOAD as well."""

    def deliver(self, payload: memoryview) -> int:
        """Hand on as much of `payload` as can be at once; return how many bytes that were.  Must not raise."""

    def backlog(self) -> None:
        """Have a thread call `receive` from now on: there is more than `deliver` could hand on."""

    def ended(self) -> None:
        """Note that the peer has finished, and all that it sent has been delivered."""

    def stopped(self) -> None:
        """Note that nothing more will be delivered: the stream was reset."""


class LaneOfStream(Protocol):
    """What a stream needs of its lane (`qanat.mux.lane.Lane`)."""

    name: str
    lock: threading.Lock
    core: LaneCore
    clock: Callable[[], float]

    @property
    def attached(self) -> bool:
        """Whether a pipe carries it."""

    def wake_locked(self, *, sending: bool = False) -> Calls:
        """Wake the threads that the core has named; return what to `call` once the lock is released."""

    def flush(self) -> None:
        """Send what is queued now if that can be done without blocking; otherwise the pipe's writer does."""

    def send_alone(self, stream: StreamState, payload: Buffer | bytes) -> bool:
        """Send `payload` of `stream` now, if nothing else waits and that does not block; whether it was sent."""

    def flush_bulk(self) -> None:
        """Do as `flush`, for bulk too.  By a thread of a stream that has nothing else to do meanwhile."""

    def bulk_over(self) -> None:
        """Give memory back that `flush_bulk` has needed.  Does not block."""

    def call(self, calls: Calls) -> None:
        """Call what `wake_locked` has returned, without the lock."""

    def wait_for_room_locked(self) -> None:
        """Block until a buffer or room in the retransmit buffer may be there."""


class Idle(Exception):
    """Nothing came for as long as `Stream.receive_or_direct` waits."""


class Stream:
    """One stream as its two threads see it.  Made by `Lane`, never by others."""

    # Defaults: most streams are short and quiet, and never have more than these.
    kind: str = ""
    """What it is to people, and the forward that it belongs to: whoever opens or joins it says so."""
    forward: str = ""
    target: TcpAddress | UdpAddress | UnixAddress | None = None
    """What the peer has named for it to reach, which is judged again when the rules change."""
    ends: tuple[str, str, str] | None = None
    sample: tuple[int, int, float, float] | None = None
    """What `qanat.monitor` remembers of it: what its request said, and its counts and rates at the last look."""
    _readable: threading.Condition | None = None  # made for the first who waits
    _writable: threading.Condition | None = None
    _readers_waiting: int = 0
    _uplink_waits: bool = False
    _on_failure: Callable[[], None] | None = None
    _when_writable: Callable[[], None] | None = None
    _pulled = False  # that is called by the lane's writer
    _when_accepted: Callable[[], None] | None = None
    _sink: Sink | None = None
    _take_datagram: Callable[[bytes], None] | None = None

    def __init__(self, lane: LaneOfStream, state: StreamState) -> None:
        self._lane = lane
        self._lock = lane.lock
        self._core = lane.core
        self._sender = lane.core.sender
        self._receiver = lane.core.receiver
        self._state = state

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

    def traffic(self) -> tuple[int, int, float]:
        """Return the bytes received and sent, and when it was opened.  As `figures`, for whoever looks at thousands."""
        state = self._state
        return (
            state.window.received + state.datagram_bytes_received,
            state.sent + state.datagram_bytes_sent,
            state.opened_at,
        )

    def figures(self) -> StreamFigures:
        """Return how it is.  Without the lane's lock, so its counts may be of moments that lie microseconds apart."""
        state = self._state
        window = state.window
        inbox = 0 if state.released else max(0, window.received - window.consumed)
        return StreamFigures(
            state.opened_at,
            window.received + state.datagram_bytes_received,
            state.sent + state.datagram_bytes_sent,
            state.queued_bytes + inbox,
            inbox,
            state.promised >= state.send_limit and not state.fin_due and state.phase is not CLOSED,
        )

    # --- towards the peer -----------------------------------------------------------------------

    def wait_writable(self) -> int:
        """Block until the peer takes more; return how many bytes.  Raises StreamReset."""
        with self._lock:
            while True:
                self._raise_if_over_locked()
                room = self._sender.sendable(self._state)
                if room:
                    return room
                if self._writable is None:
                    self._writable = threading.Condition(self._lock)
                self._uplink_waits = self._state.writer_waits = True
                self._writable.wait()
                self._uplink_waits, self._state.writer_waits = False, self._when_writable is not None

    def room(self) -> int:
        """Return how many bytes the peer takes now, at least as many as then can be queued.  Does not block.

        Raises StreamReset.  For the one thread that queues: nobody else makes it less.
        """
        state = self._state
        room = self._sender.sendable_at_least(state)
        if room > 0:
            return room
        with self._lock:
            if state.failure is not None or state.phase is CLOSED:
                self._raise_if_over_locked()
            return self._sender.sendable(state)

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once there is `room`, or the stream is over; at once if so now.  Does not block.

        Some thread calls it, without the lane's lock; it must not block.
        """
        with self._lock:
            state = self._state
            if state.failure is None and state.phase is not CLOSED and not self._sender.sendable(state):
                self._when_writable, state.writer_waits = callback, True
                return
        callback()

    def when_pulled(self, callback: Callable[[], None], *, filled: Buffer | None = None) -> None:
        """Have `callback` called once by the lane's writer when it wants more, and the stream has `room`.

        At once if the stream is over, or by whoever ends it.  It must not block; it may call `begin_pull`.  So many
        sockets are read in turn, without a thread for each, by the thread that sends what they bring: it queues what it
        has `filled` first, as `write_buffer` would, and is about to send that.
        """
        with self._lock:
            state = self._state
            if filled is not None:
                self._sender.send(state, filled)
            over = state.failure is not None or state.phase is CLOSED
            if not over:
                self._when_writable, state.writer_waits, self._pulled = callback, True, True
                self._sender.join_crowd(state)
            calls = self._lane.wake_locked()
        if calls:
            self._lane.call(calls)
        if over:
            callback()

    @property
    def crowded(self) -> bool:
        """Whether others on the lane wait to be pulled right now.  Without the lane's lock."""
        return bool(self._sender.crowd)

    def begin_pull(self, size: int = BUFFER_PAYLOAD) -> tuple[int, Buffer | None]:
        """Return the bytes that may be queued, and a buffer for `size` of them or for a part.

        The bytes may be 0.  The buffer comes back as that of `take_buffer`; where there is none, the turn is for bytes.
        Raises StreamReset.  Does not block.
        """
        with self._lock:
            self._raise_if_over_locked()
            room = self._sender.sendable_to_crowd(self._state)
            return room, self._sender.take_buffer(self._state, min(size, room)) if room else None

    def queue(self, data: bytes) -> None:
        """Queue at most 64 KiB, within what `room` said, until the lane is flushed.  Does not block.

        Raises LocalError beyond that or after `finish`.
        """
        with self._lock:
            self._sender.send(self._state, data)

    def send_alone(self, data: bytes) -> bool:
        """Send now what `queue` would leave to a flush, where nothing else waits on the lane and that does not block.

        False where it was not sent, and has to be queued.
        """
        return self._lane.send_alone(self._state, data)

    def queue_finish(self) -> None:
        """Half-close when the lane is flushed; otherwise as `finish`.  Does not block."""
        with self._lock:
            self._sender.finish(self._state)
            calls = self._lane.wake_locked(sending=True)
        if calls:
            self._lane.call(calls)

    @property
    def lane(self) -> LaneOfStream:
        """What has to be flushed after `queue` and `queue_finish`: the same for many streams."""
        return self._lane

    def take_buffer(self, size: int = BUFFER_PAYLOAD) -> Buffer:
        """Block until the lane has a buffer to fill, with `size` bytes or a part of them.  Raises StreamReset.

        It must come back with `write_buffer` or `return_buffer`.
        """
        with self._lock:
            while True:
                self._raise_if_over_locked()
                buffer = self._sender.take_buffer(self._state, size)
                if buffer is not None:
                    return buffer
                self._lane.wait_for_room_locked()

    def return_buffer(self, buffer: Buffer) -> None:
        """Give an unused buffer back.  Does not block."""
        with self._lock:
            self._sender.return_buffer(buffer)
            calls = self._lane.wake_locked()
        if calls:
            self._lane.call(calls)

    def write_buffer(self, buffer: Buffer) -> None:
        """Send `buffer.length` bytes, within what `wait_writable` said, or queue them.  Does not block.

        The buffer is the lane's again.  Raises LocalError beyond that or after `finish`.
        """
        self._write(buffer)

    def write(self, data: bytes) -> None:
        """Send at most 64 KiB, within what `wait_writable` said, or queue them.  Does not block.

        Raises LocalError beyond that or after `finish`.
        """
        self._write(data)

    def _write(self, payload: Buffer | bytes) -> None:
        if self._lane.send_alone(self._state, payload):
            return
        with self._lock:
            self._sender.send(self._state, payload)
            calls = self._lane.wake_locked(sending=True)
        if calls:
            self._lane.call(calls)
        if isinstance(payload, Buffer):
            self._lane.flush_bulk()
        else:
            self._lane.flush()

    def finish(self) -> None:
        """Half-close: the peer reads the end after all that was written.  Idempotent; does not block."""
        with self._lock:
            self._sender.finish(self._state)
            calls = self._lane.wake_locked(sending=True)
        if calls:
            self._lane.call(calls)
        self._lane.flush()

    def accept(self, text: str) -> None:
        """Tell the opener that its target was reached, and at which address.  Does not block.

        An opener that has sent payload already, or may send datagrams, does not wait for that: it goes out with the
        target's answer, or with the ACK of what has come.
        """
        with self._lock:
            if self._state.phase is not CLOSED:
                self._core.parameters.observer.stream_opened(self._lane.clock() - self._state.opened_at)
            self._core.accept(self._state, text)
            calls = self._lane.wake_locked(sending=True)
            early = self._state.takes_datagrams or bool(self._state.inbox)
            rides = early and self._core.pending.ack_waits
        if calls:
            self._lane.call(calls)
        if not rides:
            self._lane.flush()

    def reset(self, reason: Reason, text: str) -> None:
        """End both directions abruptly; the peer learns `reason` and `text`.  Idempotent; does not block."""
        with self._lock:
            self._core.reset(self._state, reason, text)
            calls = self._lane.wake_locked(sending=True)
        if calls:
            self._lane.call(calls)
        self._lane.flush()

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
                self._wait_readable_locked(None)

    def receive_or_direct(self, seconds: float) -> memoryview | None:
        """Block for the next bytes as `receive`, at most `seconds`; then raise Idle: the sink is delivered to again.

        Without a sink it blocks as long as it takes.
        """
        with self._lock:
            quiet = False
            while True:
                payload = self._receiver.take(self._state)
                if payload is not None:
                    return payload
                if self._state.fin_received:
                    return None
                self._raise_if_over_locked()
                if quiet:  # Looked at again since: what came as the time was up would have nobody to take it.
                    self._state.direct = True
                    raise Idle
                quiet = not self._wait_readable_locked(seconds if self._sink is not None else None)

    def put_back(self, payload: memoryview) -> None:
        """Give back the end of what `receive` gave: it comes first again.  Does not block."""
        with self._lock:
            self._receiver.put_back(self._state, payload)

    def join(self, sink: Sink, on_failure: Callable[[], None]) -> None:
        """Call `on_failure` and `deliver_to`, for a stream that begins; does not block."""
        with self._lock:
            state = self._state
            self._on_failure, self._sink, state.direct = on_failure, sink, True
            failed = state.failure is not None
            if not (failed or state.inbox or state.fin_received or state.phase is CLOSED):
                return
            state.delivering = True
            payload = self._receiver.take(state)
        if failed:
            self.fail()
        if self.deliver(payload):
            self._lane.flush()

    def deliver_to(self, sink: Sink) -> None:
        """Have the lane's reader deliver to `sink` from now on, and deliver what has come.  Does not block."""
        with self._lock:
            self._sink = sink
            self._state.direct = self._state.delivering = True
            payload = self._receiver.take(self._state)
        if self.deliver(payload):
            self._lane.flush()

    def deliver(self, payload: memoryview | None) -> bool:
        """Hand `payload`, the next there is, to the sink, and what else has come; True when the lane has to be flushed.

        By the thread for which it is `delivering`.
        """
        sink, receiver, state = self._sink, self._receiver, self._state
        assert sink is not None
        due = False
        while True:
            sent = size = 0
            if payload is not None:
                size = len(payload)
                sent = sink.deliver(payload) if size <= DIRECT_PAYLOAD or sink.takes_bulk else 0
            with self._lock:
                if sent and receiver.consumed(state, sent, self._lane.clock()):
                    due = True
                over = (state.failure is not None or state.phase is CLOSED) and self._is_over_locked()
                if sent < size and not over:
                    assert payload is not None
                    receiver.put_back(state, payload[sent:])
                    state.direct = state.delivering = False
                    break
                payload = receiver.take(state) if state.inbox and sent == size else None
                if payload is None:
                    state.delivering = False
                    if not (over or state.fin_received):
                        return due
                    state.direct = False
                    break
        if state.failure is None and state.inbox:
            sink.backlog()
        elif (over and not state.fin_received) or state.failure is not None:
            sink.stopped()
        else:
            sink.ended()
        return due

    def stop_direct(self) -> bool:
        """Have the lane's reader deliver no more; True when it would have, and no call of the sink will come.

        Does not block.  For the failure callback.
        """
        with self._lock:
            state = self._state
            stopped = state.direct and not state.delivering
            if stopped:
                state.direct = False
            return stopped

    def consumed(self, count: int) -> None:
        """Allow the peer `count` bytes more: as many have been handed on.  Does not block."""
        with self._lock:
            if not self._receiver.consumed(self._state, count, self._lane.clock()):
                return
            calls = self._lane.wake_locked(sending=True)
        if calls:
            self._lane.call(calls)
        self._lane.flush()

    @property
    def accepted(self) -> str | None:
        """The address at which the end that was asked has reached the target; None while it has not."""
        return self._state.accepted

    def when_accepted(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the peer has reached the target; at once if it has.  Does not block.

        Some thread calls it, without the lane's lock and before anything is delivered that came later; it must not
        block.  What could not be reached is told to the callback of `on_failure` alone.
        """
        with self._lock:
            if self._state.accepted is None:
                self._when_accepted = callback
                return
        callback()

    def wait_accepted(self, deadline: Deadline) -> str | None:
        """Block until the peer has reached the target; return its address, or None at the deadline.

        Raises StreamReset when the peer could not.
        """
        with self._lock:
            while self._state.accepted is None:
                self._raise_if_over_locked()
                if deadline.passed:
                    return None
                self._wait_readable_locked(deadline.remaining())
            return self._state.accepted

    # --- datagrams ------------------------------------------------------------------------------

    def queue_datagram(self, payload: bytes) -> None:
        """Queue a datagram of at most 65,535 bytes, perhaps none, until the lane is flushed.

        It is dropped where no pipe takes it soon (`qanat.mux.datagrams`), and when the stream is over.  Does not block,
        raises nothing.
        """
        with self._lock:
            self._sender.send_datagram(self._state, payload, self._lane.clock())

    def datagrams_to(self, take: Callable[[bytes], None]) -> None:
        """Call `take` for each datagram that has come, and have the lane's reader do so for those that will, in order.

        It must neither block nor raise.
        """
        self._take_datagram = take
        while True:
            with self._lock:
                waiting = self._receiver.early_datagrams.take(self._state.id, self._lane.clock())
                if not waiting:
                    self._state.takes_datagrams = True
                    return
            for payload in waiting:
                take(payload)

    def deliver_datagram(self, payload: bytes) -> None:
        """Hand a datagram to whoever takes it.  By the lane's reader."""
        take = self._take_datagram
        if take is not None:
            take(payload)

    # --- the end --------------------------------------------------------------------------------

    def release(self) -> None:
        """Leave the stream: both threads are done with it.  Idempotent; does not block.

        What was queued before `finish` is still sent; a stream that has not ended both ways is reset.
        """
        with self._lock:
            cut = not self._state.ends_orderly
            if cut:
                self._core.reset(self._state, Reason.CANCELED, "")
            self._core.streams.release(self._state)
            calls = self._lane.wake_locked(sending=True)
            self._state.direct = False
            # Whatever holds the stream is held by these.
            self._sink = self._on_failure = self._when_writable = self._when_accepted = self._take_datagram = None
        if calls:
            self._lane.call(calls)
        if cut:
            self._lane.flush()

    def on_failure(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, by some thread, when the stream is reset; at once if it was.

        It must not block.
        """
        with self._lock:
            self._on_failure = callback
            over = self._state.failure is not None
        if over:
            self.fail()

    def _is_over_locked(self) -> bool:
        state = self._state
        return state.failure is not None or (state.phase is CLOSED and not state.fin_received)

    def _raise_if_over_locked(self) -> None:
        state = self._state
        if state.failure is not None:
            code, text = state.failure
            raise StreamReset(text or reason_name(code), code=code)
        if self._is_over_locked():
            raise StreamReset("the stream is over", code=Reason.CANCELED)

    def _wait_readable_locked(self, seconds: float | None) -> bool:
        """Wait until something may have come; False after `seconds`."""
        if self._readable is None:
            self._readable = threading.Condition(self._lock)
        self._readers_waiting += 1
        try:
            return self._readable.wait(seconds)
        finally:
            self._readers_waiting -= 1

    # --- for Lane -------------------------------------------------------------------------------

    def delivers_locked(self) -> bool:
        """Return whether the caller, the lane's reader, is to `deliver`; nobody else does until it has."""
        state = self._state
        if state.direct and not state.delivering:
            state.delivering = True
            return True
        return False

    def wake_reader_locked(self) -> Callable[[], None] | None:
        """Wake who waits in `receive` or `wait_accepted`: two threads may, so both.

        Returns what has to be called for `when_accepted`.
        """
        if self._readers_waiting and self._readable is not None:
            self._readable.notify_all()
        callback = self._when_accepted
        if callback is not None:
            if self._state.accepted is None:
                return None
            self._when_accepted = None
        return callback

    def wake_writer_locked(self) -> Callable[[], None] | None:
        """Wake the one thread that may wait in `wait_writable`; return what has to be called for `when_writable`."""
        if self._uplink_waits and self._writable is not None:
            self._writable.notify()
        callback = self._when_writable
        if callback is not None:
            if not self._is_over_locked():
                if self._pulled:
                    self._sender.join_crowd(self._state)
                    return None
                if not self._sender.sendable(self._state):
                    return None
            self._forget_callback_locked()
        return callback

    def _forget_callback_locked(self) -> None:
        self._when_writable, self._state.writer_waits, self._pulled = None, self._uplink_waits, False

    def take_pull_locked(self) -> Callable[[], None] | None:
        """Return what has to be called since it is this stream's turn."""
        callback = self._when_writable
        if callback is not None:
            self._forget_callback_locked()
        return callback

    def fail(self) -> None:
        """Call the failure callback, once, without the lane's lock."""
        with self._lock:
            callback, self._on_failure = self._on_failure, None
        if callback is not None:
            callback()
