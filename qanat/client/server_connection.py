"""A client's link to one server: a session, and another one when that is over, for as long as it is wanted.

Threads: the *connector* makes the session's first pipe and then keeps its first lane (`qanat.client.reconnector`); each
further lane has a thread that keeps it.  Which servers are wanted is `qanat.client.client`'s to decide.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import (
    LocalError,
    NoThread,
    ProtocolError,
    QanatError,
    RefusedError,
    SessionEnded,
    TransportError,
)
from qanat.base.threads import ThreadGroup
from qanat.client.backoff import Backoff
from qanat.client.connect import Connector, Endpoint, describe_failure, describe_server
from qanat.client.known_hosts import KnownHosts
from qanat.client.network_watch import NetworkWatch
from qanat.client.reconnector import ENDING, ReconnectContext, Reconnector
from qanat.client.session import ClientSession
from qanat.config.settings import ClientSettings, RemoteServer
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Answer, Hello
from qanat.handshake.key_pool import ClientKeyPool
from qanat.session.session import hello_parameters, lane_parameters, new_id, share

log = logging.getLogger("qanat.client")

MAX_LANE = 0xFFFF
"""The highest number of a lane that HELLO can carry."""


class ServerConnection:
    """See the module's docstring.  Methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        settings: ClientSettings,
        server: RemoteServer,
        *,
        keys: ClientKeyPool,
        known: KnownHosts,
        watch: NetworkWatch,
        max_streams: int,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called, without a lock, whenever something that can be asked here may have changed.

        Raises UsageError for a bad URL or bad TLS files.
        """
        self.failure: QanatError | None = None
        """Why it cannot go on; None while it can."""
        self.refused: RefusedError | None = None
        """Why the server will not have us, or is not the one that we know; None once a session has been up."""
        self.over = False
        self.succeeded = False
        self.away_since: float | None = None
        """When it was last connected, or first wanted to be; None while it is connected or not wanted."""
        self._name = name
        self._settings = settings
        self._max_streams = share(max_streams, settings.lanes)
        self._changed = changed
        self._backoff = Backoff(settings.reconnect)
        self._new = Cancel()  # for what begins a session
        self._all = Cancel()  # for what keeps one, too
        self._context = ReconnectContext(
            settings,
            Connector(settings, server, keys, known),
            new_id(),
            hello_parameters(settings.flow, settings.keepalive, self._max_streams, lanes=settings.lanes),
            self._all,
            watch,
            self._pipe_changed,
        )
        self._ways = itertools.cycle(self._context.connector.ways)
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._session: ClientSession | None = None
        self._marking = threading.Lock()  # so that the last to look at the session is the last to say what it saw
        self._former: list[ClientSession] = []  # sessions that are over, with threads that still end
        self._threads = ThreadGroup(name)

    @property
    def session(self) -> ClientSession | None:
        """The present session, attached or not; None while there is none."""
        return self._session

    def start(self) -> None:
        """Connect once it is `wanted`; does not block."""
        self._threads.start(self._name, self._connector_loop)

    def want(self, wanted: bool) -> None:
        """Whether a new session is to be begun when there is none.  Idempotent; does not block."""
        if wanted and not self._wanted.is_set():
            self._wanted.set()
            self._mark_absence(anew=True)
        elif not wanted and self._wanted.is_set():
            self._wanted.clear()

    def stop_connecting(self) -> None:
        """Begin no session any more; the present one is still kept.  Does not block."""
        self._stopping.set()
        self._wanted.set()
        self._new.cancel()

    def close(self) -> None:
        """End the present session, and all threads; blocks until they have ended, or ENDING has passed twice."""
        self.stop_connecting()
        self._all.cancel()
        session = self._session
        if session is not None:
            session.end("the client is stopping")
        stuck = self._threads.join(2 * ENDING)
        for former in self._former:
            stuck += former.threads.join(ENDING)
        if stuck:
            log.warning("still running at the end: %s", ", ".join(stuck))

    def _pipe_changed(self) -> None:
        self._mark_absence()
        self._changed()

    def _mark_absence(self, *, anew: bool = False) -> None:
        with self._marking:
            session = self._session
            if session is not None and session.attached:
                self.away_since = None
            elif anew or self.away_since is None:
                self.away_since = time.monotonic()

    # --- the connector --------------------------------------------------------------------------

    def _connector_loop(self) -> None:
        try:
            for way in self._ways:
                self._wanted.wait()
                if self._stopping.is_set():
                    return
                retry_after = self._try(way)
                self._changed()
                delay = self._backoff.delay(retry_after)
                if self._stopping.is_set():
                    return
                if delay >= 0.5 and self.failure is None and not self._refused_for_good:
                    log.info("trying again in %.1f s", delay)
                self._stopping.wait(delay)
        except Exception:
            self.failure = LocalError("the connector ended by an unexpected error", hint="please report the log")
            raise
        finally:
            self.over = True
            self._changed()

    def _try(self, way: Endpoint) -> float | None:
        """A session from connector to its end, or a failure.  Returns the seconds that we are asked to wait."""
        try:
            session, sealed = self._begin(way)
        except RefusedError as error:
            self._was_refused(way, error)
            return None
        except QanatError as error:
            if not self._stopping.is_set():
                self._backoff.failed()
                log.error("%s", describe_failure(way, error), extra={"event": "failed", "url": str(way.url)})
            return error.retry_after if isinstance(error, TransportError) else None
        self._keep(way, session, sealed)
        return None

    def _begin(self, way: Endpoint) -> tuple[ClientSession, SealedPipe]:
        """A new session, and its first pipe."""
        settings, context = self._settings, self._context
        sealed = context.connector.connect(way, self._new)
        deadline = Deadline(settings.handshake_timeout)
        ready = context.connector.greet(way, sealed, Hello(context.instance, context.parameters), deadline, self._new)
        if ready.answer is not Answer.NEW:
            sealed.close("the session did not begin")
            raise ProtocolError("the server answered NEW with something else")
        resume_for = float(ready.parameters.resume_for)
        parameters = lane_parameters(
            settings.flow,
            settings.keepalive,
            self._max_streams,
            ready.parameters,
            client=True,
            lanes=settings.lanes,
            resumable=resume_for > 0,
        )
        remotes = {n: forward for n, forward in enumerate(settings.forwards) if forward.kind == "remote"}
        log.info(
            "connected to %s over %s as %s; %s",
            way.url,
            sealed.pipe.transport,
            settings.name,
            describe_server(sealed, ready),
            extra={"event": "connected", "url": str(way.url)},
        )
        session = ClientSession(
            settings.name,
            parameters,
            ready.session,
            sealed.result.resume,
            resume_for,
            node=ready.node,
            remotes=remotes,
            connect_timeout=settings.connect_timeout,
        )
        self._lanes = min(settings.lanes, ready.parameters.lanes)
        return session, sealed

    def _keep(self, way: Endpoint, session: ClientSession, sealed: SealedPipe) -> None:
        """Have the session until it is over; blocks."""
        session.request_forwards()
        self.succeeded, self.refused = True, None
        self._session = session
        session.on_end(self._changed)
        try:
            for number in range(1, self._lanes):
                keep = partial(self._keep_lane, way, session, number)
                self._threads.start(f"{self._name} lane {number}", keep)
            keeper = Reconnector(self._context, session, 0, session.add_lane(0), way, self._backoff)
            keeper.run(way, sealed)
            if not keeper.said_why and not session.stopped and not self._all.cancelled:
                log.warning(
                    "the session with %s is over: %s; its streams were reset",
                    way.url,
                    session.why,
                    extra={"event": "expired", "url": str(way.url)},
                )
        except NoThread as error:
            log.error("%s", error)
            self._backoff.failed()
        except SessionEnded:
            log.debug("the session was over before it began")
        finally:
            sealed.close("the session is over")
            session.end("the client is stopping")
            self._session = None
            self._pipe_changed()
            self._former = [former for former in (*self._former, session) if len(former.threads)]

    def _keep_lane(self, way: Endpoint, session: ClientSession, number: int) -> None:
        """Have a further lane, and another one when that is over, while the session lasts."""
        backoff = Backoff(self._settings.reconnect)
        while number <= MAX_LANE and not session.ended.is_set() and not self._all.cancelled:
            try:
                lane = session.add_lane(number)
            except SessionEnded:
                return
            Reconnector(self._context, session, number, lane, way, backoff).run(way, None)
            # Numbers are not used again: the server may still know the lane that is over.
            number += self._settings.lanes
            backoff.failed()
            session.ended.wait(backoff.delay())

    @property
    def _refused_for_good(self) -> bool:
        """Whether that is the client's end, which says so itself."""
        return self.refused is not None and len(self._settings.servers) == 1

    def _was_refused(self, way: Endpoint, error: RefusedError) -> None:
        if error.final:
            self.refused = None if self.succeeded else error
            self._backoff.give_up_hope()
        else:
            self._backoff.failed()
        if not self._refused_for_good:
            log.error("refused by %s: %s", way.url, error, extra={"event": "refused", "url": str(way.url)})
