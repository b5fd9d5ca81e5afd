"""When a client tries again: at once after a connection that worked, slower and slower while none does.

Full jitter: a delay is anywhere between nothing and the present ceiling, so that a thousand clients that
lost the same server do not come back in the same second.  Pure: no clock, and the randomness comes in.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .settings import Reconnect


class Backoff:
    """The delays of one client.  `uniform(a, b)` gives a number between a and b."""

    def __init__(self, settings: Reconnect, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._settings = settings
        self._uniform = uniform
        self._failures = 0
        self._ended_early = False

    def succeeded(self) -> None:
        """The session made progress: the peer acknowledged something new."""
        self._failures = 0
        self._ended_early = False

    def failed(self) -> None:
        """A try failed before READY."""
        self._failures += 1

    def ended_early(self) -> None:
        """A session ended soon after READY, and nothing was acknowledged.

        Once may be chance.  Twice in a row counts as a failure: a path that lets handshakes through and cuts
        what follows would otherwise be tried ten times a second for ever.
        """
        if self._ended_early:
            self._failures += 1
        self._ended_early = True

    def give_up_hope(self) -> None:
        """Trying soon makes no sense (a refusal): go to the slow end."""
        self._failures = max(self._failures, 32)

    def delay(self, retry_after: float | None = None) -> float:
        """Seconds to wait before the next try, at least `retry_after` when the server named a time."""
        if not self._failures:
            wait = self._uniform(0, self._settings.first)
        else:
            ceiling = min(self._settings.max, self._settings.min * 2 ** (min(self._failures, 32) - 1))
            # At the slow end half of the ceiling is certain: after a refusal nobody wants a burst of tries.
            floor = ceiling / 2 if self._failures >= 32 else 0.0
            wait = self._uniform(floor, ceiling)
        if retry_after is not None:
            wait = max(wait, retry_after + self._uniform(0, self._settings.min))
        return wait
