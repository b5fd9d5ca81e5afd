"""What all connections of one front door share: settings, limits, who is known, and what has been counted."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from qanat.base.deadline import Deadline
from qanat.base.events import Events
from qanat.base.threads import ThreadGroup
from qanat.base.usage import Peaks, Usage
from qanat.base.watcher import Watcher
from qanat.config.server_settings import ServerSettings
from qanat.process.log_throttle import LogThrottle
from qanat.server.admission.admission import Admission, HandshakeSlot
from qanat.server.admission.client_address import ClientAddress, client_address, is_internal
from qanat.server.front_door import refusals
from qanat.server.front_door.address_budgets import AddressBudgets
from qanat.server.front_door.kept_connection import KeptConnections
from qanat.server.front_door.probes import Probes
from qanat.server.published_names import PublishedNames
from qanat.transports.http2 import grpc
from qanat.transports.pipe import Pipe
from qanat.transports.split.server import SplitPipes
from qanat.transports.wire.tls_contexts import ReloadingServerContext

log = logging.getLogger("qanat.front_door")

HEALTH_PATH = "/healthz"
"""What monitoring asks for, and gets 200."""

Carry = Callable[[Callable[[], None]], None]
"""Carries a pipe to its end; returns when little comes on it, and calls what it is given once the pipe is over."""
OnPipe = Callable[[Pipe, ClientAddress, HandshakeSlot], Carry | None]
"""What to do with a pipe; it returns how to go on with it, or None when that is over."""

_UNTRUSTED_PROXY = (
    "%s sends X-Forwarded-For and is not in `trusted_proxies`: all who come through it count as one address, so one of "
    "them can slow all others down.  If it is your proxy, set trusted_proxies: [%s]"
)


@dataclass(slots=True, eq=False)
class FrontDoorContext:
    """What all connections of one front door share.  Safe to use from any thread.

    The front door changes `settings`, `tls` and `names` when it gets other settings: new connections, and new requests
    on those there are, go by these.
    """

    settings: ServerSettings
    tls: ReloadingServerContext | None
    admission: Admission
    on_pipe: OnPipe
    closing: threading.Event
    log_throttle: LogThrottle
    threads: ThreadGroup
    probes: Probes
    split: SplitPipes
    kept: KeptConnections
    names: PublishedNames | None
    events: Events
    watcher: Watcher
    _once: LogThrottle = field(default_factory=lambda: LogThrottle(interval=math.inf), init=False)
    budgets: AddressBudgets = field(default_factory=AddressBudgets, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)  # guards the others
    _peaks: Peaks = field(default_factory=Peaks, init=False)
    _counts: Counter[str] = field(default_factory=Counter[str], init=False)
    _waiting: Counter[str] = field(default_factory=Counter[str], init=False)  # by address, streams that are slowed down

    def client_of(self, ip: str, forwarded_for: tuple[str, ...] = ()) -> tuple[str, bool]:
        """Return the address that a connection from `ip` is charged to, and whether `ip` is a trusted proxy.

        What looks like a proxy that was forgotten in `trusted_proxies` is logged, once.
        """
        client, via_proxy = client_address(ip, forwarded_for, self.settings.trusted_proxies)
        if forwarded_for and not via_proxy and is_internal(ip) and self._once.due("untrusted proxy"):
            log.warning(_UNTRUSTED_PROXY, ip, ip)
        return client, via_proxy

    def tell_of(self, refusal: refusals.Refusal, peer: str, path: str) -> None:
        """Log why a client of a tunnel, as it seems, was refused; not often.  `path` is what it asked for."""
        self.events.refused(refusal.subject)
        if self.log_throttle.due(f"refused: {refusal.subject}: {refusal.reason}"):
            log.log(
                logging.WARNING if refusal is refusals.LOST_UPGRADE else logging.INFO,
                "refused %s, which asked for %s: %s; %s",
                peer,
                refusals.shown(path) or "nothing yet",
                refusal.reason,
                refusal.remedy,
            )

    def tell_of_404(self, peer: str, path: str, headers: tuple[tuple[str, str], ...]) -> None:
        """Log a request that found nothing here, if it looks like a tunnel's client; not often."""
        if not refusals.looks_like_client(path, headers, self.settings.path):
            self.events.refused("not found")
        else:
            right = path in (self.settings.path, grpc.METHOD_PATH)
            self.tell_of(refusals.NO_TUNNEL_REQUEST if right else refusals.WRONG_PATH, peer, path)

    def slow_down(self, ip: str, deadline: Deadline, wait_over: Callable[[float], bool]) -> bool:
        """Block for as long as this address has to wait, at most until `deadline`.

        `wait_over` blocks for so many seconds, and returns whether it has become needless to wait; this returns False
        then.
        """
        delay = self.admission.delay(ip)
        return not (delay and wait_over(min(delay, deadline.remaining() or 0.0)))

    def slow_down_stream(self, ip: str, deadline: Deadline, wait_over: Callable[[float], bool]) -> bool | None:
        """Do as `slow_down`, for one of many streams of a connection; None when too many of this address wait already.

        Each has a thread, and no other connection's place to lose, so only `limits.handshakes` of an address may wait.
        """
        with self._lock:
            if self._waiting[ip] >= self.settings.limits.handshakes:
                return None
            self._waiting[ip] += 1
            waiting = Usage(self._waiting[ip], self.settings.limits.handshakes)
            self._peaks.note("streams of one address that wait", waiting)
        try:
            return self.slow_down(ip, deadline, wait_over)
        finally:
            with self._lock:
                self._waiting[ip] -= 1
                if not self._waiting[ip]:
                    del self._waiting[ip]

    def note_connection(self, used_most: dict[str, Usage]) -> None:
        """Keep how near a connection came to its limits, now that it is over."""
        with self._lock:
            self._peaks.note_all(used_most)

    @property
    def used_most(self) -> dict[str, Usage]:
        """How near connections that are over came to each limit, by the limit's name."""
        with self._lock:
            return self._peaks.copy()

    def enter(self, address: ClientAddress, cut: Callable[[], None]) -> HandshakeSlot | None:
        """Return a handshake slot, or None when there is none: then answer 503.  `cut` is as for `Admission.enter`."""
        slot = self.admission.enter(address.client, cut)
        if slot is None:
            self.events.refused("too many handshakes")
        if slot is None and self.log_throttle.due("too many handshakes"):
            log.warning(
                "too many handshakes at once (limits.handshakes) or a second (limits.handshake_rate): "
                "%s was told when to come back",
                address,
            )
        return slot

    def has_room(self) -> bool:
        """Return whether one more stream of an HTTP/2 connection may have a thread, and a pipe.

        Each connection has a thread, so there may be as many streams again.
        """
        most = 2 * self.settings.limits.connections
        return len(self.threads) < most + len(self.settings.listen) and self._counts["pipes"] < most

    def count_pipe(self, change: int) -> None:
        """Count the pipes on streams of HTTP/2 that there are, be they quiet and without a thread."""
        with self._lock:
            self._counts["pipes"] += change
