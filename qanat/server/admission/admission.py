"""Who may come in, before anyone is authenticated: how many handshakes at once, how soon, on whose account.

`Admission` is shared by all connections of one server.  The front door asks it for each connection; the
runtime gives `rsa_gate` to each server handshake, and releases the slot once the client is authenticated.
What an authenticated client may do is `qanat.server.access.rules`; whom a proxy speaks for is
`qanat.server.front_door.forwarded_for`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from qanat.config.settings import ServerLimits
from qanat.server.admission.address_rates import AddressRates
from qanat.server.admission.fair_eviction import FairEviction
from qanat.server.admission.handshake_rate import HandshakeRate


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Where a connection comes from: for logs and limits, never for authorisation."""

    peer: str  # `host:port` of the socket's other end
    client: str  # the IP address on whose account it is; behind a trusted proxy, as that proxy says
    via_proxy: bool  # whether the socket's other end is one of `trusted_proxies`

    def __str__(self) -> str:
        return f"{self.client} via {self.peer}" if self.via_proxy else self.peer


class HandshakeSlot:
    """A place among `limits.handshakes`, held from the upgrade until the client is authenticated.

    Release it once READY has been sent.  The front door releases it too, when `on_pipe` returns.
    """

    def __init__(self, crowd: FairEviction) -> None:
        self._crowd = crowd

    def release(self) -> None:
        """Make room for another handshake.  Idempotent, from any thread; does not block."""
        self._crowd.forget(self)


class Admission:
    """The limits that hold before authentication.  Safe to use from any thread; only `rsa_gate` blocks."""

    def __init__(self, limits: ServerLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limits.handshakes
        self._rate = HandshakeRate(limits.handshake_rate, limits.handshakes, clock=clock)
        self._handshakes = FairEviction()
        self.unfinished = FairEviction()
        """The connections that are no pipes yet."""
        # Half of the time for a request head, so that the slowed still have the other half for sending one.
        self._rates = AddressRates(
            limits.per_address_rate, limits.per_address_burst, max_delay=limits.header_timeout / 2, clock=clock
        )
        self.rsa_gate: AbstractContextManager[bool] = threading.BoundedSemaphore(limits.rsa_operations)
        """Entered round each RSA private-key operation; blocks while `limits.rsa_operations` are running."""

    @property
    def handshakes(self) -> int:
        """How many slots are taken now."""
        return len(self._handshakes)

    def enter(self, address: str, cut: Callable[[], None]) -> HandshakeSlot | None:
        """Take a handshake slot on the account of `address`, or None: then answer 503 with `retry_after`.

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

    def retry_after(self, address: str) -> int:
        """Whole seconds for a Retry-After header (RFC 9110 §10.2.3), 1 to 60: for one client that `enter` turned away.

        Books a place in the queue on the account of `address`, so ask once for each.
        """
        return self._rate.book(address)

    def delay(self, ip: str) -> float:
        """Seconds that a new connection on this address's account has to wait before it is served.

        Not to be asked for a trusted proxy itself: everyone behind it would wait for each other.
        """
        return self._rates.delay(ip)
