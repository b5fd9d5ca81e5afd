"""When a client tries again: at once after a connection that worked, later and later while none does.

Full jitter: a delay is anywhere between nothing and the present ceiling, so that a thousand clients that
lost the same server do not come back in the same second.  Pure: no clock, and the randomness comes in.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

MAX_SERVER_DELAYS = 5
"""How often in a row a delay that the server asks for replaces our own."""
MIN_SERVER_DELAY = 1.0
"""Seconds to wait at least when the server asks for a delay, which may be 0."""


class Delays(Protocol):
    """The configured delays, in seconds (`reconnect` in the configuration)."""

    @property
    def first(self) -> float:
        """The ceiling while nothing has failed."""

    @property
    def min(self) -> float:
        """The ceiling after the first failure; it doubles with each further one."""

    @property
    def max(self) -> float:
        """The highest ceiling."""


class Backoff:
    """The delays of one client.  One thread at a time; never blocks."""

    def __init__(self, delays: Delays, uniform: Callable[[float, float], float] = random.uniform) -> None:
        """Start with no failure.  `uniform(a, b)` returns a random number between a and b."""
        self.delays = delays
        """The configured ones, which may be changed."""
        self._uniform = uniform
        self._failures = 0
        self._server_delays = 0  # in a row
        self._ended_early = False
        self._refused = False

    def succeeded(self) -> None:
        """Forget all failures: something new got through, in either direction."""
        self._failures = 0
        self._ended_early = self._refused = False

    def failed(self) -> None:
        """Count a try that failed before READY."""
        self._failures += 1

    def ended_early(self) -> None:
        """Count a connection that ended soon after READY with nothing having got through.

        Once may be chance.  Twice in a row counts as a failure: a path that lets handshakes through and cuts
        what follows would otherwise be tried ten times a second for ever.
        """
        if self._ended_early:
            self._failures += 1
        self._ended_early = True

    def refused(self) -> None:
        """Go to the highest ceiling: after a refusal, trying again soon makes no sense."""
        self._refused = True

    def delay(self, retry_after: float | None = None) -> float:
        """Return the seconds to wait before the next try; `retry_after` is what the server asked for, if it did.

        The server's number is a place in its queue, so it replaces our own, longer or shorter: a client that came
        much later would find the place gone.  After MAX_SERVER_DELAYS in a row it is only a minimum.
        """
        self._server_delays = 0 if retry_after is None else self._server_delays + 1
        jitter = self._uniform(0, self.delays.min)
        if retry_after is not None and self._server_delays <= MAX_SERVER_DELAYS and not self._refused:
            return max(MIN_SERVER_DELAY, retry_after) + jitter
        if self._refused:
            # Half of the ceiling is certain: after a refusal nobody wants a burst of tries.
            wait = self._uniform(self.delays.max / 2, self.delays.max)
        elif not self._failures:
            wait = self._uniform(0, self.delays.first)
        else:
            wait = self._uniform(0, min(self.delays.max, self.delays.min * 2 ** (min(self._failures, 32) - 1)))
        return wait if retry_after is None else max(wait, retry_after + jitter)
