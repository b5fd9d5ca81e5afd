"""The remote forwards without which a client ends, with `exit_on_forward_failure`.

A forward is required at one server until that server has listened for it once: whoever starts a client hears at once of
one that cannot be had, and a port that is lost years later is asked for again as usual.  The server's connection owns
it (`qanat.client.server_connection`); its sessions, one after the other, tell it the server's answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from qanat.base.errors import EndpointError


class RequiredForwards:
    """What is still required at one server.  Any thread may call this; none blocks."""

    def __init__(self, numbers: Iterable[int], fail: Callable[[EndpointError], None]) -> None:
        """`fail` is called once all that are required have an answer, and any of these is a failure."""
        self._fail = fail
        self._lock = threading.Lock()  # guards the next two
        self._waiting = set(numbers)
        self._failures: dict[int, EndpointError] = {}

    def begin(self) -> None:
        """Forget the failures of a session before: all that are required are asked for anew."""
        with self._lock:
            self._waiting.update(self._failures)
            self._failures.clear()

    def listens(self, number: int) -> None:
        """Note that the server listens for this forward, which from now on is required no more."""
        with self._lock:
            self._waiting.discard(number)
        self._conclude()

    def failed(self, number: int, error: EndpointError) -> bool:
        """Note that the server does not; return whether the forward is required, so that the client ends."""
        with self._lock:
            if number not in self._waiting:
                return False
            self._waiting.discard(number)
            self._failures[number] = error
        self._conclude()
        return True

    def keep(self, numbers: Iterable[int]) -> None:
        """Require none but these any more: the others are no longer wanted."""
        with self._lock:
            wanted = set(numbers)
            self._waiting &= wanted
            for number in self._failures.keys() - wanted:
                del self._failures[number]
        self._conclude()

    def _conclude(self) -> None:
        with self._lock:
            failures = [] if self._waiting else list(self._failures.values())
        if failures:
            text = "; ".join(failure.message for failure in failures)
            self._fail(EndpointError(text, code=failures[0].code, hint=failures[0].hint))
