"""Slowing, not refusing: a token bucket for each address, which tells how long to wait.

Behind a CDN or a company's NAT many people share an address, so nobody is ever locked out: the wait has
a ceiling.  Arithmetic only, with the caller's clock; `qanat.server.admission.admission` puts it to use.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable

CAPACITY = 10_000
"""Addresses remembered; the one not seen for longest is forgotten first."""


class AddressRates:
    """A bucket of `burst` tokens an address, refilled at `rate` a second.  Safe to use from any thread."""

    def __init__(
        self, rate: float, burst: int, *, max_delay: float, clock: Callable[[], float], capacity: int = CAPACITY
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._max_debt = rate * max_delay
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key: tokens, when

    def __len__(self) -> int:
        with self._lock:
            return len(self._buckets)

    def delay(self, address: str) -> float:
        """Take one token of `address`; return how many seconds its new connection has to wait: 0 to `max_delay`.

        An empty bucket goes into debt, so that connections that come at once wait one after the other.
        The debt is bounded: however long a flood was, the address is forgiven within `max_delay`.
        """
        key = bucket_key(address)
        with self._lock:
            now = self._clock()
            tokens, since = self._buckets.pop(key, (self._burst, now))
            tokens = min(self._burst, tokens + max(0.0, now - since) * self._rate)
            tokens = max(-self._max_debt, tokens - 1.0)
            self._buckets[key] = (tokens, now)
            if len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
        return max(0.0, -tokens / self._rate)


def bucket_key(address: str) -> str:
    """The address itself, or the /64 of an IPv6 address: one customer gets as many addresses as that has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
