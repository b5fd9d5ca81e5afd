"""Who may come in before anyone is authenticated: how soon, how many at once, and who gives way when it is too many.

`Admission` is shared by all connections of one server.  The front door asks it for each connection; the server
gives `rsa_gate` to each handshake, and releases the slot once the client is authenticated.  How soon handshakes may
begin is `qanat.server.admission.handshake_rate`; what an authenticated client may do is `qanat.server.access.rules`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from qanat.base.addresses import bucket_key
from qanat.base.events import Events
from qanat.base.usage import Usage
from qanat.config.server_settings import ServerLimits
from qanat.server.admission.handshake_rate import HandshakeRate

CAPACITY = 10_000
"""Addresses whose rate is remembered; the one not seen for longest is forgotten first."""


class Admission:
    """The limits that hold before authentication.  Safe to use from any thread; only `rsa_gate` blocks."""

    def __init__(
        self, limits: ServerLimits, *, events: Events | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`events` counts what RSA costs; `clock` gives seconds."""
        self._limit = limits.handshakes
        self._rate = HandshakeRate(limits.handshake_rate, limits.handshakes, clock=clock)
        self._handshakes = FairEviction()
        self.unfinished = FairEviction()
        """The connections that are not pipes yet."""
        # Half of the time for a request head, so that the slowed still have the other half for sending one.
        self._rates = AddressRates(
            limits.per_address_rate, limits.per_address_burst, max_delay=limits.header_timeout / 2, clock=clock
        )
        self._rsa_operations = limits.rsa_operations
        self._clock = clock
        self._events = events or Events()
        self.rsa_gate: AbstractContextManager[object] = RsaGate(limits.rsa_operations, self._events, clock)
        """Entered round each RSA private-key operation; blocks while `limits.rsa_operations` are running."""

    def change(self, limits: ServerLimits) -> None:
        """Go by other limits from now on; who has been let in already stays."""
        self._limit = limits.handshakes
        self._rate.change(limits.handshake_rate, limits.handshakes)
        self._rates.change(limits.per_address_rate, limits.per_address_burst, max_delay=limits.header_timeout / 2)
        if limits.rsa_operations != self._rsa_operations:
            self._rsa_operations = limits.rsa_operations
            self.rsa_gate = RsaGate(limits.rsa_operations, self._events, self._clock)

    @property
    def handshakes(self) -> int:
        """How many slots are taken now."""
        return len(self._handshakes)

    @property
    def queued(self) -> int:
        """How many places in the queue are promised to addresses that were told to come back."""
        return len(self._rate)

    @property
    def used_most(self) -> dict[str, Usage]:
        """How near all clients together have come to each limit, by the limit's name."""
        return {
            "handshakes at once": Usage(self._handshakes.most, self._limit),
            "handshakes begun, less those refilled": self._rate.used_most,
        }

    @property
    def used_most_by_address(self) -> dict[str, Usage]:
        """How much of `limits.per_address_burst` each address had used at its worst moment."""
        return self._rates.used_most

    def enter(self, address: str, cut: Callable[[], None]) -> HandshakeSlot | None:
        """Return a handshake slot, charged to `address`, or None: then answer 503 with `retry_after`.

        None when handshakes are begun too fast (`limits.handshake_rate`), and when all slots are taken.  In the second
        case an address that holds more than this one loses its oldest, which is `cut`, and this one gets in.  `cut`
        is not called after the slot was released, and must not block.
        """
        if not self._rate.take(address):
            return None
        slot = HandshakeSlot(self._handshakes)
        if self._handshakes.add_within(self._limit, slot, address, cut):
            return slot
        self._rate.give_back()
        return None

    def make_room(self) -> bool:
        """End one connection that is not authenticated; return False when there is none.  Does not block.

        It is the oldest of the address that has most of those that are no pipes yet, or, when all are pipes, of the
        handshakes.
        """
        return self.unfinished.displace() or self._handshakes.displace()

    def retry_after(self, address: str) -> int:
        """Return whole seconds for a Retry-After header (RFC 9110 §10.2.3), 1 to 60, for one that `enter` turned away.

        Books a place in the queue for `address`, so it must be called once for each.
        """
        return self._rate.book(address)

    def delay(self, ip: str) -> float:
        """Return how many seconds a new connection of this address has to wait before it is served.

        Never to be called for a trusted proxy itself: everyone behind it would wait for each other.
        """
        return self._rates.delay(ip)


class RsaGate:
    """Lets so many threads in at once, and counts how long each waited and stayed."""

    def __init__(self, most: int, events: Events, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock
        self._places = threading.BoundedSemaphore(most)
        self._entered = threading.local()  # each thread's own moment

    def __enter__(self) -> None:
        came = self._clock()
        self._places.acquire()
        self._entered.at = now = self._clock()
        self._events.rsa_waits.observe(now - came)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._places.release()
        self._events.rsa_operations.observe(self._clock() - self._entered.at)


class HandshakeSlot:
    """A place among `limits.handshakes`, held from the upgrade until READY was sent.

    The front door releases it too, when `on_pipe` returns.
    """

    def __init__(self, handshakes: FairEviction) -> None:
        self._handshakes = handshakes

    def release(self) -> None:
        """Make room for another handshake.  Idempotent, from any thread; does not block."""
        self._handshakes.forget(self)


class FairEviction:
    """Decides who gives way when there is no room: the oldest of the address that has the most.

    Unauthenticated peers can hold what is limited for as long as a deadline lets them.  If newcomers were simply told
    to wait, one address could keep all others out at little cost; here it only displaces itself.  Safe to use from any
    thread; never blocks.
    """

    def __init__(self) -> None:
        self.most = 0
        """How many members there were at once."""
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
        """Count `member` in and return True, unless there are `limit` already and no address has more than its own.

        An address that has more loses its oldest, which is cut.
        """
        with self._lock:
            if len(self._keys) >= limit:
                own = len(self._cuts.get(bucket_key(address), ()))
                if not self._displace_locked(more_than=own):
                    return False
            self._add_locked(member, address, cut)
            return True

    def displace(self) -> bool:
        """Cut the oldest member of the address that has the most; return False when there are no members."""
        with self._lock:
            return self._displace_locked(more_than=0)

    def forget(self, member: object) -> None:
        """Count `member` out; it is not cut any more.  Idempotent."""
        with self._lock:
            key = self._keys.pop(member, None)
            if key is not None:
                del self._cuts[key][member]
                if not self._cuts[key]:
                    del self._cuts[key]

    def _add_locked(self, member: object, address: str, cut: Callable[[], None]) -> None:
        key = bucket_key(address)
        self._keys[member] = key
        self.most = max(self.most, len(self._keys))
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


class AddressRates:
    """A token bucket for each address, which tells how long a new connection has to wait.

    Slowing, not refusing: behind a CDN or a company's NAT many people share an address, so nobody is ever locked out,
    and the wait has a ceiling.  Safe to use from any thread; never blocks.
    """

    def __init__(
        self, rate: float, burst: int, *, max_delay: float, clock: Callable[[], float], capacity: int = CAPACITY
    ) -> None:
        """Give each address `burst` tokens, refilled at `rate` a second; nobody waits longer than `max_delay` s."""
        self._rate = rate
        self._burst = float(burst)
        self._max_debt = rate * max_delay
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()  # guards all of it
        self._buckets: OrderedDict[str, tuple[float, float, float]] = OrderedDict()  # key: tokens, when, the fewest

    def __len__(self) -> int:
        with self._lock:
            return len(self._buckets)

    def change(self, rate: float, burst: int, *, max_delay: float) -> None:
        """Give each address another burst and rate from now on; what each has used of it stays used."""
        with self._lock:
            more = burst - self._burst
            self._rate, self._burst, self._max_debt = rate, float(burst), rate * max_delay
            for key, (tokens, since, fewest) in self._buckets.items():
                self._buckets[key] = max(-self._max_debt, tokens + more), since, fewest + more

    @property
    def used_most(self) -> dict[str, Usage]:
        """How many tokens each address had taken at its worst moment."""
        with self._lock:
            return {key: Usage(self._burst - bucket[2], self._burst) for key, bucket in self._buckets.items()}

    def delay(self, address: str) -> float:
        """Take one token of `address`; return how many seconds its new connection has to wait: 0 to `max_delay`.

        An empty bucket goes into debt, so that connections that come at once wait one after the other.
        The debt is bounded: however long a flood was, the address is forgiven within `max_delay`.
        """
        key = bucket_key(address)
        with self._lock:
            now = self._clock()
            tokens, since, fewest = self._buckets.pop(key, (self._burst, now, self._burst))
            tokens = min(self._burst, tokens + max(0.0, now - since) * self._rate)
            tokens = max(-self._max_debt, tokens - 1.0)
            self._buckets[key] = (tokens, now, min(tokens, fewest))
            if len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
        return max(0.0, -tokens / self._rate)
