"""Threads that are used again: starting one costs ten times what waking one does.

`Workers` keeps threads that have nothing to do for a while and gives them to whoever asks next.  What runs in one
is a `Task`: it has the name of what it does, an owner who joins it, and an end, just like a thread that was started
for it alone.  `qanat.base.threads.ThreadGroup` starts its tasks here; what lasts, as a pipe's writer does, has a
thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from qanat.base.errors import NoThread
from qanat.base.unexpected import log_unexpected

IDLE_SECONDS = 3.0
"""Seconds that a thread waits for something to do before it ends."""
MOST_IDLE = 24
"""Threads that wait at once; whoever has nothing to do beyond that ends."""
IDLE_NAME = "shared-worker"
"""The name of a thread that waits."""


class Task:
    """One piece of work in a thread of the pool.  Its methods may be called from any thread."""

    __slots__ = ("_running", "_target", "name")

    def __init__(self, name: str, target: Callable[[], object]) -> None:
        self.name = name
        self._target: Callable[[], object] | None = target
        self._running = threading.Lock()  # held until the work is over
        self._running.acquire()

    def is_alive(self) -> bool:
        """Return whether the work is not over yet."""
        return self._running.locked()

    def join(self, timeout: float | None = None) -> None:
        """Block until the work is over, at most `timeout` seconds."""
        if self._running.acquire(timeout=-1 if timeout is None else timeout):
            self._running.release()

    def run(self) -> None:
        """Do the work, once.  What escapes it is a bug of this program, and is logged, never lost."""
        target, self._target = self._target, None  # which may hold this task, and much else
        try:
            if target is not None:
                target()
        except Exception:
            log_unexpected(f"thread {self.name} ended")
        finally:
            self._running.release()


class _Worker(threading.Thread):
    """One thread of the pool: does its task, then waits for the next."""

    def __init__(self, pool: Workers, task: Task | None) -> None:
        super().__init__(name=IDLE_NAME if task is None else task.name, daemon=True)
        self.task: Task | None = task
        self.go = threading.Lock()
        self.go.acquire()
        self._pool = pool

    def run(self) -> None:
        while True:
            task = self.task
            if task is not None:
                self.name = task.name
                task.run()
                self.task = task = None
            if not self._pool.wait_for_task(self):
                return


class Workers:
    """A pool of threads.  Safe to use from any thread.

    There is no bound on the threads that work, which is their owners' to set; at most `most_idle` wait, each for
    `idle_seconds`.  Some may be kept back (`reserve`) for work that must go on when the system gives no more.
    """

    def __init__(self, *, most_idle: int = MOST_IDLE, idle_seconds: float = IDLE_SECONDS) -> None:
        self._most_idle = most_idle
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._reserve = 0
        self._on_short: Callable[[], object] = _nothing

    def start(self, name: str, target: Callable[[], object], *, reserved: bool = False) -> Task:
        """Run `target` in a thread called `name` meanwhile; return its task.  Does not block.

        With `reserved`, one of those that are kept back is taken where the system gives none.  Raises NoThread when
        there is no thread; nothing of `target` has run then.
        """
        task = Task(name, target)
        if self._take_idle(task, self._reserve):
            return task
        try:
            _Worker(self, task).start()
        except RuntimeError as error:  # CPython has no other way to say it
            taken = reserved and self._take_idle(task, 0)
            if reserved:
                self._on_short()
            if not taken:
                raise NoThread from error
        return task

    def reserve(self, count: int, on_short: Callable[[], object]) -> None:
        """Keep `count` threads waiting for work that is `reserved`, from now on; 0 keeps none.

        `on_short` is called, by whoever starts such work, when the system gives no more threads; it should end
        something that has one, and must not block.  Where the system gives no `count` threads, what it gives is kept.
        """
        self._reserve, self._on_short = count, on_short
        with contextlib.suppress(RuntimeError):
            for _ in range(count):
                _Worker(self, None).start()

    def _take_idle(self, task: Task, leave: int) -> bool:
        """Give `task` to a thread that waits, if more than `leave` do."""
        with self._lock:
            worker = self._idle.pop() if len(self._idle) > leave else None
        if worker is None:
            return False
        worker.task = task
        worker.go.release()
        return True

    def wait_for_task(self, worker: _Worker) -> bool:
        """Block until `worker` has another task; False when it should end."""
        with self._lock:
            if len(self._idle) >= self._most_idle:
                return False
            worker.name = IDLE_NAME
            self._idle.append(worker)
        while not worker.go.acquire(timeout=self._idle_seconds):
            with self._lock:
                if worker not in self._idle:
                    break
                if len(self._idle) > self._reserve:
                    self._idle.remove(worker)
                    return False
        else:
            return True
        worker.go.acquire()  # somebody has taken it out meanwhile, and is about to say so
        return True


def _nothing() -> None:
    """Nobody has to give way."""


def current_task() -> Task | None:
    """Return the task that the calling thread is in; None in a thread of another kind."""
    thread = threading.current_thread()
    return thread.task if isinstance(thread, _Worker) else None


WORKERS = Workers()
"""The pool of this process."""
