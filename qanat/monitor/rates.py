"""How fast a stream's bytes go, from two looks at counts that are kept anyhow: no byte pays for it on its way.

The rate is that between the last two looks that lay at least LEAST apart, so several who look at once do not spoil each
other's figures.  After a pause longer than STALE a look has nothing to compare with, and `fresh` says so: whoever wants
rates then looks again a moment later.
"""

from __future__ import annotations

from qanat.mux.figures import StreamFigures
from qanat.mux.stream import Stream

LEAST = 0.2
"""Seconds between two looks that are compared."""
STALE = 10.0
"""Seconds after which an earlier look says nothing about now."""


def rates_of(stream: Stream, figures: StreamFigures, now: float) -> tuple[float, float]:
    """Return bytes a second received and sent.  Looks must be serialized; `now` is on `time.monotonic`."""
    last = stream.sample
    if last is None and now - figures.opened_at < STALE:
        last = figures.opened_at, 0, 0, 0.0, 0.0  # it began as nothing
    if last is None or now - last[0] > STALE:
        stream.sample = now, figures.received, figures.sent, 0.0, 0.0
        return 0.0, 0.0
    elapsed = now - last[0]
    if elapsed < LEAST:
        return last[3], last[4]
    received, sent = (figures.received - last[1]) / elapsed, (figures.sent - last[2]) / elapsed
    stream.sample = now, figures.received, figures.sent, received, sent
    return received, sent
