"""A connection of HTTP/1.1, and a request on it whose answer the watcher reads, so that nobody's thread waits for it.

    whoever has something to ask   -> sends it, without blocking, on a connection that is idle
    the watcher                    -> reads the answer as it comes, hands it on, and says when it is over
    a thread that waits for bulk   -> reads in the watcher's place, from `hold` to `watch`

What does not go smoothly is left to threads: a connection that takes no more at once, has to be made first, or fails.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from qanat.base.errors import NoThread, QanatError, TransportError
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.transports.pipe import Wire
from qanat.transports.split import http1

PIECES_IN_TURN = 4
"""Pieces of an answer that are read before others have their turn."""


class Failed(Exception):
    """A request that has to be made again.  `status` is that of its answer, if one came."""

    def __init__(self, why: str, *, status: int = 0) -> None:
        super().__init__(why)
        self.status = status


class Taker(Protocol):
    """Whoever takes in an answer.  Its methods must not block, and raise Failed and ProtocolError."""

    patience: float
    """Seconds without a piece after which an answer that has begun has failed; 0 leaves the exchange's deadline."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Look at the answer's head."""

    def piece(self, content: memoryview) -> None:
        """Take the next of the body's bytes, the taker's from now on."""

    def end(self) -> None:
        """Note that the body has come whole."""


OnOver = Callable[["Exchange", Exception | None], None]
"""Called once: the answer has come, or why it has not.  By who reads it, or who could not send its request."""


class Connection:
    """One connection.  One thread at a time sends on it, and one reads; `close`, `sent` and `answered` are for any."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.requests = 0
        self.idle_since = 0.0
        self.reusable = True
        """Whether another request may follow."""
        self.source = http1.ByteSource(wire)
        self.exchange: Exchange | None = None
        """The request whose answer the watcher reads."""
        self._sending = False  # a part of the present request may have yet to be sent
        self._answered = False  # its answer has come
        self._rest: bytes | memoryview = b""  # of a body of which nothing could be sent at once
        self.fd = wire.watch()
        """The descriptor that says when there is something to read; None where nobody can watch."""
        self.watcher: Watcher | None = None
        """Who watches it now, if anybody does."""
        self._lock = threading.Lock()
        self._closed = False

    def send(self, head: bytes, body: bytes | memoryview = b"") -> None:
        """Send a request; blocks until the kernel has it.  Raises TransportError."""
        self.requests += 1
        if len(body) <= http1.SMALL:
            self.wire.send_all(head + bytes(body))
        else:
            self.wire.send_all(head)
            self.wire.send_all(body)

    def send_now(self, exchange: Exchange, head: bytes, body: bytes | memoryview) -> bool:
        """Send a request without blocking; False when a part is left, for `flush`.  Raises TransportError.

        The watcher reads what comes for `exchange` from now on.
        """
        self.requests += 1
        with self._lock:
            self._answered, self._sending, self.exchange = False, True, exchange
        if len(body) <= http1.SMALL:
            return self.wire.send_now(b"".join((head, body)) if body else head)
        if self.wire.send_now(head):
            return self.wire.send_now(body)
        self._rest = body
        return False

    def flush(self) -> None:
        """Block until the kernel has what `send_now` has left.  Raises TransportError."""
        rest, self._rest = self._rest, b""
        self.wire.flush()
        if rest:
            self.wire.send_all(rest)

    def sent(self) -> bool:
        """Note that all of what `send_now` was given has gone out; return whether its answer has come, too."""
        with self._lock:
            self._sending = False
            return self._answered

    def answered(self) -> bool:
        """Note that the answer to what `send_now` was given has come; return whether all of that has gone out."""
        with self._lock:
            self._answered = True
            return not self._sending

    def release(self, exchange: Exchange) -> bool:
        """Have no exchange any more; return whether it was this one."""
        with self._lock:
            was = self.exchange is exchange
            if was:
                self.exchange = None
            return was

    @property
    def alive(self) -> bool:
        """Whether the other end has neither closed it nor said anything unasked."""
        if self.fd is None:
            return True
        try:
            return self.wire.recv_within(memoryview(bytearray(1)), 0) is None
        except TransportError:
            return False

    def close(self) -> None:
        """Close it; wakes whoever waits.  Idempotent; does not block."""
        with self._lock:
            closed, self._closed = self._closed, True
            watcher, self.watcher = self.watcher, None
        if not closed:
            if watcher is not None and self.fd is not None:
                watcher.remove(self.fd)
            self.wire.close()
            if self.fd is not None:
                self.wire.unwatch()

    def watch(self, watcher: Watcher, readable: Callable[[], None]) -> bool:
        """Have `watcher` call `readable` from now on; False where it cannot, or this is closed.  Does not block."""
        with self._lock:
            if self._closed or self.fd is None:
                return False
            self.source.within = 0
            if self.watcher is None:
                try:
                    watcher.add(self.fd, readable)
                except (NoThread, OSError):
                    return False
                self.watcher = watcher
            return True

    @property
    def has_more(self) -> bool:
        """Whether bytes have come that the descriptor says nothing of any more."""
        return bool(self.source.rest) or self.wire.buffered

    def unwatch(self) -> None:
        """Have the watcher leave it alone: who reads now, if anybody does, blocks."""
        with self._lock:
            watcher, self.watcher = self.watcher, None
        if watcher is not None and self.fd is not None:
            watcher.remove(self.fd)
        self.source.within = None


class Exchange:
    """One request and its answer.

    `hold`, `watch` and `read(held=True)` are for a thread, `fail` for any, the rest for the watcher's.
    """

    def __init__(
        self,
        connection: Connection,
        taker: Taker,
        on_over: OnOver,
        body: http1.BodyReader | None = None,
    ) -> None:
        """`body` is that of an answer whose head has come."""
        self.connection = connection
        self.taker = taker
        self.deadline = math.inf
        """When it has failed unless something comes, on `time.monotonic`: set by `Exchanges`, and put off by each piece
        where the taker has patience."""
        self.seconds = 0.0
        """How long that was after it was set last."""
        self._on_over: OnOver | None = on_over
        self._body = body
        self._heads = http1.AnswerHeads()
        self._reading = threading.Lock()  # held by whoever reads
        self.held = False
        """Whether a thread reads, and not the watcher; who does looks itself whether something comes in time."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._on_over is None

    def hold(self, seconds: float) -> bool:
        """Have a thread read, which waits for `seconds` at a time, until `watch`; False where it is over.

        By that thread, once it is watched.  Blocks while the watcher reads what has come.
        """
        with self._reading:
            if self.is_over:
                return False
            self.held = True
            self.connection.unwatch()
            self.connection.source.within = seconds
            return True

    def watch(self, watcher: Watcher, readable: Callable[[], None]) -> bool:
        """Have `watcher` read, if it is not over; False where it cannot.  Blocks while another thread reads."""
        with self._reading:
            if self.is_over:
                return True
            self.held = False
            return self.connection.watch(watcher, readable)

    def read(self, *, held: bool = False) -> bool:
        """Take in what has come; return whether there may be more that the descriptor does not tell.

        Does nothing where somebody else reads; `held` is for who does since `hold`.
        """
        if not self._reading.acquire(blocking=False):
            return False
        try:
            return not self.is_over and held is self.held and self._read()
        finally:
            self._reading.release()

    def _read(self) -> bool:
        connection = self.connection
        try:
            for _ in range(1 if self.held else PIECES_IN_TURN):
                if self._body is None:
                    self._body = self._read_head()
                piece = self._body.next()
                if piece is not None:
                    self.taker.piece(piece)
                    if self.taker.patience:
                        self.deadline = time.monotonic() + self.taker.patience
                if piece is None or self._body.over:
                    self.taker.end()
                    self._end(None)
                    return False
        except http1.NothingCame:
            return connection.wire.buffered
        except (Failed, QanatError) as error:
            self._end(error)
            return False
        except Exception as error:
            log_unexpected(f"reading an answer from {connection.wire.peer} ended")
            self._end(error)
            return False
        return connection.has_more

    def _read_head(self) -> http1.BodyReader:
        connection = self.connection
        status, headers, http10 = self._heads.next(connection.source)
        body = http1.BodyReader(connection.source, headers, of_answer=True)
        connection.reusable = http1.keeps_alive(headers, http10=http10) and not body.to_the_end
        self.taker.head(status, headers)
        return body

    def fail(self, error: Exception) -> bool:
        """End it by this; return whether it was not over.  Does not block."""
        return self._end(error)

    def _end(self, error: Exception | None) -> bool:
        on_over = self._on_over
        if on_over is None or not self.connection.release(self):
            return False
        self._on_over = None
        on_over(self, error)
        return True
