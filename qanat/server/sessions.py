"""Which sessions a server has, and which of two processes may have a client's name.

A client that begins anew takes its name over at once; another process with the same name is refused
while the first one still answers a sealed PING, and takes over when it does not.  A session that is for measuring has
a place of its own beside the one that has the name.
"""

from __future__ import annotations

import logging
import threading

from qanat.base.deadline import Deadline
from qanat.handshake.key_schedule import secrets_equal
from qanat.server.session import ServerSession

log = logging.getLogger("qanat.session")


class NameInUse(Exception):
    """Another live process has this name; the message says where."""


class MeasuredAlready(NameInUse):
    """Another live process measures under this name; the message says where."""


class Stale(Exception):
    """The client has begun another session since, over a connection that it made later."""


class Busy(Exception):
    """There is no room for another session."""


class Registry:
    """The live sessions by client name.  Safe to use from any thread."""

    def __init__(self, limit: int, takeover_timeout: float) -> None:
        """Take at most `limit` sessions; one that is asked for its name gets `takeover_timeout` seconds to answer."""
        self._limit = limit
        self._takeover_timeout = takeover_timeout
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, bool], ServerSession] = {}  # by name, and whether it measures
        self._closed = False

    def change(self, limit: int, takeover_timeout: float) -> None:
        """Go by other settings from now on; sessions beyond the limit stay."""
        self._limit, self._takeover_timeout = limit, takeover_timeout

    @property
    def sessions(self) -> list[ServerSession]:
        """The sessions there are."""
        with self._lock:
            return list(self._sessions.values())

    def claim(self, session: ServerSession, deadline: Deadline) -> None:
        """Give `session` its client's name, or the right to measure under it.

        Blocks while an older session of that name is asked or ends.

        When it returns, the older session's ports are free.  Raises NameInUse, MeasuredAlready, Stale and Busy.
        """
        key, in_use = _key(session), MeasuredAlready if session.measures else NameInUse
        while True:
            with self._lock:
                older = self._sessions.get(key)
                if self._closed:
                    raise Busy("this server is shutting down")
                if older is None:
                    if len(self._sessions) >= self._limit:
                        raise Busy(f"{self._limit} sessions are open")
                    self._sessions[key] = session
                    return
            if older.instance == session.instance and older.order > session.order:
                raise Stale(f"{session.name} has begun a session over a later connection than this")
            if older.instance == session.instance:
                older.replace("its client connected anew")
            elif older.answers(self._takeover_timeout):
                doing = "being measured already," if session.measures else "connected"
                raise in_use(f"{session.name} is {doing} from {older.origin}")
            else:
                log.warning("%s from %s is silent: replaced from %s", session.name, older.origin, session.origin)
                older.replace("its client no longer answers")
            if not older.ended.wait(deadline.remaining()):
                raise in_use(f"{session.name} from {older.origin} is still ending")
            self.release(older)

    def find(self, name: str, session_id: bytes) -> ServerSession | None:
        """Return the session of that name and id, or None; one that measures cannot be found again."""
        with self._lock:
            session = self._sessions.get((name, False))
        return session if session is not None and secrets_equal(session.id, session_id) else None

    def release(self, session: ServerSession) -> None:
        """Forget a session that has ended.  Idempotent."""
        with self._lock:
            if self._sessions.get(key := _key(session)) is session:
                del self._sessions[key]

    def close(self) -> list[ServerSession]:
        """Give out no name any more, and return the sessions there are.  Idempotent."""
        with self._lock:
            self._closed = True
            return list(self._sessions.values())


def _key(session: ServerSession) -> tuple[str, bool]:
    return session.name, session.measures
