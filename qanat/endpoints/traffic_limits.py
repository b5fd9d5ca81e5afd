"""What one stream may move and how long it may rest: the rates that it shares with others, and its idle time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qanat.base.errors import NoThread
from qanat.base.watcher import Watcher
from qanat.endpoints.rate_limit import RateLimit

LOOKS = 4
"""How often in its idle time a stream is looked at: it may rest for a quarter longer than that before it ends."""


@dataclass(slots=True, eq=False)
class TrafficLimits:
    """The limits of a stream, which it may share with others.  None and 0 are no limit, and cost nothing.

    They may change: flows of datagrams follow at once, and pumps once their `limits_changed` was called.
    """

    reading: RateLimit | None = None
    """What is read from its socket here, towards the peer."""
    writing: RateLimit | None = None
    """What is sent to its socket here."""
    idle_timeout: float = 0
    """Seconds without a byte either way after which it is reset."""


UNLIMITED = TrafficLimits()
"""What nobody changes."""


class IdleTimeout:
    """Calls `expired` once when what `count` returns has not changed for `seconds`, or up to a quarter more.

    While `excused` returns True the time does not pass.  All three are called by the watcher, and must not block.
    """

    def __init__(
        self,
        seconds: float,
        watcher: Watcher,
        *,
        count: Callable[[], object],
        excused: Callable[[], bool],
        expired: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin now.  Without a thread for the watcher there is no timeout."""
        self._step = seconds / LOOKS
        self._clock = clock
        self._count, self._excused, self._expired = count, excused, expired
        self._seen: object = None
        self._quiet = 0  # looks in a row that found no change
        self._over = False
        self._timer = watcher.timer(self._look)
        self._set()

    def stop(self) -> None:
        """Call nobody any more; a call that has begun goes on.  Idempotent, from any thread; does not block."""
        self._over = True
        self._timer.cancel()
        self._count = self._excused = self._expired = _nothing  # which hold the stream

    def _look(self) -> None:
        count = self._count()
        changed = count != self._seen or self._excused()
        self._seen = count
        self._quiet = 0 if changed else self._quiet + 1
        if self._quiet < LOOKS:
            self._set()
        else:
            self._expired()

    def _set(self) -> None:
        if self._over:
            return
        try:
            self._timer.set(self._clock() + self._step)
        except (NoThread, OSError):
            self._over = True


def _nothing() -> bool:
    """There is no stream any more."""
    return True
