"""Accepting the connections of a forward, by the watcher: a port that waits costs no thread, nor do a thousand ports.

    listening socket readable -> accept a few -> on_accepted(socket, address)
    no descriptor for one     -> nothing watched for a moment, since the kernel would report the same at once

What a connection is for is decided by whoever made the sockets (`qanat.endpoints.tcp` and others beside it).  The
server's front door has threads of its own (`qanat.base.listen`), since what it serves may block.
"""

from __future__ import annotations

import logging
import socket
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
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.endpoint")

EXHAUSTED_PAUSE = 0.1
"""Seconds until accepting is tried again when there was no descriptor for a connection."""
AT_ONCE = 16
"""Connections accepted from one socket before the watcher looks after others."""


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
    ) -> None:
        """Own `listeners`; `name` is for logs.  Does not block."""
        self._listeners = tuple(listeners)
        self._on_accepted = on_accepted
        self._name = name
        self._watcher = watcher
        self._lock = threading.RLock()  # held while a connection is handed on, so that `close` waits for that
        self._closed = False
        self._exhausted = False
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
        """Accept what has come; by the watcher."""
        with self._lock:
            for _ in range(AT_ONCE):
                if self._closed:
                    return
                try:
                    accepted = self._accept(listener)
                except OutOfFiles as error:
                    self._pause(error)
                    return
                if accepted is None:
                    return
                self._exhausted = False
                self._hand_on(*accepted)

    def _accept(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        """Return the next connection, None when there is none.  Raises OutOfFiles."""
        while True:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in EXHAUSTED:
                    raise OutOfFiles(error) from error
                continue  # it has gone again, or a firewall took it (accept(2))
            sock.setblocking(True)
            return sock, address

    def _hand_on(self, sock: socket.socket, address: Any) -> None:
        try:
            self._on_accepted(sock, address)
        except Exception:
            sock.close()
            log_unexpected(f"{self._name}: an accepted connection ended")

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
