"""The streams of a session that are joined to sockets here, from the accepted or opened connection until both are over.

A stream that is joined costs no thread while it is quiet (`qanat.endpoints.pump`).  What blocks before that has one:
connecting to a target that does not answer at once, and waiting for room to open a stream while no pipe carries the
session.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError, NoThread, QanatError, StreamReset, WouldBlock
from qanat.base.lazy_waiting import LazyCondition
from qanat.base.text import printable
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE
from qanat.endpoints.pending import PendingConnection
from qanat.endpoints.pump import Pump
from qanat.endpoints.traffic_limits import UNLIMITED, TrafficLimits
from qanat.endpoints.vanished import ASKS_THE_KERNEL
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason, reason_name
from qanat.mux.stream import Stream

log = logging.getLogger("qanat.session")

_REASONS = frozenset(Reason)
MOST_BULK_THREADS = 1
"""Threads of one session from which on bulk gets none: the lane's writer reads the sockets in turn, and its reader
delivers.  A thread's turn costs more than they need for the same bytes."""

INTERNAL_TEXT = "a fault of the program at the other end"
"""What the peer is told with Reason.INTERNAL; the log here has the traceback."""


class StreamObserver(Protocol):
    """Who is told what becomes of a session's streams, by some thread each time.  Must neither block nor raise."""

    def opened(self, stream: Stream, address: str) -> None:
        """Note that a stream is joined to a connection with `address`; "" where there is none of its own."""

    def refused(self, stream: Stream, reason: int, text: str) -> None:
        """Note that a stream of the peer was refused."""

    def closed(self, stream: Stream) -> None:
        """Note that a stream that was opened is over."""


class JoinedStreams:
    """See the module's docstring.  Safe to use from any thread."""

    def __init__(
        self,
        name: str,
        watcher: Watcher,
        max_waiting: int,
        on_ended: Callable[[], None],
        *,
        unacknowledged: float = DEFAULT_KEEPALIVE.unacknowledged,
        limits: TrafficLimits = UNLIMITED,
        closer_reasons: bool = False,
        observer: StreamObserver | None = None,
    ) -> None:
        """`name` is for logs; `on_ended`, which must not block, is called when a stream is over and its socket closed.

        `max_waiting` bounds the connections that wait for room at once.  `unacknowledged` is as in
        ApplicationKeepalive.  `limits` are those of streams that have none of their own.  `closer_reasons` says whether
        the peer knows more reasons than those of the first version.
        """
        self.threads = ThreadGroup(f"session {name}", reserved=True)
        self._name = name
        self._watcher = watcher
        self._max_waiting = max_waiting
        self._on_ended = on_ended
        self._unacknowledged = unacknowledged
        self._limits = limits
        self._closer_reasons = closer_reasons
        self._observer = observer
        self._pumps: set[Pump] = set()  # each adds and removes itself, which is atomic, as a copy of all is
        self._lock = threading.Lock()  # guards the next two
        self._idle = LazyCondition(self._lock)
        self._count = 0
        self._waiting = 0

    def session_over(self) -> None:
        """Call `on_ended` no more: it holds the session, which holds this."""
        self._on_ended = _nothing

    def __len__(self) -> int:
        """How many there are, those included that are still being connected."""
        return self._count

    @property
    def busy(self) -> bool:
        """Whether there is a stream, or a thread that still runs."""
        return bool(self._count or len(self.threads))

    def join(self, timeout: float) -> list[str]:
        """Block at most `timeout` seconds until nothing is left; return what still is, for the log."""
        deadline = Deadline(timeout)
        with self._lock:
            while self._count and not deadline.passed:
                self._idle.wait(deadline.remaining())
            left = self._count
        stuck = self.threads.join(deadline.remaining() or 0.0)
        return [*stuck, f"{left} streams"] if left and not stuck else stuck

    # --- connections that were accepted here ------------------------------------------------------

    def accept(
        self,
        sock: socket.socket,
        peer: str,
        what: str,
        open_stream: Callable[[bool], Stream],
        done: Callable[[], None] = lambda: None,
        limits: TrafficLimits | None = None,
    ) -> None:
        """Join an accepted connection to a new stream; `done` is called once, when both are over.  Does not block.

        `open_stream` is told whether to wait.  It does not flush: what has come on `sock` goes out with OPEN.  Where it
        raises WouldBlock, a thread calls it again, to wait.  Raises NoThread, and EndpointError when too many wait
        already: then `sock` is still the caller's, and `done` is not called.
        """
        target = WakeableSocket(sock, peer)
        joining = _Joining(self, target, what, done, limits)
        try:
            stream = open_stream(False)
        except WouldBlock:
            self._open_later(joining, f"{self._name} {peer}-open", open_stream)
        except QanatError as error:
            self._begin()
            joining.failed(error)
        else:
            self._begin()
            joining.begin(stream)
            self._watcher.flush(stream.lane)

    def accept_pending(
        self,
        pending: PendingConnection,
        what: str,
        open_stream: Callable[[bool], Stream],
        limits: TrafficLimits | None = None,
    ) -> None:
        """Open a stream for a connection whose user waits for word of its target, and join them once that was reached.

        Does not block.  `open_stream` is as for `accept`.  Whatever fails is told to `pending`.
        """
        joining = _PendingJoining(self, pending, f"{what} from {pending.origin}", limits)
        try:
            stream = open_stream(False)
        except WouldBlock:
            try:
                self._open_later(joining, f"{self._name} {pending.origin}-open", open_stream)
            except (NoThread, EndpointError) as error:
                self._begin()
                joining.failed(error)
        except QanatError as error:
            self._begin()
            joining.failed(error)
        else:
            self._begin()
            joining.begin(stream)
            self._watcher.flush(stream.lane)

    def _open_later(
        self, joining: _Joining | _PendingJoining, thread: str, open_stream: Callable[[bool], Stream]
    ) -> None:
        with self._lock:
            if self._waiting >= self._max_waiting:
                raise EndpointError(f"{self._max_waiting} connections wait for a stream already", code=Reason.LIMIT)
            self._waiting += 1
            self._count += 1
        try:
            self.threads.start(thread, lambda: self._wait_and_open(joining, open_stream))
        except NoThread:
            with self._lock:
                self._waiting -= 1
            self._uncount()
            raise

    def _wait_and_open(self, joining: _Joining | _PendingJoining, open_stream: Callable[[bool], Stream]) -> None:
        try:
            stream = open_stream(True)
        except QanatError as error:
            joining.failed(error)
        else:
            joining.begin(stream)
            stream.lane.flush()
        finally:
            with self._lock:
                self._waiting -= 1

    # --- streams that the peer opened ---------------------------------------------------------------

    def connect_now(
        self,
        stream: Stream,
        connect: Callable[[], WakeableSocket | None],
        what: str,
        limits: TrafficLimits | None = None,
        on_joined: Callable[[], None] = lambda: None,
    ) -> bool:
        """Join the peer's stream to what `connect` returns; False when that is None: it has to be waited for.

        Does not block, and neither may `connect`, nor `on_joined`, which is called once they are joined.  EndpointError
        from `connect` refuses the stream.
        """
        self._begin()
        connected = self._join(stream, connect, what, limits, on_joined)
        if not connected:
            self._uncount()  # it has not ended: `on_ended` is not for it
        return connected

    def connect(
        self,
        stream: Stream,
        connect: Callable[[], WakeableSocket],
        what: str,
        limits: TrafficLimits | None = None,
        on_joined: Callable[[], None] = lambda: None,
    ) -> bool:
        """Do the same in a thread, where `connect` may block.  Does not block.

        Returns False when there was no thread for it: `connect` is not called then, and the stream has been refused.
        """
        self._begin()
        try:
            self.threads.start(f"{stream.label}-connect", lambda: self._join(stream, connect, what, limits, on_joined))
        except NoThread as error:
            self.ended()
            log.warning("%s %s: %s", self._name, what, error)
            refuse(stream, Reason.LIMIT, "no more threads at the other end")
            return False
        return True

    def _join(
        self,
        stream: Stream,
        connect: Callable[[], WakeableSocket | None],
        what: str,
        limits: TrafficLimits | None,
        on_joined: Callable[[], None],
    ) -> bool:
        """Join `stream` to what `connect` returns, or refuse it; False when that is None, and nothing was done."""
        target: WakeableSocket | None = None
        try:
            target = connect()
            if target is None:
                return False
            stream.accept(target.peer)
            self.pump(stream, target, self.ended, limits)
            on_joined()
        except EndpointError as error:
            log.info("%s %s: %s", self._name, what, error.log_text)
            code = error.closer_code if self._closer_reasons else error.code
            if self._observer is not None:
                self._observer.refused(stream, code, error.message)
            refuse(stream, Reason(code), error.message)
            self.ended()
        except Exception:
            log_unexpected(f"{stream.label} {what} ended")
            refuse(stream, Reason.INTERNAL, INTERNAL_TEXT)
            if target is not None:
                target.close(orderly=False)
            self.ended()
        return True

    # --- for _Joining -------------------------------------------------------------------------------

    def pump(
        self,
        stream: Stream,
        target: WakeableSocket,
        on_over: Callable[[], None],
        limits: TrafficLimits | None = None,
        *,
        read_now: bool = False,
    ) -> None:
        """Carry bytes between them until both have ended; then `on_over` is called.  Does not block.

        With `read_now` what is there already is queued on the stream before this returns, and not sent.
        """
        observer = self._observer
        if observer is not None:
            observer.opened(stream, target.peer)
            on_over = partial(_closed, observer, stream, on_over)
        pump = Pump(
            stream,
            target,
            self._watcher,
            self.threads.start,
            on_over,
            limits or self._limits,
            crowded=self._crowded,
            register=self._pumps,
        )
        try:
            pump.start(read_now=read_now)
        except BaseException:
            self._pumps.discard(pump)
            raise

    def _crowded(self) -> bool:
        return len(self.threads) >= MOST_BULK_THREADS

    def look(self) -> bool:
        """End the streams whose applications' machines have vanished; return whether to look again.

        By the watcher; does not block.
        """
        if not (self._unacknowledged and ASKS_THE_KERNEL):
            return False
        pumps = list(self._pumps)
        return sum(pump.look(self._unacknowledged) for pump in pumps) > 0

    def limits_changed(self) -> None:
        """Have all of them follow what their limits are now.  Does not block."""
        for pump in list(self._pumps):
            pump.limits_changed()

    def ended(self) -> None:
        """Note that one of them is over, and its socket closed."""
        self._watcher.stir()
        self._uncount()
        self._on_ended()

    def _begin(self) -> None:
        with self._lock:
            self._count += 1

    def _uncount(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._idle.notify_all()


class _Joining:
    """An accepted connection on its way to a stream, and then beside it."""

    def __init__(
        self,
        joined: JoinedStreams,
        target: WakeableSocket,
        what: str,
        done: Callable[[], None],
        limits: TrafficLimits | None,
    ) -> None:
        self._joined = joined
        self._target = target
        self._what = what
        self._done = done
        self._limits = limits
        self._stream: Stream | None = None

    def begin(self, stream: Stream) -> None:
        """Join it to `stream`."""
        self._stream = stream
        try:
            self._joined.pump(stream, self._target, self._over, self._limits, read_now=True)
        except Exception:
            log_unexpected(f"{self._what} from {self._target.peer} ended")
            refuse(stream, Reason.INTERNAL, INTERNAL_TEXT)
            self._target.close(orderly=False)
            self._over()

    def failed(self, error: QanatError) -> None:
        """Reset the connection: there is no stream for it."""
        log.warning("%s from %s: %s", self._what, self._target.peer, error)
        self._target.close(orderly=False)
        self._over()

    def _over(self) -> None:
        failure = None if self._stream is None else self._stream.failure
        if failure is not None and failure[0] not in (Reason.CANCELED, Reason.SESSION_ENDED):
            why = printable(failure[1])
            log.warning("%s from %s: %s: %s", self._what, self._target.peer, reason_name(failure[0]), why)
        try:
            self._done()
        finally:
            self._joined.ended()


class _PendingJoining:
    """A connection whose user waits for word of its target, on the way to its stream, and then beside it."""

    def __init__(
        self, joined: JoinedStreams, pending: PendingConnection, what: str, limits: TrafficLimits | None
    ) -> None:
        self._joined = joined
        self._limits = limits
        self._pending = pending
        self._what = what
        self._stream: Stream | None = None
        self._lock = threading.Lock()  # guards the next three
        self._early = pending.early
        self._accepted = False
        self._decided = False

    def begin(self, stream: Stream) -> None:
        """Wait for what becomes of `stream`; what has come for the target already goes out with the next flush."""
        self._stream = stream
        try:
            self._pending.opened(stream)
            stream.on_failure(self._refused)
            self._queue_early()
            stream.when_accepted(self._reached)
        except Exception:
            self._fault()

    def failed(self, error: QanatError) -> None:
        """Tell the user that there is no stream for him."""
        with self._lock:
            self._decided = True
        self._tell(getattr(error, "code", Reason.SESSION_ENDED), error.message)
        self._joined.ended()

    def _queue_early(self) -> None:
        """Queue what has come already, as far as there is room; the rest when there is some."""
        stream = self._stream
        assert stream is not None
        try:
            while self._early:
                room = stream.room()
                if not room:
                    stream.when_writable(self._queue_more)
                    return
                stream.queue(self._early[:room])
                with self._lock:
                    self._early = self._early[room:]
        except StreamReset:
            return  # which `_refused` hears of

    def _queue_more(self) -> None:
        stream = self._stream
        assert stream is not None
        self._queue_early()
        stream.lane.flush()
        self._join_when_ready()

    def _reached(self) -> None:
        with self._lock:
            self._accepted = True
        self._join_when_ready()

    def _join_when_ready(self) -> None:
        with self._lock:
            if self._decided or self._early or not self._accepted:
                return
            self._decided = True
        stream, pending = self._stream, self._pending
        assert stream is not None
        try:
            sock = pending.accepted(stream.accepted or "")
            if sock is None:
                refuse(stream, Reason.CANCELED, "")
                self._joined.ended()
                return
            self._joined.pump(stream, WakeableSocket(sock, pending.origin), self._over, self._limits)
        except Exception:
            self._fault()

    def _refused(self) -> None:
        """Tell the user why the target was not reached, unless it was."""
        stream = self._stream
        assert stream is not None
        with self._lock:
            if self._decided:
                return
            self._decided = True
        code, text = stream.failure or (Reason.CANCELED, "")
        self._tell(code, text or reason_name(code))
        stream.release()
        self._joined.ended()

    def _tell(self, code: int, text: str) -> None:
        text = printable(text)
        log.info("%s: %s: %s", self._what, reason_name(code), text)
        reason = Reason(code) if code in _REASONS else Reason.UNREACHABLE
        self._pending.refused(reason, text)

    def _over(self) -> None:
        try:
            self._pending.ended()
        finally:
            self._joined.ended()

    def _fault(self) -> None:
        log_unexpected(f"{self._what} ended")
        with self._lock:
            self._decided = True
        if self._stream is not None:
            refuse(self._stream, Reason.INTERNAL, INTERNAL_TEXT)
        self._pending.refused(Reason.INTERNAL, "a fault of this program")
        self._joined.ended()


def _closed(observer: StreamObserver, stream: Stream, on_over: Callable[[], None]) -> None:
    """Tell that a stream is over to who observes it, then to who waits for it."""
    try:
        observer.closed(stream)
    finally:
        on_over()


def _nothing() -> None:
    """Nobody asks any more when a stream is over."""


def refuse(stream: Stream, reason: Reason, text: str) -> None:
    """Reset a stream and release it.  Idempotent; does not block."""
    stream.reset(reason, text)
    stream.release()
