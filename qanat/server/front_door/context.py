"""What all connections of one front door share, and the questions that each of them has to ask.

On whose account a peer comes, how long he has to wait, and whether there is room: the same for HTTP/1.1 and
HTTP/2.  Used by `qanat.server.front_door.connection` and `qanat.server.front_door.http2`; made by
`qanat.server.front_door.front_door`.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from qanat.base.deadline import Deadline
from qanat.base.threads import ThreadGroup
from qanat.config.settings import ServerSettings
from qanat.process.log_throttle import LogThrottle
from qanat.server.admission.admission import Admission, ClientAddress, HandshakeSlot
from qanat.server.front_door.forwarded_for import client_address
from qanat.transports.pipe import Pipe
from qanat.transports.wire.tls_contexts import ReloadingServerContext

log = logging.getLogger("qanat.front_door")

HEALTH_PATH = "/healthz"

OnPipe = Callable[[Pipe, ClientAddress, HandshakeSlot], None]


@dataclass(frozen=True, slots=True)
class FrontDoorContext:
    """See the module's docstring.  Safe to use from any thread."""

    settings: ServerSettings
    tls: ReloadingServerContext | None
    admission: Admission
    on_pipe: OnPipe
    closing: threading.Event
    log_throttle: LogThrottle
    threads: ThreadGroup
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)  # guards the next
    _waiting: Counter[str] = field(default_factory=Counter[str], init=False)  # by address, streams that are slowed down

    def account(self, ip: str, forwarded_for: tuple[str, ...] = ()) -> tuple[str, bool]:
        """On whose account `ip` comes: the client's address, and whether `ip` is a trusted proxy."""
        return client_address(ip, forwarded_for, self.settings.trusted_proxies)

    def slow_down(self, ip: str, deadline: Deadline, ending: threading.Event) -> bool:
        """Wait for as long as this address has to, at most until `deadline`; False when it is `ending` before that."""
        delay = self.admission.delay(ip)
        return not (delay and ending.wait(min(delay, deadline.remaining() or 0.0)))

    def slow_down_stream(self, ip: str, deadline: Deadline, ending: threading.Event) -> bool | None:
        """As `slow_down`, for one of many streams of a connection; None when too many of this address wait already.

        Each has a thread, and no other connection's place to lose, so only `limits.handshakes` of an address may wait.
        """
        with self._lock:
            if self._waiting[ip] >= self.settings.limits.handshakes:
                return None
            self._waiting[ip] += 1
        try:
            return self.slow_down(ip, deadline, ending)
        finally:
            with self._lock:
                self._waiting[ip] -= 1
                if not self._waiting[ip]:
                    del self._waiting[ip]

    def enter(self, address: ClientAddress, cut: Callable[[], None]) -> HandshakeSlot | None:
        """Take a handshake slot, or None when there is none: then answer 503.  `cut` is as for `Admission.enter`."""
        slot = self.admission.enter(address.client, cut)
        if slot is None and self.log_throttle.due("too many handshakes"):
            log.warning(
                "too many handshakes at once (limits.handshakes) or a second (limits.handshake_rate): "
                "%s was told when to come back",
                address,
            )
        return slot

    def has_room(self) -> bool:
        """Whether one more stream of an HTTP/2 connection may have a thread.

        Each connection has one, so there may be as many streams again.
        """
        return len(self.threads) < 2 * self.settings.limits.connections + len(self.settings.listen)
