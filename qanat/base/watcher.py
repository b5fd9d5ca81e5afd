"""One thread that watches all that is quiet, so that streams and pipes cost no thread while little moves.

    socket readable -> its callback, in the watcher's thread: an application's bytes are queued on their lane,
                       a pipe's records are opened and handed to the applications' sockets
    after a round   -> every lane that got something is flushed once, so that many streams share a record; an end alone
                       waits for one more look (`flush_soon`), since the next beginning mostly is a moment away
    then            -> what need not go before (`call_late`): answers to a split pipe's requests with bytes; stream and
                       socket that are over are closed
    a timer is due  -> its callback, in the same thread
    chores          -> now and then while something happens (`stir`), so that nothing else has to wake for them

A callback must not block: it reads what is there, and whoever has more than that to do takes the socket away
(`remove`) and goes on in a thread of its own.  While all is quiet this is the only thread that runs, so that a small
exchange hands over nothing to anybody.  A client and a server have one watcher each, which they close.

Linux lets other threads change what an epoll instance waits for; elsewhere `selectors` serves, and the thread is
woken for each change.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from qanat.base.errors import NoThread
from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected

ROUND = 64
"""Sockets looked after in one round at most, before what they brought is sent."""
TIMERS_IN_ROUND = 16
"""Timers called in one round, or a quarter of those that are due where that is more: the PINGs of a thousand idle pipes
hold up no socket, and measure no queue."""
NAME = "watcher"
TICK = 5.0
"""Seconds from a `stir` until the chores are done."""
_HAS_EPOLL = hasattr(select, "epoll")


class Flushable(Protocol):
    """What has to be flushed once a round is over: a lane."""

    def flush(self) -> None:
        """Send what is queued, as far as that can be done at once.  Does not block."""


Ready = Callable[[], Flushable | None]
"""Called in the watcher's thread when a socket has bytes, its end or an error; returns what to flush.

Must not block."""


Chore = Callable[[], bool]
"""Called in the watcher's thread; returns whether to be called again after TICK though nothing may have happened.

Must not block."""


class Timer:
    """Calls back in the watcher's thread.  Made by `Watcher.timer`; its methods may be called from any thread."""

    __slots__ = ("_callback", "_later", "_watcher", "at", "due")

    def __init__(self, watcher: Watcher, callback: Ready) -> None:
        self._watcher = watcher
        self._callback: Ready | None = callback
        self._later: list[float] = []  # for which it was set before; the soonest is the last
        self.at = math.inf
        """When it calls next, on `time.monotonic`; infinite while it is not set."""
        self.due = False
        """Whether a time has come, and it has yet to be called for that.  The watcher's thread's own."""

    def set(self, at: float) -> None:
        """Have it call at `at`.  Does not block.

        It calls at every time that was set before a sooner one, too, so that whoever sets it over and over costs
        nothing: the callback looks for itself what is due.  Raises NoThread as `Watcher.add` does.
        """
        if at < self.at:
            self._watcher.set_timer(self, at)

    def cancel(self) -> None:
        """Call no more; a call that has begun goes on.  Idempotent; does not block."""
        self._callback = None

    @property
    def canceled(self) -> bool:
        """Whether it will call no more."""
        return self._callback is None

    def next(self, at: float) -> None:
        """Note the soonest time for which it is set.  By the watcher, with its lock."""
        if self.at < math.inf:
            self._later.append(self.at)
        self.at = at

    def passed(self) -> None:
        """Note that this time has come.  By the watcher, with its lock."""
        self.at = self._later.pop() if self._later else math.inf

    def call(self) -> Flushable | None:
        """Call back, unless it was canceled.  By the watcher, without its lock."""
        self.due = False
        callback = self._callback
        return None if callback is None else callback()


class Watcher:
    """See the module's docstring.  All methods may be called from any thread, `close` only from others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows; `_ready` is read without
        self._ready: dict[int, Ready] = {}
        self._times: list[float] = []
        """A heap of the times for which timers are set.  Many idle pipes share few of them (`qanat.mux`)."""
        self._timers: dict[float, list[Timer]] = {}
        """Those that are set for each of these times."""
        self._overdue: deque[Timer] = deque()
        """Those whose time has come, in its order.  The thread's own."""
        self._busy_since = math.inf
        """Since when the thread has been in its present round; infinite while it waits."""
        self._wakes_at = -math.inf
        """When the thread looks at the timers by itself; it need not be woken for a later one, nor while it runs."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._poll: _Epoll | _Selector | None = None
        self._posted: deque[Ready] = deque()
        self._dirty: set[Flushable] = set()
        """What is flushed once the present round is over.  The thread's own."""
        self._soon: set[Flushable] = set()
        """What is flushed once the next round is over, which does not wait.  The thread's own."""
        self._late: deque[Callable[[], None]] = deque()
        """What is called once the present round is over and flushed.  The thread's own."""
        self._ident: int | None = None
        self.alone = False
        """Whether the callback of a descriptor that runs is its round's only one, with nothing to be flushed before."""
        self._chores: dict[Chore, None] = {}  # used as an ordered set
        self._tick = self.timer(self._do_chores)
        self.stirred = False
        """Whether the chores will be done within TICK, so that `stir` need not be called."""

    def start(self) -> None:
        """Start the thread now, if it does not run.  Does not block.  Raises NoThread, and OSError without descriptors.

        Otherwise the first `add` or timer does, and may raise these.
        """
        with self._lock:
            self._started_locked()

    def add(self, fd: int, ready: Ready) -> None:
        """Have `ready` called whenever there is something to read, until `remove`.  Does not block.

        Also for what has come already.  Raises NoThread when the watcher's thread cannot be started, OSError when the
        system takes no more, and nothing when it is closed: then nobody is called any more.
        """
        with self._lock:
            poll = self._started_locked()
            if poll is None:
                return
            self._ready[fd] = ready
            try:
                poll.add(fd)
            except OSError:
                del self._ready[fd]
                raise

    def remove(self, fd: int) -> None:
        """Watch it no longer; a call that has begun goes on.  Idempotent; do so before the descriptor is closed."""
        with self._lock:
            if self._ready.pop(fd, None) is not None and self._poll is not None and not self._closed:
                self._poll.remove(fd)

    def post(self, callback: Ready) -> None:
        """Have `callback` called once, in this round by who calls this in it, else soon.  Does not block.

        Not where the watcher has not been started, or is closed.
        """
        self._posted.append(callback)
        poll = self._poll
        if poll is not None and threading.current_thread() is not self._thread:
            with self._lock:
                if self._poll is not None:
                    self._poll.wake()

    def flush(self, flushable: Flushable) -> None:
        """Flush it once this round is over, with what else the round brings; at once outside the watcher's thread.

        Does not block.
        """
        if threading.get_ident() == self._ident:
            self._dirty.add(flushable)
        else:
            flushable.flush()

    def flush_soon(self, flushable: Flushable) -> None:
        """Flush it after one more look at what is ready, with what that brings; at once outside the watcher's thread.

        For what nobody waits for: the end of a stream, which mostly has company a moment later.  Does not block.
        """
        if threading.get_ident() == self._ident:
            self._soon.add(flushable)
        else:
            flushable.flush()

    def call_late(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once what this round has brought is sent; call it now outside the watcher's thread.

        For what must not go before what the round has brought, or what nobody waits for.  It must not block.
        """
        if threading.get_ident() == self._ident:
            self._late.append(callback)
        else:
            callback()

    def tidy(self) -> bool:
        """Call now what `call_late` was given in this round; whether there was anything, for who needs its place.

        By callbacks, in the watcher's thread; does nothing in others.  Must not be called with a lock that these need.
        """
        if not self._late or threading.get_ident() != self._ident:
            return False
        self._call_late(self._late)
        return True

    def timer(self, callback: Ready) -> Timer:
        """Return a timer that calls `callback`, which must not block, and is not set yet."""
        return Timer(self, callback)

    def set_timer(self, timer: Timer, at: float) -> None:
        """Set a timer of this watcher; see `Timer.set`."""
        with self._lock:
            if at < timer.at and self._started_locked() is not None:
                timer.next(at)
                others = self._timers.get(at)
                if others is not None:
                    others.append(timer)
                    return  # whoever was the first for this time has seen to it that the thread looks
                self._timers[at] = [timer]
                heapq.heappush(self._times, at)
                if at < self._wakes_at and self._poll is not None:
                    self._wakes_at = at
                    self._poll.wake()

    def add_chore(self, chore: Chore) -> None:
        """Have `chore` done while something happens, until `remove_chore`: every TICK seconds, the latest added first.

        Does not block.
        """
        with self._lock:
            self._chores[chore] = None

    def remove_chore(self, chore: Chore) -> None:
        """Have it done no more.  Idempotent; does not block."""
        with self._lock:
            self._chores.pop(chore, None)

    def stir(self) -> None:
        """Have the chores done within TICK seconds: something has happened.  Does not block.

        Later where the watcher cannot be started for want of threads or descriptors.
        """
        if not self.stirred:
            self.stirred = True
            try:
                self._tick.set(time.monotonic() + TICK)
            except (NoThread, OSError):
                self.stirred = False

    def stuck(self, now: float, patience: float) -> str:
        """Return in words that the thread has not come round for more than `patience` seconds; "" while it does.

        `now` is on `time.monotonic`.  Does not block, not even for the watcher's lock.
        """
        if self._thread is None or self._closed:
            return ""
        busy, late = now - self._busy_since, now - self._wakes_at
        if busy > patience:
            return f"the watcher has been in one round for {busy:.0f} s"
        if math.isfinite(late) and self._busy_since == math.inf and late > patience:
            return f"the watcher has slept for {late:.0f} s too long"
        return ""

    def _started_locked(self) -> _Epoll | _Selector | None:
        """Return what waits, with the thread started; None when this is closed.  Raises NoThread."""
        if self._closed:
            return None
        if self._poll is None:
            self._poll = _Epoll() if _HAS_EPOLL else _Selector()
        if self._thread is None:
            self._thread = start_thread(NAME, self._watch_loop)
        return self._poll

    def __len__(self) -> int:
        return len(self._ready)

    def close(self) -> None:
        """Watch nothing any more, and block until the thread has ended.  Idempotent."""
        with self._lock:
            self._closed = True
            self._ready.clear()
            self._times.clear()
            self._timers.clear()
            self._posted.clear()
            self._chores.clear()
            thread, poll = self._thread, self._poll
            if poll is not None:
                poll.wake()
        if thread is not None:
            thread.join()
        self._overdue.clear()
        with self._lock:
            if self._poll is not None:
                self._poll.close()
                self._poll = None

    def _watch_loop(self) -> None:
        poll, ready, posted, times = self._poll, self._ready, self._posted, self._times
        assert poll is not None  # made before the thread
        dirty, soon, late, overdue = self._dirty, self._soon, self._late, self._overdue
        wait, monotonic, never = poll.wait, time.monotonic, math.inf
        self._ident = threading.get_ident()
        while not self._closed:
            self._busy_since = never
            # Without the lock, but in this order: whoever sets a timer that is not seen here has to wake this thread.
            self._wakes_at = never
            due = -never if posted or dirty or overdue else times[0] if times else never
            self._wakes_at = due
            pause = due - monotonic()
            found = wait(None if due == never else pause if pause > 0.0 else 0.0, ROUND)
            self._busy_since = now = monotonic()
            self._wakes_at = -never  # The heap is looked at again before the next wait.
            self.alone = len(found) == 1 and not dirty
            for fd, _ in found:
                callback = ready.get(fd)
                if callback is None:  # taken away since, or a wake-up
                    poll.woken(fd)
                    continue
                try:
                    flushable = callback()
                except Exception:
                    log_unexpected("watching a socket ended")
                    self.remove(fd)
                    continue
                if flushable is not None:
                    dirty.add(flushable)
            if posted:
                self._call_posted(dirty)
            if due <= now:
                self._call_timers(dirty)
            while dirty:
                try:
                    flushable = dirty.pop()
                    if soon:
                        soon.discard(flushable)
                    flushable.flush()
                except Exception:
                    log_unexpected("flushing what the watcher has read ended")
            if late:
                self._call_late(late)
            if soon:
                dirty.update(soon)
                soon.clear()
            callback = flushable = None  # or what has ended would live until the next round, hours later perhaps
        self._ident = None  # another thread may get the number

    def _call_late(self, late: deque[Callable[[], None]]) -> None:
        """Call what was to be called late, and what that adds."""
        while late:
            try:
                late.popleft()()
            except Exception:
                log_unexpected("what was to be called after a round ended")

    def _call_posted(self, dirty: set[Flushable]) -> None:
        """Call what was posted, what that posts too, and leave to the next round what follows from these."""
        for _ in range(2):
            for _ in range(len(self._posted)):
                try:
                    flushable = self._posted.popleft()()
                except Exception:
                    log_unexpected("what was posted to the watcher ended")
                    continue
                if flushable is not None:
                    dirty.add(flushable)

    def _call_timers(self, dirty: set[Flushable]) -> None:
        """Call what is due, some of it where that is much, and add what has to be flushed after that to `dirty`."""
        overdue, times, now = self._overdue, self._times, time.monotonic()
        with self._lock:
            while times and times[0] <= now:
                for timer in self._timers.pop(heapq.heappop(times)):
                    timer.passed()
                    if not timer.due:  # where it waits for its turn, one call is for all times that have come by then
                        timer.due = True
                        overdue.append(timer)
        for _ in range(min(len(overdue), max(TIMERS_IN_ROUND, len(overdue) // 4))):
            if self._closed:
                return
            try:
                flushable = overdue.popleft().call()
            except Exception:
                log_unexpected("a timer's call ended")
                continue
            if flushable is not None:
                dirty.add(flushable)

    def _drop_canceled_locked(self) -> None:
        """Forget timers that will call nobody: when much has ended at once, they are many, and lie among its memory."""
        for at, timers in list(self._timers.items()):
            timers[:] = [timer for timer in timers if not timer.canceled]
            if not timers:
                del self._timers[at]
        if len(self._timers) < len(self._times):
            self._times[:] = self._timers  # in place: the thread has it
            heapq.heapify(self._times)

    def _do_chores(self) -> None:
        with self._lock:
            chores = list(self._chores)
            self._drop_canceled_locked()
        self.stirred = again = False
        for chore in reversed(chores):
            try:
                again = chore() or again
            except Exception:
                log_unexpected("what the watcher does now and then ended")
        if again:
            self.stir()


class _Epoll:
    """What the kernel watches, on Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = _WakeUp()
        self._epoll.register(self._wake.fd, select.EPOLLIN)
        self.wait: Callable[[float | None, int], list[tuple[int, int]]] = self._epoll.poll
        """Blocks for the descriptors that have something, and what they have, within so many seconds, and so many."""

    def add(self, fd: int) -> None:
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except FileExistsError:
            self._epoll.modify(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        try:  # noqa: SIM105 - for each connection
            self._epoll.unregister(fd)
        except OSError:  # closed already, which has removed it
            pass

    def woken(self, fd: int) -> None:
        """Note that `wait` has returned `fd`, if that was to be woken."""
        if fd == self._wake.fd:
            self._wake.clear()

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

    def wait(self, seconds: float | None, most: int) -> list[tuple[int, int]]:
        """Block for at most `most` descriptors that have something, and what they have, at most `seconds`."""
        with self._lock:
            changes, self._changes = self._changes, []
        for added, fd in changes:
            with contextlib.suppress(KeyError, ValueError, OSError):
                if added:
                    self._selector.register(fd, selectors.EVENT_READ)
                else:
                    self._selector.unregister(fd)
        return [(key.fd, mask) for key, mask in self._selector.select(seconds)][:most]

    def woken(self, fd: int) -> None:
        """Note that `wait` has returned `fd`, if that was to be woken."""
        if fd == self._wake.fd:
            self._wake.clear()

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
