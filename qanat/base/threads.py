"""Named threads with an owner who joins them.

Threads are started here, and those that do short work come from `qanat.base.workers`.  What escapes a thread's
function is a bug: it is logged with its traceback, never lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qanat.base.errors import NoThread
from qanat.base.unexpected import log_unexpected
from qanat.base.workers import WORKERS, Task, current_task


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

    They come from a pool (`qanat.base.workers`), so that short work does not cost a thread's start.
    """

    def __init__(self, owner: str, *, reserved: bool = False) -> None:
        """With `reserved` they may be some of those that the pool keeps back."""
        self.owner = owner
        self._reserved = reserved
        self._lock = threading.Lock()
        self._tasks: set[Task] = set()

    def start(self, name: str, target: Callable[[], object]) -> Task:
        """Start `target` in a thread of this group, called `name`.  Does not block.  Raises NoThread."""

        def run() -> None:
            try:
                target()
            finally:
                with self._lock:
                    self._tasks.discard(task)

        # The lock keeps a task that ends at once from being forgotten before it is known.
        with self._lock:
            task = WORKERS.start(name, run, reserved=self._reserved)
            self._tasks.add(task)
        return task

    def __len__(self) -> int:
        with self._lock:
            return len(self._tasks)

    def join(self, timeout: float) -> list[str]:
        """Block at most `timeout` seconds for all but the calling one; return the names of those still running."""
        deadline = time.monotonic() + timeout
        with self._lock:
            waiting = [task for task in self._tasks if task is not current_task()]
        for task in waiting:
            task.join(max(0.0, deadline - time.monotonic()))
        return [task.name for task in waiting if task.is_alive()]
