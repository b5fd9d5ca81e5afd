"""What strangers behind trusted proxies have left to misbehave with, by the address that the proxy names.

A proxy carries the streams of many clients on one HTTP/2 connection, so what one of them does must not end it: that is
charged to the client's address, and only that address is refused.  Used by `connection`; what costs how much is
`qanat.transports.http2.limits`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from qanat.base.addresses import bucket_key
from qanat.base.usage import Usage
from qanat.transports.http2.limits import StreamBudget

CAPACITY = 10_000
"""Addresses that are remembered; the one not seen for longest is forgotten first."""


class AddressBudgets:
    """A budget for each address, or each /64 of IPv6.  Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._budgets: OrderedDict[str, StreamBudget] = OrderedDict()

    def __len__(self) -> int:
        return len(self._budgets)

    @property
    def used_most(self) -> dict[str, Usage]:
        """How much each address had used at its worst moment."""
        with self._lock:
            return {key: budget.used_most for key, budget in self._budgets.items()}

    def of(self, address: str) -> StreamBudget:
        """Return the budget that the streams of this address share.  Does not block."""
        key = bucket_key(address)
        with self._lock:
            budget = self._budgets.pop(key, None) or StreamBudget(self._clock)
            self._budgets[key] = budget
            if len(self._budgets) > CAPACITY:
                self._budgets.popitem(last=False)
            return budget
