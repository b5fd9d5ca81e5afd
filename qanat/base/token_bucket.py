"""A token bucket: so many at once, then so many a second.

Arithmetic only, with the caller's clock, and without a lock: whoever owns one has both.
"""

from __future__ import annotations


class TokenBucket:
    """`burst` tokens, all there at first, refilled at `rate` a second.

    In any t seconds at most burst + t * rate tokens are taken.
    """

    __slots__ = ("_since", "burst", "rate", "tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst
        """What is there, as of the last `refill`."""
        self._since = now

    def refill(self, now: float) -> None:
        """Add what has come since the last call.  A clock that goes back adds nothing."""
        if now > self._since:
            self.tokens = min(self.burst, self.tokens + (now - self._since) * self.rate)
        self._since = now

    def take(self, count: float, now: float) -> bool:
        """Take `count` tokens and return True, or none of them and False."""
        self.refill(now)
        if self.tokens < count:
            return False
        self.tokens -= count
        return True

    def give_back(self, count: float) -> None:
        """Put back what was taken and not needed."""
        self.tokens = min(self.burst, self.tokens + count)
