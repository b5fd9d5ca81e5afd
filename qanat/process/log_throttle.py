"""Says a thing to the operator once in a while, however often it happens: no peer must fill the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

INTERVAL = 60.0
"""Seconds during which the same thing is not said again."""


class LogThrottle:
    """Remembers when each subject was last spoken of.  Subjects are few and named in the code."""

    def __init__(self, *, interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}

    def due(self, subject: str) -> bool:
        """Whether to speak of `subject` now; the caller then does."""
        with self._lock:
            now = self._clock()
            last = self._said.get(subject)
            if last is not None and now - last < self._interval:
                return False
            self._said[subject] = now
            return True
