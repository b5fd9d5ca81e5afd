"""Who may be here is seen to: sessions end whose client or token does not count any more, however that came.

    a reload that took it out   `tunnel.py revoke`   its `not_after`
             |                          |                  |  a timer of the watcher, then a pooled thread
             +--------------------------+------------------+
                                 enforce: every session's tokens, lane by lane, against `Accounts.why_not`

A session whose every lane has such a token ends with CLOSE (revoked), one that waits for its client as well.  Its
streams are reset at once, so that CLOSE waits for no bulk: a client that does not hear it would try to come back, and
its applications wait for that.  Where
some lane's pipe was authenticated with a token that counts, as in the middle of a rotation, only the others' pipes are
cut: who has the new token comes back with it and loses nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, UsageError
from qanat.base.watcher import Watcher
from qanat.base.workers import WORKERS
from qanat.config.moments import format_moment
from qanat.control.commands import Answer, Request
from qanat.handshake.hello import Close, CloseReason
from qanat.server.accounts import Accounts, Token
from qanat.server.audit import AuditLog
from qanat.server.revocations import Revocations
from qanat.server.session import ServerSession
from qanat.server.sessions import Registry

log = logging.getLogger("qanat.server")

WARN_BEFORE = 7 * 86_400.0
"""Seconds before a token ends from which on the log says so, once a day."""
LAST_WORDS = 0.5
"""Seconds that clients have to take what they are told at the end; all of one reload together."""
_DAY = 86_400.0
_LOOK_AGAIN = 5.0
"""Seconds after which the clock is looked at again at most: it may have been set, or the machine may have slept."""


class Enforcement:
    """See the module's docstring.  Safe to use from any thread."""

    def __init__(
        self,
        accounts: Accounts,
        revocations: Revocations,
        registry: Registry,
        audit: AuditLog,
        watcher: Watcher,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin; `clock` tells seconds since 1970."""
        self._accounts = accounts
        self._revocations = revocations
        self._registry = registry
        self._audit = audit
        self._clock = clock
        self._turn = threading.RLock()  # held from a revocation until what it ends has ended: it says what that was
        self._timer = watcher.timer(self._look_soon)
        self._warned: dict[str, float] = {}  # by token, when the log last warned of its end
        self._ended: set[str] = set()  # tokens whose end was told

    def enforce(self, by: str) -> list[str]:
        """End what may not be here any more; return what that was, in words.

        Blocks as `Session.end`, and LAST_WORDS at most until the clients have heard of it.
        """
        with self._turn:
            lines: list[str] = []
            ending: list[tuple[ServerSession, str]] = []
            for session in self._registry.sessions:
                line, why = self._enforce_on(session, by)
                lines += [line] if line else []
                ending += [(session, why)] if why else []
            deadline = Deadline(LAST_WORDS)
            for session, why in ending:
                session.ended.wait(deadline.remaining())
                session.end(why, Close(CloseReason.REVOKED, why))
            return lines

    def _enforce_on(self, session: ServerSession, by: str) -> tuple[str, str]:
        """Return what was done, in words, and why the session is ending; "" where it goes on."""
        tokens, lanes = dict(session.tokens), session.lanes
        why_not = {number: self._accounts.why_not(session.name, tokens[number]) for number in lanes if number in tokens}
        unwanted = {number: why for number, why in why_not.items() if why}
        if not unwanted:
            return "", ""
        why = next(iter(unwanted.values()))
        if len(unwanted) < len(why_not):
            for number in unwanted:
                lanes[number].cut(why)
            return f"client {session.name}: {len(unwanted)} of its connections cut: {why}", ""
        log.warning("ending the session of %s from %s: %s", session.name, session.origin, why)
        session.audit.revoked(tokens[min(unwanted)], why, by)
        session.revoke(why)
        return f"client {session.name}: its session from {session.origin} ended", why

    # --- `tunnel.py revoke` -----------------------------------------------------------------------

    def revoke(self, request: Request) -> Answer:
        """Revoke the tokens of a client, or one of them, at once; for the control socket.  Raises UsageError.

        Says whether that will outlast this process.
        """
        name = request.text("client")
        if request.flag("undo"):
            return self._lift(name, request.by)
        account = self._accounts.find(name)
        if account is None:
            raise UsageError(f"there is no client {name!r}", hint="the names stand in `clients` of the configuration")
        one = request.text("token", "")
        tokens = [one] if one else list(account.tokens)
        if one and one not in account.tokens:
            known = ", ".join(account.tokens)
            raise UsageError(f"the client {name!r} has no token {one!r}", hint=f"its tokens are {known}")
        with self._turn:
            problem = self._revocations.add(name, tokens, request.by)
            log.warning("the tokens %s of the client %s were revoked by %s", ", ".join(tokens), name, request.by)
            self._audit.record("revoked", client=name, tokens=tokens, by=request.by, lasting=not problem)
            if problem:
                log.error("the revocation will not outlast this process: %s", problem)
            ended = self.enforce(request.by)
        return {"client": name, "tokens": tokens, "ended": ended, "lasting": not problem, "problem": problem}

    def _lift(self, name: str, by: str) -> Answer:
        lifted, problem = self._revocations.lift(name)
        if not lifted:
            raise UsageError(f"no token of a client {name!r} is revoked", hint="the list is in revoked-tokens.json")
        log.warning("the tokens %s of the client %s count again, says %s", ", ".join(lifted), name, by)
        self._audit.record("revocation lifted", client=name, tokens=lifted, by=by, lasting=not problem)
        return {"client": name, "tokens": lifted, "ended": [], "lasting": not problem, "problem": problem}

    # --- `not_after` --------------------------------------------------------------------------------

    def watch_ends(self) -> None:
        """Look at the tokens' ends now, say what is near, and look again in time.  Does not block."""
        now = self._clock()
        soonest = _LOOK_AGAIN
        for account in self._accounts:
            for token in account.tokens.values():
                if token.ends_within(WARN_BEFORE, now):
                    self._warn(account.name, token, now)
                if token.not_after > now:
                    soonest = min(soonest, token.not_after - now)
        if any(token.ends for account in self._accounts for token in account.tokens.values()):
            try:
                self._timer.set(time.monotonic() + soonest + 0.001)
            except (NoThread, OSError) as error:
                log.error("sessions whose tokens end are not ended: %s", error)

    def _warn(self, client: str, token: Token, now: float) -> None:
        if token.not_after <= now:
            if token.fingerprint not in self._ended:
                self._ended.add(token.fingerprint)
                log.warning("the token %s of the client %s has ended (not_after)", token.fingerprint, client)
                self._audit.record("token ended", client=client, token=token.fingerprint)
        elif now - self._warned.get(token.fingerprint, -_DAY) >= _DAY:
            self._warned[token.fingerprint] = now
            log.warning(
                "the token %s of the client %s ends at %s, in %.1f days: give it another one beside it before",
                token.fingerprint,
                client,
                format_moment(token.not_after),
                (token.not_after - now) / _DAY,
                extra={"event": "token ends", "client": client},
            )

    def _look_soon(self) -> None:
        """Look in a thread that may block.  By the timer."""
        try:
            WORKERS.start("token ends", self._look, reserved=True)
        except NoThread as error:
            log.error("sessions whose tokens end are not ended yet: %s", error)
            self.watch_ends()

    def _look(self) -> None:
        self.watch_ends()
        self.enforce("its end")

    def close(self) -> None:
        """Look at the clock no more.  Idempotent; does not block."""
        self._timer.cancel()
