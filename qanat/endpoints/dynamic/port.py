"""A proxy's port: the connections that came to it, from the first byte until each leads to its target.

Whoever listens gives it what was accepted (`take`), and what it asks for is opened by `ask`, at whichever end of the
tunnel it stands.  It owns the connections that have no stream yet, and those whose HTTP requests go through.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable

from qanat.base.sockets import set_reset_on_close
from qanat.base.text import printable
from qanat.base.threads import ThreadGroup
from qanat.base.watcher import Watcher
from qanat.endpoints.dynamic.asked import Asked, ProxyMachine
from qanat.endpoints.dynamic.association import Association, OpenFlow
from qanat.endpoints.dynamic.connection import DynamicConnection
from qanat.endpoints.dynamic.forwarding import HttpForwarding
from qanat.endpoints.dynamic.http_proxy import HttpProxy
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.pending import PendingConnection
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.dynamic")

_OfPort = DynamicConnection | HttpForwarding | Association
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
        open_flow: OpenFlow,
        *,
        passwords: Passwords | None = None,
    ) -> None:
        """`name` is for logs.  `ask` opens a stream to a target, `open_flow` a flow; they must not block.

        `ask` must not raise either.
        """
        self.name = name
        self.watcher = watcher
        self.passwords = passwords
        self._ask = ask
        self._open_flow = open_flow
        self._threads = ThreadGroup(name)
        self._lock = threading.Lock()  # guards the next three
        self._closed = False
        self._crowded = False
        self._all: set[_OfPort] = set()

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
        self._ask(pending, asked)

    def associate(self, connection: DynamicConnection, machine: ProxyMachine) -> None:
        """Take over a connection whose user sends datagrams."""
        sock = connection.hand_over()
        if sock is None:
            return

        def over(association: Association) -> None:
            self.forget(association)
            connection.done()

        self.forget(connection)
        try:
            association = Association(sock, connection.origin, self.watcher, self._open_flow, over)
            sock.send(machine.accepted(association.address))
        except OSError as error:
            self.tell(connection.origin, f"gets no socket for its datagrams: {error.strerror}")
            with contextlib.suppress(OSError):
                sock.send(machine.refused(Reason.LIMIT, ""))
            set_reset_on_close(sock, False)
            sock.close()
            connection.done()
            return
        with self._lock:
            self._all.add(association)
            closed = self._closed
        association.start()
        if closed:
            association.close()

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

    def forget(self, connection: _OfPort) -> None:
        """Note that a connection is over, or has its stream."""
        with self._lock:
            self._all.discard(connection)

    def tell(self, origin: str, problem: str) -> None:
        """Log what is wrong with what an application sent."""
        log.info("%s: a connection from %s %s", self.name, origin, printable(problem, 300))
