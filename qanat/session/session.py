"""What a session is on either side: a lane, the pumps on it, and the way it ends.

`qanat.server.session` and `qanat.client.session` say what OPEN and CONTROL mean on their side.
"""

from __future__ import annotations

import logging
import math
import secrets
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError, NoThread, ProtocolError, QanatError, SessionEnded
from qanat.base.files_limit import raise_open_files_limit
from qanat.base.threads import ThreadGroup
from qanat.base.version import __version__
from qanat.config.settings import Flow, Keepalive
from qanat.endpoints.pump import join_stream
from qanat.endpoints.wakeable import WakeableSocket
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Close, CloseReason, Parameters
from qanat.mux.carrying import PipeResult
from qanat.mux.frames import Reason, reason_name
from qanat.mux.lane import Lane
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream_io import StreamIO
from qanat.session.messages import printable

log = logging.getLogger("qanat.session")

AGENT = f"qanat/{__version__}"


LOOK_ELSEWHERE = 0.05
"""Seconds until who waits for an answer on one lane has looked at all others."""
FILES_A_STREAM = 3
"""Descriptors one stream may need: its socket, and a pair to wake a thread that waits for a slow target."""
FILES_RESERVED = 128
"""Descriptors left for everything else."""


def affordable_streams(wanted: int) -> int:
    """Raise the open-files limit, and cap `wanted` streams to what it leaves; says so when it has to."""
    files = raise_open_files_limit()
    affordable = max(16, (files - FILES_RESERVED) // FILES_A_STREAM)
    if affordable < wanted:
        log.warning(
            "%d open files are allowed, so a session may have %d streams, not %d; raise the hard limit (ulimit -Hn)",
            files,
            affordable,
            wanted,
        )
    return min(wanted, affordable)


def hello_parameters(
    flow: Flow, keepalive: Keepalive, max_streams: int, *, lanes: int = 1, resume_for: float = 0
) -> Parameters:
    """What we tell the peer about ourselves in HELLO or READY; `max_streams` is for one lane."""
    return Parameters(AGENT, flow.initial_window, max_streams, round(keepalive.interval), lanes, math.ceil(resume_for))


def share(total: int, lanes: int) -> int:
    """What one of `lanes` may have of a bound that is for a whole session."""
    return -(-total // max(1, lanes))


def lane_parameters(
    flow: Flow,
    keepalive: Keepalive,
    max_streams: int,
    peer: Parameters,
    *,
    client: bool,
    lanes: int = 1,
    resumable: bool = False,
) -> LaneParameters:
    """Our own bounds and the peer's, for one lane of a session that has so many."""
    return LaneParameters(
        client=client,
        initial_window=flow.initial_window,
        max_window=flow.max_window,
        window_budget=share(flow.window_budget, lanes),
        outbox=flow.outbox,
        max_streams=max_streams,
        peer_initial_window=peer.initial_window,
        peer_max_streams=peer.max_streams,
        keepalive=keepalive.interval,
        resumable=resumable,
    )


_SESSION_IS_OVER = frozenset({CloseReason.SHUTDOWN, CloseReason.REVOKED, CloseReason.REPLACED, CloseReason.PROTOCOL})


class Session(ABC):
    """One session, from its first READY until it is over.  `carry` runs a lane of it on a pipe.

    A session outlives its pipes.  It is over when either end says so, when its client has stayed away for longer
    than `resume_for` (whoever watches the clock calls `lane_expired`), and with its first lane's pipe when that is 0.
    """

    def __init__(
        self, name: str, parameters: LaneParameters, session_id: bytes, secret: bytes, resume_for: float
    ) -> None:
        self.name = name
        self.id = session_id
        self.secret = secret
        """What only the two ends of the session's first handshake know; proves who may resume it."""
        self.resume_for = resume_for
        self.ended = threading.Event()
        """Set when the session is over: streams reset, listeners closed.  Its `threads` may still be ending."""
        self.why = ""
        """Why it is over, for people."""
        self.threads = ThreadGroup(f"session {name}")
        self._parameters = parameters
        self._lock = threading.Lock()  # guards the next five
        self._lanes: dict[int, Lane] = {}
        self._over = False
        self._carrying = 0
        self._served = 0  # streams that are joined to a socket, or about to be
        self._goodbye: Close | None = None
        self._on_end: list[Callable[[], None]] = []
        self._stopping = Cancel()  # wakes those who connect to targets
        self._draining = threading.Event()  # set when the session takes no new streams, or is over
        self._first = self.add_lane(0)

    # --- lanes ----------------------------------------------------------------------------------

    def add_lane(self, number: int) -> Lane:
        """Make a lane, or find it.  Raises SessionEnded."""
        with self._lock:
            if self._over:
                raise SessionEnded(self.why)
            lane = self._lanes.get(number)
            if lane is None:
                if self._goodbye is not None:
                    raise SessionEnded(self._goodbye.text)
                name = f"{self.name}/{number}" if number else self.name
                on_control = _misplaced if number else self._on_control
                lane = Lane(name, self._parameters, on_open=self._opened, on_control=on_control)
                self._lanes[number] = lane
            return lane

    def find_lane(self, number: int) -> Lane | None:
        with self._lock:
            return self._lanes.get(number)

    @property
    def lanes(self) -> dict[int, Lane]:
        """The lanes there are, by number."""
        with self._lock:
            return dict(self._lanes)

    @property
    def attached(self) -> bool:
        """Whether any lane is on a pipe."""
        return any(lane.attached for lane in self.lanes.values())

    @property
    def open_streams(self) -> int:
        return sum(lane.open_streams for lane in self.lanes.values())

    def send_control(self, message: bytes) -> None:
        """Queue a control message; these travel on the first lane.  Does not block; the caller bounds how many."""
        self._first.send_control(message)

    def answers(self, timeout: float) -> bool:
        """Whether the other end answers a sealed PING within `timeout` seconds; blocks.

        All lanes are asked, since a pipe may be dead unnoticed while others work; for one without a pipe, a pipe
        that comes in time will do.
        """
        deadline = Deadline(timeout)
        asked = [(lane, lane.ask()) for lane in self.lanes.values()]
        while asked and not deadline.passed:
            for lane, question in asked:
                remaining = deadline.remaining() or 0.0
                if lane.answered(question, min(remaining, LOOK_ELSEWHERE / len(asked))):
                    return True
            asked = [(lane, question) for lane, question in asked if not lane.over]
        return False

    def carry(
        self,
        number: int,
        lane: Lane,
        sealed: SealedPipe,
        *,
        silence: float,
        epoch: int = 0,
        peer_expects: int = 0,
        receive_from: int | None = None,
        on_attached: Callable[[], None] = lambda: None,
    ) -> PipeResult:
        """Run `lane` on this pipe until it ends, and draw the conclusion; blocks.  Parameters as for `Lane.run`."""
        with self._lock:
            self._carrying += 1
        try:
            ending = lane.run(
                sealed,
                silence=silence,
                epoch=epoch,
                peer_expects=peer_expects,
                receive_from=receive_from,
                on_attached=on_attached,
            )
            self._conclude(number, lane, ending)
        except BaseException:
            self.end("this program failed; please report its log")  # or nobody would wait for the lane's next pipe
            raise
        finally:
            with self._lock:
                self._carrying -= 1
        return ending

    @property
    def carried(self) -> bool:
        """Whether some thread is in `carry`, and will say how its pipe ended."""
        with self._lock:
            return self._carrying > 0

    def lane_expired(self, number: int, lane: Lane) -> None:
        """A lane has been without a pipe for too long.  Does not block for long; nothing when it has or has had one."""
        if lane.away >= self.resume_for and not lane.attached:
            self.end_lane(number, lane, f"no connection to the other end for {self.resume_for:g} s")

    def _conclude(self, number: int, lane: Lane, ending: PipeResult) -> None:
        said = None if ending.close is None else ending.close.reason
        if ending.fault:
            self.end(ending.cause, Close(CloseReason.PROTOCOL, ending.cause))
        elif said is CloseReason.SHUTDOWN and number:
            # The first lane's goodbye comes when there is nothing more on any other.
            self.end_lane(number, lane, ending.cause)
        elif said in _SESSION_IS_OVER:
            self.end(ending.cause)
        elif self._goodbye is not None or not self.resume_for:
            self.end_lane(number, lane, ending.cause)

    def end_lane(self, number: int, lane: Lane, why: str) -> None:
        """A lane is over, and with the first one the session.  Idempotent; blocks as `end`."""
        if not number:
            self.end(why)
            return
        with self._lock:
            if self._lanes.get(number) is lane:
                del self._lanes[number]
        lane.end(Reason.SESSION_ENDED, why)
        self._say_goodbye()

    # --- the end --------------------------------------------------------------------------------

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when the session is over; at once if it is.  It must not block."""
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
        """The session is over: streams are reset, ports freed; with `close`, the peer is told if that can be done.

        Idempotent, from any thread; blocks only for the threads that accept connections.
        """
        with self._lock:
            if self._over:
                return
            self._over = True
            self.why = why
            lanes, callbacks = list(self._lanes.values()), self._on_end
        self._stopping.cancel()
        self._draining.set()
        try:
            for lane in lanes:
                lane.end(Reason.SESSION_ENDED, f"the session is over: {why}", close)
        finally:
            self._release()
            self.ended.set()
            for callback in callbacks:
                callback()

    def refuse_streams(self) -> None:
        """Take no new stream from the peer: we are going away.  Idempotent; does not block."""
        self._draining.set()

    def drain(self, deadline: Deadline) -> None:
        """Refuse new streams, and block until the open ones have finished or the deadline has passed."""
        self.refuse_streams()
        self.threads.join(deadline.remaining() or 0.0)

    def stop(self, reason: CloseReason, text: str) -> None:
        """Send what is queued, say goodbye, and let the session end.  Idempotent; does not block for long.

        What is queued on a lane without a pipe is lost with it.
        """
        with self._lock:
            if self._goodbye is None:
                self._goodbye = Close(reason, text)
            lanes = dict(self._lanes)
        for number, lane in lanes.items():
            if not lane.attached:
                self.end_lane(number, lane, text)
            elif number:
                lane.close(reason, text)
        self._say_goodbye()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, so that its end is no news."""
        return self._goodbye is not None

    def _say_goodbye(self) -> None:
        """Once only the first lane is left: its CLOSE ends the session at the other end too."""
        goodbye, lanes = self._goodbye, self.lanes
        if goodbye is not None and set(lanes) == {0}:
            lanes[0].close(goodbye.reason, goodbye.text)

    def _opened(self, stream: StreamIO) -> None:
        if self._draining.is_set():
            self.refuse(stream, Reason.SESSION_ENDED, "the other end is shutting down")
        else:
            self._on_open(stream)

    @abstractmethod
    def _on_open(self, stream: StreamIO) -> None:
        """The peer opened a stream.  Called by the reader: must not block."""

    @abstractmethod
    def _on_control(self, message: bytes) -> None:
        """The peer sent a control message.  Called by the reader: must not block."""

    @abstractmethod
    def _release(self) -> None:
        """The session is over: free what this side holds for it."""

    # --- what both sides do with streams --------------------------------------------------------

    def open_stream(self, request: bytes) -> StreamIO:
        """Open a stream on the lane with the least on it; blocks while its outbox is full.

        Raises SessionEnded or StreamReset(LIMIT).
        """
        while True:
            lanes = list(self.lanes.values())
            lane = min(lanes, key=lambda each: each.load)
            try:
                return lane.open_stream(request)
            except SessionEnded:
                if self._stopping.cancelled or self._goodbye is not None or len(lanes) == 1:
                    raise  # otherwise only this lane is over

    def start_outgoing(self, peer: str, carry: Callable[[], None]) -> None:
        """Have `carry`, which calls `carry_outgoing`, in a thread of its own.

        Raises NoThread, and EndpointError when as many as there may be streams wait for one already: while no pipe
        carries the session, whoever comes waits.
        """
        if len(self.threads) - 2 * self.open_streams > self._parameters.peer_max_streams:
            waiting = self._parameters.peer_max_streams
            raise EndpointError(f"{waiting} connections wait for a stream already", code=Reason.LIMIT)
        self.threads.start(f"{self.name} {peer}-down", carry)

    def carry_outgoing(self, sock: socket.socket, peer: str, request: bytes, what: str) -> None:
        """Join a connection that we accepted to a new stream; blocks until both are over."""
        target = WakeableSocket(sock, peer)
        self._begin_serving()
        try:
            stream = self.open_stream(request)
        except QanatError as error:
            target.close(orderly=False)
            log.warning("%s from %s: %s", what, peer, error)
        else:
            join_stream(stream, target, self.threads.start, stream.label)
            failure = stream.failure
            if failure is not None and failure[0] not in (Reason.CANCELLED, Reason.SESSION_ENDED):
                log.warning("%s from %s: %s: %s", what, peer, reason_name(failure[0]), printable(failure[1]))
        finally:
            self._end_serving()

    def serve_incoming(self, stream: StreamIO, connect: Callable[[], WakeableSocket], what: str) -> bool:
        """Connect the peer's stream to its target in a thread of its own; does not block.

        False when there was no thread for it: `connect` is not called then, and the stream has been refused.
        """

        def run() -> None:
            try:
                target = connect()
            except EndpointError as error:
                log.info("%s %s: %s", self.name, what, error)
                stream.reset(Reason(error.code), error.message)
                stream.release()
            else:
                stream.accept(target.peer)
                join_stream(stream, target, self.threads.start, stream.label)
            finally:
                self._end_serving()

        self._begin_serving()
        try:
            self.threads.start(f"{stream.label}-down", run)
        except NoThread as error:
            self._end_serving()
            log.warning("%s %s: %s", self.name, what, error)
            self.refuse(stream, Reason.LIMIT, "no more threads at the other end")
            return False
        return True

    def refuse(self, stream: StreamIO, reason: Reason, text: str) -> None:
        """Reset a stream that was just opened."""
        stream.reset(reason, text)
        stream.release()

    def _begin_serving(self) -> None:
        with self._lock:
            self._served += 1

    def _end_serving(self) -> None:
        with self._lock:
            self._served -= 1
        self._stream_ended()

    def _stream_ended(self) -> None:  # noqa: B027 - only a client's session has something to do
        """A stream is over, and its socket closed.  Must not block."""


def _misplaced(message: bytes) -> None:
    """On the first lane one thread after the other handles them, and in their order."""
    raise ProtocolError("a control message on another lane than the first")


def new_id() -> bytes:
    """16 random bytes: a session's id, or a client process's."""
    return secrets.token_bytes(16)
