"""Who may come in, before anyone is authenticated: how many handshakes at once, how soon, on whose account.

`Admission` is shared by all connections of one server.  The front door asks it for each connection; the
runtime gives `rsa_gate` to each server handshake, and releases the slot once the client is authenticated.
What an authenticated client may do is `service.access`; whom a proxy speaks for is `service.proxied`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from attrs import frozen

from service.address_rates import AddressRates
from service.settings import ServerLimits

_RETRY_AFTER = (2, 5)
"""Seconds that a refused client is asked to stay away, drawn at random so that a crowd does not come back as one."""


@frozen
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

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Make room for another handshake.  Idempotent, from any thread; does not block."""
        with self._lock:
            give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class Admission:
    """The limits that hold before authentication.  Safe to use from any thread; only `rsa_gate` blocks."""

    def __init__(
        self,
        limits: ServerLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        randint: Callable[[int, int], int] = random.randint,
    ) -> None:
        self._randint = randint
        self._handshakes = limits.handshakes
        self._taken = 0
        self._lock = threading.Lock()
        # Half of the time for a request head, so that the slowed still have the other half for sending one.
        self._rates = AddressRates(
            limits.per_address_rate, limits.per_address_burst, max_delay=limits.header_timeout / 2, clock=clock
        )
        self.rsa_gate: AbstractContextManager[bool] = threading.BoundedSemaphore(limits.rsa_operations)
        """Entered round each RSA private-key operation; blocks while `limits.rsa_operations` are running."""

    @property
    def handshakes(self) -> int:
        """How many slots are taken now."""
        with self._lock:
            return self._taken

    def enter(self) -> HandshakeSlot | None:
        """Take a handshake slot, or None when all are taken: then answer 503 with `retry_after`."""
        with self._lock:
            if self._taken >= self._handshakes:
                return None
            self._taken += 1
        return HandshakeSlot(self._leave)

    def _leave(self) -> None:
        with self._lock:
            self._taken -= 1

    def retry_after(self) -> int:
        """Whole seconds for a Retry-After header (RFC 9110 §10.2.3)."""
        return self._randint(*_RETRY_AFTER)

    def delay(self, ip: str) -> float:
        """Seconds that a new connection on this address's account has to wait before it is served.

        Not to be asked for a trusted proxy itself: everyone behind it would wait for each other.
        """
        return self._rates.delay(ip)
