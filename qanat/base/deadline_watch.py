"""Cuts connections that have not come to the point when their time is up.

A timeout on each read would not do: whoever sends a byte in time gets another read, and one TLS record sent
byte by byte keeps a thread inside a single call.  One thread watches the clock for all of them, and cutting
wakes whatever their own threads are blocked in.  Owned by `qanat.server.front_door.front_door`;
`qanat.server.resume_timeouts` lets sessions end with another one whose clients stay away.
"""

from __future__ import annotations

import threading
from typing import Protocol

from qanat.base.deadline import Deadline
from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected


class Watched(Protocol):
    """What can be cut at its deadline."""

    @property
    def deadline(self) -> Deadline:
        """When its time is up."""

    def cut(self) -> None:
        """End it if it has not come to the point.  Must not block."""


class DeadlineWatch:
    """All that is watched has the same time to live, so the order of arrival is the order of deadlines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._waiting: dict[Watched, None] = {}  # used as an ordered set
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread.  Does not block.  Raises NoThread."""
        self._thread = start_thread(self._name, self._watch_loop)

    def add(self, watched: Watched) -> None:
        """Have `watched` cut at its deadline.  Does not block."""
        with self._changed:
            self._waiting[watched] = None
            if len(self._waiting) == 1:
                self._changed.notify()

    def forget(self, watched: Watched) -> None:
        """Forget it: it has ended by itself.  Idempotent; does not block."""
        with self._changed:
            self._waiting.pop(watched, None)

    def close(self) -> None:
        """Stop watching.  Idempotent; does not block."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()

    def join(self, timeout: float) -> list[str]:
        """Wait at most `timeout` seconds; return the thread's name if it is still running."""
        if self._thread is None:
            return []
        self._thread.join(timeout)
        return [self._thread.name] if self._thread.is_alive() else []

    def _watch_loop(self) -> None:
        while True:
            with self._changed:
                first = self._next_locked()
            if first is None:
                return
            try:
                first.cut()
            except Exception:
                # All others still have their deadlines.
                log_unexpected(f"{self._name}: cutting one ended")
            del first  # or it would stay until the next one's time is up

    def _next_locked(self) -> Watched | None:
        """Block for the next whose time is up; None when this was closed."""
        while not self._closed:
            first = next(iter(self._waiting), None)
            remaining = None if first is None else first.deadline.remaining()
            if first is None or remaining is None or remaining > 0:
                del first  # likewise: it may be forgotten meanwhile
                self._changed.wait(remaining)
            else:
                del self._waiting[first]
                return first
        return None
