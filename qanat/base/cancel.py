"""Stopping, from another thread, what blocks in the network before there is anything to close.

Connector goes through several blocking steps (name, TCP, proxy, TLS, HTTP), each with another way to wake it.
Whoever runs a step says how; whoever stops need not know which step is running.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Cancel:
    """Once canceled, always canceled.  Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._canceled = False
        self._wakeups: list[Callable[[], object]] = []

    @property
    def canceled(self) -> bool:
        """Whether it was canceled."""
        return self._canceled

    def cancel(self) -> None:
        """Wake what is running now, and what will begin.  Does not block.  Idempotent."""
        with self._lock:  # held during the calls, so that none comes after its block has ended
            self._canceled = True
            for wakeup in self._wakeups:
                wakeup()
            self._wakeups.clear()

    @contextmanager
    def waking(self, wakeup: Callable[[], object]) -> Iterator[None]:
        """Have `wakeup` called once, when this is canceled before the block ends; at once if it is already.

        `wakeup` comes from any thread and must not block.  Whether it was called tells `canceled`.
        """
        with self._lock:
            if self._canceled:
                wakeup()
            else:
                self._wakeups.append(wakeup)
        try:
            yield
        finally:
            with self._lock:
                if wakeup in self._wakeups:
                    self._wakeups.remove(wakeup)
