"""One thread that watches the sockets of all quiet streams, so that a stream costs no thread while nothing moves.

    socket readable -> its callback, in the watcher's thread -> what came is queued on the stream's lane
    after a round   -> every lane that got something is flushed once, so that many streams share a record

A callback must not block: it reads what is there, and whoever has more than that to do takes the socket away
(`remove`) and goes on in a thread of its own.  A client and a server have one watcher each, which they close.

Linux lets other threads change what an epoll instance waits for; elsewhere `selectors` serves, and the thread is
woken for each change.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected

ROUND = 64
"""Sockets looked after in one round at most, before what they brought is sent."""
NAME = "stream-watcher"
_HAS_EPOLL = hasattr(select, "epoll")


class Flushable(Protocol):
    """What has to be flushed once a round is over: a lane."""

    def flush(self) -> None:
        """Send what is queued, as far as that can be done at once.  Does not block."""


Ready = Callable[[], Flushable | None]
"""Called in the watcher's thread when a socket has bytes, its end or an error; returns what to flush.

Must not block."""


class Watcher:
    """See the module's docstring.  All methods may be called from any thread, `close` only from others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows; `_ready` is read without
        self._ready: dict[int, Ready] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._poll: _Epoll | _Selector | None = None

    def add(self, fd: int, ready: Ready) -> None:
        """Have `ready` called whenever there is something to read, until `remove`.  Does not block.

        Also for what has come already.  Raises NoThread when the watcher's thread cannot be started, and nothing
        when it is closed: then nobody is called any more.
        """
        with self._lock:
            if self._closed:
                return
            if self._poll is None:
                self._poll = _Epoll() if _HAS_EPOLL else _Selector()
            if self._thread is None:
                self._thread = start_thread(NAME, self._watch_loop)
            self._ready[fd] = ready
            self._poll.add(fd)

    def remove(self, fd: int) -> None:
        """Watch it no longer; a call that has begun goes on.  Idempotent; do so before the descriptor is closed."""
        with self._lock:
            if self._ready.pop(fd, None) is not None and self._poll is not None and not self._closed:
                self._poll.remove(fd)

    def __len__(self) -> int:
        return len(self._ready)

    def close(self) -> None:
        """Watch nothing any more, and block until the thread has ended.  Idempotent."""
        with self._lock:
            self._closed = True
            self._ready.clear()
            thread, poll = self._thread, self._poll
            if poll is not None:
                poll.wake()
        if thread is not None:
            thread.join()
        with self._lock:
            if self._poll is not None:
                self._poll.close()
                self._poll = None

    def _watch_loop(self) -> None:
        poll, ready = self._poll, self._ready
        assert poll is not None  # made before the thread
        wait = poll.wait
        while not self._closed:
            dirty: set[Flushable] = set()
            for fd in wait():
                callback = ready.get(fd)
                if callback is None:
                    continue  # taken away since, or a wake-up
                try:
                    flushable = callback()
                except Exception:
                    log_unexpected("watching a stream's socket ended")
                    self.remove(fd)
                    continue
                if flushable is not None:
                    dirty.add(flushable)
            for flushable in dirty:
                flushable.flush()


class _Epoll:
    """What the kernel watches, on Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = _WakeUp()
        self._epoll.register(self._wake.fd, select.EPOLLIN)

    def add(self, fd: int) -> None:
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except FileExistsError:
            self._epoll.modify(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # closed already, which has removed it
            self._epoll.unregister(fd)

    def wait(self) -> list[int]:
        """Block for the descriptors that have something."""
        found = [fd for fd, _ in self._epoll.poll(-1, ROUND)]
        if self._wake.fd in found:
            self._wake.clear()
        return found

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        self._epoll.close()
        self._wake.close()


class _Selector:
    """The same where there is no epoll: changes are made by the thread that waits."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = _WakeUp()
        self._selector.register(self._wake.fd, selectors.EVENT_READ)
        self._lock = threading.Lock()  # guards the next
        self._changes: list[tuple[bool, int]] = []

    def add(self, fd: int) -> None:
        self._change(True, fd)

    def remove(self, fd: int) -> None:
        self._change(False, fd)

    def wait(self) -> list[int]:
        """Block for the descriptors that have something."""
        with self._lock:
            changes, self._changes = self._changes, []
        for added, fd in changes:
            with contextlib.suppress(KeyError, ValueError, OSError):
                if added:
                    self._selector.register(fd, selectors.EVENT_READ)
                else:
                    self._selector.unregister(fd)
        found = [key.fd for key, _ in self._selector.select()]
        if self._wake.fd in found:
            self._wake.clear()
        return found[:ROUND]

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        self._selector.close()
        self._wake.close()

    def _change(self, added: bool, fd: int) -> None:
        with self._lock:
            self._changes.append((added, fd))
        self._wake.set()


class _WakeUp:
    """A pair of sockets by which another thread ends a wait."""

    def __init__(self) -> None:
        self._there, self._here = socket.socketpair()
        self._there.setblocking(False)
        self._here.setblocking(False)
        self.fd = self._here.fileno()

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is set already
            self._there.send(b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._here.recv(4096)

    def close(self) -> None:
        self._there.close()
        self._here.close()
