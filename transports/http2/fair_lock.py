"""A lock whose waiters get it in the order in which they came.

Python's own lock goes to whoever asks first after its release, which is most often the thread that just had
it: the writer of a busy stream would keep the connection for itself.  Used by `engine`.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """First come, first served.  Not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below; held for moments
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()  # each held until its owner has the lock

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    @property
    def taken(self) -> bool:
        """Whether somebody has the lock, at this moment."""
        return self._taken

    def try_acquire(self) -> bool:
        """Take the lock if it is free; return whether.  Does not block."""
        with self._lock:
            if self._taken:
                return False
            self._taken = True
            return True

    def acquire_within(self, seconds: float) -> bool:
        """Wait for the lock for at most `seconds`; return whether it was had."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return True
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        if gate.acquire(timeout=seconds):
            return True
        with self._lock:
            if gate not in self._waiting:
                return True  # it was handed over at the last moment
            self._waiting.remove(gate)
        return False

    def release(self) -> None:
        """Hand the lock straight to the one that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
