"""What tells a watcher that a pipe has something to receive: a descriptor, or whoever reads for it, or for several."""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections.abc import Callable

from qanat.base.watcher import Flushable, Ready, Watcher


class Readiness(ABC):
    """Made by `Pipe.readiness`; for one thread at a time."""

    @abstractmethod
    def add(self, ready: Ready) -> None:
        """Have `ready` called by the watcher whenever there is something, until `remove`.  Does not block.

        Also for what has come already, an end included.  Raises as `Watcher.add`.
        """

    @abstractmethod
    def remove(self) -> None:
        """Have it called no more; a call that has begun goes on.  Idempotent."""

    @abstractmethod
    def has_come(self) -> bool:
        """Return whether there is something to which the watcher has yet to come.  While added; does not block."""

    @abstractmethod
    def close(self) -> None:
        """Give back what this needed: nobody waits any more."""


class DescriptorReadiness(Readiness):
    """That of what has a descriptor of its own."""

    def __init__(self, watcher: Watcher, fd: int, unwatch: Callable[[], None]) -> None:
        """`unwatch` is called by `close`."""
        self._watcher = watcher
        self._fd = fd
        self._unwatch = unwatch

    def add(self, ready: Ready) -> None:
        """See `Readiness.add`."""
        self._watcher.add(self._fd, ready)

    def remove(self) -> None:
        """See `Readiness.remove`."""
        self._watcher.remove(self._fd)

    def has_come(self) -> bool:
        """See `Readiness.has_come`."""
        return readable(self._fd)

    def close(self) -> None:
        """See `Readiness.close`."""
        self._unwatch()


class PostedReadiness(Readiness):
    """That of what has no descriptor: whoever brings something tells the watcher, which alone calls back."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._ready: Ready | None = None
        self._posted = False

    def _tell(self) -> None:
        """Have the watcher call back once, soon.  From any thread; does not block."""
        if not self._posted:
            self._posted = True
            self._watcher.post(self._call)

    def _call(self) -> Flushable | None:
        """Call back, unless it was removed.  By the watcher."""
        self._posted = False
        ready = self._ready
        return None if ready is None else ready()


def readable(fd: int) -> bool:
    """Return whether there is something to read from `fd`, its end included.  Does not block."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
