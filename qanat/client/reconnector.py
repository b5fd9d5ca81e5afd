"""Keeps one lane of a client's session on a pipe: when one is lost, is old, or will not last, it makes the next.

What lives here: when to make a pipe, and the order of steps that loses nothing.  Where the old pipe still works, the
new one is up before that is left (docs/PROTOCOL.md §3, Resuming).  How to dial is `qanat.client.connect`; the session's
first pipe is `qanat.client.server_connection`'s.

Threads: whoever calls `run` dials; each pipe has a thread of its own, which is its reader.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, ProtocolError, QanatError, RefusedError, TransportError
from qanat.base.threads import ThreadGroup
from qanat.client.backoff import Backoff
from qanat.client.connect import Connector, Endpoint, SessionOver, describe_failure
from qanat.client.network_watch import ASLEEP, BACK, NetworkWatch, Watched
from qanat.client.session import ClientSession
from qanat.config.settings import ClientSettings
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Answer, CloseReason, Hello, Intent, Parameters, Ready
from qanat.mux.carrying import PipeResult, Superseded
from qanat.mux.lane import Lane
from qanat.session.messages import printable

log = logging.getLogger("qanat.client")

SHORT_LIVED = 5.0
"""A pipe that ends within so many seconds, with no frame having got through, is short-lived (see Backoff)."""
GREETING = 2.5
"""Seconds for HELLO and READY while an old pipe that still works stands still: less than `takeover_timeout` is by
default, since nobody who asks for this client's name over the old pipe gets an answer meanwhile."""
ANSWERING = 2.0
"""Seconds that an old pipe's server gets to answer a PING when it is said to be gone."""
YIELDING = 5.0
"""Seconds that an old pipe's threads get to leave the lane."""
ENDING = 5.0
"""Seconds that the threads of pipes get to end."""
AGE_JITTER = 0.2
"""The part of `max_pipe_age` by which a pipe is replaced sooner, at random: not all clients at once."""
NETWORK_SETTLES = 60.0
"""Seconds during which a pipe is not replaced for the change of the network for which it was made."""
SESSION_UNKNOWN = "the server no longer knows it: it was restarted, or we were away for too long"


@dataclass(frozen=True, slots=True)
class ReconnectContext:
    """What all lanes of a client's session have in common."""

    settings: ClientSettings
    connector: Connector
    instance: bytes
    parameters: Parameters  # ours, for HELLO
    cancel: Cancel  # cancelled when the client ends
    watch: NetworkWatch
    changed: Callable[[], None]  # called when a lane is on a pipe, or on none any more; must not block


@dataclass(eq=False)
class _Running:
    """One pipe and what is to be remembered about it."""

    way: Endpoint
    sealed: SealedPipe
    since: float
    progress: int  # the lane's, when the pipe took it over
    old_at: float | None
    replaced: bool = False  # a newer one was about to take over when it ended


class Reconnector:
    """See the module's docstring.  `run` is called once; the rest from any thread."""

    def __init__(
        self,
        context: ReconnectContext,
        session: ClientSession,
        number: int,
        lane: Lane,
        way: Endpoint,
        backoff: Backoff,
    ) -> None:
        """`way` is the one to try first: another lane's, or this one's first pipe's."""
        self.said_why = False
        """Whether the log has it why the session is over; else it was no pipe's end."""
        self._context = context
        self._session = session
        self._number = number
        self._lane = lane
        self._backoff = backoff
        ways = context.connector.ways
        first = ways.index(way)
        self._ways = ways[first:] + ways[:first]
        self._at = 0
        self._epoch = 0
        self._fruitful = False  # whether any pipe has been of use
        self._known = False  # whether the server has this lane for certain
        self._pipes = ThreadGroup(f"pipes of {lane.name}")
        self._dial = Cancel()  # cancelled when there is nothing to dial for any more
        self._watched: Watched | None = None
        self._changed = threading.Condition()  # guards the rest
        self._running: _Running | None = None
        self._lost_at = time.monotonic()
        self._retry_at = 0.0
        self._wish: str | None = None  # why a pipe that works is to be replaced
        self._leaving = 0  # how many pipes in a row were about to leave as soon as they were there
        self._network_told = ""
        self._cancelled = False

    def run(self, way: Endpoint, sealed: SealedPipe | None) -> None:
        """Keep the lane on a pipe until it is over, or the client ends; blocks.

        `sealed` is the pipe on which the session began, when this is its first lane.
        """
        self._session.on_end(self._notify_of_the_end)
        try:
            with self._context.cancel.waking(self._cancel):
                if sealed is not None:
                    self._known = True
                    self._start(way, sealed)
                while (why := self._wait_for_cause()) is not None:
                    self._replace(why)
        finally:
            self._session.off_end(self._notify_of_the_end)
            if self._watched is not None:
                self._context.watch.remove(self._watched)
            stuck = self._pipes.join(ENDING)
            if stuck:
                log.warning("still ending: %s", ", ".join(stuck))

    # --- when -----------------------------------------------------------------------------------

    def _wait_for_cause(self) -> str | None:
        """Block until a pipe is to be made; why, or None when there is nothing to do any more."""
        with self._changed:
            while not self._is_over_locked():
                now, running = time.monotonic(), self._running
                cause, until = "it is old", None if running is None else running.old_at
                if until is not None:
                    until = max(until, self._retry_at)  # which is later when a try to replace it has failed
                if running is None:
                    expires = self._lost_at + self._session.resume_for if self._known else math.inf
                    if now >= expires:
                        break
                    cause, until = "lost", min(self._retry_at, expires)
                elif not self._session.resume_for:
                    until = None  # the session ends with this pipe, and would with its replacement
                elif self._wish is not None:
                    cause, until = self._wish, self._retry_at
                if until is not None and now >= until:
                    return cause
                self._changed.wait(None if until is None else until - now)
            else:
                return None
        self._session.lane_expired(self._number, self._lane)
        return None

    def _is_over_locked(self) -> bool:
        session = self._session
        return self._cancelled or session.ended.is_set() or session.find_lane(self._number) is not self._lane

    def _notify_of_the_end(self) -> None:
        self._dial.cancel()
        with self._changed:
            self._changed.notify_all()

    def _cancel(self) -> None:
        with self._changed:
            self._cancelled = True
        self._notify_of_the_end()

    def _wish_for_another(self, running: _Running, why: str, within: float) -> None:
        """`running` will not last: replace it within so many seconds, later if the last ones said so at once, too."""
        with self._changed:
            if self._running is running and self._wish is None:
                now = time.monotonic()
                self._leaving = self._leaving + 1 if now - running.since < SHORT_LIVED else 0
                longest = self._context.settings.reconnect.max
                within = max(within, min(longest, within * 2 ** min(self._leaving - 1, 32)))
                self._wish = why
                self._retry_at = now + random.uniform(0, within)
                self._changed.notify_all()

    def _network_changed(self, running: _Running, why: str) -> None:
        with self._changed:
            # Where routing tells TCP from UDP, by which it is asked for, each new pipe looks changed from the start.
            again = why == self._network_told and why not in (ASLEEP, BACK)
            if again and time.monotonic() - running.since < NETWORK_SETTLES:
                return
            self._network_told = why
            if self._running is None:
                self._retry_at = 0.0
                self._backoff.succeeded()  # what failed on the old network says nothing about the new one
            elif self._running is running:
                self._wish = why
                self._retry_at = 0.0
            self._changed.notify_all()

    # --- how ------------------------------------------------------------------------------------

    def _replace(self, why: str) -> None:
        """One try to make a pipe and move the lane to it."""
        context, lane, session = self._context, self._lane, self._session
        way = self._ways[self._at]
        sealed: SealedPipe | None = None
        try:
            sealed = context.connector.connect(way, self._dial, session.node)
            with self._changed:
                old = self._running
                if old is not None:
                    old.replaced = True
            expected = lane.hold()
            self._epoch += 1
            ready = self._greet(way, sealed, expected, context.settings.handshake_timeout if old is None else GREETING)
            self._take(sealed, ready)
            self._start(
                way,
                sealed,
                epoch=self._epoch,
                peer_expects=ready.expected,
                receive_from=expected,
                on_attached=partial(self._tell, way, why, self._epoch),
            )
        except SessionOver as error:
            session.end(error.message)
        except _LaneOver:
            if self._still_works():
                self._failed(way, TransportError("whoever answers now does not know the session, which still works"))
                return
            if self._fruitful:
                self._backoff.succeeded()  # it answers, so what failed while it was away says nothing any more
            session.end_lane(self._number, lane, SESSION_UNKNOWN)
        except QanatError as error:
            if sealed is not None:
                sealed.close("it could not take the lane over")
            self._failed(way, error)

    def _greet(self, way: Endpoint, sealed: SealedPipe, expected: int, seconds: float) -> Ready:
        context, session = self._context, self._session
        intent = Intent.RESUME if self._known else Intent.JOIN
        hello = Hello(
            context.instance, context.parameters, intent, session.id, self._number, self._epoch, expected
        ).proven(session.secret, sealed.result.transcript)
        ready = context.connector.greet(way, sealed, hello, Deadline(seconds), self._dial)
        if ready.answer is Answer.EXPIRED:
            sealed.close("the session is over")
            raise _LaneOver
        genuine = ready.proof_holds(session.secret, sealed.result.transcript)
        if ready.answer is not Answer.RESUMED or ready.session != session.id or not genuine:
            raise ProtocolError("the server answers for another session than the one that was to be resumed")
        self._known = True
        return ready

    def _still_works(self) -> bool:
        """Whether the old pipe's server answers, whatever another one behind the same URL says; blocks."""
        self._lane.release_hold()
        with self._changed:
            running = self._running
        return running is not None and self._lane.ping(ANSWERING)

    def _take(self, sealed: SealedPipe, ready: Ready) -> None:
        """Move the lane to this pipe.  Raises SessionOver when the server cannot go on where we can."""
        try:
            self._lane.take(self._epoch, ready.expected, Deadline(YIELDING))
        except (ProtocolError, Superseded) as error:  # Epochs are ours, so it is not that.
            sealed.close("the server goes on where we cannot")
            raise SessionOver(f"the server goes on where we cannot: {error.message}") from None

    def _start(
        self,
        way: Endpoint,
        sealed: SealedPipe,
        *,
        epoch: int = 0,
        peer_expects: int = 0,
        receive_from: int | None = None,
        on_attached: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the lane on this pipe, in a thread of its own.  Raises NoThread."""
        now, age = time.monotonic(), self._context.settings.max_pipe_age
        old_at = None if age is None else now + age * random.uniform(1 - AGE_JITTER, 1)
        running = _Running(way, sealed, now, self._lane.progress, old_at)
        with self._changed:
            self._running = running
            self._wish = None

        def attached() -> None:
            on_attached()
            self._context.changed()

        def carry() -> None:
            silence = self._context.settings.keepalive.timeout
            ending = PipeResult("its thread failed")
            try:
                ending = self._session.carry(
                    self._number,
                    self._lane,
                    sealed,
                    silence=silence,
                    epoch=epoch,
                    peer_expects=peer_expects,
                    receive_from=receive_from,
                    on_attached=attached,
                )
            finally:
                self._ended(running, ending)

        try:
            self._pipes.start(f"{self._lane.name}-reader", carry)
        except NoThread:
            with self._changed:
                self._running, self._lost_at = None, time.monotonic()
            raise
        self._follow(running)

    def _follow(self, running: _Running) -> None:
        """Have what announces the pipe's end in good time heard."""
        pipe, watch, spread = running.sealed.pipe, self._context.watch, self._context.settings.reconnect.min
        pipe.set_on_leaving(lambda: self._wish_for_another(running, "the other end of it is leaving", spread))
        if self._watched is not None:
            watch.remove(self._watched)
            self._watched = None
        addresses = pipe.addresses
        if addresses is not None:
            self._watched = watch.add(addresses, lambda why: self._network_changed(running, why))

    # --- what came of it ------------------------------------------------------------------------

    def _failed(self, way: Endpoint, error: QanatError) -> None:
        self._lane.release_hold()
        retry_after = error.retry_after if isinstance(error, TransportError) else None
        if isinstance(error, RefusedError) and error.final:
            self._backoff.give_up_hope()
        else:
            self._backoff.failed()
        delay = self._backoff.delay(retry_after)
        with self._changed:
            if self._running is not None:
                self._running.replaced = False
            over = self._is_over_locked()
            self._retry_at = time.monotonic() + delay
        self._at = (self._at + 1) % len(self._ways)
        if over:
            return
        log.error("%s", describe_failure(way, error), extra={"event": "failed", "url": str(way.url)})
        if delay >= 0.5:
            log.info("trying again in %.1f s", delay)

    def _tell(self, way: Endpoint, why: str, epoch: int) -> None:
        """The lane is on its new pipe."""
        now, lane = time.monotonic(), self._lane
        if why != "lost":
            text = f"{lane.name} moved to a fresh connection to {way}, since {why}"
        elif epoch == 1 and self._number:
            text = f"{lane.name} joined by {way}"
        else:
            text = f"{lane.name} resumed by {way} after {now - self._lost_at:.2f} s; nothing was lost"
        log.info("%s", text, extra={"event": "resumed", "url": str(way.url), "lane": self._number})

    def _ended(self, running: _Running, ending: PipeResult) -> None:
        """A pipe's thread has come back."""
        now = time.monotonic()
        lived = now - running.since
        faulty = ending.fault or (ending.close is not None and ending.close.reason is CloseReason.PROTOCOL)
        if faulty:
            self._backoff.failed()
        elif self._lane.progress > running.progress or lived >= SHORT_LIVED:
            self._fruitful = True
            self._backoff.succeeded()
        elif not running.replaced:
            self._backoff.ended_early()
            self._at = (self._at + 1) % len(self._ways)
        over = self._session.ended.is_set()
        with self._changed:
            current = self._running is running
            if current:
                self._running = None
                self._lost_at = now
                if not running.replaced:
                    self._retry_at = now + self._backoff.delay()
                self._changed.notify_all()
        self._context.changed()
        quiet = self._context.cancel.cancelled or self._session.stopped or (not current and not over)
        if not quiet and not running.replaced:
            self._log_end(running, ending, lived, over)

    def _log_end(self, running: _Running, ending: PipeResult, lived: float, over: bool) -> None:
        extra = {"event": "disconnected", "url": str(running.way.url), "lane": self._number}
        url, cause, waiting = running.way.url, printable(ending.cause), self._lane.open_streams
        if over:
            self.said_why = True
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
