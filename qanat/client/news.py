"""What a client's connection to one server has to tell beside its state: what failed last, and when it tries again."""

from __future__ import annotations

import threading
import time

from qanat.base.text import printable
from qanat.session.places import PastFailure


class ConnectionNews:
    """Of one server, for all lanes of its session.  Safe to use from any thread; never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next two
        self._failure: PastFailure | None = None
        self._next_try_at: float | None = None

    def failed(self, text: str) -> None:
        """Note what went wrong just now, as the log has it."""
        with self._lock:
            self._failure = PastFailure(time.time(), printable(text))

    def tries_again(self, seconds: float) -> None:
        """Note that the next try comes in so many seconds, unless something ends the wait."""
        with self._lock:
            self._next_try_at = time.time() + seconds

    def trying(self) -> None:
        """Note that nobody waits for the next try: it has begun, or there is no need for one."""
        with self._lock:
            self._next_try_at = None

    @property
    def failure(self) -> PastFailure | None:
        """What went wrong last; None when nothing ever did."""
        with self._lock:
            return self._failure

    @property
    def next_try_at(self) -> float | None:
        """When the next try comes, in seconds of Unix time; None while nobody waits for one."""
        with self._lock:
            return self._next_try_at
