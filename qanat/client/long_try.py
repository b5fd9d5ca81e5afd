"""Says in the log that a try to connect is still under way, and what it waits for, before its own time limits end it.

A try may take `connect_timeout` and `handshake_timeout` together, 20 s by default, before its failure is logged.  Who
looks at the log meanwhile should not have to guess whether anything happens.  Used by
`qanat.client.server_connection` and `qanat.client.reconnector`, each for its own tries; `qanat.client.connect` says
what each waits for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from qanat.base.errors import NoThread
from qanat.base.watcher import Timer, Watcher

log = logging.getLogger("qanat.client")

SAID_EVERY = 4.0
"""Seconds of a try until the log says that it goes on, and between two times that it says so."""


class LongTry:
    """One try to connect to `what`, from the beginning of a `with` block to its end."""

    def __init__(self, watcher: Watcher, what: object) -> None:
        self.waits_for: Callable[[], str] = lambda: ""
        """Called in the watcher's thread, for what the try waits for just now; must not block."""
        self._what = what
        self._began = time.monotonic()
        self._over = False
        self._timer: Timer = watcher.timer(self._say)

    def __enter__(self) -> Self:
        self._set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._timer.cancel()

    def _say(self) -> None:
        if self._over:
            return
        seconds, waits_for = time.monotonic() - self._began, self.waits_for()
        log.info(
            "still connecting to %s after %.0f s%s",
            self._what,
            seconds,
            f": {waits_for}" if waits_for else "",
            extra={"event": "connecting", "url": str(self._what)},
        )
        self._set()

    def _set(self) -> None:
        try:
            self._timer.set(time.monotonic() + SAID_EVERY)
        except (NoThread, OSError):
            # Nothing can be watched for want of threads or descriptors; the try will say so itself.
            self._over = True


def ready_is_due() -> str:
    """Return what a try waits for once the server is authenticated."""
    return "sent HELLO, after a handshake that went well; READY has not come back"
