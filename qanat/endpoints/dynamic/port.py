"""A proxy's port: the connections that came to it, from the first byte until each leads to its target.

Whoever listens gives it what was accepted (`take`), and what it asks for is opened by `ask`, at whichever end of the
tunnel it stands.  It owns the connections that have no stream yet, and those whose HTTP requests go through.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from qanat.base.text import printable
from qanat.base.threads import ThreadGroup
from qanat.base.watcher import Watcher
from qanat.endpoints.dynamic.asked import Asked, Command
from qanat.endpoints.dynamic.connection import DynamicConnection
from qanat.endpoints.dynamic.forwarding import HttpForwarding
from qanat.endpoints.dynamic.http_proxy import HttpProxy
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.pending import PendingConnection
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.dynamic")

MAX_CONNECTIONS = 2048
"""Connections at once that have no stream yet, or whose HTTP requests go through."""
JOIN_TIMEOUT = 5.0
"""Seconds that threads get to end."""


class DynamicPort:
    """See the module's docstring.  Its methods may be called from any thread; only `abort` blocks."""

    def __init__(
        self,
        name: str,
        watcher: Watcher,
        ask: Callable[[PendingConnection, Asked], None],
        *,
        passwords: Passwords | None = None,
        carries_udp: bool = False,
    ) -> None:
        """`name` is for logs.  `ask` opens a stream to a target; it must not block, and not raise."""
        self.name = name
        self.watcher = watcher
        self.passwords = passwords
        self.carries_udp = carries_udp
        self._ask = ask
        self._threads = ThreadGroup(name)
        self._lock = threading.Lock()  # guards the next three
        self._closed = False
        self._crowded = False
        self._all: set[DynamicConnection | HttpForwarding] = set()

    def take(self, sock: socket.socket, origin: str, done: Callable[[], None] = lambda: None) -> None:
        """Serve a connection that was accepted; `done` is called once, when it is over."""
        connection = DynamicConnection(sock, origin, self, done)
        with self._lock:
            room = len(self._all) < MAX_CONNECTIONS
            told, self._crowded = self._crowded, not room
            if room and not self._closed:
                self._all.add(connection)
        if not room and not told:
            log.warning("%s: %d connections wait for their targets; more are refused", self.name, MAX_CONNECTIONS)
        if connection in self._all:
            connection.start()
        else:
            connection.close()

    def close(self) -> None:
        """Take no more, and end what waits for a request; what is under way ends with its streams.  Idempotent."""
        with self._lock:
            self._closed = True
            everyone = list(self._all)
        for one in everyone:
            one.finish()

    def abort(self) -> None:
        """Do the same, end what is under way too, and block until its threads have ended.  Idempotent."""
        self.close()
        with self._lock:
            everyone = list(self._all)
        for one in everyone:
            one.close()
        self._threads.join(JOIN_TIMEOUT)

    # --- for its connections ------------------------------------------------------------------------

    def ask(self, pending: PendingConnection, asked: Asked) -> None:
        """Open a stream to what is asked for."""
        if asked.command is Command.ASSOCIATE and not self.carries_udp:
            pending.refused(Reason.NOT_ALLOWED, "this port carries no UDP")
        else:
            self._ask(pending, asked)

    def forward(self, connection: DynamicConnection, machine: HttpProxy, asked: Asked) -> None:
        """Take over a connection whose requests go through."""
        sock = connection.hand_over()
        if sock is None:
            return
        forwarding = HttpForwarding(
            sock, connection.origin, machine, self, self._threads.start, self.forget, connection.done
        )
        with self._lock:
            self._all.discard(connection)
            self._all.add(forwarding)
            closed = self._closed
        forwarding.start(asked)
        if closed:
            forwarding.finish()

    def forget(self, connection: DynamicConnection | HttpForwarding) -> None:
        """Note that a connection is over, or has its stream."""
        with self._lock:
            self._all.discard(connection)

    def tell(self, origin: str, problem: str) -> None:
        """Log what is wrong with what an application sent."""
        log.info("%s: a connection from %s %s", self.name, origin, printable(problem, 300))
