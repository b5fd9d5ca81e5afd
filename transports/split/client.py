"""The client's end of a split pipe: what is sent goes in requests, what is received comes in answers to others.

    up:    a few requests at once take what waits; one that fails is sent again, on another connection
    down:  requests that wait at the server, a few at once while much comes

How large requests and answers are, how many run at once, and how long one waits follows what the path shows.  Nothing
that fails once ends the pipe: that is for what fails for PATIENCE, and for a server that knows the pipe no more.

Threads come from the pool while there is something to do: `split-up PEER` for each request with bytes for the server,
`split-down PEER` for each request that waits; an idle pipe has one of these.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, PipeEnded, ProtocolError, QanatError
from qanat.base.unexpected import FAILED, log_unexpected
from qanat.base.workers import WORKERS
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import Pipe
from qanat.transports.split.connections import CONTENT_TYPE, Answer, FirstAnswer, Requests
from qanat.transports.split.receiving import PEER_CLOSED, Receiving
from qanat.transports.split.segments import Segment, SegmentReader, Welcome
from qanat.transports.split.sending import Sending
from qanat.transports.split.sequence import PREFIX, Incoming
from qanat.transports.split.token import (
    Carrier,
    Kind,
    Token,
    digest_of,
)

log = logging.getLogger("qanat.split")

WINDOW = 4 * 1024 * 1024
"""Bytes from the server that may be on their way, or wait for a gap to be filled or for their reader."""

FIRST_BODY, MAX_BODY, MIN_BODY = 64 * 1024, 960 * 1024, 4 * 1024
"""Bytes of a request's body: at first, and at most: nginx takes no more than 1 MiB unless it is told to."""
FIRST_ANSWER, MAX_ANSWER = 64 * 1024, 1024 * 1024
"""Bytes that an answer may have: at first, and at most."""
FAST, SLOW = 0.5, 2.0
"""Seconds that a request with a full body takes: below, the next may have twice as many bytes; above, half of them."""
MAX_UP, MAX_DOWN = 6, 6
"""Requests at once, of either kind."""
SMALL_UP = 3
"""The same while little is sent."""
FIRST_WAIT, MIN_WAIT = 25.0, 2.0
"""Seconds that a request waits at the server: at first, and at least on a path that cuts it sooner."""
FILLER = 8.0
"""Seconds without bytes after which the server puts some without content into a streamed answer."""
STREAM_SIZE = 1 << 30
"""Bytes after which a streamed answer ends, and another request follows."""
FIRST_LIFE, MIN_LIFE = 300.0, 5.0
"""Seconds after which another streamed answer takes the place of one: at first, and at least where it is cut sooner."""
SOON = 1.0
"""Seconds, beyond some round trips, within which the beginning of a streamed answer has to come."""
MOMENT = 0.5
"""Seconds that a thread waits for something to send before it is given back."""
ACTIVE = 1.0
"""Seconds since something came during which one request more waits, so that the next bytes find one there."""
SLACK = 5.0
"""Seconds beyond what an answer should take until the request has failed."""
WRITE_TIMEOUT = 15.0
"""Seconds after which a connection that takes nothing is given up."""
PATIENCE = 15.0
"""Seconds that every request may fail until the pipe has ended."""
STREAMS = True
"""Whether a pipe tries a streamed answer at all; tests have it otherwise."""
LINGER = 2.0
"""Seconds that a closed pipe has to send what is left."""
AGAIN = 10.0
"""Seconds until a streamed answer is tried again on a path that has let one through before."""
_MOST_SHORT = 2
"""How often in turn one may be cut at once until packets are better."""
_MOST_UNKNOWN = 2
"""How often in turn the server may not know the pipe until that is believed."""


class _Form(enum.Enum):
    """How bytes come down."""

    UNKNOWN = enum.auto()  # in packets, until it is known whether the path lets an answer through that goes on
    STREAMED = enum.auto()
    PACKETS = enum.auto()


class _Failed(Exception):
    """A request that has to be made again.  `status` is that of its answer, if one came."""

    def __init__(self, why: str, *, status: int = 0) -> None:
        super().__init__(why)
        self.status = status


class ClientPipe(Pipe):
    """See the module's docstring.  Made by `split.connect.connect`."""

    transport = "split"
    headroom = PREFIX.size

    def __init__(self, connections: Requests, first: FirstAnswer, welcome: Welcome, carrier: Carrier) -> None:
        """Go on with the pipe that the server has made."""
        self.peer = first.peer
        self.addresses = first.addresses
        self._connections = connections
        self._id = welcome.id
        self._early_key = welcome.secret
        self._key: bytes | None = None
        self._carrier = carrier
        self._cause = FirstCause()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # for threads that wait for something to send
        self._calm = threading.Condition(self._lock)  # for threads that wait after a failure
        self._receiving = Receiving(self._lock, Incoming(WINDOW), self._cause)
        self._sending = Sending(self._lock, self._receiving, self._cause)
        self._outgoing = self._sending.outgoing
        self._number = 0
        self._asking: set[int] = set()  # the numbers of requests for bytes that run
        self._told_limit = 0
        self._update_due = False  # the server should hear at once how much more it may send
        self._posting = 0  # threads that send
        self._waiting_to_post = 0  # of these, those that have nothing to do
        self._in_flight = 0  # requests with bytes
        self._down = 0  # threads that ask
        self._down_wanted = 1
        self._form = _Form.UNKNOWN
        self._streamed = False  # an answer has gone on before
        self._short = 0  # such answers in turn that were cut at once
        self._probe_at = math.inf  # when it is tried again
        self._life = FIRST_LIFE
        self._filler = FILLER
        self._came_at = 0.0  # when bytes came last
        self._body_size = FIRST_BODY
        self._answer_size = FIRST_ANSWER
        self._wait = FIRST_WAIT
        self._round_trip = 0.2  # seconds, smoothed
        self._failing_since: float | None = None
        self._failures = 0  # in turn
        self._unknown = 0  # in turn
        self._closed_at: float | None = None
        self._end_told = False  # the server knows that the pipe is closed

    def take_first(self, content: memoryview) -> None:
        """Take what the first answer has behind the welcome.  Raises ProtocolError."""
        for segment, at, piece in SegmentReader().feed(content):
            self._take(segment, at, piece)

    def start(self) -> None:
        """Begin to ask for bytes.  Does not block.  Raises NoThread."""
        with self._lock:
            self._start_down_locked()

    # --- up

    def _start_up_locked(self) -> None:
        """Have a thread send what waits, unless enough do."""
        if self._waiting_to_post:
            self._work.notify()
            return
        busy = self._outgoing.unsent >= self._body_size // 4
        if self._posting < (MAX_UP if busy else SMALL_UP):
            self._posting += 1
            try:
                WORKERS.start(f"split-up {self.peer}", self._up_loop, reserved=True)
            except NoThread as error:
                self._posting -= 1
                if not self._posting:
                    self._end_locked(error.message)

    def _up_loop(self) -> None:
        try:
            while self._post_next():
                pass
        except Exception:
            log_unexpected(f"sending to {self.peer} ended")
            self.close(FAILED)
            self._connections.close()

    def _post_next(self) -> bool:
        """Block for something to send, and send it; False when there is nothing for a moment."""
        with self._lock:
            found = self._next_post_locked()
            if found is None:
                self._posting -= 1
                last = not self._posting and self._closed_at is not None
            else:
                self._in_flight += 1
                if self._outgoing.ready:
                    self._start_up_locked()  # another thread takes the rest
        if found is None:
            if last:
                self._connections.close()
            return False
        token, key, data = found
        began = time.monotonic()
        try:
            self._post(token, key, data)
        except (_Failed, QanatError) as error:
            self._in_flight_over(token, began, error)
        else:
            self._in_flight_over(token, began, None)
        return True

    def _next_post_locked(self) -> tuple[Token, bytes, bytes] | None:
        deadline = Deadline(MOMENT)
        while True:
            closed = self._closed_at is not None
            if closed and self._all_said_locked():
                return None
            taken = self._sending.take_locked(self._body_size)
            if taken is not None or self._update_due or (closed and not self._end_told):
                break
            remaining = self._closing_time_locked() if closed else deadline.remaining()
            if not remaining:
                return None
            self._waiting_to_post += 1
            self._work.wait(remaining)
            self._waiting_to_post -= 1
        self._update_due = False
        self._end_told = closed
        at, data = (self._outgoing.next, b"") if taken is None else taken
        return self._token_locked(Kind.UP, at=at, size=len(data), body=data), self._key_locked(), data

    def _all_said_locked(self) -> bool:
        """Whether nothing more can be said on a pipe that is closed, or need be."""
        said = self._end_told and not self._in_flight and self._outgoing.acknowledged == self._outgoing.end
        return said or self._hopeless_locked() or not self._closing_time_locked()

    def _closing_time_locked(self) -> float:
        """Return how many seconds are left for saying it."""
        return max(0.0, (self._closed_at or 0.0) + LINGER - time.monotonic())

    def _hopeless_locked(self) -> bool:
        """Whether nothing can be said any more: the other end has closed, or nothing gets through."""
        failing = self._failing_since is not None and time.monotonic() - self._failing_since > LINGER
        return self._receiving.peer_gone is not None or failing

    def _post(self, token: Token, key: bytes, data: bytes) -> None:
        timeout = min(15.0, 0.7 + 4 * self._round_trip) * (1 + self._failures)
        with self._connections.request("POST", self._carried(token, key), data, timeout) as answer:
            self._read_answer(answer, token)

    def _in_flight_over(self, token: Token, began: float, error: Exception | None) -> None:
        took = time.monotonic() - began
        with self._lock:
            self._in_flight -= 1
            if self._closed_at is not None:
                self._work.notify_all()
            if error is None:
                self._round_trip += (took - self._round_trip) / 8
                if token.size == self._body_size and took < FAST:
                    self._body_size = min(MAX_BODY, 2 * self._body_size)
                elif token.size > MIN_BODY and took > SLOW:
                    self._body_size = max(MIN_BODY, token.size // 2)
                if not self._in_flight and self._outgoing.acknowledged < self._outgoing.next:
                    self._outgoing.rewind()  # it answered, and has not kept them
                self._succeeded_locked()
                return
            if token.size:
                self._outgoing.lose(token.at, token.at + token.size)
            if token.ended:
                self._end_told = False
            if isinstance(error, _Failed) and error.status == 413:
                self._body_size = max(MIN_BODY, min(self._body_size, token.size) // 2)
                if token.size > MIN_BODY:
                    return
            self._failed_locked(error)

    # --- down

    def _start_down_locked(self) -> None:
        wanted = 0 if self._form is _Form.STREAMED else self._down_wanted
        while self._down < wanted and self._closed_at is None:
            self._down += 1
            try:
                WORKERS.start(f"split-down {self.peer}", self._down_loop, reserved=True)
            except NoThread as error:
                self._down -= 1
                if not self._down:
                    self._end_locked(error.message)
                return

    def _down_loop(self) -> None:
        try:
            while self._ask_next():
                pass
        except Exception:
            log_unexpected(f"receiving from {self.peer} ended")
            self.close(FAILED)

    def _ask_next(self) -> bool:
        with self._lock:
            if self._closed_at is not None or self._form is _Form.STREAMED or self._down > self._down_wanted:
                self._down -= 1
                return False
            token = self._token_locked(Kind.PACKET, size=self._answer_size, wait=round(self._wait * 1000))
            key = self._key_locked()
        began = time.monotonic()
        error: Exception | None = None
        came = 0
        try:
            came = self._ask(token, key)
        except (_Failed, QanatError) as failure:
            error = failure
        took = time.monotonic() - began
        with self._lock:
            self._asking.discard(token.number)
            if error is not None:
                if took >= MIN_WAIT:  # the path cuts what waits for so long
                    self._wait = max(MIN_WAIT, min(self._wait, 0.7 * took))
                self._failed_locked(error)
                return True
            self._adapt_locked(came, token.size)
            self._succeeded_locked()
            return True

    def _ask(self, token: Token, key: bytes) -> int:
        timeout = token.wait / 1000 + SLACK + 4 * self._round_trip
        with self._connections.request("GET", self._carried(token, key), None, timeout) as answer:
            return self._read_answer(answer, token)

    def _adapt_locked(self, came: int, size: int) -> None:
        """Have as many requests wait, and for as much, as what comes demands."""
        now = time.monotonic()
        if now >= self._probe_at:
            self._probe_at = math.inf
            self._start_stream_locked()
        if came:
            self._came_at = now
        if came >= size // 2:
            self._down_wanted = min(MAX_DOWN, max(2, self._down_wanted) + 1)
            self._answer_size = min(MAX_ANSWER, 2 * size)
        elif came:
            self._down_wanted = max(2, self._down_wanted)
        elif now - self._came_at > ACTIVE:
            self._down_wanted = 1
        self._start_down_locked()

    # --- down, in one answer that goes on

    def _start_stream_locked(self) -> None:
        with suppress(NoThread):  # the other form needs none more
            WORKERS.start(f"split-stream {self.peer}", self._stream_once, reserved=True)

    def _stream_once(self) -> None:
        """Ask for a streamed answer, and take it in; what follows it is begun before it ends."""
        with self._lock:
            if self._closed_at is not None:
                return
            token = self._token_locked(Kind.STREAM, size=STREAM_SIZE, wait=round(self._filler * 1000))
            key = self._key_locked()
        stream = _StreamRead(self, token)
        error: Exception | None = None
        try:
            timeout = SOON + 4 * self._round_trip
            with self._connections.request("GET", self._carried(token, key), None, timeout) as answer:
                answer.set_timeout(timeout)
                self._read_answer(answer, token, stream.heard)
        except (_Failed, QanatError) as failure:
            error = failure
        except Exception:
            log_unexpected(f"receiving from {self.peer} ended")
            self.close(FAILED)
        with self._lock:
            self._asking.discard(token.number)
            self._stream_over_locked(stream, error)

    def stream_heard(self, stream: _StreamRead) -> None:
        """Note that something of a streamed answer has come."""
        now = time.monotonic()
        with self._lock:
            if not stream.heard_at:
                self._succeeded_locked()
                if self._form is not _Form.STREAMED:
                    log.debug("answers of %s go on: they are streamed from now on", self.peer)
                    self._form, self._streamed = _Form.STREAMED, True
                    self._update_due = True  # the server has to know
                    self._start_up_locked()
            stream.heard_at = now
            if now - stream.began > self._life and not stream.followed and self._closed_at is None:
                stream.followed = True
                self._start_stream_locked()

    def _stream_over_locked(self, stream: _StreamRead, error: Exception | None) -> None:
        if self._closed_at is not None or stream.followed:
            return
        now = time.monotonic()
        if not stream.heard_at:
            log.debug("answers of %s are held back: %s", self.peer, error or "nothing came in time")
            self._form, self._probe_at = _Form.PACKETS, now + (AGAIN if self._streamed else math.inf)
            self._start_down_locked()
            return
        if error is not None:
            silent, lived = now - stream.heard_at, now - stream.began
            if silent >= MIN_WAIT:
                self._filler = max(MIN_WAIT, min(self._filler, 0.5 * silent))
            else:
                self._life = max(MIN_LIFE, min(self._life, 0.7 * lived))
            log.debug("an answer of %s was cut after %.1f s: %s", self.peer, lived, error)
            self._short = self._short + 1 if lived < SOON else 0
            if self._short > _MOST_SHORT:
                self._form, self._probe_at = _Form.PACKETS, now + AGAIN
                self._start_down_locked()
                return
        self._start_stream_locked()

    # --- both

    def _token_locked(self, kind: Kind, *, at: int = 0, size: int = 0, wait: int = 0, body: bytes = b"") -> Token:
        self._number += 1
        if kind is not Kind.UP:
            self._asking.add(self._number)
        incoming = self._receiving.incoming
        ended = self._closed_at is not None
        self._told_limit = incoming.limit
        return Token(
            id=self._id,
            kind=kind,
            number=self._number,
            acknowledged=incoming.expected,
            limit=self._outgoing.end if ended else incoming.limit,
            oldest=min(self._asking, default=self._number),
            at=at,
            size=size,
            wait=wait,
            digest=digest_of(body) if body else bytes(16),
            early=self._key is None,
            ended=ended,
            streams=self._form is _Form.STREAMED,
        )

    def _key_locked(self) -> bytes:
        return self._early_key if self._key is None else self._key

    def _carried(self, token: Token, key: bytes) -> list[tuple[Carrier, str]]:
        return [(self._carrier, token.encode(key))]

    def _read_answer(self, answer: Answer, token: Token, heard: Callable[[], None] | None = None) -> int:
        """Take in the answer to a request; return how many bytes of the server's it has brought.

        `heard` is called for each piece, of an answer that goes on.
        """
        if answer.status != 200 or answer.headers.get("content-type", "") != CONTENT_TYPE:
            raise _Failed(_describe(answer.status), status=answer.status)
        if heard is None:
            answer.set_timeout(SLACK + 4 * self._round_trip)
        reader = SegmentReader()
        came = 0
        for piece in answer.pieces():
            for segment, at, content in reader.feed(memoryview(piece)):
                if segment.number != token.number:
                    raise _Failed("an answer to another request came: something on the path keeps answers")
                if segment.repeated:
                    raise _Failed("the path has sent a request twice, and this is the second one's answer")
                self._take(segment, at, content)
                came += len(content)
            if heard is not None:
                answer.set_timeout(self._filler + SLACK + 4 * self._round_trip)
                heard()
        if reader.in_the_middle:
            raise _Failed("an answer was cut")
        return came

    def _take(self, segment: Segment, at: int, content: memoryview) -> None:
        """Act on what an answer says.  Raises ProtocolError, which ends the pipe."""
        with self._lock:
            now = time.monotonic()
            self._receiving.last_received = now
            try:
                limit = 0 if segment.ended else segment.limit
                moved = self._sending.acknowledge_locked(segment.acknowledged, limit, now)
                if moved and self._outgoing.ready and self._cause.text is None:
                    self._start_up_locked()
                if len(content):
                    self._receiving.add_locked(at, content)
                if segment.ended:
                    self._receiving.end_locked(segment.limit, PEER_CLOSED)
                    self._sending.wake_locked()
            except ProtocolError as error:
                self._end_locked(f"the other end broke the split protocol: {error.message}")
                raise

    def _succeeded_locked(self) -> None:
        if self._failures:
            self._failing_since, self._failures, self._unknown = None, 0, 0
            self._calm.notify_all()
        if self._outgoing.ready and self._closed_at is None:
            self._start_up_locked()

    def _failed_locked(self, error: Exception) -> None:
        """Wait a little before the next try, and end the pipe when that has happened for too long."""
        if self._closed_at is not None:
            self._failing_since = self._failing_since or time.monotonic()
            return
        why = str(error)
        log.debug("a request to %s failed: %s", self.peer, why)
        now = time.monotonic()
        self._failures += 1
        self._unknown = self._unknown + 1 if isinstance(error, _Failed) and error.status == 404 else 0
        if self._failing_since is None:
            self._failing_since = now
        if self._unknown >= _MOST_UNKNOWN:
            self._end_locked("the server does not know this pipe any more")
        elif now - self._failing_since > PATIENCE:
            self._end_locked(f"requests fail for {PATIENCE:g} s: {why}")
        elif self._failures > 1:
            pause = min(2.0, 0.05 * 2 ** min(self._failures, 10))
            self._calm.wait_for(lambda: self._closed_at is not None or not self._failures, pause)

    # --- the pipe

    def bind(self, secret: bytes) -> None:
        """See `Pipe.bind`."""
        with self._lock:
            self._key = secret
            if STREAMS:
                self._start_stream_locked()
            else:
                self._form = _Form.PACKETS

    def send(self, buffer: memoryview) -> None:
        """See `Pipe.send`."""
        with self._lock:
            self._await_room_locked()
            self._append_locked(buffer)

    @property
    def can_send_now(self) -> bool:
        """See `Pipe.can_send_now`."""
        return self._sending.has_room

    @property
    def held_up(self) -> bool:
        """See `Pipe.held_up`."""
        return self._failing_since is not None or self._sending.held_up

    def send_now(self, buffer: memoryview) -> bool:
        """See `Pipe.send_now`."""
        with self._lock:
            self._append_locked(buffer)
            return self._sending.has_room

    def flush(self) -> None:
        """See `Pipe.flush`."""
        with self._lock:
            self._await_room_locked()

    def _append_locked(self, buffer: memoryview) -> None:
        self._sending.append_locked(buffer)
        if self._outgoing.ready:
            self._start_up_locked()

    def _await_room_locked(self) -> None:
        stuck = self._sending.await_room_locked()
        if stuck is not None:
            self._end_locked(stuck)
            raise self._cause.error()

    def recv(self) -> memoryview:
        """See `Pipe.recv`."""
        message = self._receive(None, forever=True)
        assert message is not None  # the end is raised
        return message

    def recv_within(self, seconds: float) -> memoryview | None:
        """See `Pipe.recv_within`."""
        return self._receive(seconds)

    def _receive(self, seconds: float | None, *, forever: bool = False) -> memoryview | None:
        try:
            message = self._receiving.receive(seconds, forever=forever)
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
        risen = incoming.limit - self._told_limit  # looked at without the lock, as a hint
        if risen >= incoming.window // 4 and self._told_limit - incoming.expected <= incoming.window // 2:
            with self._lock:
                self._update_due = True
                self._start_up_locked()

    def watch(self) -> int | None:
        """See `Pipe.watch`."""
        return self._receiving.watch()

    def unwatch(self) -> None:
        """See `Pipe.unwatch`."""
        self._receiving.unwatch()

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
        self._sending.wake_locked()
        for condition in (self._work, self._calm):
            condition.notify_all()
        if not self._hopeless_locked():
            self._posting += 1
            try:
                WORKERS.start(f"split-up {self.peer}", self._up_loop, reserved=True)
                return
            except NoThread:
                self._posting -= 1
        self._connections.close()

    @property
    def cause(self) -> str | None:
        """See `Pipe.cause`."""
        return self._cause.text


class _StreamRead:
    """One streamed answer, as it is read."""

    def __init__(self, pipe: ClientPipe, token: Token) -> None:
        self._pipe = pipe
        self.token = token
        self.began = time.monotonic()
        self.heard_at = 0.0  # when something came last
        self.followed = False  # another one takes its place

    def heard(self) -> None:
        """Note that something came."""
        self._pipe.stream_heard(self)


def _describe(status: int) -> str:
    if status == 200:
        return "something else than the server answered, with a page of its own"
    return f"status {status} came instead of an answer"
