"""`Condition` and `Event` of `threading` for objects of which there are many, and for which seldom anybody waits.

Each of those takes about 1 KB from the beginning, most of it for the list of who waits; these take it only meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class LazyCondition:
    """A condition of a lock that belongs to its owner, who holds it in every call."""

    __slots__ = ("_condition", "_lock", "_waiting")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._waiting = 0
        self._condition: threading.Condition | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """Block until notified, without the lock meanwhile; False when `timeout` seconds have passed before."""
        if self._condition is None:
            self._condition = threading.Condition(self._lock)
        self._waiting += 1
        try:
            return self._condition.wait(timeout)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._condition = None

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Block until `predicate`, asked with the lock after each notification; return what it says in the end."""
        if predicate():
            return True
        if self._condition is None:
            self._condition = threading.Condition(self._lock)
        self._waiting += 1
        try:
            return self._condition.wait_for(predicate, timeout)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._condition = None

    def notify(self) -> None:
        """Wake one who waits, if anybody does."""
        if self._condition is not None:
            self._condition.notify()

    def notify_all(self) -> None:
        """Wake all who wait."""
        if self._condition is not None:
            self._condition.notify_all()


class LazyEvent:
    """A flag that is set once, and can be waited for."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: threading.Event | None = None

    def is_set(self) -> bool:
        """Return whether it is set.  Does not block."""
        return self._set

    def set(self) -> None:
        """Set it, and wake all who wait.  Does not block; idempotent."""
        with _MAKING:
            self._set = True
            event = self._event
        if event is not None:
            event.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set; return whether it is, False when `timeout` seconds have passed before."""
        with _MAKING:
            if self._set:
                return True
            if self._event is None:
                self._event = threading.Event()
        return self._event.wait(timeout)


_MAKING = threading.Lock()
