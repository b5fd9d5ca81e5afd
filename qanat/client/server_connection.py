"""A client's connection to one server: a session, and another one when that is over, for as long as it is wanted.

Threads: the *connector* makes the session's first pipe and then keeps its first lane on one
(`qanat.client.reconnector`); each further lane has a thread that does so.  Which servers are wanted is decided by
`qanat.client.client`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import (
    EndpointError,
    NoThread,
    ProtocolError,
    QanatError,
    RefusedError,
    SessionEnded,
    TransportError,
)
from qanat.base.events import Events
from qanat.base.text import printable
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.client.backoff import Backoff
from qanat.client.connect import Connector, describe_failure, describe_server, failure_label
from qanat.client.known_hosts import KnownHosts
from qanat.client.long_try import LongTry, ready_is_due
from qanat.client.network_watch import WAYS_OUT, NetworkWatch, Watched
from qanat.client.news import ConnectionNews
from qanat.client.reconnector import JOIN_TIMEOUT, LOGGED_DELAY, RECONFIGURED, ReconnectContext, Reconnector
from qanat.client.remote_forwards import NumberedForward
from qanat.client.required_forwards import RequiredForwards
from qanat.client.session import ClientSession
from qanat.client.ways import Candidate
from qanat.config.client_settings import ClientSettings, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Answer, Close, CloseReason, Hello, Ready, RecordKind
from qanat.handshake.key_pool import ClientKeyPool
from qanat.session.connect_rules import ConnectRules
from qanat.session.joined_streams import JoinedStreams
from qanat.session.limits import application_keepalive, hello_parameters, lane_parameters, share
from qanat.session.places import NOTHING, Tally
from qanat.session.session import new_id

log = logging.getLogger("qanat.client")

STOPPING = "the client is stopping"
REFUSAL_AGAIN = 60.0
"""Seconds during which the log does not say the same refusal again."""
MAX_LANE = 0xFFFF
"""The highest number of a lane that HELLO can carry."""


class ServerConnection:
    """Keeps a session with one server.  Methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        settings: ClientSettings,
        server: RemoteServer,
        *,
        keys: ClientKeyPool,
        known: KnownHosts,
        watch: NetworkWatch,
        watcher: Watcher,
        max_streams: int,
        changed: Callable[[], None],
        remotes: Sequence[NumberedForward] = (),
        limits: Mapping[Forward, TrafficLimits] | None = None,
        events: Events | None = None,
    ) -> None:
        """Read the server's URLs and TLS files; raises UsageError when one of them cannot be used.

        `changed` is called, without a lock, whenever something that can be asked here may have changed.  `remotes` has
        the remote forwards; `limits` are those of forwards that have any.  `events` counts what happens.
        """
        self.refused: RefusedError | None = None
        """Why the server refuses us, or is not the one that is known; None once a session has been up."""
        self.forward_failure: EndpointError | None = None
        """What became of the remote forwards, where the client must have them and the server does not listen."""
        self.over = False
        """Whether it has ended for good, after `stop_connecting`."""
        self.succeeded = False
        """Whether any session has been up."""
        self.disconnected_since: float | None = None
        """When it was last connected, or first wanted; None while it is connected or not wanted."""
        news = ConnectionNews()
        self._name = name
        self._settings = settings
        self._watcher = watcher
        self._all_streams = max_streams
        self._max_streams = share(max_streams, settings.lanes)
        self._changed = changed
        self._events = Events() if events is None else events
        self._limits = limits
        self._backoff = Backoff(settings.reconnect)
        self._cancel_new = Cancel()  # for what begins a session
        self._cancel_all = Cancel()  # for what keeps one, too
        self._context = ReconnectContext(
            settings,
            Connector(settings, server, keys, known),
            new_id(),
            hello_parameters(settings.flow, settings.keepalive, self._max_streams, lanes=settings.lanes),
            self._cancel_all,
            watch,
            watcher,
            self._pipe_changed,
            self._events,
            news,
        )
        self._remotes = tuple(remotes)
        self._ports: dict[int, int] = {}  # which ones the server has chosen for remote forwards on port 0, by number
        required = [one.first for one in self._remotes] if settings.exit_on_forward_failure else ()
        self._connect_rules = _rules_of(settings)
        self._told_refusal = ("", 0.0)  # what the log said last of one, and until when that is enough
        self._required = RequiredForwards(required, self._forwards_failed)
        self._turns = itertools.cycle(self._context.connector.candidates)
        self._connectors: list[Connector] = []  # former ones, which may still dial
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._hurry = threading.Event()  # it stops, or the way to the server has changed: no delay
        self._ways: list[Watched] = []  # what is watched while no session watches its own connections
        self._session: ClientSession | None = None
        self._beginning = threading.Lock()  # so that a session that begins has the settings that count then
        self._hurry_because = ""
        self._marking = threading.Lock()  # so that the last to look at the session is the last to say what it saw
        self._former: list[JoinedStreams] = []  # of sessions that are over: some threads still end
        self._threads = ThreadGroup(name)
        self.url = server.urls[0]
        """The first of its URLs, by which people know it."""
        self.news = news
        """What failed last, and when the next try comes."""
        self.sessions_begun = 0
        self._past = NOTHING  # of sessions that are over
        self._waiting = "not connected"  # what it does while there is no session

    @property
    def session(self) -> ClientSession | None:
        """The present session, on a pipe or not; None while there is none."""
        return self._session

    @property
    def status(self) -> str:
        """What it is doing, for people; "" while it is not wanted and has no session."""
        session = self._session
        if session is None:
            return self._waiting if self._wanted.is_set() else ""
        return f"connected to {self.url}" if session.attached else f"reconnecting to {self.url}"

    @property
    def state(self) -> tuple[str, float]:
        """What it is doing, in one of the words of `ConnectionSnapshot`, and since when, in seconds of Unix time."""
        session, since = self._session, self.disconnected_since
        now, wall = time.monotonic(), time.time()
        if session is not None:
            figures = [lane.figures() for lane in session.lanes.values()]
            begun = [each.changed_at for each in figures if each.attached]
            if begun:
                return "connected", wall - now + min(begun)
        at = wall if since is None else wall - now + since
        if session is not None:
            return "reconnecting", at
        if self.refused is not None:
            return "refused", at
        if not self._wanted.is_set():
            return "standby", at
        return ("connecting" if self.news.next_try_at is None else "waiting"), at

    def tally(self) -> Tally:
        """Return what all its sessions have carried so far."""
        total, session = self._past, self._session
        return total if session is None else total.plus(session.tally())

    @property
    def connector(self) -> Connector:
        """What makes the connections."""
        return self._context.connector

    def start(self) -> None:
        """Connect once it is wanted; does not block."""
        self._threads.start(self._name, self._connector_loop)

    def want(self, wanted: bool) -> None:
        """Set whether to begin a new session when there is none.  Idempotent; does not block."""
        if wanted and not self._wanted.is_set():
            self._wanted.set()
            self._mark_disconnected(anew=True)
        elif not wanted and self._wanted.is_set():
            self._wanted.clear()

    def change_remotes(self, remotes: Sequence[NumberedForward]) -> ClientSession | None:
        """Have these remote forwards from now on; return the session that has asked for them, if there is one.

        Those that are not new are left alone.  Does not block.
        """
        with self._beginning:
            self._remotes = tuple(remotes)
            session = self._session
        self._required.keep(one.first for one in remotes)
        if session is not None:
            session.remotes.change(remotes)
        return session

    def adopt(
        self,
        settings: ClientSettings,
        server: RemoteServer,
        connector: Connector | None,
        elsewhere: Callable[[], None] | None = None,
    ) -> list[str]:
        """Go on with other settings, and with another `connector` where these name other ways to the server.

        The session stays; a connection that the new settings do not allow is replaced by one that they do.  `elsewhere`
        is called, by a thread that must not wait, if that leads to another server.  Returns which streams that ended,
        in words.  Does not block.
        """
        ended: list[str] = []
        with self._beginning:
            context, session = self._context, self._session
            rules = self._connect_rules
            if settings.allow_connect != self._settings.allow_connect:
                rules = _rules_of(settings)
            self._settings, self.url = settings, server.urls[0]
            self._max_streams = share(self._all_streams, settings.lanes)
            self._connect_rules = rules
            self._backoff.delays = settings.reconnect
            context.settings, context.elsewhere = settings, elsewhere
            context.parameters = hello_parameters(
                settings.flow, settings.keepalive, self._max_streams, lanes=settings.lanes
            )
            if connector is None:
                context.connector.use(settings, server)
            else:
                connector.follow(context.connector)
                self._connectors = [one for one in (*self._connectors, context.connector) if one.join(0)]
                context.connector = connector
                self._turns = itertools.cycle(connector.candidates)
            if session is not None:
                ended = session.use(connect_rules=rules, connect_timeout=settings.connect_timeout)
                session.remotes.ask_again()
        for follower in tuple(context.followers):
            follower()
        if session is None:
            self._hurry_because = RECONFIGURED
            self._hurry.set()
        return ended

    def dismiss(self) -> None:
        """Begin no session any more; the present one ends once its last stream has.  Idempotent; does not block."""
        for event in (self._stopping, self._hurry, self._wanted):
            event.set()  # a session that is just beginning is left to begin, so that it can take leave of the server
        with self._beginning:
            session = self._session
        if session is not None:
            session.retire("the client's configuration has this server no more")

    def stop_connecting(self) -> None:
        """Begin no session any more; the present one is still kept.  Does not block."""
        self._stopping.set()
        self._hurry.set()
        self._wanted.set()
        self._cancel_new.cancel()

    def close(self) -> None:
        """End the present session, and all threads; blocks until they have ended, or JOIN_TIMEOUT has passed twice."""
        self.stop_connecting()
        self._cancel_all.cancel()
        session = self._session
        if session is not None:
            session.end(STOPPING)
        stuck = self._threads.join(2 * JOIN_TIMEOUT)
        for former in self._former:
            stuck += former.join(JOIN_TIMEOUT)
        for connector in (*self._connectors, self.connector):
            stuck += connector.join(JOIN_TIMEOUT)
        if stuck:
            log.warning("still running at the end: %s", ", ".join(stuck))

    def _forwards_failed(self, error: EndpointError) -> None:
        self.forward_failure = error
        self._changed()

    def _pipe_changed(self) -> None:
        self._mark_disconnected()
        self._changed()

    def _mark_disconnected(self, *, anew: bool = False) -> None:
        with self._marking:
            session = self._session
            if session is not None and session.attached:
                self.disconnected_since = None
            elif anew or self.disconnected_since is None:
                self.disconnected_since = time.monotonic()

    # --- the connector --------------------------------------------------------------------------

    def _connector_loop(self) -> None:
        try:
            while True:
                self._wanted.wait()
                if self._stopping.is_set():
                    return
                with self._beginning:
                    connector, candidate = self._context.connector, next(self._turns)
                self._waiting = f"connecting to {candidate.url}"
                self.news.trying()
                self._changed()
                self._hurry.clear()
                self._watch_ways()
                retry_after = self._run_once(connector, candidate)
                delay = self._backoff.delay(retry_after)
                self.news.tries_again(delay)
                if delay >= LOGGED_DELAY:
                    self._waiting = f"trying again in {delay:.1f} s to connect to {self.url}"
                self._changed()
                if self._stopping.is_set():
                    return
                if delay >= LOGGED_DELAY and not self._refused_for_good:
                    log.info("trying again in %.1f s", delay)
                self._watch_ways()
                if self._hurry.wait(delay) and not self._stopping.is_set():
                    why, self._hurry_because = self._hurry_because or "the network has changed", ""
                    log.info("%s: trying again at once", why)
                    self._backoff.succeeded()  # what failed on the old network says nothing about the new one
        finally:
            self._watch_no_ways()
            self.over = True
            self._changed()

    def _watch_ways(self) -> None:
        """Be told when the way to the server changes, from this moment on unless it is watched already."""
        if not self._ways:
            remotes = (*WAYS_OUT, *self._context.connector.literal_addresses)
            self._ways = [self._context.watch.add_way(remote, lambda _: self._hurry.set()) for remote in remotes]

    def _watch_no_ways(self) -> None:
        for way in self._ways:
            self._context.watch.remove(way)
        self._ways = []

    def _run_once(self, connector: Connector, candidate: Candidate) -> float | None:
        """Connect, and keep the session until its end; blocks.  Returns the seconds that the server asks us to wait.

        Never raises: whatever goes wrong is this connection's failure.
        """
        try:
            session, reached, sealed, lanes = self._begin_session(connector, candidate)
        except RefusedError as error:
            self._events.connect_failures.add(failure_label(error))
            self._log_refusal(candidate, error)
            return None
        except QanatError as error:
            if not self._stopping.is_set():
                self._backoff.failed()
                self._events.connect_failures.add(failure_label(error))
                text, extra = describe_failure(candidate, error), {"event": "failed", "url": str(candidate.url)}
                log.error("%s", text, extra=extra)
                self.news.failed(text)
            return error.retry_after if isinstance(error, TransportError) else None
        except Exception:
            self._backoff.failed()
            log_unexpected(f"connecting to {candidate.url} failed")
            return None
        try:
            self._keep_session(connector, candidate, session, reached, sealed, lanes)
        except NoThread as error:
            self._backoff.failed()
            log.error("%s", error)
        except SessionEnded:
            log.debug("the session was over before it began")
        except Exception:
            self._backoff.failed()
            log_unexpected(f"the session with {candidate.url} ended")
        finally:
            sealed.close("the session is over")
            session.end(STOPPING)
            if session.why and not session.stopped:
                self.news.failed(f"the session is over: {session.why}")
            self._past = self._past.plus(session.tally())
            self._session = None
            self._pipe_changed()
            self._former = [former for former in (*self._former, session.joined) if former.busy]
        return None

    def _begin_session(self, connector: Connector, turn: Candidate) -> tuple[ClientSession, Candidate, SealedPipe, int]:
        """Return a new session, its first pipe and the way that goes, and how many lanes the server grants.  Blocks."""
        settings, context = self._settings, self._context
        with LongTry(self._watcher, turn.url) as trying:
            candidate, sealed = connector.reach(turn, self._cancel_new, trying=trying)
            trying.waits_for = ready_is_due
            try:
                hello, deadline = Hello(context.instance, context.parameters), Deadline(settings.handshake_timeout)
                ready = connector.exchange_hello(candidate, sealed, hello, deadline, self._cancel_new)
                session = self._make_session(sealed, ready)
            except BaseException:
                sealed.close("the session did not begin")
                raise
        log.info(
            "connected to %s over %s as %s; %s",
            candidate.url,
            sealed.pipe.transport,
            settings.name,
            describe_server(sealed, ready),
            extra={"event": "connected", "url": str(candidate.url)},
        )
        session.agent = f"{printable(ready.node)}, {printable(ready.parameters.agent)}"
        self.sessions_begun += 1
        return session, candidate, sealed, min(settings.lanes, ready.parameters.lanes)

    def _make_session(self, sealed: SealedPipe, ready: Ready) -> ClientSession:
        settings = self._settings
        if ready.answer is not Answer.NEW:
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
            observer=self._events,
        )
        self._required.begin()
        return ClientSession(
            settings.name,
            parameters,
            ready.session,
            sealed.result.resume,
            resume_for,
            node=ready.node,
            remotes=self._remotes,
            required=self._required,
            connect_timeout=settings.connect_timeout,
            watcher=self._watcher,
            keepalive=application_keepalive(settings.application_keepalive),
            limits=self._limits,
            connect_rules=self._connect_rules,
            ports=self._ports,
        )

    def _keep_session(
        self,
        connector: Connector,
        candidate: Candidate,
        session: ClientSession,
        reached: Candidate,
        sealed: SealedPipe,
        lanes: int,
    ) -> None:
        """Keep the session, which began on a pipe over `reached`, until it is over; blocks."""
        self._watch_no_ways()
        with self._beginning:
            leaves = self._stopping.is_set()
            if not leaves:
                self._begin_service(session)
        if leaves:  # nobody who stops can have seen this session, to take leave of the server
            close = Close(CloseReason.SHUTDOWN, STOPPING)
            with contextlib.suppress(QanatError):  # it is closed already
                sealed.send_last(bytes((RecordKind.CLOSE,)) + close.encode(), STOPPING)
            return
        if self._cancel_all.canceled:
            return  # `close` has looked for a session before there was one
        session.on_end(self._changed)
        for number in range(1, lanes):
            run = partial(self._lane_loop, candidate, session, number)
            self._threads.start(f"{self._name} lane {number}", run)
        reconnector = Reconnector(self._context, session, 0, session.add_lane(0), candidate, self._backoff, connector)
        reconnector.run(reached, sealed)
        if not reconnector.logged_the_end and not session.stopped and not self._cancel_all.canceled:
            log.warning(
                "the session with %s is over: %s; its streams were reset",
                candidate.url,
                session.why,
                extra={"event": "expired", "url": str(candidate.url)},
            )

    def _begin_service(self, session: ClientSession) -> None:
        """Have the session serve, by the settings that count now; they may have changed since it was made."""
        session.remotes.change(self._remotes)
        session.use(connect_rules=self._connect_rules, connect_timeout=self._settings.connect_timeout)
        session.request_forwards()
        self.succeeded, self.refused, self._told_refusal = True, None, ("", 0.0)
        self._session = session

    def _lane_loop(self, candidate: Candidate, session: ClientSession, number: int) -> None:
        """Keep a further lane, and another one when that is over, while the session lasts."""
        backoff = Backoff(self._settings.reconnect)
        while number <= MAX_LANE and not session.ended.is_set() and not self._cancel_all.canceled:
            try:
                lane = session.add_lane(number)
            except SessionEnded:
                return
            try:
                Reconnector(self._context, session, number, lane, candidate, backoff).run(candidate, None)
            except Exception:
                log_unexpected(f"lane {number} of the session with {candidate.url} ended")
            # Numbers are not used again: the server may still know the lane that is over.
            number += self._settings.lanes
            backoff.failed()
            session.ended.wait(backoff.delay())

    @property
    def _refused_for_good(self) -> bool:
        """Whether the refusal is the client's end, which logs it itself."""
        return self.refused is not None and len(self._settings.servers) == 1

    def _log_refusal(self, candidate: Candidate, error: RefusedError) -> None:
        if error.final:
            self.refused = None if self.succeeded else copy(error)  # without all that its traceback holds
            self._backoff.refused()
        else:
            self._backoff.failed()
        self.news.failed(f"refused by {candidate.url}: {error}")
        if self._refused_for_good:
            return
        now, (told, until) = time.monotonic(), self._told_refusal
        again = str(error) == told and now < until
        if not again:
            self._told_refusal = str(error), now + REFUSAL_AGAIN
        log.log(
            logging.DEBUG if again else logging.ERROR,
            "refused by %s: %s",
            candidate.url,
            error,
            extra={"event": "refused", "url": str(candidate.url)},
        )


def _rules_of(settings: ClientSettings) -> ConnectRules:
    """Return the rules for what users of a dynamic remote forward may reach from here."""
    return ConnectRules(settings.allow_connect, key="allow_connect", place=" in the client's configuration")
