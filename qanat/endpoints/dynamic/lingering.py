"""The end of a connection whose last answer must arrive.

A close with something unread is a RST, which takes an answer with it that its reader has not read yet (RFC 9112 §9.6).
So our side is finished, and what still comes is read and dropped for a moment.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from qanat.base.sockets import set_reset_on_close
from qanat.base.watcher import Watcher

SECONDS = 2.0
"""How long the other end may take to end the connection."""
MAX_DROPPED = 1 << 20
"""Bytes of what still comes that are read."""


class Lingering:
    """One such connection, from `start` until it is closed, when `on_closed` is called once by some thread."""

    def __init__(self, sock: socket.socket, watcher: Watcher, on_closed: Callable[[], None]) -> None:
        """Own `sock`, which does not block, and on which the last answer was sent."""
        self._sock = sock
        self._fd = sock.fileno()
        self._watcher = watcher
        self._on_closed = on_closed
        self._lock = threading.Lock()  # guards the next
        self._closed = False
        self._dropped = 0
        self._timer = watcher.timer(self.close)

    def start(self) -> None:
        """Finish our side, and watch for the end of the other.  Does not block."""
        set_reset_on_close(self._sock, False)
        try:
            self._sock.shutdown(socket.SHUT_WR)
            self._timer.set(time.monotonic() + SECONDS)
            self._watcher.add(self._fd, self._ready)
        except Exception:  # the other end is gone, or there is nothing to watch with
            self.close()

    def close(self) -> None:
        """Close it now.  Idempotent, from any thread; does not block."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._timer.cancel()
            self._watcher.remove(self._fd)
            self._sock.close()
        self._on_closed()

    def _ready(self) -> None:
        ended = True
        with self._lock:
            if self._closed:
                return
            with contextlib.suppress(OSError):
                data = self._sock.recv(16 * 1024)
                self._dropped += len(data)
                ended = not data or self._dropped > MAX_DROPPED
        if ended:
            self.close()
