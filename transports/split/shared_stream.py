"""A streamed answer that is read by the watcher, or by a thread that waits for the next message in its place.

What comes in bulk would otherwise go from one thread to another.
"""

from __future__ import annotations

from collections.abc import Callable

from qanat.base.deadline import Deadline
from qanat.base.watcher import Ready, Watcher
from qanat.transports.split.exchange import Exchange
from qanat.transports.split.exchanges import Exchanges
from qanat.transports.split.receiving import Receiving, ReceivingReadiness

LOOK = 1.0
"""Seconds after which a thread that reads a streamed answer looks what else there is."""


class SharedStream:
    """One pipe's; there may be none."""

    def __init__(self, receiving: Receiving, exchanges: Exchanges, alone: Callable[[], bool]) -> None:
        """`alone` says, without a lock, whether no other request brings bytes."""
        self._receiving = receiving
        self._exchanges = exchanges
        self._alone = alone
        self._exchange: Exchange | None = None
        self._held: Exchange | None = None  # by the thread that waits for messages; its own, and its successor's

    def begun_locked(self, exchange: Exchange) -> None:
        """Note the answer that goes on now, which the watcher reads.  With the pipe's lock."""
        if not exchange.is_over:
            self._exchange = exchange

    def ended_locked(self) -> None:
        """Forget the one that has ended.  With the pipe's lock."""
        if self._exchange is not None and self._exchange.is_over:
            self._exchange = None

    def read(self, seconds: float | None) -> None:
        """Read in this thread, if nothing else brings bytes, until there is a message.

        Blocks for `seconds` at most, forever without.  By the thread that waits for messages.
        """
        receiving, deadline = self._receiving, Deadline(seconds)
        while True:
            exchange = self._exchange
            alone = exchange is not None and self._alone()
            if self._held is not None and not (alone and self._held is exchange):
                self.let_go()  # what is left of it belongs in front of what the others bring
            if exchange is None or not alone or receiving.has_come():
                return
            if self._held is None:
                if not exchange.hold(LOOK if seconds is None else min(seconds, LOOK)):
                    return
                self._held = exchange
            exchange.read(held=True)
            if deadline.passed or receiving.silent:
                return
            self._exchanges.end_if_late(exchange)

    def let_go(self) -> None:
        """Have the watcher read again.  By the thread that waited for messages."""
        held, self._held = self._held, None
        if held is not None:
            self._exchanges.watch(held)

    def close(self) -> None:
        """Close its connection, and so wake the thread that reads it.  Does not block."""
        if self._exchange is not None:
            self._exchange.connection.close()


class SharedReadiness(ReceivingReadiness):
    """That of a pipe whose streamed answer may have been read by whoever waited for a message."""

    def __init__(self, receiving: Receiving, watcher: Watcher, stream: SharedStream) -> None:
        super().__init__(receiving, watcher)
        self._stream = stream

    def add(self, ready: Ready) -> None:
        """See `Readiness.add`."""
        super().add(ready)
        self._stream.let_go()
