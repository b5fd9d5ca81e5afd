"""The client's end of a split pipe: what is sent goes in requests, what is received comes in answers to others.

    up:    a few requests at once take what waits; one that fails is sent again, on another connection
    down:  requests that wait at the server, a few at once while much comes

How large requests and answers are, how many run at once, and how long one waits follows what the path shows
(`measures`, `stream_form`), and so does when what fails ends the pipe (`failures`).

Once there is a watcher (`readiness`), whoever has something to send makes the request, without blocking, and the
watcher reads the answers (`exchange`): a small exchange crosses no thread, and an idle pipe has none.  What does not go
smoothly, a connection that has to be made, a path that takes no more, a request that fails, is for threads of the pool,
as everything is without a watcher and over HTTP/2: `split-up PEER` for each request with bytes for the server,
`split-down PEER` for each request that waits, `split-stream PEER` for an answer that goes on, `split-flush PEER`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, PipeEnded, ProtocolError, QanatError
from qanat.base.unexpected import FAILED, log_unexpected
from qanat.base.watcher import Watcher
from qanat.base.workers import WORKERS
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import Pipe
from qanat.transports.readiness import Readiness
from qanat.transports.split.connections import Answer, FirstAnswer, Requests
from qanat.transports.split.exchange import Exchange, Failed
from qanat.transports.split.exchanges import Exchanges
from qanat.transports.split.failures import Failures
from qanat.transports.split.measures import Measures
from qanat.transports.split.numbering import Numbering
from qanat.transports.split.receiving import PEER_CLOSED, Receiving
from qanat.transports.split.segments import Segment, SegmentReader, Welcome
from qanat.transports.split.sending import UNSENT_TIME, Sending
from qanat.transports.split.sequence import PREFIX, WINDOW, Incoming
from qanat.transports.split.shared_stream import SharedReadiness, SharedStream
from qanat.transports.split.stream_form import SOON, StreamForm
from qanat.transports.split.takers import AnswerTaker, StreamTaker
from qanat.transports.split.token import Carrier, Kind, Token

log = logging.getLogger("qanat.split")

STREAM_SIZE = 1 << 30
"""Bytes after which a streamed answer ends, and another request follows."""
MOMENT = 0.5
"""Seconds that a thread waits for something to send before it is given back, where no watcher reads answers."""
WRITE_TIMEOUT = 15.0
"""Seconds after which a connection that takes nothing is given up."""
STREAMS = True
"""Whether a pipe tries a streamed answer at all; tests have it otherwise."""
LINGER = 2.0
"""Seconds that a closed pipe has to send what is left."""


class ClientPipe(Pipe):
    """See the module's docstring.  Made by `split.connect.connect`."""

    transport = "split"
    headroom = PREFIX.size

    def __init__(self, connections: Requests, first: FirstAnswer, welcome: Welcome, carrier: Carrier) -> None:
        """Go on with the pipe that the server has made."""
        self.peer = first.peer
        self.addresses = first.addresses
        self._connections = connections
        self._cause = FirstCause()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # for threads that wait for something to send
        self._calm = threading.Condition(self._lock)  # for threads that wait after a failure
        self._receiving = Receiving(self._lock, Incoming(WINDOW), self._cause)
        self._sending = Sending(self._lock, self._receiving, self._cause)
        self._outgoing = self._sending.outgoing
        self._numbering = Numbering(welcome, carrier, self._receiving, self._outgoing)
        self._measures = Measures()
        self._form = StreamForm()
        self._failures = Failures()
        self._exchanges = Exchanges(connections)
        self._stream = SharedStream(self._receiving, self._exchanges, self._one_asks)
        self._update_due = False  # the server should hear at once how much more it may send
        self._posting = 0  # requests with bytes
        self._post_threads = 0  # that make such requests
        self._idle_post_threads = 0  # of these, those that have nothing to do
        self._post_exchanges = 0  # such requests without a thread
        self._asks = 0  # requests that wait at the server, and threads that are about to make one
        self._post_due = False  # perhaps there is something to send, for `go_on`
        self._ask_due = False  # perhaps more requests should wait
        self._closed_at: float | None = None
        self._end_told = False  # the server knows that the pipe is closed

    def take_first(self, content: memoryview) -> None:
        """Take what the first answer has behind the welcome.  Raises ProtocolError."""
        for segment, at, piece in SegmentReader().feed(content):
            self.take(segment, at, piece)

    def start(self) -> None:
        """Begin to ask for bytes.  Does not block.  Raises NoThread."""
        with self._lock:
            self._start_asks_locked()

    # --- requests that nobody's thread waits for

    def readiness(self, watcher: Watcher) -> Readiness:
        """See `Pipe.readiness`.  From now on the watcher reads answers, too."""
        self._exchanges.watch_with(watcher)
        return SharedReadiness(self._receiving, watcher, self._stream)

    def go_on(self) -> None:
        """Make the requests that are due; to be called without the lock after anything that may make one due.

        Does not block.
        """
        while self._post_due or self._ask_due:
            with self._lock:
                post = self._next_post_exchange_locked() if self._post_due else None
                ask = self._next_ask_exchange_locked() if post is None else None
            if post is not None:
                exchange, token, data = post
                self._exchanges.send(exchange, "POST", self._numbering.carried(token, data), data)
            elif ask is not None:
                self._send_ask(*ask)

    def _send_ask(self, exchange: Exchange, token: Token) -> None:
        self._exchanges.send(exchange, "GET", self._numbering.carried(token))

    def _next_post_exchange_locked(self) -> tuple[Exchange, Token, bytes | memoryview] | None:
        """Return the next request with bytes, and these, if a connection is free for one; else it is a thread's."""
        self._post_due = False
        if self._closed_at is not None or self._failures.count:
            self._start_post_thread_locked()
            return None
        if not self._may_post_more_locked() or not self._anything_to_post_locked():
            return None
        connection = self._exchanges.reserve()
        if connection is None:
            self._start_post_thread_locked()
            return None
        token, data = self._take_post_locked()
        self._post_exchanges += 1
        self._post_due = self._outgoing.ready > 0
        taker = AnswerTaker(self, token)
        on_end = partial(self._post_over, taker)
        return self._exchanges.begin(connection, taker, on_end, self._measures.post_time(0)), token, data

    def _next_ask_exchange_locked(self) -> tuple[Exchange, Token] | None:
        """Return one more request for bytes, if it should wait and a connection is free; else it is a thread's."""
        if self._asks >= self._asks_wanted_locked():
            self._ask_due = False
            return None
        self._asks += 1
        ask = None if self._failures.count else self._begin_ask_locked()
        if ask is None:
            self._start_ask_thread_locked()
        return ask

    def _begin_ask_locked(self) -> tuple[Exchange, Token] | None:
        connection = self._exchanges.reserve()
        if connection is None:
            return None
        taker = AnswerTaker(self, self._packet_token_locked())
        taker.patience = self._measures.slack
        on_end = partial(self._ask_over, taker)
        return self._exchanges.begin(connection, taker, on_end, self._measures.wait + taker.patience), taker.token

    def _post_over(self, taker: AnswerTaker, error: Exception | None) -> None:
        """Go on after a request with bytes."""
        with self._lock:
            self._post_exchanges -= 1
            if error is not None:  # what has to be done now may block
                self._post_threads += 1
        if error is None:
            self._posted(taker.token, taker.began, None)
            self.go_on()
        elif not self._start_again("split-up", partial(self._post_again, taker, error)):
            with self._lock:
                self._post_threads -= 1
                self._posting -= 1

    def _ask_over(self, taker: AnswerTaker, error: Exception | None) -> None:
        """Go on after a request for bytes."""
        if error is None:
            with self._lock:
                self._asks -= 1
                self._asked_locked(taker)
            self.go_on()
        elif not self._start_again("split-down", partial(self._ask_again, taker, error)):
            with self._lock:
                self._asks -= 1

    def _start_again(self, name: str, again: Callable[[], None]) -> bool:
        """Have a thread go on after a failure, which may have to wait before; False where there is none."""
        try:
            WORKERS.start(f"{name} {self.peer}", again, reserved=True)
        except NoThread as error:
            with self._lock:
                self._end_locked(error.message)
            return False
        return True

    def _post_again(self, taker: AnswerTaker, error: Exception) -> None:
        self._posted(taker.token, taker.began, error)
        self._post_loop()

    def _ask_again(self, taker: AnswerTaker, error: Exception) -> None:
        with self._lock:
            self._ask_failed_locked(taker, error)
        self._ask_loop()

    def _one_asks(self) -> bool:
        """Whether one request alone brings bytes.  Needs no lock."""
        return len(self._numbering.asking) == 1

    # --- requests with bytes for the server

    def _start_post_locked(self) -> None:
        """Have sent what waits: by whoever holds the lock, who calls `go_on` after that, or by a thread."""
        if self._exchanges.possible and self._closed_at is None:
            self._post_due = True
        else:
            self._start_post_thread_locked()

    def _anything_to_post_locked(self) -> bool:
        return self._update_due or bool(self._outgoing.ready)

    def _may_post_more_locked(self) -> bool:
        return self._post_threads + self._post_exchanges < self._measures.most_posts(self._outgoing.unsent)

    def _start_post_thread_locked(self) -> None:
        """Have a thread send what waits, unless enough do."""
        if self._idle_post_threads:
            self._work.notify()
        elif self._may_post_more_locked():
            self._post_threads += 1
            try:
                WORKERS.start(f"split-up {self.peer}", self._post_loop, reserved=True)
            except NoThread as error:
                self._post_threads -= 1
                if not self._post_threads:
                    self._end_locked(error.message)

    def _post_loop(self) -> None:
        try:
            while self._post_next():
                pass
        except Exception:
            log_unexpected(f"sending to {self.peer} ended")
            self.close(FAILED)
            self._connections.close()

    def _post_next(self) -> bool:
        """Send what waits; without a watcher block MOMENT for something.  False when there is nothing."""
        with self._lock:
            found = self._next_post_locked()
            if found is None:
                self._post_threads -= 1
                last = not self._post_threads and self._closed_at is not None
            elif self._outgoing.ready:
                self._start_post_locked()  # the rest: by another thread, or by `go_on`
        if found is None:
            if last:
                self._connections.close()
            return False
        self.go_on()
        token, data = found
        began = time.monotonic()
        try:
            timeout = self._measures.post_time(self._failures.count)
            with self._connections.request("POST", self._numbering.carried(token, data), data, timeout) as answer:
                self._read_answer(answer, AnswerTaker(self, token))
        except (Failed, QanatError) as error:
            self._posted(token, began, error)
        else:
            self._posted(token, began, None)
        self.go_on()
        return True

    def _next_post_locked(self) -> tuple[Token, bytes | memoryview] | None:
        deadline = Deadline(0.0 if self._exchanges.possible else MOMENT)
        while True:
            closed = self._closed_at is not None
            if closed and self._all_said_locked():
                return None
            if self._anything_to_post_locked() or (closed and not self._end_told):
                self._end_told = closed
                return self._take_post_locked()
            remaining = self._closing_time_locked() if closed else deadline.remaining()
            if not remaining:
                return None
            self._idle_post_threads += 1
            self._work.wait(remaining)
            self._idle_post_threads -= 1

    def _take_post_locked(self) -> tuple[Token, bytes | memoryview]:
        """Return the next request with bytes, and these; there may be none."""
        taken = self._sending.take_locked(self._measures.body)
        self._update_due = False
        self._posting += 1
        at, data = (self._outgoing.next, b"") if taken is None else taken
        return self._token_locked(Kind.UP, at=at, size=len(data)), data

    def _all_said_locked(self) -> bool:
        """Whether nothing more can be said on a pipe that is closed, or need be."""
        said = self._end_told and not self._posting and self._outgoing.acknowledged == self._outgoing.end
        return said or self._hopeless_locked() or not self._closing_time_locked()

    def _closing_time_locked(self) -> float:
        """Return how many seconds are left for saying it."""
        return max(0.0, (self._closed_at or 0.0) + LINGER - time.monotonic())

    def _hopeless_locked(self) -> bool:
        """Whether nothing can be said any more: the other end has closed, or nothing gets through."""
        since = self._failures.since
        failing = since is not None and time.monotonic() - since > LINGER
        return self._receiving.peer_gone is not None or failing

    def _posted(self, token: Token, began: float, error: Exception | None) -> None:
        """Go on after a request with bytes, with this outcome.  Blocks for a pause after an error, else never."""
        took = time.monotonic() - began
        with self._lock:
            self._posting -= 1
            if self._closed_at is not None:
                self._work.notify_all()
            if error is None:
                self._measures.posted(token.size, took)
                self._sending.unsent_time = max(UNSENT_TIME, self._measures.next_in)
                if not self._posting and self._outgoing.acknowledged < self._outgoing.next:
                    self._outgoing.rewind()  # it answered, and has not kept them
                self._succeeded_locked()
                return
            if token.size:
                self._outgoing.lose(token.at, token.at + token.size)
            else:
                self._update_due = True
            if token.ended:
                self._end_told = False
            if isinstance(error, Failed) and error.status == 413 and self._measures.refused(token.size):
                return
            self._failed_locked(error)

    # --- requests for the server's bytes

    def _start_asks_locked(self) -> None:
        """Have as many requests wait as are wanted: by whoever has the lock, as `_start_post_locked`, or by threads."""
        if self._exchanges.possible:
            self._ask_due = True
            return
        while self._asks < self._asks_wanted_locked():
            self._asks += 1
            if not self._start_ask_thread_locked():
                return

    def _asks_wanted_locked(self) -> int:
        return 0 if self._form.streamed or self._closed_at is not None else self._measures.asks

    def _start_ask_thread_locked(self) -> bool:
        """Have a thread make the request that has been counted; False when there is none."""
        try:
            WORKERS.start(f"split-down {self.peer}", self._ask_loop, reserved=True)
        except NoThread as error:
            self._asks -= 1
            self._ask_due = False
            if not self._asks:
                self._end_locked(error.message)
            return False
        return True

    def _ask_loop(self) -> None:
        try:
            while self._ask_next() and not self._ask_without_thread():
                pass
            self.go_on()
        except Exception:
            log_unexpected(f"receiving from {self.peer} ended")
            self.close(FAILED)

    def _ask_without_thread(self) -> bool:
        """Make this thread's next request without one; False where that is not possible."""
        with self._lock:
            if self._failures.count or self._asks > self._asks_wanted_locked():  # see `_ask_next`
                return False
            ask = self._begin_ask_locked()
        if ask is not None:
            self._send_ask(*ask)
        return ask is not None

    def _ask_next(self) -> bool:
        """Ask for bytes, and block until there are some, or none for long; False when there are enough requests."""
        with self._lock:
            if self._asks > self._asks_wanted_locked():
                self._asks -= 1
                return False
            token = self._packet_token_locked()
        taker = AnswerTaker(self, token)
        error: Exception | None = None
        try:
            timeout = token.wait / 1000 + self._measures.slack
            with self._connections.request("GET", self._numbering.carried(token), None, timeout) as answer:
                self._read_answer(answer, taker)
        except (Failed, QanatError) as failure:
            error = failure
        with self._lock:
            if error is not None:
                self._ask_failed_locked(taker, error)
            else:
                self._asked_locked(taker)
        self.go_on()
        return True

    def _packet_token_locked(self) -> Token:
        return self._token_locked(Kind.PACKET, size=self._measures.answer, wait=self._measures.wait)

    def _ask_failed_locked(self, taker: AnswerTaker, error: Exception) -> None:
        self._numbering.asking.discard(taker.token.number)
        self._measures.ask_failed(time.monotonic() - taker.began)
        self._failed_locked(error)

    def _asked_locked(self, taker: AnswerTaker) -> None:
        """Have as many requests wait, and for as much, as what comes demands."""
        now = time.monotonic()
        self._numbering.asking.discard(taker.token.number)
        if self._form.take_due(now):
            self._start_stream_locked()
        self._measures.asked(taker.came, taker.token.size, now)
        self._start_asks_locked()
        self._succeeded_locked()

    # --- one answer that goes on

    def _start_stream_locked(self) -> None:
        with suppress(NoThread):  # the other form needs none more
            WORKERS.start(f"split-stream {self.peer}", self._stream_once, reserved=True)

    def _stream_once(self) -> None:
        """Ask for a streamed answer, and take it in; what follows it is begun before it ends."""
        with self._lock:
            if self._closed_at is not None:
                return
            token = self._token_locked(Kind.STREAM, size=STREAM_SIZE, wait=self._form.filler)
        stream = StreamTaker(self, token)
        error: Exception | None = None
        try:
            timeout = SOON + self._measures.some_round_trips
            with self._connections.request("GET", self._numbering.carried(token), None, timeout) as answer:
                answer.set_timeout(timeout)
                if not self._read_stream_answer(answer, stream):
                    return
        except (Failed, QanatError) as failure:
            error = failure
        except Exception:
            log_unexpected(f"receiving from {self.peer} ended")
            self.close(FAILED)
        self._stream_over(stream, error)

    def _read_stream_answer(self, answer: Answer, stream: StreamTaker) -> bool:
        """Take in a streamed answer; False when the watcher has been left the rest of it.  Blocks."""
        stream.head(answer.status, answer.headers)
        for piece in answer.pieces():
            stream.piece(piece)
            stream.patience = self._form.filler + self._measures.slack
            exchange = self._exchanges.leave(answer, stream, partial(self._stream_over, stream))
            if exchange is not None:
                with self._lock:
                    self._stream.begun_locked(exchange)
                return False
            answer.set_timeout(stream.patience)
        stream.end()
        return True

    def _stream_over(self, stream: StreamTaker, error: Exception | None) -> None:
        """Go on after a streamed answer, whoever has read it."""
        with self._lock:
            self._stream.ended_locked()
            self._numbering.asking.discard(stream.token.number)
            if self._closed_at is None and not stream.followed:
                if self._is_streamed_again_locked(stream, error):
                    self._start_stream_locked()
                else:
                    self._start_asks_locked()
        self.go_on()

    def _is_streamed_again_locked(self, stream: StreamTaker, error: Exception | None) -> bool:
        now = time.monotonic()
        if not stream.heard_at:
            log.debug("answers of %s are held back: %s", self.peer, error or "nothing came in time")
            self._form.held_back(now)
            return False
        if error is None:
            return True
        log.debug("an answer of %s was cut after %.1f s: %s", self.peer, now - stream.began, error)
        return self._form.cut(now - stream.heard_at, now - stream.began, now)

    def stream_heard(self, stream: StreamTaker) -> None:
        """See `takers.Requester`."""
        now = time.monotonic()
        with self._lock:
            if not stream.heard_at:
                self._succeeded_locked()
                if self._form.heard():
                    log.debug("answers of %s go on: they are streamed from now on", self.peer)
                    self._update_due = True  # the server has to know
                    self._start_post_locked()
            stream.heard_at = now
            if now - stream.began > self._form.life and not stream.followed and self._closed_at is None:
                stream.followed = True
                self._start_stream_locked()

    # --- both

    def _token_locked(self, kind: Kind, *, at: int = 0, size: int = 0, wait: float = 0.0) -> Token:
        ended, streams = self._closed_at is not None, self._form.streamed
        return self._numbering.token_locked(kind, at=at, size=size, wait=wait, ended=ended, streams=streams)

    def _read_answer(self, answer: Answer, taker: AnswerTaker) -> None:
        """Take in a whole answer.  Blocks.  Raises Failed, TransportError and ProtocolError."""
        taker.head(answer.status, answer.headers)
        answer.set_timeout(self._measures.slack)
        for piece in answer.pieces():
            taker.piece(piece)
        taker.end()

    def take(self, segment: Segment, at: int, content: memoryview) -> None:
        """See `takers.Requester`."""
        with self._lock:
            now = time.monotonic()
            self._receiving.last_received = now
            try:
                limit = 0 if segment.ended else segment.limit
                moved = self._sending.acknowledge_locked(segment.acknowledged, limit, now)
                if moved and self._outgoing.ready and self._cause.text is None:
                    self._start_post_locked()
                if len(content):
                    self._receiving.add_locked(at, content)
                if segment.ended:
                    self._receiving.end_locked(segment.limit, PEER_CLOSED)
                    self._sending.wake_locked()
            except ProtocolError as error:
                self._end_locked(f"the other end broke the split protocol: {error.message}")
                raise

    def _succeeded_locked(self) -> None:
        if self._failures.succeeded():
            self._calm.notify_all()
        if self._closed_at is None and (self._outgoing.ready or (self._update_due and self._exchanges.possible)):
            self._start_post_locked()

    def _failed_locked(self, error: Exception) -> None:
        """Wait a little before the next try, and end the pipe when that has happened for too long.

        Blocks for `Failures.pause`, without the lock meanwhile.
        """
        now = time.monotonic()
        if self._closed_at is not None:
            self._failures.note(now)
            return
        why = str(error)
        log.debug("a request to %s failed: %s", self.peer, why)
        cause = self._failures.failed(why, now, unknown=isinstance(error, Failed) and error.status == 404)
        if cause is not None:
            self._end_locked(cause)
        elif self._failures.pause:
            self._calm.wait_for(lambda: self._closed_at is not None or not self._failures.count, self._failures.pause)

    # --- the pipe

    def bind(self, secret: bytes) -> None:
        """See `Pipe.bind`."""
        with self._lock:
            self._numbering.bind_locked(secret)
            if STREAMS:
                self._start_stream_locked()

    def send(self, buffer: memoryview) -> None:
        """See `Pipe.send`."""
        with self._lock:
            self._await_room_locked()
            self._append_locked(buffer)
        self.go_on()

    @property
    def can_send_now(self) -> bool:
        """See `Pipe.can_send_now`."""
        return self._sending.has_room

    @property
    def in_requests(self) -> bool:
        """See `Pipe.in_requests`."""
        return True

    @property
    def held_up(self) -> bool:
        """See `Pipe.held_up`."""
        return self._failures.since is not None or self._sending.held_up

    def send_now(self, buffer: memoryview) -> bool:
        """See `Pipe.send_now`."""
        with self._lock:
            self._append_locked(buffer)
        self.go_on()
        return self._sending.has_room

    def flush(self) -> None:
        """See `Pipe.flush`."""
        with self._lock:
            self._await_room_locked()

    def _append_locked(self, buffer: memoryview) -> None:
        self._sending.append_locked(buffer)
        if self._outgoing.ready:
            self._start_post_locked()

    def _await_room_locked(self) -> None:
        stuck = self._sending.await_room_locked()
        if stuck is not None:
            self._end_locked(stuck)
            raise self._cause.error()

    def recv(self) -> memoryview:
        """See `Pipe.recv`."""
        message = self._receive(None)
        assert message is not None  # the end is raised
        return message

    def recv_within(self, seconds: float) -> memoryview | None:
        """See `Pipe.recv_within`."""
        return self._receive(seconds)

    def _receive(self, seconds: float | None) -> memoryview | None:
        try:
            if seconds != 0:
                self._stream.read(seconds)
            message = self._receiving.receive(seconds)
        except PipeEnded as error:
            self.close(error.message)
            raise self._cause.error() from error
        except ProtocolError as error:
            self.close(f"the other end broke the split protocol: {error.message}")
            raise ProtocolError(self._cause.text or error.message) from error
        if message is not None:
            self._tell_limit()
        return message

    def _tell_limit(self) -> None:
        """Have the server hear how much more it may send, if it may be waiting for that."""
        incoming = self._receiving.incoming
        told = self._numbering.told_limit  # looked at without the lock, as a hint
        if incoming.limit - told >= incoming.window // 4 and told - incoming.expected <= incoming.window // 2:
            with self._lock:
                self._update_due = True
                self._start_post_locked()
            self.go_on()

    def set_read_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_read_timeout`."""
        with self._lock:
            self._receiving.read_timeout = seconds

    def set_write_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_write_timeout`."""
        with self._lock:
            self._sending.write_timeout = seconds
            self._sending.wake_locked()

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """Do nothing: a pipe without a connection owes nothing for having been read."""

    def close(self, cause: str) -> None:
        """See `Pipe.close`."""
        with self._lock:
            self._end_locked(cause)

    def _end_locked(self, cause: str) -> None:
        """End the pipe; what is left to be sent goes out for LINGER seconds more, and then the connections end."""
        if not self._cause.set(cause):
            return
        self._closed_at = time.monotonic()
        self._receiving.wake_locked()
        self._stream.close()  # a thread may be reading it
        self._sending.wake_locked()
        for condition in (self._work, self._calm):
            condition.notify_all()
        if not self._hopeless_locked():
            self._post_threads += 1
            try:
                WORKERS.start(f"split-up {self.peer}", self._post_loop, reserved=True)
                return
            except NoThread:
                self._post_threads -= 1
        self._connections.close()

    @property
    def cause(self) -> str | None:
        """See `Pipe.cause`."""
        return self._cause.text
