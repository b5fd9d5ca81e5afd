"""How fast streams' bytes go, from two looks at counts that are kept anyhow: no byte pays for it on its way.

The rate is that between the last two looks that lay at least LEAST apart, so several who look at once do not spoil each
other's figures.  After a pause longer than STALE, which `looked_at` tells, a look has nothing to compare with: whoever
wants rates then looks again a moment later.

Each look is at every stream, so the looks share one clock, and a stream that has stood still is not written to: of five
thousand streams most do.
"""

from __future__ import annotations

from qanat.mux.stream import Stream

LEAST = 0.2
"""Seconds between two looks that are compared."""
STALE = 10.0
"""Seconds after which an earlier look says nothing about now."""


class Rates:
    """The clock of the looks at one end's streams, which must be serialized."""

    def __init__(self) -> None:
        self.looked_at = -STALE
        """When a look last compared counts, on `time.monotonic`."""
        self._now = 0.0
        self._elapsed: float | None = None  # since the look to compare with; None where that is too near

    def begin(self, now: float) -> None:
        """Begin a look: `of` is called for every stream of this end then."""
        elapsed = now - self.looked_at
        self._now = now
        self._elapsed = elapsed if elapsed >= LEAST else None
        if self._elapsed is not None:
            self.looked_at = now

    def of(self, stream: Stream, received: int, sent: int, opened_at: float) -> tuple[float, float]:
        """Return bytes a second received and sent, of a stream's `traffic`."""
        last, elapsed = stream.sample, self._elapsed
        if last is not None:
            if elapsed is None:
                return last[2], last[3]
            if last == (received, sent, 0.0, 0.0):
                return 0.0, 0.0
        else:  # it is new, and began as nothing
            last, elapsed = (0, 0, 0.0, 0.0), self._now - opened_at
            if self._elapsed is None or elapsed < LEAST:
                return 0.0, 0.0
        if elapsed > STALE:
            rates = 0.0, 0.0
        else:
            rates = (received - last[0]) / elapsed, (sent - last[1]) / elapsed
        stream.sample = received, sent, *rates
        return rates
