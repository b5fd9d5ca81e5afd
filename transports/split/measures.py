"""How large a client's requests and their answers are, how many run at once, and how long one waits at the server.

All of it follows what the path has shown: what came at once may be larger, what took long or was refused is smaller,
and where requests are quick few run at once.  Pure, and not thread-safe: the pipe's lock guards it.
"""

from __future__ import annotations

FIRST_BODY, MAX_BODY, MIN_BODY = 64 * 1024, 960 * 1024, 4 * 1024
"""Bytes of a request's body: at first, and at most: nginx takes no more than 1 MiB unless it is told to."""
FIRST_ANSWER, MAX_ANSWER = 64 * 1024, 1024 * 1024
"""Bytes that an answer may have: at first, and at most."""
FAST, SLOW = 0.5, 2.0
"""Seconds that a request with a full body takes: below, the next may have twice as many bytes; above, half of them."""
MAX_UP, MAX_DOWN = 6, 6
"""Requests at once, of either kind."""
QUICK_UP, QUICK = 2, 0.01
"""Requests with bytes at once where one takes less than so many seconds at best: more would wait for each other in
proxies, and what is small behind them."""
SMALL_UP = 3
"""Requests with bytes at once while little waits to be sent."""
FIRST_WAIT, MIN_WAIT = 25.0, 2.0
"""Seconds that a request waits at the server: at first, and at least on a path that cuts it sooner."""
ACTIVE = 1.0
"""Seconds since something came during which one request more waits, so that the next bytes find one there."""
SLACK = 5.0
"""Seconds beyond what an answer should take until the request has failed."""
POST_TIME, MOST_POST_TIME = 0.7, 15.0
"""Seconds, beyond some round trips, that a request with bytes may take, and at most, before failures stretch it."""
ROUND_TRIPS = 4
"""Round trips that are allowed for beyond each fixed time."""


class Measures:
    """One pipe's.  Times are seconds, sizes are bytes."""

    def __init__(self) -> None:
        self.body = FIRST_BODY
        """What a request may bring at most."""
        self.answer = FIRST_ANSWER
        """What an answer may bring at most."""
        self.wait = FIRST_WAIT
        """For how long a request without an answer waits at the server."""
        self.asks = 1
        """How many requests should wait at the server."""
        self.round_trip = 0.2
        """That of requests with bytes, smoothed."""
        self._least_time = self.round_trip  # that one of these has taken of late, at the least
        self._came_at = 0.0  # when bytes came last

    @property
    def some_round_trips(self) -> float:
        """The time that ROUND_TRIPS of them take."""
        return ROUND_TRIPS * self.round_trip

    @property
    def next_in(self) -> float:
        """The time within which the next request with bytes is made where MAX_UP run, twice its share: not evenly."""
        return 2 * self._least_time / MAX_UP

    @property
    def slack(self) -> float:
        """The time beyond what an answer should take."""
        return SLACK + self.some_round_trips

    def posted(self, size: int, took: float) -> None:
        """Note that a request with so many bytes was answered after so long."""
        self.round_trip += (took - self.round_trip) / 8
        self._least_time = min(took, self._least_time + (took - self._least_time) / 64)
        if size == self.body and took < FAST:
            self.body = min(MAX_BODY, 2 * self.body)
        elif size > MIN_BODY and took > SLOW:
            self.body = max(MIN_BODY, size // 2)

    def refused(self, size: int) -> bool:
        """Note that so many bytes were too many for one request; return whether fewer can be tried."""
        self.body = max(MIN_BODY, min(self.body, size) // 2)
        return size > MIN_BODY

    def most_posts(self, unsent: int) -> int:
        """Return how many requests with bytes may run at once while so many wait to be sent."""
        if unsent < self.body // 4:
            return SMALL_UP
        return QUICK_UP if self._least_time < QUICK else MAX_UP

    def post_time(self, failures: int) -> float:
        """Return within what time a request with bytes should be answered, after so many failures in turn."""
        return min(MOST_POST_TIME, POST_TIME + self.some_round_trips) * (1 + failures)

    def asked(self, came: int, size: int, now: float) -> None:
        """Note that an answer which might have had `size` bytes has brought `came`."""
        if came:
            self._came_at = now
        if came >= size // 2:
            self.asks = min(MAX_DOWN, max(2, self.asks) + 1)
            self.answer = min(MAX_ANSWER, 2 * size)
        elif came:
            self.asks = max(2, self.asks)
        elif now - self._came_at > ACTIVE:
            self.asks = 1

    def ask_failed(self, took: float) -> None:
        """Note that a request for bytes has failed after so long: perhaps the path cuts what waits."""
        if took >= MIN_WAIT:
            self.wait = max(MIN_WAIT, min(self.wait, 0.7 * took))
