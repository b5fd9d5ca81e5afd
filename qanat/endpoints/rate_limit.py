"""Bytes a second for many streams in one direction, of which each gets its fair part.

A `RateLimit` is a token bucket that the streams of a client or a forward share; each has a `RateShare` of it.  Whoever
moves bytes takes as many as it may; one that may none asks to be called, and holds no thread meanwhile:

    take -> some: move them, give back the rest       take -> 0: when_ready(callback)  ... timer ... callback, take

- **Fair.**  Those who wait take turns, a quantum of bytes each, so that a stream which is fast gets no more than one
  that is slow to take its turn, and none starves.
- **Small exchanges stay quick.**  Half of the burst, refilled with half of the rate, is kept for streams that use less
  than half of their fair part: these take their bytes at once, however many others wait.  What they do not need is the
  others', and however many they are, they leave the others half of the rate.
- **The bound.**  In any t seconds at most burst + t * rate bytes are taken.  The burst is a quarter of a second's
  bytes, at least 16 KiB.

Rejected: a thread that sleeps for each stream that has to wait (thousands of idle threads), and to hold bytes back in a
queue of our own (memory beyond the windows): here what is over the rate stays in the socket, or in the window of a peer
that gets no credit for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from qanat.base.errors import NoThread
from qanat.base.token_bucket import TokenBucket
from qanat.base.watcher import Flushable

BURST_SECONDS = 0.25
"""Seconds' worth of bytes that may go at once after a pause."""
MIN_BURST = 16 * 1024
"""Bytes that may go at once, however low the rate is."""
MIN_QUANTUM = 1460
"""Bytes of a turn at least: what a TCP segment carries."""
MAX_QUANTUM = 128 * 1024
TURN_SECONDS = 0.02
"""Seconds' worth of bytes that one turn is at most, so that a timer need not be exact."""
ROUND_SECONDS = 0.1
"""Seconds in which all who wait should have had a turn."""
TURNS_PER_SECOND = 1000
"""Turns a second at most, which bounds what they cost."""
WORTHWHILE = 1024
"""Bytes: fewer are not taken from what is kept for small exchanges, unless there are no more to move."""
GRANT_SECONDS = 1.0
"""Seconds after which what a stream was granted and has not used is anybody's again."""


class RateTimer(Protocol):
    """Calls back at a time; `qanat.base.watcher.Timer`."""

    def set(self, at: float) -> None:
        """Have it call at `at`."""


class Timers(Protocol):
    """What makes timers; `qanat.base.watcher.Watcher`."""

    def timer(self, callback: Callable[[], Flushable | None]) -> RateTimer:
        """Return one that is not set."""


class RateLimit:
    """See the module's docstring.  Safe to use from any thread; never blocks."""

    def __init__(self, rate: float, timers: Timers, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow `rate` bytes a second, above 0, on the clock of `timers`."""
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows, and all shares
        self._bucket = TokenBucket(rate, _burst(rate), clock())
        self._kept = TokenBucket(rate / 2, self._bucket.burst / 2, clock())  # of these, what is for small exchanges
        self._fresh: deque[RateShare] = deque()  # those who wait for the first time since a while
        self._waiting: deque[RateShare] = deque()
        self._fresh_next = True  # whose turn it is, where both have some
        self._timer = timers.timer(self._turn)

    def change(self, rate: float) -> None:
        """Allow another `rate` from now on, also to those who have a share.  Whoever waits is looked at anew."""
        with self._lock:
            now = self._clock()
            for bucket, part in ((self._bucket, rate), (self._kept, rate / 2)):
                bucket.refill(now)
                bucket.rate, bucket.burst = part, _burst(rate) * part / rate
                bucket.tokens = min(bucket.burst, bucket.tokens)
        self._turn()  # which sets the timer anew for whoever waits

    def share(self) -> RateShare:
        """Return the share of one more stream, which has to `close` it."""
        return RateShare(self)

    def take_all(self, count: int) -> bool:
        """Take `count` bytes for what is dropped rather than kept waiting, as a datagram is; False when it must be.

        Does not wait for a turn: what is kept for small exchanges is left to them.
        """
        with self._lock:
            if self._free_locked(self._clock()) < count:
                return False
            self._bucket.tokens -= count
            return True

    @property
    def plenty(self) -> bool:
        """Whether nobody waits, and there is more than a turn's bytes; a guess, without the lock."""
        return not self._waits and self._bucket.tokens - self._kept.tokens >= MAX_QUANTUM

    def _free_locked(self, now: float) -> int:
        """Return the bytes that are there for anybody."""
        self._bucket.refill(now)
        self._kept.refill(now)
        return int(self._bucket.tokens - self._kept.tokens)

    @property
    def _waits(self) -> int:
        return len(self._waiting) + len(self._fresh)

    def _quantum_locked(self) -> int:
        """Return the bytes of one turn: fewer, the more streams wait for theirs."""
        rate = self._bucket.rate
        fair = min(rate * TURN_SECONDS, rate * ROUND_SECONDS / max(1, self._waits), MAX_QUANTUM)
        return int(max(MIN_QUANTUM, rate / TURNS_PER_SECOND, fair))

    def take(self, share: RateShare, wanted: int) -> int:
        """Take up to `wanted` bytes for a share; for `RateShare.take`."""
        with self._lock:
            now, bucket, kept = self._clock(), self._bucket, self._kept
            free = self._free_locked(now)
            if share.granted:
                if now - share.since <= GRANT_SECONDS:
                    count = min(wanted, share.granted)
                    share.granted -= count
                    return count
                bucket.give_back(share.granted)
                share.granted = 0
            quantum = self._quantum_locked()
            share.small = min(quantum, share.small + (now - share.since) * bucket.rate / 2 / (1 + self._waits))
            share.since = now
            share.from_kept = False
            if not self._waits and free >= min(wanted, quantum):
                count = min(wanted, free)
            else:
                count = int(min(wanted, share.small, kept.tokens))
                if count < min(wanted, WORTHWHILE):
                    return 0
                share.small -= count
                kept.tokens -= count
                share.from_kept = True
            bucket.tokens -= count
            return count

    def give_back(self, share: RateShare, count: int) -> None:
        """Take back what a share has not used; for `RateShare.give_back`."""
        with self._lock:
            self._bucket.give_back(count + share.granted)
            share.granted = 0
            if share.from_kept:
                self._kept.give_back(count)
                share.small += count

    def wait(self, share: RateShare, callback: Callable[[], object]) -> None:
        """Call back when a share may take something, perhaps at once; for `RateShare.when_ready`."""
        with self._lock:
            now = self._clock()
            if share.closed:
                return
            if not share.granted:
                share.callback = callback
                queue = self._fresh if now - share.last_turn > GRANT_SECONDS else self._waiting
                queue.append(share)
                if self._set_timer_locked(now):
                    return
                self._forget_locked(share)  # without a timer nobody would ever call
        callback()

    def wake(self, share: RateShare, *, close: bool = False) -> None:
        """Call back a share that waits, and with `close` forget it without a call; for `RateShare`."""
        with self._lock:
            share.closed = share.closed or close
            callback = share.callback
            self._forget_locked(share)
            if close:
                self._bucket.give_back(share.granted)
                share.granted = 0
                return
        if callback is not None:
            callback()

    def _forget_locked(self, share: RateShare) -> None:
        if share.callback is not None:
            share.callback = None
            (self._waiting if share in self._waiting else self._fresh).remove(share)

    def _set_timer_locked(self, now: float) -> bool:
        """Have the timer call when there is enough for a turn; False when it cannot."""
        missing = max(0, self._quantum_locked() - self._free_locked(now))
        growth = self._kept.rate if self._kept.tokens < self._kept.burst else self._bucket.rate
        at = now + missing / growth
        try:
            self._timer.set(at)
        except (NoThread, OSError):
            return False
        return True

    def _turn(self) -> None:
        """Grant each who waits its turn, as far as there is enough.  By the timer."""
        calls: list[Callable[[], object]] = []
        with self._lock:
            now = self._clock()
            while self._waits and self._free_locked(now) >= (quantum := self._quantum_locked()):
                share = self._next_locked()
                self._bucket.tokens -= quantum
                share.granted, share.small = quantum, 0.0
                share.since = share.last_turn = now
                assert share.callback is not None
                calls.append(share.callback)
                share.callback = None
            if self._waits and not self._set_timer_locked(now):
                calls += [share.callback for share in (*self._fresh, *self._waiting) if share.callback is not None]
                for share in (*self._fresh, *self._waiting):
                    share.callback = None
                self._fresh.clear()
                self._waiting.clear()
        for callback in calls:
            callback()

    def _next_locked(self) -> RateShare:
        """Take out who has the next turn: of those who came anew and the others, one each, so that neither starve."""
        queue = self._fresh if self._fresh and (self._fresh_next or not self._waiting) else self._waiting
        self._fresh_next = queue is self._waiting
        return queue.popleft()


def _burst(rate: float) -> float:
    return max(MIN_BURST, rate * BURST_SECONDS)


class RateShare:
    """One stream's part of a `RateLimit`.  One thread at a time takes; any thread wakes and closes.  Never blocks."""

    __slots__ = ("callback", "closed", "from_kept", "granted", "last_turn", "limit", "since", "small")

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        # What follows is the limit's, under its lock.
        self.granted = 0  # bytes of its turn that it has not taken
        self.since = 0.0  # when it last took or was granted something
        self.last_turn = float("-inf")
        self.small = 0.0  # bytes that it may take though others wait
        self.from_kept = False  # whether the last bytes were such
        self.callback: Callable[[], object] | None = None  # while it waits
        self.closed = False

    def take(self, wanted: int) -> int:
        """Take up to `wanted` bytes, at least 1, and return how many; 0 when it has to wait for its turn."""
        return self.limit.take(self, wanted)

    @property
    def waits(self) -> bool:
        """Whether it waits for its turn."""
        return self.callback is not None

    @property
    def plenty(self) -> bool:
        """Whether it may take as much as a thread is worth; a guess, without the lock."""
        return self.granted >= MIN_BURST or self.limit.plenty

    def give_back(self, count: int) -> None:
        """Give back what was taken and not needed: there was no more to move.

        Nothing where that is nothing: the rest of its turn stays with the share.
        """
        if count:
            self.limit.give_back(self, count)

    def when_ready(self, callback: Callable[[], object]) -> None:
        """Have `callback`, which must not block, called once `take` gives something, perhaps at once.

        Some thread calls it, or nobody once this is closed and no `wake` follows.
        """
        self.limit.wait(self, callback)

    def wake(self) -> None:
        """Call back now whoever waits, since it need not any more.  Idempotent."""
        self.limit.wake(self)

    def close(self) -> None:
        """Leave; whoever waits is not called.  Idempotent."""
        self.limit.wake(self, close=True)
