"""A lock whose waiters get it in the order in which they came.

Python's own lock goes to whoever asks first after its release, which is most often the thread that just had
it: the writer of a busy stream would keep the connection for itself.  Used by `http2_engine`.
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
        self._waiting: deque[threading.Lock] = deque()  # each held until it is its owner's turn

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()

    def try_enter(self) -> bool:
        """Take the turn if nobody has it; then `leave` gives it back.  Does not block."""
        with self._lock:
            if self._taken:
                return False
            self._taken = True
            return True

    def enter_within(self, seconds: float) -> bool:
        """Wait for the turn, but no longer than this; when True, `leave` gives it back."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=seconds):
            return True
        with self._lock:
            if turn not in self._waiting:
                return True  # it was handed over at the last moment
            self._waiting.remove(turn)
        return False

    def leave(self) -> None:
        """Hand the turn straight to the one who has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
