"""How soon handshakes are begun, and when those who are turned away should come back.

A server that comes back to five hundred clients can begin `rate` handshakes a second, after a first `burst`.  To
turn the others away for some seconds at random would only bring them all back together; so each of them *books*:
it is told of the moment at which there will be a token for it, after those of all who booked before.

    take -> True: begin        take -> False: book -> "come back in N s" -> take

Nobody can be recognized, since nobody is authenticated.  What stands in for a client is its address:

- A booking is a claim of its address from its moment on: tokens are kept for it, up to half of the burst, against
  all who come from elsewhere without one.
- Addresses take turns in the queue: an address's n-th booking stands behind at most n of each other address.  So one
  that floods moves its own next moment away, and everybody else's by one place.
- An address that holds more bookings than most has to leave tokens for the others whose moment has come, since those
  can have been given moments that it had booked before.  Those who share an address are slower then, never shut out.
- A booking goes stale when nobody comes for it.  No moment is further away than `LONGEST`.

Rejected: to hand out signed tickets (they would have to cross four transports, and every proxy), and to leave the
connection waiting (it would hold a thread and a file for each of those who have to wait).

Arithmetic only, with the caller's clock; `qanat.server.admission.admission` puts it to use.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable

from qanat.base.addresses import bucket_key
from qanat.base.usage import Usage

LONGEST = 60
"""Seconds after which every client may ask again."""

KEPT = 5.0
"""Seconds from its moment until a booking is stale: for the rounding, the client's jitter, and the connector."""

BOOKINGS = 20_000
"""Bookings remembered, about 10 MB; whoever is turned away beyond them is told a moment, but nothing is kept for it."""


class _AddressBookings:
    """The bookings of one address.  Small, since there can be as many addresses as bookings: a deque has 600 bytes."""

    __slots__ = ("due", "held")

    def __init__(self) -> None:
        self.held = 0  # bookings that are neither used nor stale
        self.due: list[int] = []  # those of them whose moment has come, oldest first; few


class HandshakeRate:
    """A bucket of `burst` tokens, refilled at `rate` a second, and a queue for it.

    In any t seconds at most burst + t * rate tokens are taken.  Safe to use from any thread; never blocks.
    """

    def __init__(self, rate: float, burst: int, *, clock: Callable[[], float]) -> None:
        """Take the rate in handshakes a second, above 0; `burst` is at least 1, and there at once."""
        self._rate = rate
        self._burst = float(burst)
        self._most_kept = burst // 2
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = self._fewest = self._burst
        self._now = clock()
        self._numbers = itertools.count()
        self._beyond = itertools.count()
        self._coming: list[tuple[float, int, str]] = []  # a heap: moment, number, whose
        self._due: OrderedDict[int, tuple[float, str]] = OrderedDict()  # number: stale when, whose
        self._addresses: dict[str, _AddressBookings] = {}
        self._holding: Counter[int] = Counter()  # how many addresses hold so many bookings

    def change(self, rate: float, burst: int) -> None:
        """Go by another rate and burst from now on; bookings stay as they are."""
        with self._lock:
            self._advance_locked()
            taken = self._burst - self._tokens
            self._rate, self._burst, self._most_kept = rate, float(burst), burst // 2
            self._tokens = max(0.0, self._burst - taken)
            self._fewest = min(self._fewest, self._tokens)

    def __len__(self) -> int:
        """How many bookings there are, neither used nor stale."""
        with self._lock:
            self._advance_locked()
            return self._held_locked()

    @property
    def used_most(self) -> Usage:
        """How many tokens were taken at the worst moment."""
        return Usage(self._burst - self._fewest, self._burst)

    def take(self, address: str) -> bool:
        """Take a token for `address` and return True, or return False when there is none for it: then `book`.

        Either way its oldest booking is used up, if the moment of that has come.
        """
        key = bucket_key(address)
        with self._lock:
            self._advance_locked()
            own = self._addresses.get(key)
            granted = self._tokens >= 1 + self._kept_from_locked(own)
            if own is not None and own.due:
                del self._due[own.due.pop(0)]
                self._hold_locked(key, -1)
            if granted:
                self._tokens -= 1
                self._fewest = min(self._fewest, self._tokens)
            return granted

    def give_back(self) -> None:
        """Put back a token that was not needed, since no handshake was begun."""
        with self._lock:
            self._tokens = min(self._burst, self._tokens + 1)

    def book(self, address: str) -> int:
        """Book the next free moment for `address`; return in how many whole seconds that is, 1 to `LONGEST`."""
        key = bucket_key(address)
        with self._lock:
            self._advance_locked()
            wait = max(0.0, self._place_locked(key) - self._tokens) / self._rate
            if wait > LONGEST:
                # Nothing to promise; but they must not all come back at the end of the same minute.
                return LONGEST - next(self._beyond) % (LONGEST // 2)
            if self._held_locked() < BOOKINGS:
                heapq.heappush(self._coming, (self._now + wait, next(self._numbers), key))
                self._hold_locked(key, +1)
            return max(1, math.ceil(wait))

    # --- under the lock

    def _advance_locked(self) -> None:
        """Bring tokens and bookings up to the present."""
        now = max(self._now, self._clock())
        self._tokens = min(self._burst, self._tokens + (now - self._now) * self._rate)
        self._now = now
        while self._coming and self._coming[0][0] <= now:
            moment, number, key = heapq.heappop(self._coming)
            self._due[number] = (moment + KEPT, key)
            self._addresses[key].due.append(number)
        while self._due:
            number, (stale, key) = next(iter(self._due.items()))
            if stale > now:
                break
            del self._due[number]
            self._addresses[key].due.pop(0)  # they come due, and go stale, in one order
            self._hold_locked(key, -1)

    def _held_locked(self) -> int:
        return len(self._coming) + len(self._due)

    def _hold_locked(self, key: str, change: int) -> None:
        own = self._addresses.setdefault(key, _AddressBookings())
        for held, by in ((own.held, -1), (own.held + change, +1)):
            if held:
                self._holding[held] += by
                if not self._holding[held]:
                    del self._holding[held]
        own.held += change
        if not own.held:
            del self._addresses[key]

    def _place_locked(self, key: str) -> int:
        """Return where in the queue the next booking of `key` stands, from 1, when addresses take turns."""
        own = self._addresses.get(key)
        turn = 1 + (0 if own is None else own.held)
        return 1 + sum(min(held, turn) * addresses for held, addresses in self._holding.items())

    def _kept_from_locked(self, own: _AddressBookings | None) -> int:
        """Return how many tokens this address has to leave for others."""
        due = 0 if own is None else len(own.due)
        if own is not None and due and own.held * len(self._addresses) <= self._held_locked():
            return 0
        return min(self._most_kept, len(self._due) - due)
