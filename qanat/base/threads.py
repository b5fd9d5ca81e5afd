"""Named threads with an owner who joins them.

Every thread of the program is started here.  What escapes a thread's function is a bug: it is
logged with its traceback, never lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qanat.base.errors import NoThread
from qanat.base.unexpected import log_unexpected


def start_thread(name: str, target: Callable[[], object]) -> threading.Thread:
    """Start a daemon thread called `name` and return it for its owner to join.  Does not block.

    Raises NoThread when the system gives none; nothing of `target` has run then.

    Threads are daemons so that one stuck in `getaddrinfo`, which nothing can interrupt, cannot
    keep the process alive; every other thread is joined by its owner.
    """

    def run() -> None:
        try:
            target()
        except Exception:
            log_unexpected(f"thread {name} ended")

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # CPython has no other way to say it
        raise NoThread from error
    return thread


class ThreadGroup:
    """The threads that one owner started and will join.  Safe to use from any thread.

    Threads that have finished are forgotten as new ones start, so a long-lived owner with many
    short-lived threads stays small.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def start(self, name: str, target: Callable[[], object]) -> threading.Thread:
        """Start `target` in a thread of this group.  Does not block.  Raises NoThread."""

        def run() -> None:
            try:
                target()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        with self._lock:
            thread = start_thread(name, run)
            self._threads.add(thread)
        return thread

    def __len__(self) -> int:
        with self._lock:
            return len(self._threads)

    def join(self, timeout: float) -> list[str]:
        """Wait at most `timeout` seconds for all of them; return the names of those still running."""
        deadline = time.monotonic() + timeout
        with self._lock:
            waiting = [t for t in self._threads if t is not threading.current_thread()]
        for thread in waiting:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name for thread in waiting if thread.is_alive()]
