"""When a client tries again: at once after a connection that worked, slower and slower while none does.

Full jitter: a delay is anywhere between nothing and the present ceiling, so that a thousand clients that
lost the same server do not come back in the same second.  Pure: no clock, and the randomness comes in.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from qanat.config.settings import Reconnect

TURNS = 5
"""How often in a row a time that the server names counts instead of our own."""
LEAST = 1.0
"""Seconds that are waited at least when the server names a time, which may be "at once"."""


class Backoff:
    """The delays of one client.  `uniform(a, b)` gives a number between a and b."""

    def __init__(self, settings: Reconnect, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._settings = settings
        self._uniform = uniform
        self._failures = 0
        self._named = 0  # times in a row that the server has named one
        self._ended_early = False
        self._hopeless = False

    def succeeded(self) -> None:
        """The session made progress: something new got through, in either direction."""
        self._failures = 0
        self._ended_early = self._hopeless = False

    def failed(self) -> None:
        """A try failed before READY."""
        self._failures += 1

    def ended_early(self) -> None:
        """A connection ended soon after READY, and nothing got through.

        Once may be chance.  Twice in a row counts as a failure: a path that lets handshakes through and cuts
        what follows would otherwise be tried ten times a second for ever.
        """
        if self._ended_early:
            self._failures += 1
        self._ended_early = True

    def give_up_hope(self) -> None:
        """Trying soon makes no sense (a refusal): go to the slow end."""
        self._hopeless = True

    def delay(self, retry_after: float | None = None) -> float:
        """Seconds to wait before the next try, at least `retry_after` when the server named a time.

        What the server names is a turn of our own, so it counts instead of what we would have waited: who comes much
        later finds the turn gone.  A path that names one time after the other (TURNS) is not believed any more.
        """
        self._named = 0 if retry_after is None else self._named + 1
        jitter = self._uniform(0, self._settings.min)
        if retry_after is not None and self._named <= TURNS and not self._hopeless:
            return max(LEAST, retry_after) + jitter
        if self._hopeless:
            # Half of the ceiling is certain: after a refusal nobody wants a burst of tries.
            wait = self._uniform(self._settings.max / 2, self._settings.max)
        elif not self._failures:
            wait = self._uniform(0, self._settings.first)
        else:
            wait = self._uniform(0, min(self._settings.max, self._settings.min * 2 ** (min(self._failures, 32) - 1)))
        return wait if retry_after is None else max(wait, retry_after + jitter)
