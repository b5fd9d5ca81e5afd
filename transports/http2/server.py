"""A server's HTTP/2 connection: reads it, answers what is plain, and gives every tunnel stream a thread of its own.

A proxy carries the streams of several clients on one connection and uses it again, so nothing here may let one
stream hold up another: the thread that reads the connection waits for nothing else, and pending control frames have
a writer of their own.

Threads: the caller of `serve` reads; `h2-writer PEER` sends what nobody else does; `h2 PEER/STREAM`, one for each
tunnel stream, runs the handler, which as a rule becomes the reader of a session.  Once all of these sessions are left
to the watcher, and nothing has come for a moment, the watcher reads the connection, and it has no thread at all until
more is to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from h2.errors import ErrorCodes

from qanat.base.errors import LocalError, NoThread, QanatError
from qanat.base.lazy_waiting import LazyEvent
from qanat.base.threads import ThreadGroup, start_thread
from qanat.base.usage import Usage
from qanat.base.watcher import Watcher
from qanat.transports.http2.dialect import Dialect, Headers
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.frames import HEADER_SIZE
from qanat.transports.http2.inbox import Inbox
from qanat.transports.http2.limits import IDLE, MAX_PLAIN, MAX_STREAMS, UNAUTHENTICATED_WINDOW, StreamBudget
from qanat.transports.http2.pipes import server_pipe
from qanat.transports.http2.request import Http2Request, PlainAnswer, Router, no_budget
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.pipe import Pipe, SockAddr, Wire

log = logging.getLogger("qanat.http2")

_RETRY_AFTER = 5
"""Seconds that a client is asked to stay away when there is no room."""

WRITE_TIMEOUT = 30.0
"""Seconds without a window after which an answer without a pipe is given up."""

Carry = Callable[[Callable[[], None]], None]
"""Goes on with a stream, and calls what it is given once that is over; may return before."""

_RETRY = 1.0
"""Seconds until a thread is asked for again, when there was none for a connection that no longer rests."""

QUIET_SECONDS = 0.2
"""Seconds without a byte after which a connection rests, when all its pipes are quiet."""

_STUCK = 0.5
"""Seconds that a closed pipe's writer gets to leave a connection that takes nothing, before all of it is ended.

The lane's next pipe waits for that."""
_STUCK_UNAUTHENTICATED = 10.0
"""The same for a pipe without a lane: nobody waits for it, and those whose connection it is may be honest, and come
back as soon as a proxy that had no processor for some seconds goes on."""


class Http2Server:
    """One connection, from the client's preface to its end."""

    def __init__(
        self,
        wire: Wire,
        first: bytes,
        router: Router,
        handle: Callable[[Exchange], Carry | None],
        threads: ThreadGroup,
        *,
        has_room: Callable[[], bool] = lambda: True,
        budget_of: Callable[[Http2Request], StreamBudget | None] = no_budget,
        idle: float = IDLE,
    ) -> None:
        """`first` are the bytes that have been read, the whole preface at least.  Owns `wire`.

        `router` decides what becomes of a request.  For one that shall become a pipe, `handle` is called in a thread
        of its own.  The stream is over when it returns, unless that is how to go on: this is called then, and may
        return before it calls what it is given, once the stream is over.

        The streams' threads are of the group `threads`, and begin only while it `has_room`; otherwise the answer is
        503.  What the peer does on a stream is charged to what `budget_of` returns for its request, and refused with
        503 when that is spent; with None it is charged to the connection, which ends.  Called as `router` is.

        `idle` is the number of seconds that the connection may be without a request that runs.
        """
        self._on_over: Callable[[], None] = _nobody
        self._engine = Http2Engine(wire, window=UNAUTHENTICATED_WINDOW, first=first, router=router, budget_of=budget_of)
        self._engine.set_on_active(self._go_on_in_thread)
        self._peer = wire.peer
        self._idle = idle
        self._handle = handle
        self._threads = threads
        self._has_room = has_room
        self.requests = 0
        """How many have come."""
        self._plain = 0  # of these, up to the last one that was plain and counted for the connection
        self._changed = threading.Condition(self._engine.lock)  # `_running` has become less
        self._running = 0  # exchanges; guarded by the engine's lock
        self._idle_since = time.monotonic()  # likewise
        self._leaving = False  # likewise

    @property
    def used_most(self) -> dict[str, Usage]:
        """How near the peer has come to each limit of this connection, by the limit's name."""
        with self._engine.lock:
            return {**self._engine.core.used_most, "plain requests": Usage(self._plain, MAX_PLAIN)}

    def serve(self, on_over: Callable[[], None] = lambda: None) -> None:
        """Serve until the connection has ended, and the handlers of its streams too, or until it rests.

        `on_over` is called once it has ended, perhaps much later and by another thread.  Blocks meanwhile.
        """
        self._on_over = on_over
        self._engine.wire.set_wakeup(self._engine.wake_writer)
        self._engine.tell()  # our SETTINGS
        self._go_on()

    def _go_on(self) -> None:
        """Read until the connection has ended, or rests."""
        engine, rests = self._engine, False
        engine.begin_writer()
        try:
            writer = start_thread(f"h2-writer {self._peer}", engine.writer_loop)
            try:
                while not rests and self._read_loop():
                    engine.end_writer()
                    writer.join(_STUCK)
                    if not writer.is_alive():
                        with engine.lock:
                            rests = engine.rest_locked()
                    if not rests:
                        engine.begin_writer()
                    if not rests and not writer.is_alive():
                        writer = start_thread(f"h2-writer {self._peer}", engine.writer_loop)
            finally:
                if not rests:
                    engine.end("the server has ended this connection")
                    writer.join()
        except NoThread as error:
            engine.end(f"there is no thread to send what is due: {error.message}")
        finally:
            if not rests:
                self._end()

    def _end(self) -> None:
        """Wait for what still uses the connection, and say that it is over."""
        engine = self._engine
        engine.end("the server has ended this connection")
        engine.wire.set_wakeup(_nobody)
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
        engine.forget_watcher()
        engine.set_on_active(_nobody)  # which holds this
        on_over, self._on_over = self._on_over, _nobody
        on_over()

    def _go_on_in_thread(self) -> None:
        """Have a thread read on, or end the connection; without one, try again after a while.  By the watcher."""
        try:
            self._threads.start(f"front {self._peer}", self._go_on)
        except NoThread as error:
            log.warning("%s: %s", self._peer, error)
            self._engine.try_again(_RETRY)

    def leave(self) -> None:
        """Take no new request; end when none runs any more, which may be at once.  Idempotent; does not block."""
        with self._engine.lock:
            running = self._running
            self._leaving |= not running
        if not running:  # at once: what is queued here would be with the writer, and the end overtake it
            self._engine.end("the server is closing")
            return
        self._go_away()
        with self._engine.lock:
            running = self._running
            for stream in self._engine.core.streams.values():
                stream.readable.notify_all()  # for `Exchange.wait_over`
        if not running:
            self._engine.end("the server is closing")

    def _go_away(self) -> None:
        """Have the peer use another connection for what comes; end when none runs and all has been said."""
        with self._engine.lock:
            if self._leaving:
                return
            self._leaving = True
            self._engine.core.go_away()
        self._engine.tell()

    def end(self, cause: str) -> None:
        """End the connection, and with it every stream.  Idempotent; does not block."""
        self._engine.end(cause)

    # --- the reader

    def _read_loop(self) -> bool:
        """Read until the connection has ended; return True when it may rest instead: nothing has come for a moment."""
        engine = self._engine
        with engine.lock:
            while not engine.over:
                before = engine.core.last_received
                if not engine.core.requests and not engine.lend_reading_locked():
                    pause = QUIET_SECONDS if engine.watched and engine.core.streams else self._idle
                    engine.read_locked(min(pause, self._idle))
                    if before == engine.core.last_received and engine.may_rest_locked():
                        return True
                requests, engine.core.requests = engine.core.requests, []
                if requests:
                    engine.lock.release()
                    try:
                        for request, decision in requests:
                            self._follow(request, decision)
                    finally:
                        engine.lock.acquire()
                elif not self._running:
                    idle = time.monotonic() - self._idle_since
                    if self._leaving or engine.core.leaving or idle >= self._idle:
                        break
        return False

    def _follow(self, request: Http2Request, decision: PlainAnswer | Http2Stream) -> None:
        engine = self._engine
        with engine.lock:
            self.requests += 1
            accepted = self._running < MAX_STREAMS and not self._leaving
            shared = engine.core.has_budget(request.stream_id)
            self._idle_since = time.monotonic()
        if not accepted:
            engine.refuse(request.stream_id, ErrorCodes.REFUSED_STREAM)
        elif isinstance(decision, PlainAnswer):
            engine.answer(request, decision)
            if not shared:
                self._plain = self.requests
                if self.requests >= MAX_PLAIN:
                    self._go_away()
        else:
            exchange = Exchange(engine, request, decision, self._threads, self._finish)
            if decision.dialect.needs_no_thread:
                with engine.lock:
                    self._running += 1
                try:
                    self._handle(exchange)
                except BaseException:
                    exchange.finish()
                    raise
                return
            if not self._has_room():
                exchange.refuse(503, retry_after=_RETRY_AFTER)
                exchange.charge()
                return
            with engine.lock:
                self._running += 1
            try:
                self._threads.start(f"h2 {self._peer}/{request.stream_id}", partial(self._run, exchange))
            except NoThread as error:
                log.error("cannot serve a request: %s", error)
                engine.refuse(request.stream_id, ErrorCodes.REFUSED_STREAM)
                self._handled()

    # --- the handlers' threads

    def _run(self, exchange: Exchange) -> None:
        carry = None
        try:
            carry = self._handle(exchange)
        except (QanatError, OSError) as error:
            log.debug("a request from %s ended: %s", self._peer, error)
        finally:
            if carry is None:
                exchange.finish()
        if carry is not None:
            carry(exchange.finish)

    def _finish(self, exchange: Exchange) -> None:
        exchange.close("the server has ended this stream")
        exchange.charge()
        self._handled()

    def _handled(self) -> None:
        with self._engine.lock:
            self._running -= 1
            self._changed.notify_all()
            self._idle_since = time.monotonic()
            last = not self._running and (self._leaving or self._engine.core.leaving)
        if last:
            self._engine.end("the connection is no longer needed")
        else:
            self._engine.wake()  # there may be nothing left to rest for


class Exchange:
    """A request that may become a pipe, in the hands of its handler."""

    def __init__(
        self,
        engine: Http2Engine,
        request: Http2Request,
        stream: Http2Stream,
        threads: ThreadGroup,
        finish: Callable[[Exchange], None],
    ) -> None:
        self.request = request
        self._engine = engine
        self._stream = stream
        self._threads = threads
        self._finish: Callable[[Exchange], None] | None = finish

    @property
    def dialect(self) -> Dialect:
        """What the router has decided."""
        return self._stream.dialect

    @property
    def addresses(self) -> tuple[SockAddr, SockAddr] | None:
        """Those of the connection, see `Wire.addresses`."""
        return self._engine.wire.addresses

    def finish(self) -> None:
        """End the stream, and count the request as over.  Idempotent; does not block."""
        with self._engine.lock:
            finish, self._finish = self._finish, None
        if finish is not None:
            finish(self)

    def trust(self, watcher: Watcher) -> None:
        """Take the request's client for authenticated: open its whole window, and let the connection rest.

        `watcher` reads it then.  Raises TransportError when it is over.
        """
        self._engine.watch_by(watcher)
        with self._engine.lock:
            self._engine.core.widen(self._stream)
        self._engine.tell()

    def body(self, seconds: float) -> memoryview | None:
        """Return the request's one message; None when the stream ended, or `seconds` have passed, before it was whole.

        Blocks.  Raises ProtocolError as `Inbox.take` does.
        """
        engine, stream = self._engine, self._stream
        inbox = stream.inbox
        if not isinstance(inbox, Inbox):
            raise LocalError("a dialect without messages has no body that is one")
        with engine.lock:
            engine.wait_locked(stream, stream.readable, lambda: inbox.waiting or stream.over, seconds)
            return inbox.take()

    def answer(self, headers: Headers, body: bytes) -> None:
        """Give a whole answer, which is small.  Does not block."""
        engine, stream = self._engine, self._stream
        with engine.lock:
            stream.answered = stream.ended_here = True
            if not engine.over and not stream.over:
                engine.core.answer(stream.id, headers, body)
        engine.tell()

    def open_answer(self, headers: Headers) -> None:
        """Give the head of an answer, whose body `send_now` and `send` have.  Does not block."""
        stream = self._stream
        stream.write_timeout = WRITE_TIMEOUT
        with self._engine.lock:
            stream.answered = True
        self._engine.answer_head(self.request, headers)

    def send_now(self, buffer: memoryview) -> bool | None:
        """Send what is behind HEADER_SIZE bytes as DATA without blocking: True when all of it is on its way.

        False when `send` has to follow for what is left, which is kept; None when nothing was taken.  Raises PipeEnded.
        """
        if not self._engine.can_send_now(self._stream):
            return None
        return self._engine.send_now(self._stream, buffer, HEADER_SIZE)

    def send(self, buffer: memoryview) -> None:
        """Send what is left of earlier data, and what is behind HEADER_SIZE bytes.  Blocks.  Raises PipeEnded."""
        self._engine.flush_stream(self._stream)
        if len(buffer) > HEADER_SIZE:
            self._engine.send(self._stream, buffer, HEADER_SIZE)

    def accept(self) -> Pipe:
        """Answer 200, at once, though the request's body is open; return the pipe.  Does not block."""
        self._stream.answered = True
        self._engine.answer_head(self.request, self._stream.dialect.response_headers())
        return server_pipe(self._engine, self._stream, self.close)

    def wait_over(self, ending: LazyEvent, seconds: float) -> bool:
        """Block until the peer has given the request up, or `ending` is set and the connection leaves; False in time.

        Returns after `seconds` at the latest.
        """
        engine, stream = self._engine, self._stream
        with engine.lock:
            return engine.wait_locked(stream, stream.readable, lambda: stream.over or ending.is_set(), seconds)

    def refuse(self, status: int, body: str = "", *, retry_after: int | None = None) -> None:
        """Answer that there will be no pipe, in the dialect's own words where it has some.  Does not block."""
        headers: Headers = [] if retry_after is None else [("retry-after", str(retry_after))]
        self._stream.ended_here = True
        words = self._stream.dialect.refusal(status, retry_after)
        self._engine.answer(self.request, PlainAnswer(status, body, headers) if words is None else words)
        self.close("the request was refused")

    def close(self, cause: str) -> None:
        """End the stream, and the pipe if there is one.  Idempotent; does not block."""
        engine, stream = self._engine, self._stream
        engine.end_stream(stream, cause)
        with engine.lock:
            stuck = stream.sending and not engine.over
            alone = not engine.core.streams
        if stuck and alone:
            engine.end(cause)
        elif stuck:
            try:
                self._threads.start(f"h2-stuck {engine.wire.peer}", partial(self._watch_stuck, cause))
            except NoThread as error:
                engine.end(f"{cause}, and nobody can see whether the path takes anything: {error.message}")

    def charge(self) -> None:
        """Count the request against the peer, now that it is over, unless its client was authenticated."""
        with self._engine.lock:
            self._engine.core.charge_request(self._stream)

    def _watch_stuck(self, cause: str) -> None:
        """End the connection: a pipe's writer that is inside the kernel cannot be woken but by ending the connection
        for everyone.

        One that only waits for its turn, while others send, will see by itself that its stream is over.
        """
        engine, before = self._engine, -1
        patience = _STUCK if self._stream.authenticated else _STUCK_UNAUTHENTICATED
        while before != engine.sends:
            before = engine.sends
            with engine.lock:
                if self._stream.writable.wait_for(lambda: not self._stream.sending or engine.over, patience):
                    return
        engine.end(f"the path takes nothing: {cause}")


def _nobody() -> None:
    """Wake nobody: the connection is over."""
