"""A relay in front of a server that speaks HTTP/1.1 and HTTP/2 honestly, but for what its `Rules` say.

A request is passed on in the protocol in which it came, on a connection of its own without TLS; an extended CONNECT
becomes an Upgrade.  Threads and blocking sockets: one thread for a connection, two for an exchange, one for the clock.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from types import TracebackType
from typing import Self

from tests.support.machine.certificates import Certificate
from tests.support.troubles.forwarding import Forwarding, reply
from tests.support.troubles.front import Front
from tests.support.troubles.rules import Rules
from tests.support.troubles.wire import Asked

TICK = 0.02
"""Seconds between two looks at the clock."""


class Relay:
    """Listens on 127.0.0.1, at `port` or where the system chooses, in front of the server at `address`.

    With a `certificate` it speaks TLS.  `seed` decides which POSTs are lost or repeated, and when connections are cut.
    """

    def __init__(
        self,
        address: tuple[str, int],
        rules: Rules,
        certificate: Certificate | None = None,
        *,
        port: int = 0,
        seed: int = 1,
    ) -> None:
        self.address, self.rules = address, rules
        self.random = random.Random(seed)
        self.counts: dict[str, int] = dict.fromkeys(("requests", "cut", "lost", "repeated", "413"), 0)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._forwardings: set[Forwarding] = set()
        self._front = Front(self._forward, rules, certificate, port=port)
        self.port = self._front.port
        self._clock = threading.Thread(target=self._clock_loop, name="relay clock", daemon=True)
        self._clock.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cut all and wait for all threads."""
        self._over.set()
        self._clock.join()
        self.cut()
        self._front.close()

    def cut(self) -> None:
        """Cut every connection."""
        with self._lock:
            forwardings = list(self._forwardings)
        for forwarding in forwardings:
            forwarding.cut()
        self._front.cut()

    @property
    def connections(self) -> int:
        """How many have come."""
        return self._front.accepted

    def count(self, what: str) -> int:
        """Count one more."""
        with self._lock:
            self.counts[what] += 1
            return self.counts[what]

    def strikes(self, one_in: int) -> bool:
        """Whether one in so many strikes now."""
        with self._lock:
            return one_in > 0 and self.random.random() < 1 / one_in

    def _forward(self, asked: Asked, last: bool) -> None:
        self.count("requests")
        forwarding = Forwarding(self, asked, last=last)
        with self._lock:
            if self._over.is_set():
                return
            self._forwardings.add(forwarding)
        try:
            forwarding.run()
        except OSError:
            with contextlib.suppress(OSError):
                if forwarding.unanswered:
                    reply(asked, 502)
                else:
                    asked.cut()
        finally:
            with self._lock:
                self._forwardings.discard(forwarding)

    def _clock_loop(self) -> None:
        rules = self.rules
        if not (rules.idle or rules.life or rules.random_life):
            return
        while not self._over.wait(TICK):
            now = time.monotonic()
            with self._lock:
                due = [forwarding for forwarding in self._forwardings if forwarding.due(now)]
            for forwarding in due:
                self.count("cut")
                forwarding.cut()
