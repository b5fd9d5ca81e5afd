"""What a session is on either side: its lanes, the streams on them, and how it ends.

`qanat.server.session` and `qanat.client.session` say what OPEN and CONTROL mean on their side.  A fault of this program
while one stream or one control message is handled ends that stream or is lost with that message; the session goes on.
"""

from __future__ import annotations

import logging
import queue
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError, ProtocolError, QanatError, SessionEnded, WouldBlock
from qanat.base.lazy_waiting import LazyEvent
from qanat.base.unexpected import FAILED, log_unexpected
from qanat.base.watcher import Watcher
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.pending import PendingConnection
from qanat.endpoints.traffic_limits import UNLIMITED, TrafficLimits
from qanat.endpoints.udp import UdpFlow
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, CloseReason, Features
from qanat.mux.figures import LaneFigures
from qanat.mux.frames import Reason
from qanat.mux.lane import Lane
from qanat.mux.parameters import LaneParameters, ResumePoint
from qanat.mux.pipe_result import PipeResult
from qanat.mux.stream import Stream
from qanat.session.joined_streams import INTERNAL_TEXT, JoinedStreams, StreamObserver, refuse
from qanat.session.messages import UPGRADE, StreamRequest, check_known, decode_request
from qanat.session.places import NOTHING, PastFailure, PipePlace, Tally
from qanat.session.udp_targets import UdpTargets

log = logging.getLogger("qanat.session")

PING_ROUND = 0.05
"""Seconds in which `answers` looks at every lane once."""

_SESSION_IS_OVER = frozenset({CloseReason.SHUTDOWN, CloseReason.REVOKED, CloseReason.REPLACED, CloseReason.PROTOCOL})


class Session(ABC):
    """One session, from its first READY until it is over.  `carry` runs a lane of it on a pipe.

    A session outlives its pipes.  It is over when either end says so, when its client has stayed away for longer
    than `resume_for` (whoever watches the clock calls `lane_expired`), and with its first lane's pipe when that is 0.
    """

    def __init__(
        self,
        name: str,
        parameters: LaneParameters,
        session_id: bytes,
        secret: bytes,
        resume_for: float,
        watcher: Watcher,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
        limits: TrafficLimits = UNLIMITED,
        observer: StreamObserver | None = None,
    ) -> None:
        """Begin a session with lane 0; `parameters` hold for each of its lanes.  `name` is the client's.

        `limits` are those of streams that have none of their own.
        `watcher` watches the sockets of its streams; it is closed, by its owner, after `join`.
        """
        self.name = name
        self.id = session_id
        self.secret = secret
        """What only the two ends of the session's first handshake know; proves who may resume it."""
        self.measures = False
        """Whether it is for measuring alone."""
        self.resume_for = resume_for
        """Seconds that a lane waits for its next pipe; 0 when it ends with its pipe."""
        self.ended = LazyEvent()
        """Set when the session is over: streams reset, listeners closed.  Its streams' sockets may still be ending."""
        self.why = ""
        """Why it is over, for people."""
        self.since = time.time()
        """When it began, in seconds of Unix time."""
        self.agent = ""
        """What the other end calls itself; whoever shakes hands says so."""
        self.last_failure: PastFailure | None = None
        """How it last lost a pipe that was not replaced or closed in an orderly way."""
        self._places: dict[int, PipePlace] = {}  # of each lane's pipe, or its last one
        self._past = NOTHING  # of lanes that are over
        self.joined = JoinedStreams(
            name,
            watcher,
            parameters.peer_max_streams,
            self._stream_ended,
            unacknowledged=keepalive.unacknowledged,
            limits=limits,
            closer_reasons=bool(parameters.peer_features & Features.KINDS),
            observer=observer,
        )
        self.udp_targets = UdpTargets(name, watcher, self.joined.threads, limits, observer)
        self._observer = observer
        self._stream_limits = limits
        self._watcher = watcher
        self._parameters = parameters
        self._lock = threading.Lock()  # guards the next four
        self._lanes: dict[int, Lane] = {}
        self._over = False
        self._carrying = 0
        self._closing: Close | None = None  # what the last lane is closed with, once `stop` was called
        self._on_end: list[Callable[[], None]] = []
        self._stopping = Cancel()  # wakes those who connect to targets
        self._draining = LazyEvent()  # set when the session takes no new streams, or is over
        self._first = self.add_lane(0)
        watcher.add_chore(self._shrink)
        watcher.add_chore(self.joined.look)

    # --- lanes ----------------------------------------------------------------------------------

    @property
    def peer_max_streams(self) -> int:
        """How many streams the other end takes on each lane."""
        return self._parameters.peer_max_streams

    def add_lane(self, number: int) -> Lane:
        """Make the lane of this number, or find it.  Does not block.  Raises SessionEnded."""
        with self._lock:
            if self._over:
                raise SessionEnded(self.why)
            lane = self._lanes.get(number)
            if lane is None:
                if self._closing is not None:
                    raise SessionEnded(self._closing.text)
                name = f"{self.name}/{number}" if number else self.name
                on_control = _misplaced if number else self._receive_control
                lane = Lane(
                    name, self._parameters, on_open=self._receive_open, on_control=on_control, watcher=self._watcher
                )
                self._lanes[number] = lane
            return lane

    def find_lane(self, number: int) -> Lane | None:
        """Return the lane of this number; None when there is none, or it is over."""
        with self._lock:
            return self._lanes.get(number)

    @property
    def lanes(self) -> dict[int, Lane]:
        """The lanes that are not over, by number."""
        with self._lock:
            return dict(self._lanes)

    def place_of(self, number: int) -> PipePlace | None:
        """Return where the pipe of this lane leads, or led when it had one last; None before the first."""
        return self._places.get(number)

    def look(self) -> tuple[tuple[tuple[int, Lane], ...], Tally]:
        """Return its lanes by number, and what those that are over have carried, as of one moment."""
        with self._lock:
            return tuple(sorted(self._lanes.items())), self._past

    def tally(self) -> Tally:
        """Return what all its lanes have carried so far, those that are over included."""
        lanes, total = self.look()
        for _, lane in lanes:
            total = total.plus(tally_of(lane.figures()))
        return total

    def _shrink(self) -> bool:
        """Give back what no lane needs now; return whether there is more."""
        return sum(lane.shrink() for lane in self.lanes.values()) > 0

    @property
    def attached(self) -> bool:
        """Whether any lane is on a pipe."""
        if self._first.attached:  # nearly always, and one that is over is on none
            return True
        with self._lock:
            for lane in self._lanes.values():
                if lane.attached:
                    return True
        return False

    @property
    def away(self) -> float:
        """For how many seconds no pipe has carried any lane of it; 0 while one does."""
        return min((lane.away for lane in self.lanes.values()), default=0.0)

    @property
    def open_streams(self) -> int:
        """How many streams are open, over all lanes."""
        return sum(lane.open_streams for lane in self.lanes.values())

    def send_control(self, message: bytes) -> None:
        """Queue a control message; these travel on the first lane.  Does not block; the caller bounds how many."""
        self._first.send_control(message)

    def answers(self, timeout: float) -> bool:
        """Return whether the other end answers a sealed PING within `timeout` seconds; blocks until then at most.

        All lanes are asked, since a pipe may be dead unnoticed while others work; one without a pipe may still get one
        in time.
        """
        deadline = Deadline(timeout)
        asked = [(lane, lane.send_ping()) for lane in self.lanes.values()]
        while asked and not deadline.passed:
            for lane, question in asked:
                remaining = deadline.remaining() or 0.0
                if lane.wait_pong(question, min(remaining, PING_ROUND / len(asked))):
                    return True
            asked = [(lane, question) for lane, question in asked if not lane.over]
        return False

    def start(
        self,
        number: int,
        lane: Lane,
        sealed: SealedPipe,
        resume: ResumePoint,
        on_over: Callable[[PipeResult], None],
        *,
        silence: float,
        on_attached: Callable[[], None] = lambda: None,
        place: PipePlace | None = None,
    ) -> None:
        """Carry `lane` on this pipe until it ends, and draw the conclusions.  Parameters as for `Lane.start`.

        `place` says where the pipe leads, to whoever asks how this session is.

        The calling thread reads until little comes, and returns then.  `on_over` is called once, after the conclusions;
        while it is, and before, this session is `carried`.  An error that nobody expected ends the session.
        """

        def over(result: PipeResult) -> None:
            try:
                self._conclude(number, lane, result)
            except Exception:
                log_unexpected(f"{lane.name}: the end of its connection was not dealt with")
                self.end(FAILED)
            finally:
                self._count_carrying(-1)
                self._watcher.stir()  # a connection has given its memory back
            try:
                on_over(result)
            except Exception:  # or it would be called again, for what looks like a fault of `start`
                log_unexpected(f"{lane.name}: the end of its connection was not reported")

        self._count_carrying(1)
        if place is not None:
            self._places[number] = place
        try:
            lane.start(sealed, over, resume, silence=silence, on_attached=on_attached)
        except Exception:
            log_unexpected(f"{lane.name}: its connection was not carried")
            over(PipeResult(FAILED, fault=True))

    def carry(
        self,
        number: int,
        lane: Lane,
        sealed: SealedPipe,
        resume: ResumePoint,
        *,
        silence: float,
        on_attached: Callable[[], None] = lambda: None,
        place: PipePlace | None = None,
    ) -> PipeResult:
        """Do as `start`, and block until the pipe has ended; return how."""
        results: queue.SimpleQueue[PipeResult] = queue.SimpleQueue()
        self.start(number, lane, sealed, resume, results.put, silence=silence, on_attached=on_attached, place=place)
        return results.get()

    def _count_carrying(self, change: int) -> None:
        with self._lock:
            self._carrying += change

    @property
    def carried(self) -> bool:
        """Whether a pipe carries a lane of it, and somebody will log how that ended."""
        with self._lock:
            return self._carrying > 0

    def lane_expired(self, number: int, lane: Lane) -> None:
        """End `lane` if it has been without a pipe for `resume_for`.  Blocks as `end`."""
        if lane.away >= self.resume_for and not lane.attached:
            self.end_lane(number, lane, f"no connection to the other end for {self.resume_for:g} s")

    def _conclude(self, number: int, lane: Lane, result: PipeResult) -> None:
        reason = None if result.close is None else result.close.reason
        if result.fault or (reason is None and not lane.attached):
            self.last_failure = PastFailure(time.time(), result.cause)
        if result.fault:
            self.end(result.cause, Close(CloseReason.PROTOCOL, result.cause))
        elif reason is CloseReason.SHUTDOWN and number:
            # The first lane is closed when there is nothing more on any other.
            self.end_lane(number, lane, result.cause)
        elif reason in _SESSION_IS_OVER:
            self.end(result.cause)
        elif self._closing is not None or not self.resume_for:
            closing = self._closing  # what we have closed is over for that, however its connection ended
            self.end_lane(number, lane, result.cause if closing is None else closing.text or result.cause)

    def end_lane(self, number: int, lane: Lane, why: str) -> None:
        """End a lane, and with the first one the session.  Idempotent; blocks as `end`."""
        if not number:
            self.end(why)
            return
        with self._lock:
            if self._lanes.get(number) is lane:
                del self._lanes[number]
                self._places.pop(number, None)
                self._past = self._past.plus(tally_of(lane.figures()))
        lane.end(Reason.SESSION_ENDED, why)
        self._close_last_lane()

    # --- the end --------------------------------------------------------------------------------

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the session is over; at once if it is.  It must not block."""
        with self._lock:
            if not self._over:
                self._on_end.append(callback)
                return
        callback()

    def off_end(self, callback: Callable[[], None]) -> None:
        """Forget a callback of `on_end`.  Idempotent."""
        with self._lock:
            if callback in self._on_end:
                self._on_end.remove(callback)

    def end(self, why: str, close: Close | None = None) -> None:
        """End the session: reset its streams, free its ports; with `close`, tell the peer where that is possible.

        Idempotent, from any thread; blocks only until the threads that accept connections have ended.
        """
        with self._lock:
            if self._over:
                return
            self._over = True
            self.why = why
            lanes, callbacks, self._on_end = list(self._lanes.values()), self._on_end, []
        self.joined.session_over()
        self._watcher.remove_chore(self._shrink)
        self._watcher.remove_chore(self.joined.look)
        self._stopping.cancel()
        self._draining.set()
        try:
            for lane in lanes:
                lane.end(Reason.SESSION_ENDED, f"the session is over: {why}", close)
        finally:
            try:
                self._release()
            finally:
                self.ended.set()
                for callback in callbacks:
                    try:
                        callback()
                    except Exception:
                        log_unexpected(f"{self.name}: telling of the session's end failed")

    def refuse_streams(self) -> None:
        """Refuse new streams from the peer from now on: this end is stopping.  Idempotent; does not block."""
        self._draining.set()

    def drain(self, deadline: Deadline) -> None:
        """Refuse new streams, and block until the open ones have finished or the deadline has passed."""
        self.refuse_streams()
        self.joined.join(deadline.remaining() or 0.0)

    def stop(self, reason: CloseReason, text: str) -> None:
        """Send what is queued, then CLOSE, and let the session end.  Idempotent; blocks as `end`.

        What is queued on a lane without a pipe is lost with it.
        """
        with self._lock:
            if self._closing is None:
                self._closing = Close(reason, text)
            lanes = dict(self._lanes)
        for number, lane in lanes.items():
            if not lane.attached:
                self.end_lane(number, lane, text)
            elif number:
                lane.close(reason, text)
        self._close_last_lane()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, so that its end need not be logged."""
        return self._closing is not None

    def _close_last_lane(self) -> None:
        """Close the first lane once it is the only one: its CLOSE ends the session at the other end too."""
        closing, lanes = self._closing, self.lanes
        if closing is not None and set(lanes) == {0}:
            lanes[0].close(closing.reason, closing.text)

    # --- what the peer asks for -----------------------------------------------------------------

    def _receive_open(self, stream: Stream) -> None:
        """Handle a stream that the peer opened; what is wrong with it concerns this stream alone."""
        if self._draining.is_set():
            self.refuse(stream, Reason.SESSION_ENDED, "the other end is shutting down")
            return
        try:
            self._on_open(stream, decode_request(stream.request))
        except ProtocolError as error:
            log.info("%s: refused a stream: %s", stream.label, error)
            self.refuse(stream, Reason.NOT_ALLOWED, error.message)
        except Exception:
            log_unexpected(f"opening the stream {stream.label} failed")
            self.refuse(stream, Reason.INTERNAL, INTERNAL_TEXT)

    def _receive_control(self, content: bytes) -> None:
        """Handle a control message.  Raises ProtocolError when the session cannot go on after it."""
        try:
            self._on_control(content)
        except QanatError:
            raise
        except Exception:
            log_unexpected(f"{self.name}: handling a control message failed")

    @abstractmethod
    def _on_open(self, stream: Stream, request: StreamRequest) -> None:
        """Handle the peer's OPEN.  Called by the reader: must not block.  ProtocolError refuses the stream."""

    @abstractmethod
    def _on_control(self, content: bytes) -> None:
        """Handle the peer's CONTROL.  Called by the reader: must not block.  ProtocolError ends the session."""

    @abstractmethod
    def _release(self) -> None:
        """Free what this side holds for the session, which is over."""

    # --- what both sides do with streams --------------------------------------------------------

    def open_stream(self, request: bytes, *, wait: bool = True, kind: str = "", forward: str = "") -> Stream:
        """Open a stream on the least loaded lane, when that is flushed; blocks while its retransmit buffer is full.

        `kind` and `forward` are for people.  Raises SessionEnded, StreamReset(LIMIT), and WouldBlock without `wait`
        instead of blocking.
        """
        while True:
            count = len(self._lanes)
            lane = self._first
            if count > 1:
                lane = min(self.lanes.values(), key=lambda each: each.load, default=lane)
            try:
                stream = lane.open_stream(request, wait=wait, flush=False)
                stream.kind, stream.forward = kind, forward
                return stream
            except SessionEnded:
                if self._stopping.canceled or self._closing is not None or count <= 1:
                    raise  # otherwise only this lane is over

    def open_flow(
        self,
        request: bytes,
        on_datagram: Callable[[bytes], None],
        on_over: Callable[[int, str], None],
        *,
        limits: TrafficLimits | None = None,
        done: Callable[[], None] | None = None,
        forward: str = "",
    ) -> UdpFlow:
        """Open a UDP flow on the least loaded lane, when that is flushed: the first datagram goes out with it.

        Parameters as for UdpFlow; `limits` are by default the session's.  Does not block.  Raises WouldBlock while no
        pipe carries the session, SessionEnded, StreamReset(LIMIT), and EndpointError when the peer carries no UDP.
        """
        if not self._parameters.peer_features & Features.DATAGRAMS:
            raise EndpointError("the other end carries no UDP", code=Reason.NOT_ALLOWED, hint=UPGRADE)
        if not self.attached:
            raise WouldBlock
        stream = self.open_stream(request, wait=False, kind="udp", forward=forward)
        limits = self._stream_limits if limits is None else limits
        observer = self._observer
        if observer is not None:
            observer.opened(stream, "")
            done = partial(_closed, observer, stream, done)
        return UdpFlow(stream, on_datagram, on_over, limits=limits, done=done)

    def join_accepted(
        self,
        sock: socket.socket,
        peer: str,
        request: bytes,
        what: str,
        done: Callable[[], None] = lambda: None,
        limits: TrafficLimits | None = None,
        *,
        first: bytes = b"",
        forward: str = "",
    ) -> None:
        """Join a connection that was accepted here to a new stream; `done` is called once, when both are over.

        `forward` is what people know the forward by, `what` unless it is given.  `first` is a little that the stream
        carries before what comes on the connection.

        Does not block.  Raises NoThread, and EndpointError when the other end does not know the request, or as many
        connections wait for a stream already as there may be streams: while no pipe carries the session, new ones wait.
        Then `sock` is still the caller's.
        """
        check_known(request, self._parameters.peer_features, what)

        def open_stream(wait: bool) -> Stream:
            stream = self.open_stream(request, wait=wait, forward=forward or what)
            if first:
                stream.queue(first)
            return stream

        self.joined.accept(sock, peer, what, open_stream, done, limits)

    def join_pending(
        self,
        pending: PendingConnection,
        request: bytes,
        what: str,
        limits: TrafficLimits | None = None,
        *,
        kind: str = "dynamic",
        forward: str = "",
    ) -> None:
        """Open a stream for a connection whose user waits for word of its target, and join them once that was reached.

        Does not block.  Whatever fails is told to `pending`.
        """

        def open_stream(wait: bool) -> Stream:
            return self.open_stream(request, wait=wait, kind=kind, forward=forward)

        self.joined.accept_pending(pending, what, open_stream, limits)

    def refuse(self, stream: Stream, reason: Reason, text: str) -> None:
        """Refuse a stream of the peer: reset it and release it.  Idempotent; does not block."""
        if self._observer is not None:
            self._observer.refused(stream, reason, text)
        refuse(stream, reason, text)

    def _stream_ended(self) -> None:  # noqa: B027 - only a client's session has something to do
        """Note that a stream is over, and its socket closed.  Must not block."""


def _closed(observer: StreamObserver, stream: Stream, done: Callable[[], None] | None) -> None:
    """Tell that a flow is over to who observes it, and to who waits for it."""
    observer.closed(stream)
    if done is not None:
        done()


def _misplaced(message: bytes) -> None:
    """Refuse a control message: only on the first lane are they handled one after the other, in their order."""
    raise ProtocolError("a control message on another lane than the first")


def tally_of(figures: LaneFigures) -> Tally:
    """Return what a lane has carried, of its figures.  Pure."""
    return Tally(figures.received, figures.sent, figures.opened, figures.recoveries, figures.replayed)


def new_id() -> bytes:
    """Return 16 random bytes: a session's id, or a client process's."""
    return secrets.token_bytes(16)
