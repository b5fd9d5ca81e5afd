"""Which sessions a server has, and who may hold a client's name.

A client that reconnects takes its name over at once; another process with the same name is refused
while the holder still answers a sealed PING, and takes over when it does not.
"""

from __future__ import annotations

import logging
import threading

from qanat.base.deadline import Deadline
from qanat.handshake.key_schedule import secrets_equal
from qanat.server.session import ServerSession

log = logging.getLogger("qanat.session")


class NameHeld(Exception):
    """Another live process holds this name; the message says where."""


class TooLate(Exception):
    """The client has begun another session since, over a connection that it made later."""


class Full(Exception):
    """No room for another session."""


class Registry:
    """The live sessions by client name.  Safe to use from any thread."""

    def __init__(self, limit: int, takeover_timeout: float) -> None:
        self._limit = limit
        self._takeover_timeout = takeover_timeout
        self._lock = threading.Lock()
        self._sessions: dict[str, ServerSession] = {}
        self._closed = False

    def claim(self, session: ServerSession, deadline: Deadline) -> None:
        """Give `session` its client's name.  Blocks while an older holder is asked or ends.

        When it returns, the older holder's ports are free.  Raises NameHeld, TooLate and Full.
        """
        while True:
            with self._lock:
                holder = self._sessions.get(session.name)
                if self._closed:
                    raise Full("this server is shutting down")
                if holder is None:
                    if len(self._sessions) >= self._limit:
                        raise Full(f"{self._limit} sessions are open")
                    self._sessions[session.name] = session
                    return
            if holder.instance == session.instance and holder.order > session.order:
                raise TooLate(f"{session.name} has begun a session over a later connection than this")
            if holder.instance == session.instance:
                holder.replace("its client connected anew")
            elif holder.answers(self._takeover_timeout):
                raise NameHeld(f"{session.name} is connected from {holder.holder}")
            else:
                log.warning("%s from %s is silent: replaced from %s", session.name, holder.holder, session.holder)
                holder.replace("its client no longer answers")
            if not holder.ended.wait(deadline.remaining()):
                raise NameHeld(f"{session.name} from {holder.holder} is still ending")
            self.release(holder)

    def find(self, name: str, session_id: bytes) -> ServerSession | None:
        """The session of that name and id, or None."""
        with self._lock:
            session = self._sessions.get(name)
        return session if session is not None and secrets_equal(session.id, session_id) else None

    def release(self, session: ServerSession) -> None:
        """Forget a session that has ended.  Idempotent."""
        with self._lock:
            if self._sessions.get(session.name) is session:
                del self._sessions[session.name]

    def close(self) -> list[ServerSession]:
        """Give out no name any more; the sessions there are.  Idempotent."""
        with self._lock:
            self._closed = True
            return list(self._sessions.values())
