"""The race of `transport: auto`: the ways to a server start one shortly after the other, and the first to work wins.

    start the first; 200 ms after its last step forward, or when it fails, the next; the first that works wins

A way works once the server is authenticated over it and a probe has moved 16 KiB in both directions at once
(docs/PROTOCOL.md §2).  That is RFC 8305's manner, with three differences.  A start waits while a way before it makes
progress, so that a slow path is not taken for a blocked one, and a way that works makes no second start.  The ways that
lead to one address do not dial it side by side: whether it answers is found out once, for all.  And no more than
MAX_HANDSHAKES ways of one race may reach the server, since each handshake costs it a private-key operation: a way asks
before its request goes out, and gives its place back only when it has failed before any handshake began.

Threads: the caller of `run` decides; each way has a thread, which `Connector.connect` keeps busy, and which ends when
another way has won.  Used by `qanat.client.connect`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from enum import IntEnum

from qanat.base.cancel import Cancel
from qanat.base.errors import Canceled, NoThread, QanatError, RefusedError, TransportError, UsageError
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.client.ways import Candidate
from qanat.handshake.exchange import PROBE_SIZE, SealedPipe
from qanat.transports.pipe import SockAddr

log = logging.getLogger("qanat.client")

START_DELAY = 0.2
"""Seconds after the last step of the ways before it until the next one starts (RFC 8305 §5 has 250 ms)."""
KNOWN_DELAY = 0.5
"""The same for a way that has worked on this network before: it is taken for busy first, and not for blocked."""
HEARD_DELAY = 0.5
"""The same once the server was heard over one of them: it may be busy, and more handshakes would make that worse."""
MAX_HANDSHAKES = 3
"""Ways of one race that may reach the server."""
PATIENCE = 1.0
"""Seconds without a step of any way after which a race that may start no more is lost, while there are other ways."""


class Step(IntEnum):
    """How far a way has come."""

    STARTED = 0
    CONNECTED = 1  # TCP
    OPEN = 2  # TLS is up, and the request goes out
    ANSWERED = 3  # there is a pipe
    HEARD = 4  # the server's key has come
    PROVEN = 5  # the server is authenticated; the probe is on its way


@dataclass(frozen=True, slots=True)
class Failure:
    """How a way came to nothing."""

    candidate: Candidate
    step: Step
    error: QanatError  # without what its traceback would hold
    seconds: float
    address: SockAddr | None = None
    silent: bool = False  # nobody said anything, and it was given up

    @property
    def key(self) -> tuple[Step, bool, str]:
        """What two failures have in common when there is nothing new in the second."""
        return self.step, self.silent, "" if self.silent else self.said

    @property
    def said(self) -> str:
        """What the error says, without the way, which is named already."""
        return self.error.message.removeprefix(f"{self.candidate}: ").removeprefix(f"{self.candidate.url} ")

    def describe(self, sends: str) -> str:
        """Return a line for the log: what was sent, what came back, and what that means; `sends` is the request."""
        sent, meaning = _SENT[self.step].format(sends), self.error.hint
        came = self.said
        if self.silent:
            came, meaning = f"nothing for {self.seconds:.1f} s", _SILENCE_MEANS[self.step]
        elif self.step >= Step.ANSWERED and not meaning:
            meaning = _SILENCE_MEANS[self.step]
        text = f"{self.candidate} does not work here: sent {sent}; came back: {came}"
        return f"{text}; meaning: {meaning}" if meaning else text


_SENT = {
    Step.STARTED: "a TCP connection request",
    Step.CONNECTED: "a TLS handshake",
    Step.OPEN: "{}",
    Step.ANSWERED: "{}, which was answered",
    Step.HEARD: "this client's proof",
    Step.PROVEN: f"{PROBE_SIZE // 1024} KiB, after a handshake that went well",
}
_HOLDS_BACK = "something on the path holds the request back until its end, or the answer"
_SILENCE_MEANS = {
    Step.STARTED: "a firewall drops what is sent there, or the machine is off",
    Step.CONNECTED: "what answers there does not speak TLS, or something on the path drops it",
    Step.OPEN: f"{_HOLDS_BACK} (buffering), or drops it",
    Step.ANSWERED: "what answered passes nothing on: a black hole behind the answer, or answers are held back",
    Step.HEARD: "what this client sends is held back until the request's end (buffering), or dropped",
    Step.PROVEN: "small messages pass, and large ones do not, or only one way at a time: buffering, an inspection, "
    "or a tunnel with a smaller MTU on the path",
}


def describe_wait(at: Step, seconds: float, sends: str) -> str:
    """Return for the log what a way that has come so far has sent, `sends` as its request, with no answer since."""
    return f"sent {_SENT[at].format(sends)}; nothing came back for {seconds:.1f} s"


class Attempt:
    """One way in a race.  `step` and `came_back` are called by its own thread, the rest is the race's."""

    def __init__(self, race: Race, candidate: Candidate) -> None:
        self.candidate = candidate
        self.cancel = Cancel()
        self._race = race
        # The race's lock guards the rest.
        self.at = Step.STARTED
        self.began = self.progress_at = time.monotonic()
        self.address: SockAddr | None = None
        self.has_place = False
        self.waits_for_us = False
        self.over = False

    @property
    def waits_for_place(self) -> bool:
        """Whether it may not send its request yet; with the race's lock."""
        return self.at is Step.OPEN and not self.has_place and not self.over

    def step(self, at: Step, address: SockAddr | None = None) -> None:
        """Note that it has come so far.  Before its request goes out it waits for a place; raises Canceled.

        Does nothing once it has won: some transports dial again later.
        """
        self._race.note(self, at, address)

    @contextmanager
    def waiting_for_us(self) -> Iterator[None]:
        """Be no reason for another start meanwhile: it is this program that takes its time, not the path."""
        self._race.wait_for_us(self, True)
        try:
            yield
        finally:
            self._race.wait_for_us(self, False)


class RaceLost(QanatError):
    """No way has worked.  `failures` has those that were tried, `untried` those that were not."""

    def __init__(self, failures: Sequence[Failure], untried: Sequence[Candidate]) -> None:
        super().__init__("no way to the server works")
        self.failures = tuple(failures)
        self.untried = tuple(untried)


class Race:
    """One race.  `run` is called once."""

    def __init__(
        self,
        ways: Sequence[Candidate],
        connect: Callable[[Attempt], SealedPipe],
        target: Callable[[Candidate], Hashable],
        threads: ThreadGroup,
        *,
        elsewhere: Callable[[SockAddr], bool],
        obeys: Callable[[Candidate], bool] = lambda candidate: True,
        known: Candidate | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """`ways` are started in this order by `connect`, which returns a pipe that works; `target` is what one dials.

        `elsewhere` says whether there is another address to try than the one where nothing happens, `obeys` whether the
        race ends when it is told on a way when to come back; neither may block.  `known` is one that has worked.
        `threads` are joined by the caller, once nothing is dialed any more.
        """
        self.failures: tuple[Failure, ...] = ()
        """The ways that did not work; known once `run` has ended, however that was."""
        self._queue = list(ways)
        self._connect = connect
        self._target = target
        self._threads = threads
        self._elsewhere = elsewhere
        self._obeys = obeys
        self._known = known
        self._patience = patience
        self._changed = threading.Condition()  # guards the rest
        self._attempts: list[Attempt] = []
        self._begun = 0  # places that are taken for good, or for now
        self._failures: list[Failure] = []
        self._winner: tuple[Candidate, SealedPipe] | None = None
        self._fatal: QanatError | None = None
        self._canceled = False

    def run(self, cancel: Cancel) -> tuple[Candidate, SealedPipe]:
        """Return the way that won, and its pipe; blocks until one has, all have failed, or `cancel` is canceled.

        Raises RaceLost; what concerns all ways as it is: RefusedError that is final, UsageError, TransportError with a
        time to come back; and TransportError when it was canceled.
        """
        try:
            with cancel.waking(self._cancel):
                return self._run()
        finally:
            with self._changed:
                self._canceled = True  # whoever comes in now has lost
                losers = [attempt for attempt in self._attempts if not attempt.over]
                self.failures = (*self._failures, *self._silent_locked(START_DELAY))
                self._changed.notify_all()
            for attempt in losers:
                attempt.cancel.cancel()

    def waiting(self) -> list[tuple[Candidate, Step, float, bool]]:
        """Return the ways that are under way: how far each has come, since how many seconds, and if it waits for us.

        Does not block.
        """
        with self._changed:
            now = time.monotonic()
            return [
                (a.candidate, a.at, now - a.progress_at, a.waits_for_us or a.waits_for_place)
                for a in self._attempts
                if not a.over
            ]

    def _cancel(self) -> None:
        with self._changed:
            self._canceled = True
            self._changed.notify_all()

    def _run(self) -> tuple[Candidate, SealedPipe]:
        while True:
            with self._changed:
                candidate = None
                while candidate is None:
                    if self._winner is not None:
                        return self._winner
                    if self._fatal is not None:
                        raise self._fatal
                    if self._canceled:
                        raise TransportError("connecting was stopped")
                    candidate, wait = self._choose_locked(time.monotonic())
                    if candidate is None:
                        if wait is not None and wait <= 0:
                            raise self._lost_locked()
                        self._changed.wait(wait)
                self._queue.remove(candidate)
                attempt = Attempt(self, candidate)
                self._attempts.append(attempt)
            self._start(attempt)

    # --- deciding -------------------------------------------------------------------------------

    def _choose_locked(self, now: float) -> tuple[Candidate | None, float | None]:
        """Return the way to start now; or None and the seconds until that may change by itself, 0 if all is lost."""
        running = [attempt for attempt in self._attempts if not attempt.over]
        if not running and not self._queue:
            return None, 0.0
        if not self._queue or self._begun >= MAX_HANDSHAKES:
            # No place comes free for a way that might work, unless one of these says that it does not.
            if not self._queue and not any(a.address is not None and self._elsewhere(a.address) for a in running):
                return None, None
            last = max((attempt.progress_at for attempt in running), default=0.0)
            return None, max(0.0, last + self._patience - now)
        dialing = {self._target(attempt.candidate) for attempt in running if attempt.at < Step.CONNECTED}
        free = [candidate for candidate in self._queue if self._target(candidate) not in dialing]
        due = max((attempt.progress_at + self._delay(attempt) for attempt in running), default=now)
        if any(attempt.waits_for_us for attempt in running):
            return None, None
        if free and due <= now:
            return free[0], None
        return None, due - now if free else None

    def _delay(self, attempt: Attempt) -> float:
        if attempt.at >= Step.HEARD:
            return HEARD_DELAY
        return KNOWN_DELAY if attempt.candidate == self._known else START_DELAY

    def _lost_locked(self) -> RaceLost:
        waiting = [attempt.candidate for attempt in self._attempts if attempt.waits_for_place]
        return RaceLost([*self._failures, *self._silent_locked(0.0)], [*waiting, *self._queue])

    def _silent_locked(self, least: float) -> list[Failure]:
        """Return the ways that have been silent for so many seconds at least, and had their chance."""
        now = time.monotonic()
        return [
            Failure(a.candidate, a.at, _nothing_came(a, now), now - a.progress_at, a.address, silent=True)
            for a in self._attempts
            if not a.over and not a.waits_for_place and now - a.progress_at >= least
        ]

    # --- one way --------------------------------------------------------------------------------

    def _start(self, attempt: Attempt) -> None:
        try:
            self._threads.start(f"way {attempt.candidate.transport}", lambda: self._run_attempt(attempt))
        except NoThread as error:
            self._failed(attempt, error)

    def _run_attempt(self, attempt: Attempt) -> None:
        try:
            sealed = self._connect(attempt)
        except QanatError as error:
            self._failed(attempt, error)
        except Exception:
            log_unexpected(f"connecting to {attempt.candidate} failed")
            self._failed(attempt, TransportError("a fault of this program, which its log has"))
        else:
            if not self._won(attempt, sealed):
                sealed.close("another way was faster")

    def note(self, attempt: Attempt, at: Step, address: SockAddr | None) -> None:
        """See `Attempt.step`."""
        with self._changed:
            if attempt.over:
                return
            if at is Step.OPEN and not attempt.has_place:
                attempt.at, attempt.progress_at = max(attempt.at, at), time.monotonic()
                while self._begun >= MAX_HANDSHAKES and not self._canceled:
                    self._changed.wait()
                if not self._canceled:
                    attempt.has_place = True
                    self._begun += 1
            if self._canceled:
                raise Canceled
            attempt.address = address or attempt.address
            if at > attempt.at or attempt.at is Step.OPEN:
                attempt.at, attempt.progress_at = max(attempt.at, at), time.monotonic()
            self._changed.notify_all()

    def wait_for_us(self, attempt: Attempt, waits: bool) -> None:
        """See `Attempt.waiting_for_us`."""
        with self._changed:
            attempt.waits_for_us, attempt.progress_at = waits, time.monotonic()
            self._changed.notify_all()

    def _won(self, attempt: Attempt, sealed: SealedPipe) -> bool:
        with self._changed:
            attempt.over = True
            won = self._winner is None and not self._canceled
            if won:
                self._winner = attempt.candidate, sealed
            self._changed.notify_all()
        return won

    def _failed(self, attempt: Attempt, error: QanatError) -> None:
        """Count a way that has come to nothing; what holds for others too is theirs as well."""
        seconds = time.monotonic() - attempt.began
        with self._changed:
            attempt.over = True
            if self._canceled or self._winner is not None:
                return
            bare = _bare(error)
            self._failures.append(Failure(attempt.candidate, attempt.at, bare, seconds, attempt.address))
            if attempt.has_place and attempt.at < Step.ANSWERED:
                attempt.has_place = False
                self._begun -= 1
            if _concerns_all(bare) and (not isinstance(bare, TransportError) or self._obeys(attempt.candidate)):
                self._fatal = bare
            elif self._concerns_target_locked(attempt):
                same = self._target(attempt.candidate)
                self._queue = [candidate for candidate in self._queue if self._target(candidate) != same]
            self._changed.notify_all()

    def _concerns_target_locked(self, attempt: Attempt) -> bool:
        """Whether other transports would fare no better than this one, which has failed last.

        TCP is the same for all.  So are certificates, and a proxy that forbids the server, but not the protocols that
        are offered in TLS: it takes a second way that fails alike.
        """
        last, at = self._failures[-1], attempt.at
        alike = [failure for failure in self._failures[:-1] if (failure.step, failure.said) == (last.step, last.said)]
        return at < Step.CONNECTED or (at is Step.CONNECTED and bool(alike))


def _concerns_all(error: QanatError) -> bool:
    """Whether no other way would fare better."""
    if isinstance(error, TransportError):
        return error.retry_after is not None
    return isinstance(error, UsageError) or (isinstance(error, RefusedError) and error.final)


def _nothing_came(attempt: Attempt, now: float) -> TransportError:
    return TransportError(
        f"{attempt.candidate}: nothing came for {now - attempt.progress_at:.1f} s", hint=_SILENCE_MEANS[attempt.at]
    )


def _bare(error: QanatError) -> QanatError:
    """Return the same error without all that its traceback holds."""
    bare = copy(error)
    bare.__cause__ = bare.__context__ = None
    return bare.with_traceback(None)
