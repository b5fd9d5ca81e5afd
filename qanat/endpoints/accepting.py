"""Accepting the connections of a forward, by the watcher: a port that waits costs no thread, nor do a thousand ports.

    listening socket readable -> accept a few -> on_accepted(socket, address)
    no descriptor for one     -> nothing watched for a moment, since the kernel would report the same at once

What a connection is for is decided by whoever made the sockets (`qanat.endpoints.tcp` and others beside it).  The
server's front door has threads of its own (`qanat.base.listen`), since what it serves may block.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from qanat.base.errors import MORE_FILES, EndpointError, NoThread, OutOfFiles
from qanat.base.listen import EXHAUSTED
from qanat.base.sockets import close_socket, describe_os_error
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Timer, Watcher
from qanat.endpoints.application_socket import PreparedSocket
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.endpoint")

EXHAUSTED_PAUSE = 0.1
"""Seconds until accepting is tried again when there was no descriptor for a connection."""
AT_ONCE = 16
"""Connections accepted from one socket before the watcher looks after others."""
ALONE = 8
"""Times in turn that one connection is accepted and no other one asked for, since most come alone."""
_INHERITS = sys.platform == "linux"
"""Whether what is accepted has the options of the listening socket, but blocks though that does not (accept(2))."""


class Accepting:
    """Listening sockets, which it owns.  The watcher accepts from `start` until `close`.

    `on_accepted(socket, address)` is called in the watcher's thread for each connection, whose socket blocks and is
    its own from then on; it must not block.  What it raises is logged, and the connection closed.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        on_accepted: Callable[[socket.socket, Any], None],
        name: str,
        watcher: Watcher,
        *,
        prepared: bool = False,
    ) -> None:
        """Own `listeners`; `name` is for logs.  Does not block.

        With `prepared` they have the options of an application's socket, and so has what is accepted.
        """
        self._listeners = tuple(listeners)
        self._kinds = {sock: (sock.family, sock.proto) for sock in self._listeners}
        self._make: type[socket.socket] = PreparedSocket if prepared and _INHERITS else socket.socket
        self._on_accepted = on_accepted
        self._name = name
        self._watcher = watcher
        self._lock = threading.RLock()  # held while a connection is handed on, so that `close` waits for that
        self._closed = False
        self._exhausted = False
        self._turn = 1  # connections that are asked for at once
        self._alone = 0  # times in turn that one came
        self._again: Timer = watcher.timer(self._watch_again)
        for sock in self._listeners:
            sock.setblocking(False)

    def start(self) -> None:
        """Accept connections from now on.  Does not block.

        Raises EndpointError when the system gives no thread or descriptor for it; the sockets are closed then.
        """
        try:
            self._watch()
        except (NoThread, OSError) as error:
            self.close()
            words = error.message if isinstance(error, NoThread) else describe_os_error(error)
            hint = error.hint if isinstance(error, NoThread) else MORE_FILES
            raise EndpointError(f"{self._name} cannot accept: {words}", code=Reason.LIMIT, hint=hint) from error

    def close(self) -> None:
        """Accept no more, and close the sockets.  Idempotent, from any thread.

        Blocks until a call of `on_accepted` that has begun has returned, unless that is what calls this.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._again.cancel()
            for sock in self._listeners:
                self._watcher.remove(sock.fileno())
                close_socket(sock)

    def _watch(self) -> None:
        for sock in self._listeners:
            self._watcher.add(sock.fileno(), partial(self._ready, sock))

    def _ready(self, listener: socket.socket) -> None:
        """Accept what has come, as far as it is asked for; by the watcher, who calls again while there is more.

        To ask when there is none costs a tenth of a connection.  So one is asked for, and more when more came lately.
        """
        with self._lock:
            accepted = 0
            while accepted < self._turn and not self._closed:
                try:
                    sock, address = self._accept(listener)
                except BlockingIOError:
                    self._turn, self._alone = max(1, accepted), 0
                    return
                except OSError as error:
                    if error.errno in EXHAUSTED:
                        self._pause(OutOfFiles(error))
                        return
                    continue  # it has gone again, or a firewall took it (accept(2))
                accepted += 1
                self._exhausted = False
                try:
                    self._on_accepted(sock, address)
                except Exception:
                    sock.close()
                    log_unexpected(f"{self._name}: an accepted connection ended")
            self._alone += 1
            if self._turn > 1 or self._alone >= ALONE:
                self._turn = min(2 * self._turn, AT_ONCE)

    def _accept(self, listener: socket.socket) -> tuple[socket.socket, Any]:
        """Return the next connection, which blocks.  Raises OSError."""
        if not _INHERITS:
            sock, address = listener.accept()
            sock.setblocking(True)
            return sock, address
        # As `socket.accept` does in more steps, since it asks for what is the same for all of them.
        family, protocol = self._kinds[listener]
        fd, address = listener._accept()  # type: ignore[attr-defined]
        return self._make(family, socket.SOCK_STREAM, protocol, fileno=fd), address

    def _pause(self, error: OutOfFiles) -> None:
        """Watch nothing for a while: no event says when there will be a descriptor."""
        if not self._exhausted:
            log.warning("%s: %s", self._name, error)
        self._exhausted = True
        for sock in self._listeners:
            self._watcher.remove(sock.fileno())
        self._again.set(time.monotonic() + EXHAUSTED_PAUSE)

    def _watch_again(self) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                self._watch()
            except (NoThread, OSError):
                self._again.set(time.monotonic() + EXHAUSTED_PAUSE)
