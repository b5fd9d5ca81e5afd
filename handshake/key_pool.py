"""A stock of ephemeral client keys, made ahead so that connecting never waits for a prime.

Keys live in memory only and are never stored: when one is gone, so is what it could have opened.
`qanat.client.client` owns one pool; each attempt to connect takes a key from it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected
from qanat.handshake.keys import ClientKey

REUSE_SECONDS: Final = 600.0
"""How long one key may serve again while no fresh one is ready."""
_AHEAD: Final = 2
_JOIN_SECONDS: Final = 10.0
_PAUSE: Final = 1.0
"""Seconds until the next try to make a key when the last one failed."""


class ClientKeyPool:
    """A few keys in stock, made by the thread "client-keys" from `start` to `close`.  Safe to use from any thread.

    A key is given out once.  Only when a burst of reconnecting has emptied the stock is the last one given
    out again, for at most `reuse` seconds after it was first taken; then it is forgotten, taken or not.
    """

    def __init__(
        self,
        *,
        reuse: float = REUSE_SECONDS,
        generate: Callable[[], ClientKey] = ClientKey.generate,
    ) -> None:
        """`reuse` is in seconds; `generate` makes one key, and may take its time."""
        self._reuse = reuse
        self._generate = generate
        self._changed = threading.Condition()
        self._ready: deque[ClientKey] = deque()
        self._last: ClientKey | None = None
        self._last_taken_at = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Make keys from now on, in a thread of its own.  Does not block."""
        self._thread = start_thread("client-keys", self._make_loop)
        return self

    def take(self, timeout: float) -> ClientKey:
        """Return a fresh key, or the last one while it may be reused; blocks only when there is neither.

        Raises TransportError after `timeout` seconds, and once the pool is closed.
        """
        deadline = Deadline(timeout)
        with self._changed:
            while True:
                if self._closed:
                    raise TransportError("no key for this connection: the client is stopping")
                if self._ready:
                    self._last = self._ready.popleft()
                    self._last_taken_at = time.monotonic()
                    self._changed.notify_all()
                    return self._last
                self._forget_locked()
                if self._last is not None:
                    return self._last
                if deadline.passed:
                    raise TransportError(
                        f"no key for this connection could be made within {timeout:g} s",
                        hint="this machine is too busy; it will be tried again",
                    )
                self._changed.wait(deadline.remaining())

    def close(self) -> None:
        """Forget all keys and join the thread, which takes as long as the key that it is making.  Idempotent."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._last = None
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    def _forget_locked(self) -> float | None:
        """Drop the last key when its time is up; otherwise return the seconds that it has left."""
        if self._last is None:
            return None
        left = self._last_taken_at + self._reuse - time.monotonic()
        if left > 0:
            return left
        self._last = None
        return None

    def _make_loop(self) -> None:
        while True:
            with self._changed:
                while not self._closed and len(self._ready) >= _AHEAD:
                    # Wakes by itself to forget, so that no key outlives its time in an idle client.
                    self._changed.wait(self._forget_locked())
                if self._closed:
                    return
            try:
                key = self._generate()
            except Exception:
                log_unexpected("making a client's key failed")
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, _PAUSE)
                continue
            with self._changed:
                if self._closed:
                    return
                self._ready.append(key)
                self._changed.notify_all()
            del key  # a thread that waits must not be what keeps a forgotten key alive
