"""A client's session that is for measuring: connected as any other, beside the running client of the same name.

It has one lane and no forwards, and ends with its connection: what goes on over another one is no measure of either.
`tunnel.py bench` uses it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, QanatError, RefusedError, TransportError, UsageError
from qanat.base.text import printable
from qanat.base.threads import ThreadGroup
from qanat.base.watcher import Watcher
from qanat.client.connect import Connector, NameInUse, describe_failure
from qanat.client.known_hosts import KnownHosts
from qanat.client.required_forwards import RequiredForwards
from qanat.client.session import ClientSession
from qanat.client.ways import Candidate
from qanat.config.client_settings import ClientSettings
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Answer, Close, CloseReason, Hello, Ready, RecordKind
from qanat.handshake.key_pool import ClientKeyPool
from qanat.mux.parameters import FIRST_PIPE
from qanat.mux.stream import Stream
from qanat.session.limits import CLIENT_STREAMS, hello_parameters, lane_parameters
from qanat.session.messages import Measure, Measurement
from qanat.session.session import new_id

log = logging.getLogger("qanat.client")

JOIN_TIMEOUT = 5.0
"""Seconds that the session and its threads get to end."""

_TOO_OLD = "upgrade the server: it must be at least as new as this program"


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a measurement leads."""

    candidate: Candidate
    node: str
    agent: str


class MeasuringSession:
    """A session on its one pipe.  Made by `measuring_session`."""

    def __init__(self, session: ClientSession, reached: Reached) -> None:
        self.reached = reached
        self._session = session
        self._last: Stream | None = None

    def open(self, what: Measurement) -> socket.socket:
        """Return a socket that is joined to a new stream of this kind.  Does not wait for the server's answer.

        Raises QanatError.
        """
        ours, joined = socket.socketpair()
        try:
            self._session.joined.accept(joined, "bench", "measuring", lambda wait: self._open_stream(what, wait))
        except BaseException:
            ours.close()
            joined.close()
            raise
        return ours

    def _open_stream(self, what: Measurement, wait: bool) -> Stream:
        self._last = self._session.open_stream(Measure(what).encode(), wait=wait)
        return self._last

    def why_over(self) -> str:
        """Return why the session, or else its latest stream, has ended; "" where that is not known."""
        if self._session.why:
            return printable(self._session.why)
        failure = None if self._last is None else self._last.failure
        return "" if failure is None else f"the server refused it: {printable(failure[1])}"


@contextmanager
def measuring_session(settings: ClientSettings) -> Iterator[MeasuringSession]:
    """Connect to the first server, URL and transport of `settings` that answers, and yield the session.

    Blocks for `connect_timeout` and `handshake_timeout` for each at most.  Raises RefusedError, the last failure when
    none answers, and UsageError for a URL or a file that cannot be used.
    """
    keys, watcher, cancel = ClientKeyPool(), Watcher(), Cancel()
    known = KnownHosts((settings.state_dir or Path()) / "known_hosts")
    connectors = [Connector(settings, server, keys, known) for server in settings.servers]
    keys.start()
    try:
        sealed, ready, candidate = _connect(settings, connectors, cancel)
        try:
            session = _begin(settings, sealed, ready, watcher)
        except BaseException:
            sealed.close("the session did not begin")
            raise
        threads = ThreadGroup("measuring")
        try:
            threads.start(
                f"{settings.name}-reader",
                lambda: session.carry(0, session.add_lane(0), sealed, FIRST_PIPE, silence=settings.keepalive.timeout),
            )
            yield MeasuringSession(
                session, Reached(candidate, printable(ready.node), printable(ready.parameters.agent))
            )
        finally:
            session.stop(CloseReason.SHUTDOWN, "the measurement is over")
            session.ended.wait(JOIN_TIMEOUT)
            session.end("the measurement is over")
            sealed.close("the measurement is over")
            session.joined.join(JOIN_TIMEOUT)
            threads.join(JOIN_TIMEOUT)
    finally:
        for connector in connectors:
            connector.join(JOIN_TIMEOUT)
        watcher.close()
        keys.close()


def _connect(
    settings: ClientSettings, connectors: list[Connector], cancel: Cancel
) -> tuple[SealedPipe, Ready, Candidate]:
    """Return the first connection that a server has answered with READY; blocks."""
    parameters = replace(hello_parameters(settings.flow, settings.keepalive, CLIENT_STREAMS), measure=1)
    failure: QanatError | None = None
    for connector in connectors:
        for candidate in connector.candidates:
            try:
                reached, sealed = connector.reach(candidate, cancel)
                hello, deadline = Hello(new_id(), parameters), Deadline(settings.handshake_timeout)
                return sealed, connector.exchange_hello(reached, sealed, hello, deadline, cancel), reached
            except NameInUse as error:  # which one that knows of measuring never says to it
                failure = RefusedError(f"this server is too old to be measured: {error.message}", hint=_TOO_OLD)
            except RefusedError as error:
                failure = error
            except UsageError:
                raise
            except QanatError as error:
                log.info("%s", describe_failure(candidate, error))
                known = candidate.url.host in error.message
                text = error.message if known else f"cannot connect to {candidate.url}: {error.message}"
                failure = TransportError(text, hint=error.hint)
    assert failure is not None  # there is a server, and it has a URL
    raise failure


def _begin(settings: ClientSettings, sealed: SealedPipe, ready: Ready, watcher: Watcher) -> ClientSession:
    if ready.answer is not Answer.NEW:
        raise ProtocolError("the server answered NEW with something else")
    if not ready.parameters.measure:
        # Or an old server would keep the session for a while.
        close = Close(CloseReason.SHUTDOWN, "the server cannot be measured")
        with suppress(QanatError):
            sealed.send_last(bytes((RecordKind.CLOSE,)) + close.encode(), close.text)
        raise RefusedError("this server is too old to be measured", hint=_TOO_OLD)
    # The lane is one that could be resumed, so that its bytes take the same way as those of a session that can be.
    parameters = lane_parameters(
        settings.flow, settings.keepalive, CLIENT_STREAMS, ready.parameters, client=True, resumable=True
    )
    return ClientSession(
        settings.name,
        parameters,
        ready.session,
        sealed.result.resume,
        0.0,
        node=ready.node,
        remotes=(),
        required=RequiredForwards((), lambda error: None),
        connect_timeout=settings.connect_timeout,
        watcher=watcher,
    )
