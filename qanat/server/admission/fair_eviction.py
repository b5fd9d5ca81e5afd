"""Who gives way when there is no room: the oldest of the address that has the most.

Strangers can hold what is limited for as long as a deadline lets them.  If whoever comes later were
simply told to wait, one address could keep all others out at little cost; here it only displaces itself.
`qanat.server.admission.admission` keeps two crowds: connections that are no pipes yet, and handshakes that are not
done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from qanat.server.admission.address_rates import bucket_key


class FairEviction:
    """Members by the address on whose account they are.  Safe to use from any thread; never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[object, str] = {}
        self._cuts: dict[str, dict[object, Callable[[], None]]] = {}  # the inner ones in the order of coming

    def __len__(self) -> int:
        with self._lock:
            return len(self._keys)

    def add(self, member: object, address: str, cut: Callable[[], None]) -> None:
        """Count `member` in; `cut` ends it, and must not block nor come back here."""
        with self._lock:
            self._add_locked(member, address, cut)

    def add_within(self, limit: int, member: object, address: str, cut: Callable[[], None]) -> bool:
        """Count `member` in unless there are `limit` already and no address has more of them than its own.

        Another that has more loses its oldest, which is cut.
        """
        with self._lock:
            if len(self._keys) >= limit:
                own = len(self._cuts.get(bucket_key(address), ()))
                if not self._displace_locked(more_than=own):
                    return False
            self._add_locked(member, address, cut)
            return True

    def displace(self) -> bool:
        """Cut the oldest member of the address that has the most; False when there is nobody."""
        with self._lock:
            return self._displace_locked(more_than=0)

    def forget(self, member: object) -> None:
        """It is none any more.  Idempotent; afterwards it is not cut."""
        with self._lock:
            key = self._keys.pop(member, None)
            if key is not None:
                del self._cuts[key][member]
                if not self._cuts[key]:
                    del self._cuts[key]

    def _add_locked(self, member: object, address: str, cut: Callable[[], None]) -> None:
        key = bucket_key(address)
        self._keys[member] = key
        self._cuts.setdefault(key, {})[member] = cut

    def _displace_locked(self, more_than: int) -> bool:
        key = max(self._cuts, key=lambda each: len(self._cuts[each]), default=None)
        if key is None or len(self._cuts[key]) <= more_than:
            return False
        member, cut = next(iter(self._cuts[key].items()))
        del self._keys[member], self._cuts[key][member]
        if not self._cuts[key]:
            del self._cuts[key]
        cut()
        return True
