"""Keeps one lane of a client's session on a pipe: when one is lost, is old, or will not last, it makes the next.

What lives here: when to make a pipe, and the order of steps that loses nothing.  Where the old pipe still works, the
new one is up before the old one is left (docs/PROTOCOL.md §3, Resuming).  How to connect is `qanat.client.connect`;
the session's first pipe is made by `qanat.client.server_connection`.

Threads: the caller of `run` dials; each pipe has a thread of its own, which is its reader.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, QanatError, RefusedError, TokenRefused, TransportError
from qanat.base.events import Events
from qanat.base.text import printable
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import FAILED, log_unexpected
from qanat.base.watcher import Watcher
from qanat.client.backoff import Backoff
from qanat.client.connect import Connector, SessionOver, describe_failure, failure_label
from qanat.client.long_try import LongTry, ready_is_due
from qanat.client.network_watch import ASLEEP, BACK, NetworkWatch, Watched
from qanat.client.news import ConnectionNews
from qanat.client.session import ClientSession
from qanat.client.ways import Candidate
from qanat.config.client_settings import ClientSettings
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Answer, CloseReason, Hello, Intent, Parameters, Ready
from qanat.mux.lane import Lane, Superseded
from qanat.mux.parameters import FIRST_PIPE, ResumePoint
from qanat.mux.pipe_result import PipeResult
from qanat.session.places import PipePlace
from qanat.transports.dial.tcp import learn_stall
from qanat.transports.pipe import is_stall

log = logging.getLogger("qanat.client")

SHORT_LIVED = 5.0
"""A pipe that ends within so many seconds, with no frame having got through, is short-lived (see Backoff)."""
HELLO_TIMEOUT = 2.5
"""Seconds for HELLO and READY while an old pipe that still works is paused: less than the default of
`takeover_timeout`, since a server that asks over the old pipe whether this client lives gets no answer meanwhile."""
PING_TIMEOUT = 2.0
"""Seconds that the server of an old pipe gets to answer a PING when another server does not know the session."""
YIELD_TIMEOUT = 5.0
"""Seconds that an old pipe's threads get to leave the lane."""
JOIN_TIMEOUT = 5.0
"""Seconds that the threads of pipes get to end."""
AGE_JITTER = 0.2
"""The part of `max_pipe_age` by which a pipe is replaced sooner, at random: not all clients at once."""
NETWORK_SETTLES = 60.0
"""Seconds during which a pipe is not replaced for the change of the network for which it was made."""
LOGGED_DELAY = 0.5
"""Seconds of delay from which on the log says when the next try comes."""
BETTER = "a way that comes first was due"
RECONFIGURED = "the configuration has changed"
TOKEN_REFUSED = "the server does not accept this client's token any more"
SESSION_UNKNOWN = "the server no longer knows it: it was restarted, or we were away for too long"


@dataclass(slots=True)
class ReconnectContext:
    """What all lanes of a client's session have in common.  `qanat.client.server_connection` changes it."""

    settings: ClientSettings
    connector: Connector
    instance: bytes
    parameters: Parameters  # ours, for HELLO
    cancel: Cancel  # canceled when the client ends
    watch: NetworkWatch
    watcher: Watcher
    changed: Callable[[], None]  # called when a lane is on a pipe, or on none any more; must not block
    events: Events
    news: ConnectionNews = field(default_factory=ConnectionNews)
    elsewhere: Callable[[], None] | None = None
    """Called when the server that is reached by other settings turns out not to be the session's; must not block."""
    followers: list[Callable[[], None]] = field(default_factory=list)
    """Called when other settings count."""


@dataclass(eq=False)
class _RunningPipe:
    """One pipe and what is remembered about it."""

    candidate: Candidate
    sealed: SealedPipe
    since: float
    progress: int  # the lane's, when the pipe took it over
    old_at: float | None
    connector: Connector  # that made it
    being_replaced: bool = False  # a newer one is about to take over


class Reconnector:
    """Keeps one lane on a pipe.  `run` is called once; everything else is private to it and to the pipes' threads."""

    def __init__(
        self,
        context: ReconnectContext,
        session: ClientSession,
        number: int,
        lane: Lane,
        candidate: Candidate,
        backoff: Backoff,
        connector: Connector | None = None,
    ) -> None:
        """`candidate` is tried first, and `connector`, by default the context's, has made the session's first pipe."""
        self.logged_the_end = False
        """Whether the log says why the session is over; if not, it was not a pipe that ended it."""
        self._context = context
        self._session = session
        self._number = number
        self._lane = lane
        self._backoff = backoff
        self._connector = connector or context.connector
        candidates = self._connector.candidates
        first = candidates.index(candidate) if candidate in candidates else 0
        self._candidates = candidates[first:] + candidates[:first]
        self._next_candidate = 0
        self._epoch = 0
        self._made_progress = False  # whether any pipe did
        self._server_has_lane = False  # for certain
        self._pipes = ThreadGroup(f"pipes of {lane.name}")
        self._dial = Cancel()  # canceled when no pipe is needed any more
        self._ways = self._connector.ways
        self._looking = (
            Cancel()
        )  # canceled when the pipe is lost, and there is more to do than to look for a better way
        self._watched: Watched | None = None
        self._changed = threading.Condition()  # guards the rest
        self._running: _RunningPipe | None = None
        self._lost_at = time.monotonic()
        self._retry_at = 0.0
        self._replace_because: str | None = None  # why a pipe that works is replaced
        self._left_early = 0  # how many pipes in a row announced their end as soon as they were there
        self._last_network_change = ""
        self._canceled = False

    def run(self, candidate: Candidate, sealed: SealedPipe | None) -> None:
        """Keep the lane on a pipe until it is over, or the client ends; blocks.

        `sealed` is the pipe on which the session began, over `candidate`, when this is its first lane.  Raises
        NoThread; the lane is over when this raises anything.
        """
        self._session.on_end(self._on_session_end)
        self._context.followers.append(self._settings_changed)
        if self._ways is not None:
            self._ways.follow(self._way_found)
        try:
            with self._context.cancel.waking(self._cancel):
                if sealed is not None:
                    self._server_has_lane = True
                    self._start_pipe(candidate, sealed, FIRST_PIPE)
                while (why := self._wait_for_cause()) is not None:
                    self._replace_pipe(why)
        except BaseException:
            self._session.end_lane(self._number, self._lane, FAILED)
            raise
        finally:
            self._session.off_end(self._on_session_end)
            self._context.followers.remove(self._settings_changed)
            if self._ways is not None:
                self._ways.unfollow(self._way_found)
            if self._watched is not None:
                self._context.watch.remove(self._watched)
                self._watched = None
            stuck = self._pipes.join(JOIN_TIMEOUT)
            if stuck:
                log.warning("still ending: %s", ", ".join(stuck))

    # --- when -----------------------------------------------------------------------------------

    def _wait_for_cause(self) -> str | None:
        """Block until a pipe has to be made, and return why; None when the lane is over or has expired."""
        with self._changed:
            while not self._is_over_locked():
                self._follow_settings_locked()
                now, running = time.monotonic(), self._running
                cause, until = "it is old", None if running is None else running.old_at
                if until is not None:
                    until = max(until, self._retry_at)  # which is later when a try to replace it has failed
                if running is None:
                    expires = self._lost_at + self._session.resume_for if self._server_has_lane else math.inf
                    if now >= expires:
                        break
                    cause, until = "lost", min(self._retry_at, expires)
                elif not self._session.resume_for:
                    until = None  # the session ends with this pipe, and would with its replacement
                elif self._replace_because is not None:
                    cause, until = self._replace_because, self._retry_at
                elif not self._connector.allows(running.candidate, running.connector):
                    cause, until = RECONFIGURED, self._retry_at
                better_at = self._better_at_locked()
                if better_at is not None and (until is None or better_at < until):
                    cause, until = BETTER, better_at
                if until is not None and now >= until:
                    return cause
                self._changed.wait(None if until is None else until - now)
            else:
                return None
        self._session.lane_expired(self._number, self._lane)
        return None

    def _settings_changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _follow_settings_locked(self) -> None:
        """Go the ways of the present settings from now on, by this very thread."""
        connector = self._context.connector
        self._backoff.delays = self._context.settings.reconnect
        if connector is self._connector:
            return
        if self._ways is not None:
            self._ways.unfollow(self._way_found)
        self._connector, self._ways = connector, connector.ways
        if self._ways is not None:
            self._ways.follow(self._way_found)
        self._candidates, self._next_candidate = connector.candidates, 0
        self._retry_at = 0.0
        self._backoff.succeeded()  # what failed by other settings says nothing about these

    def _better_at_locked(self) -> float | None:
        """Return when to look for a better way than the present one; None when there is none, or it cannot be taken."""
        if self._ways is None or self._running is None or not self._session.resume_for:
            return None
        return self._ways.better_at(self._running.candidate)

    def _way_found(self, candidate: Candidate) -> None:
        """Follow another lane that has found a better way.  Does not block."""
        with self._changed:
            running = self._running
        if running is not None and self._ways is not None and self._ways.is_better(candidate, running.candidate):
            within = self._context.settings.reconnect.min
            self._replace_soon(running, f"{candidate.transport} comes first, and works", within)

    def _is_over_locked(self) -> bool:
        session = self._session
        return self._canceled or session.ended.is_set() or session.find_lane(self._number) is not self._lane

    def _on_session_end(self) -> None:
        self._dial.cancel()
        self._looking.cancel()
        with self._changed:
            self._changed.notify_all()

    def _is_over(self) -> bool:
        with self._changed:
            return self._is_over_locked()

    def _cancel(self) -> None:
        with self._changed:
            self._canceled = True
        self._on_session_end()

    def _replace_soon(self, running: _RunningPipe, why: str, within: float) -> None:
        """Replace `running`, which will not last, within so many seconds; later if the last ones ended as early."""
        with self._changed:
            if self._running is running and self._replace_because is None:
                now = time.monotonic()
                self._left_early = self._left_early + 1 if now - running.since < SHORT_LIVED else 0
                longest = self._context.settings.reconnect.max
                within = max(within, min(longest, within * 2 ** min(self._left_early - 1, 32)))
                self._replace_because = why
                self._retry_at = now + random.uniform(0, within)
                self._changed.notify_all()

    def _network_changed(self, running: _RunningPipe, why: str) -> None:
        with self._changed:
            # Where routing tells TCP from UDP, by which it is asked for, each new pipe looks changed from the start.
            again = why == self._last_network_change and why not in (ASLEEP, BACK)
            if again and time.monotonic() - running.since < NETWORK_SETTLES:
                return
            self._last_network_change = why
            if self._running is None:
                self._retry_at = 0.0
                self._backoff.succeeded()  # what failed on the old network says nothing about the new one
            elif self._running is running:
                self._replace_because = why
                self._retry_at = 0.0
            self._changed.notify_all()

    # --- how ------------------------------------------------------------------------------------

    def _replace_pipe(self, why: str) -> None:
        """Try once to make a pipe and move the lane to it.  Whatever goes wrong is this try's failure."""
        if why == BETTER:
            self._try_better()
            return
        candidate = self._candidates[self._next_candidate]
        self._context.news.trying()
        with LongTry(self._context.watcher, candidate.url) as trying:
            try:
                reached, sealed = self._connector.reach(candidate, self._dial, self._session.node, trying)
            except Exception as error:
                self._failed(candidate, error)
                return
            trying.waits_for = ready_is_due
            self._take_pipe(candidate, reached, sealed, why)

    def _try_better(self) -> None:
        """Try once whether a way that comes before the present one works now, and move the lane there if it does.

        Nothing is at stake: the present pipe goes on meanwhile, and when this fails.
        """
        assert self._ways is not None
        with self._changed:
            running, self._looking = self._running, Cancel()
            looking = self._looking
        better = None if running is None else self._ways.next_better(running.candidate)
        if better is None:
            return
        try:
            sealed = self._connector.prove(better, looking, self._session.node)
            self._take_pipe(better, better, sealed, f"{better.transport} comes first, and works")
        except QanatError as error:
            log.debug("%s is no better way yet: %s", better, error)
        except Exception:
            log_unexpected(f"trying {better}, which would be better, failed")
        finally:
            self._ways.looked()

    def _take_pipe(self, candidate: Candidate, reached: Candidate, sealed: SealedPipe, why: str) -> None:
        """Move the lane to a pipe over `reached`.  What goes wrong is the failure of `candidate`, whose turn it is."""
        try:
            self._move_lane(reached, sealed, why)
        except SessionOver as error:
            self._session.end(error.message)
        except _LaneOver:
            if self._old_pipe_answers():
                if why == RECONFIGURED and self._context.elsewhere is not None:
                    self._leave(sealed)
                    self._context.elsewhere()
                    return
                text = "whoever answers now does not know the session, which still works"
                self._failed(candidate, TransportError(text))
                return
            if self._made_progress:
                self._backoff.succeeded()  # it answers, so what failed while it was away says nothing any more
            self._session.end_lane(self._number, self._lane, SESSION_UNKNOWN)
        except Exception as error:
            sealed.close("it could not take the lane over")
            self._failed(candidate, error)

    def _move_lane(self, candidate: Candidate, sealed: SealedPipe, why: str) -> None:
        """Ask the server for the lane on this pipe, and run it there.  Raises QanatError and _LaneOver."""
        with self._changed:
            old = self._running
            if old is not None:
                old.being_replaced = True
        expected = self._lane.pause_writer()
        self._epoch += 1
        timeout = self._context.settings.handshake_timeout if old is None else HELLO_TIMEOUT
        ready = self._exchange_hello(candidate, sealed, expected, timeout)
        self._take_over(sealed, ready)
        self._start_pipe(
            candidate,
            sealed,
            ResumePoint(self._epoch, peer_expects=ready.expected, receive_from=expected),
            on_attached=partial(self._log_attached, candidate, why, self._epoch),
        )

    def _exchange_hello(self, candidate: Candidate, sealed: SealedPipe, expected: int, timeout: float) -> Ready:
        context, session = self._context, self._session
        intent = Intent.RESUME if self._server_has_lane else Intent.JOIN
        hello = Hello(
            context.instance, context.parameters, intent, session.id, self._number, self._epoch, expected
        ).proven(session.secret, sealed.result.transcript)
        ready = self._connector.exchange_hello(candidate, sealed, hello, Deadline(timeout), self._dial)
        if ready.answer is Answer.EXPIRED:
            sealed.close("the session is over")
            raise _LaneOver
        genuine = ready.proof_holds(session.secret, sealed.result.transcript)
        if ready.answer is not Answer.RESUMED or ready.session != session.id or not genuine:
            raise ProtocolError("the server answers for another session than the one that was to be resumed")
        self._server_has_lane = True
        return ready

    def _leave(self, sealed: SealedPipe) -> None:
        """Go on with the pipe that there is: the new one leads to another server."""
        sealed.close("it leads to another server")
        with self._changed:
            if self._running is not None:
                self._running.being_replaced = False
            self._retry_at = time.monotonic() + self._context.settings.reconnect.min

    def _old_pipe_answers(self) -> bool:
        """Whether the old pipe's server answers, whatever another one behind the same URL says; blocks."""
        self._lane.resume_writer()
        with self._changed:
            running = self._running
        return running is not None and self._lane.ping(PING_TIMEOUT)

    def _take_over(self, sealed: SealedPipe, ready: Ready) -> None:
        """Move the lane to this pipe.  Raises SessionOver when the server cannot go on where we can."""
        try:
            self._lane.acquire(self._epoch, ready.expected, Deadline(YIELD_TIMEOUT))
        except (ProtocolError, Superseded) as error:  # Epochs are ours, so it is not that.
            sealed.close("the server goes on where we cannot")
            raise SessionOver(f"the server goes on where we cannot: {error.message}") from None

    def _start_pipe(
        self,
        candidate: Candidate,
        sealed: SealedPipe,
        resume: ResumePoint,
        on_attached: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the lane on this pipe, in a thread of its own.  Raises NoThread."""
        now, age = time.monotonic(), self._context.settings.max_pipe_age
        old_at = None if age is None else now + age * random.uniform(1 - AGE_JITTER, 1)
        running = _RunningPipe(candidate, sealed, now, self._lane.progress, old_at, self._connector)
        self._session.proven.add((sealed.result.server_spki, sealed.result.token))
        with self._changed:
            self._running = running
            self._replace_because = None

        url = candidate.url
        place = PipePlace(sealed.pipe.transport, str(url), self._context.connector.proxy_of(url))
        self._context.news.trying()

        def attached() -> None:
            on_attached()
            self._context.changed()

        def carry() -> None:
            result = PipeResult("its thread failed")
            try:
                result = self._session.carry(
                    self._number,
                    self._lane,
                    sealed,
                    resume,
                    silence=self._context.settings.keepalive.timeout,
                    on_attached=attached,
                    place=place,
                )
            finally:
                self._pipe_ended(running, result)

        try:
            self._pipes.start(f"{self._lane.name}-reader", carry)
        except BaseException:
            with self._changed:
                self._running, self._lost_at = None, time.monotonic()
            raise
        self._watch_pipe(running)

    def _watch_pipe(self, running: _RunningPipe) -> None:
        """Subscribe to what announces the pipe's end in good time."""
        pipe, watch, spread = running.sealed.pipe, self._context.watch, self._context.settings.reconnect.min
        pipe.set_on_leaving(lambda: self._replace_soon(running, "the other end of it is leaving", spread))
        if self._watched is not None:
            watch.remove(self._watched)
            self._watched = None
        addresses = pipe.addresses
        if addresses is not None:
            self._watched = watch.add(addresses, lambda why: self._network_changed(running, why))

    # --- what came of it ------------------------------------------------------------------------

    def _failed(self, candidate: Candidate, error: Exception) -> None:
        """Count a try that came to nothing, and log it.  Called while `error` is being handled."""
        self._lane.resume_writer()
        self._context.events.connect_failures.add(failure_label(error))
        retry_after = error.retry_after if isinstance(error, TransportError) else None
        if isinstance(error, RefusedError) and error.final:
            self._backoff.refused()
        else:
            self._backoff.failed()
        delay = self._backoff.delay(retry_after)
        with self._changed:
            if self._running is not None:
                self._running.being_replaced = False
            over = self._is_over_locked()
            self._retry_at = time.monotonic() + delay
        self._context.news.tries_again(delay)
        self._next_candidate = (self._next_candidate + 1) % len(self._candidates)
        if not isinstance(error, QanatError):
            log_unexpected(f"connecting to {candidate.url} failed")
        elif not over:
            text, extra = describe_failure(candidate, error), {"event": "failed", "url": str(candidate.url)}
            log.error("%s", text, extra=extra)
            self._context.news.failed(text)
        if self._is_thrown_out(error):
            self._session.end(TOKEN_REFUSED)
        elif not over and delay >= LOGGED_DELAY:
            log.info("trying again in %.1f s", delay)

    def _is_thrown_out(self, error: Exception) -> bool:
        """Return whether the very server that has the session refuses the token by which it was authenticated.

        The server ended it with that token, so applications would wait for `resume_for` in vain.  A refusal of another
        token, as in a rotation that begins at the wrong end, says nothing of it, and while any lane is connected the
        server has it.
        """
        session = self._session
        return (
            isinstance(error, TokenRefused) and not session.attached and (error.server, error.token) in session.proven
        )

    def _log_attached(self, candidate: Candidate, why: str, epoch: int) -> None:
        now, lane = time.monotonic(), self._lane
        if why != "lost":
            text = f"{lane.name} moved to a fresh connection to {candidate}, since {why}"
        elif epoch == 1 and self._number:
            text = f"{lane.name} joined by {candidate}"
        else:
            text = f"{lane.name} resumed by {candidate} after {now - self._lost_at:.2f} s; nothing was lost"
        log.info("%s", text, extra={"event": "resumed", "url": str(candidate.url), "lane": self._number})

    def _pipe_ended(self, running: _RunningPipe, result: PipeResult) -> None:
        """Draw the conclusions from a pipe's end.  Called by its thread, last."""
        now = time.monotonic()
        lived = now - running.since
        faulty = result.fault or (result.close is not None and result.close.reason is CloseReason.PROTOCOL)
        if faulty:
            self._backoff.failed()
        elif self._lane.progress > running.progress or lived >= SHORT_LIVED:
            self._made_progress = True
            self._backoff.succeeded()
        elif not running.being_replaced:
            self._backoff.ended_early()
            self._next_candidate = (self._next_candidate + 1) % len(self._candidates)
        pipe = running.sealed.pipe
        stalled = is_stall(pipe.cause)
        if pipe.addresses is not None and stalled:
            learn_stall(pipe.addresses[1])
        over = self._session.ended.is_set()
        cut = result.close is None and not running.being_replaced and not over and not self._context.cancel.canceled
        if self._ways is not None and cut:
            self._ways.lost(running.candidate, lived - (self._context.settings.keepalive.timeout if stalled else 0.0))
        with self._changed:
            current = self._running is running
            looking = self._looking
            if current:
                self._running = None
                self._lost_at = now
                if not running.being_replaced:
                    delay = self._backoff.delay()
                    self._retry_at = now + delay
                    self._context.news.tries_again(delay)
                self._changed.notify_all()
        if current:
            looking.cancel()
        self._context.changed()
        quiet = self._context.cancel.canceled or self._session.stopped or (not current and not over)
        if not quiet and not running.being_replaced:
            self._log_end(running, result, lived, over)

    def _log_end(self, running: _RunningPipe, result: PipeResult, lived: float, over: bool) -> None:
        url, cause, waiting = running.candidate.url, printable(result.cause), self._lane.open_streams
        extra = {"event": "disconnected", "url": str(url), "lane": self._number}
        if over:
            self.logged_the_end = True
            log.warning(
                "the connection to %s ended after %.0f s: %s; its streams were reset", url, lived, cause, extra=extra
            )
        else:
            log.warning(
                "the connection to %s was lost after %.0f s: %s; %d streams wait for the next one",
                url,
                lived,
                cause,
                waiting,
                extra=extra,
            )


class _LaneOver(Exception):
    """The server knows neither session nor lane."""
