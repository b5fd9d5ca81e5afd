"""What a session is on either side: a lane, the pumps on it, and the way it ends.

`service.server_session` and `service.client_session` say what OPEN and CONTROL mean on their side.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from base.deadline import Deadline
from base.errors import EndpointError, QanatError
from base.files_limit import raise_open_files_limit
from base.threads import ThreadGroup
from base.version import __version__
from endpoints.pump import join_stream
from endpoints.wakeable import WakeableSocket
from handshake.exchange import SealedPipe
from handshake.hello import CloseReason, Parameters
from mux.frames import Reason, reason_name
from mux.lane import Ending, Lane
from mux.parameters import LaneParameters
from mux.stream_io import StreamIO

from .messages import printable
from .settings import Flow, Keepalive

log = logging.getLogger("qanat.session")

AGENT = f"qanat/{__version__}"


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
            files, affordable, wanted,
        )  # fmt: skip
    return min(wanted, affordable)


def hello_parameters(flow: Flow, keepalive: Keepalive, max_streams: int) -> Parameters:
    """What we tell the peer about ourselves in HELLO or READY."""
    return Parameters(AGENT, flow.initial_window, max_streams, round(keepalive.interval))


def lane_parameters(
    flow: Flow, keepalive: Keepalive, max_streams: int, peer: Parameters, *, client: bool
) -> LaneParameters:
    """Our own bounds and the peer's, for the mux."""
    return LaneParameters(
        client=client,
        initial_window=flow.initial_window,
        max_window=flow.max_window,
        window_budget=flow.window_budget,
        outbox=flow.outbox,
        max_streams=max_streams,
        peer_initial_window=peer.initial_window,
        peer_max_streams=peer.max_streams,
        keepalive=keepalive.interval,
    )


class Session(ABC):
    """One session, from READY until its end.  `run` carries it on a pipe."""

    def __init__(self, name: str, parameters: LaneParameters, session_id: bytes) -> None:
        self.name = name
        self.id = session_id
        self.ended = threading.Event()
        """Set when the session is over: streams reset, listeners closed.  Its `threads` may still be ending."""
        self.threads = ThreadGroup(f"session {name}")
        self.lane = Lane(name, parameters, on_open=self._opened, on_control=self._on_control)
        self._stopping = threading.Event()
        self._draining = threading.Event()  # set when the session takes no new streams, or is over

    def run(self, sealed: SealedPipe, silence: float) -> Ending:
        """Carry the session on this pipe until it ends, then end the session; blocks."""
        try:
            ending = self.lane.run(sealed, silence=silence)
        finally:
            self._stopping.set()
            self._draining.set()
            self.lane.end(Reason.SESSION_ENDED, "the connection to the other end is gone")
            self._release()
            self.ended.set()
        return ending

    def refuse_streams(self) -> None:
        """Take no new stream from the peer: we are going away.  Idempotent; does not block."""
        self._draining.set()

    def drain(self, deadline: Deadline) -> None:
        """Refuse new streams, and block until the open ones have finished or the deadline has passed."""
        self.refuse_streams()
        self.threads.join(deadline.remaining() or 0.0)

    def stop(self, reason: CloseReason, text: str) -> None:
        """Say goodbye and let the pipe end.  Idempotent; does not block."""
        self.lane.close(reason, text)

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

    def start_outgoing(self, sock: socket.socket, peer: str, request: bytes, what: str) -> None:
        """`carry_outgoing` in a thread of its own.  Raises RuntimeError when the system gives none."""
        self.threads.start(f"{self.name} {peer}-down", lambda: self.carry_outgoing(sock, peer, request, what))

    def carry_outgoing(self, sock: socket.socket, peer: str, request: bytes, what: str) -> None:
        """Join a connection that we accepted to a new stream; blocks until both are over."""
        target = WakeableSocket(sock, peer)
        try:
            stream = self.lane.open_stream(request)
        except QanatError as error:
            target.close(orderly=False)
            log.warning("%s from %s: %s", what, peer, error)
            return
        self._join(stream, target, f"{self.name} {stream.id}")
        failure = stream.failure
        if failure is not None and failure[0] not in (Reason.CANCELLED, Reason.SESSION_ENDED):
            log.warning("%s from %s: %s: %s", what, peer, reason_name(failure[0]), printable(failure[1]))

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
                return
            stream.accept(target.peer)
            self._join(stream, target, f"{self.name} {stream.id}")

        try:
            self.threads.start(f"{self.name} {stream.id}-down", run)
        except RuntimeError as error:  # The system gives no more threads.
            log.warning("%s %s: %s; raise the limit on threads (ulimit -u, TasksMax)", self.name, what, error)
            self.refuse(stream, Reason.LIMIT, "no more threads at the other end")
            return False
        return True

    def refuse(self, stream: StreamIO, reason: Reason, text: str) -> None:
        """Reset a stream that was just opened."""
        stream.reset(reason, text)
        stream.release()

    def _join(self, stream: StreamIO, target: WakeableSocket, name: str) -> None:
        join_stream(stream, target, self.threads.start, name)


def new_id() -> bytes:
    """16 random bytes: a session's id, or a client process's."""
    return secrets.token_bytes(16)


