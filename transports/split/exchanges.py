"""The requests of one pipe that nobody's thread waits for: sent by whoever has something to ask, or to say, and ended
where no answer comes in time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from qanat.base.errors import NoThread, QanatError, TransportError
from qanat.base.watcher import Timer, Watcher
from qanat.base.workers import WORKERS
from qanat.transports.split.connections import Answer, Connections, Requests
from qanat.transports.split.exchange import Connection, Exchange, Taker
from qanat.transports.split.token import Carrier

OnEnd = Callable[[Exception | None], None]
"""Called once for an exchange: its answer has come, or why it has not.  Without a lock; must not block."""


class Exchanges:
    """Those of one pipe.  What does not say otherwise may be called from any thread, and does not block."""

    def __init__(self, requests: Requests) -> None:
        """There are none before `watch_with`."""
        self._requests = requests
        self._connections: Connections | None = None
        self._lock = threading.Lock()  # guards the next one
        self._all: set[Exchange] = set()
        self._timer: Timer | None = None

    def watch_with(self, watcher: Watcher) -> None:
        """Have `watcher` read answers from now on, where that is `possible`."""
        self._timer = watcher.timer(self._check_deadlines)
        self._connections = self._requests.watch_with(watcher)

    @property
    def possible(self) -> bool:
        """Whether there can be any: there is a watcher, and it can read what answers come on."""
        return self._connections is not None

    def reserve(self) -> Connection | None:
        """Return a connection for one, if one is free: `begin` follows."""
        return None if self._connections is None else self._connections.reserve()

    def begin(self, connection: Connection, taker: Taker, on_end: OnEnd, seconds: float) -> Exchange:
        """Return one, which fails unless its answer has come whole within `seconds`, or begun, if `taker` has patience.

        `send` follows.
        """
        exchange = Exchange(connection, taker, partial(self._ended, on_end))
        self._expect(exchange, seconds)
        return exchange

    def _expect(self, exchange: Exchange, seconds: float) -> None:
        exchange.seconds, exchange.deadline = seconds, time.monotonic() + seconds
        with self._lock:
            if exchange.is_over:
                return
            self._all.add(exchange)
        if self._timer is not None:
            with suppress(NoThread, OSError):
                self._timer.set(exchange.deadline)

    def send(
        self,
        exchange: Exchange,
        method: str,
        carried: Sequence[tuple[Carrier, str]],
        body: bytes | memoryview | None = None,
    ) -> None:
        """Send its request; what the path does not take at once is left to a thread.  What fails ends it."""
        assert self._connections is not None  # or nothing could be reserved
        try:
            if self._connections.send_now(exchange, method, carried, body):
                self._sent(exchange)
            else:
                name = f"split-flush {exchange.connection.wire.peer}"
                WORKERS.start(name, partial(self._flush, exchange), reserved=True)
        except (NoThread, QanatError) as error:
            self._sending_failed(exchange, error)

    def _flush(self, exchange: Exchange) -> None:
        try:
            exchange.deadline = math.inf  # the wire has a timeout of its own
            exchange.connection.flush()
            self._expect(exchange, exchange.seconds)
            self._sent(exchange)
        except QanatError as error:
            self._sending_failed(exchange, error)

    def _sent(self, exchange: Exchange) -> None:
        if exchange.connection.sent():  # the answer was quicker than whoever sent this
            self._give_back(exchange.connection)

    def _sending_failed(self, exchange: Exchange, error: QanatError) -> None:
        if not exchange.fail(error) and self._connections is not None:
            self._connections.drop(exchange.connection)  # its answer was there before all of the request was out

    def _give_back(self, connection: Connection) -> None:
        assert self._connections is not None
        self._connections.give_back(connection, reusable=connection.reusable)

    def leave(self, answer: Answer, taker: Taker, on_end: OnEnd) -> Exchange | None:
        """Have the watcher read the rest of an answer that a thread has read so far; None where it cannot."""
        exchange = None if self._connections is None else answer.leave(taker, partial(self._ended, on_end))
        if exchange is not None:
            self.watch(exchange)
        return exchange

    def watch(self, exchange: Exchange) -> None:
        """Have the watcher read one that a thread has held.  Blocks while a thread reads it."""
        assert self._connections is not None
        self._expect(exchange, exchange.taker.patience)
        if not self._connections.watch(exchange):
            exchange.fail(TransportError("nothing can watch the connection"))

    def end_if_late(self, exchange: Exchange) -> None:
        """End one whose time is over.  By who reads it."""
        if exchange.deadline <= time.monotonic():
            exchange.fail(TransportError("no answer came in time"))

    def _ended(self, on_end: OnEnd, exchange: Exchange, error: Exception | None) -> None:
        """Use the connection for another request, if all of this one is out, or close it."""
        assert self._connections is not None
        connection = exchange.connection
        with self._lock:
            self._all.discard(exchange)
        if error is not None:
            self._connections.drop(connection)
        elif connection.answered():
            self._give_back(connection)
        else:
            connection.unwatch()  # until it is sent
        on_end(error)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [exchange for exchange in self._all if exchange.deadline <= now and not exchange.held]
        for exchange in late:
            if exchange.read() and self._connections is not None:  # it may have come, if it is we who are late
                self._connections.read_soon(exchange)
            self.end_if_late(exchange)
        with self._lock:
            self._all = {exchange for exchange in self._all if not exchange.is_over}
            following = min((exchange.deadline for exchange in self._all if not exchange.held), default=math.inf)
        if following < math.inf and self._timer is not None:
            self._timer.set(following)
