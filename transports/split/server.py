"""The server's end of split pipes: which there are, what their requests mean, and who waits for an answer.

    a request for a pipe   -> `SplitPipes.create`: its answer has the id, and the pipe's first bytes
    bytes for the server   -> `ServerPipe.take_up`, answered at once with what has come so far
    a request for bytes    -> `ServerPipe.ask`; it waits here, without a thread, until there are some or its time is up

Whoever sends answers the requests that wait, inline; a connection that does not take all of an answer at once finishes
it in a thread of its own (`Asker`).  Nothing here knows HTTP: connections are the front door's.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from qanat.base.errors import PipeEnded, ProtocolError
from qanat.base.watcher import Timer, Watcher
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import Pipe, SockAddr
from qanat.transports.readiness import Readiness
from qanat.transports.split.receiving import PEER_CLOSED, Receiving, ReceivingReadiness
from qanat.transports.split.segments import HEADER_SIZE, Segment, Welcome
from qanat.transports.split.sending import Sending
from qanat.transports.split.sequence import PREFIX, WINDOW, Incoming
from qanat.transports.split.token import (
    ID_SIZE,
    SECRET_SIZE,
    Kind,
    Token,
    Unverified,
    digest_of,
)

MAX_BODY = 4 * 1024 * 1024
"""Bytes of one request's body."""
UNAUTHENTICATED_WINDOW = 8 * 1024
"""Bytes towards the server that may be on their way before that knows the client; then WINDOW."""
MAX_ASKERS = 32
"""Requests of one pipe that wait for bytes; of more, the oldest is answered."""
MAX_WAIT = 120.0
"""Seconds that a request waits at most, whatever it asks for."""
LINGER = 10.0
"""Seconds that a closed pipe is kept for its client to fetch the last bytes."""
ENDED_LINGER = 1.0
"""The same where the client has closed it too: for what of its requests is still on its way."""
FIRST_WAIT = 60.0
"""Seconds that the creating request may wait for the server's first bytes; the handshake's time is up before."""
UNCONFIRMED = 10.0
"""Seconds that a streamed answer goes on without the client having said that it arrives."""
MAX_SEEN_AT = 16
"""Addresses remembered of those from where a client's requests for a pipe come."""
MAX_SERVED = 8192
"""Requests remembered as served, of those that a client has not done with: below these, all count as served."""
MAX_GIVEN = 4096
"""Answers whose bytes are not acknowledged, beyond which no more bytes are given: they could not be in order yet."""
_STREAM_PIECE = 256 * 1024


class Asker(ABC):
    """A request that waits for bytes.  No method blocks or raises; all may be called from any thread."""

    @abstractmethod
    def respond(self, body: bytes) -> None:
        """Give the whole answer, once."""

    @abstractmethod
    def begin(self) -> None:
        """Begin an answer that goes on, for a request for a stream."""

    @abstractmethod
    def write(self, data: bytes) -> bool:
        """Go on with that answer; False when not all of it could be sent at once: `ServerPipe.stream_free` follows."""

    @abstractmethod
    def finish(self) -> None:
        """End that answer."""


@dataclass(slots=True)
class _Waiting:
    """A request that waits, and when it is answered though there is nothing."""

    token: Token
    asker: Asker
    due: float
    welcome: bytes = b""  # what goes in front of the answer


class _Stream:
    """An answer that goes on."""

    def __init__(self, token: Token, asker: Asker, now: float) -> None:
        self.token = token
        self.asker = asker
        self.left = token.size  # bytes until it ends
        self.interval = min(max(token.wait / 1000, 0.5), MAX_WAIT)
        self.confirmed = token.streams  # what goes into it arrives, so that bytes may
        self.ends_at = now + UNCONFIRMED  # while it is not
        self.busy = False  # a thread is writing to it, or its connection takes nothing
        self.filler_due = now + self.interval


class ServerPipe(Pipe):
    """See the module's docstring.  Made by `SplitPipes.create`."""

    transport = "split"
    headroom = PREFIX.size

    def __init__(
        self, id_: bytes, peer: str, addresses: tuple[SockAddr, SockAddr] | None, watcher: Watcher, forget: Forget
    ) -> None:
        """`forget` is called once, when no request for this pipe is served any more."""
        self.id = id_
        self.peer = peer
        self.addresses = addresses
        self.authenticated = False
        """Whether a request has come that only the client can have made who shook hands here."""
        self.secret = os.urandom(SECRET_SIZE)
        self._bound: bytes | None = None  # the key since the handshake
        self._forget: Forget | None = forget
        self._cause = FirstCause()
        self._lock = threading.Lock()
        self._receiving = Receiving(self._lock, Incoming(UNAUTHENTICATED_WINDOW), self._cause)
        self._sending = Sending(self._lock, self._receiving, self._cause)
        self._outgoing = self._sending.outgoing
        self._outgoing.limit = UNAUTHENTICATED_WINDOW
        self._waiting: deque[_Waiting] = deque()
        self._stream: _Stream | None = None
        self._given: list[tuple[int, int, int]] = []  # request, and the range of bytes that its answer has
        self._oldest = 0  # all requests below it are over for the client
        self._served: set[int] = set()  # requests from `_floor` on
        self._floor = 0  # all requests below it count as served
        self._told_limit = UNAUTHENTICATED_WINDOW
        self._timer: Timer = watcher.timer(self._time_has_come)
        self._kept_until: float | None = None  # once it is closed

    # --- requests

    def verify(self, unverified: Unverified) -> Token | None:
        """Return what a request says, if the pipe's client made it."""
        if unverified.early:
            return unverified.verify(self.secret)
        if self._bound is None:
            return None
        token = unverified.verify(self._bound)
        if token is not None:
            self.authenticated = True
        return token

    @property
    def takes(self) -> int:
        """How many bytes the body of a request may have now."""
        return min(self._receiving.incoming.window, MAX_BODY)

    def take_up(self, token: Token, body: bytearray) -> bytes | None:
        """Take the bytes of a request; return the answer's body, or None for a request that is not what was sent."""
        if len(body) != token.size or (body and digest_of(body) != token.digest):
            return None
        with self._lock:
            stale = token.early and self.authenticated
            if not stale:
                self._take_up_locked(token, memoryview(body))
            answer = self._segment_locked(token.number, repeated=stale).encode()
        self._pump()
        return answer

    def _take_up_locked(self, token: Token, body: memoryview) -> None:
        try:
            self._hear_locked(token)
            if body:
                self._receiving.add_locked(token.at, body)
        except ProtocolError as error:
            self._fail_locked(error)

    def ask(self, token: Token, asker: Asker) -> None:
        """Answer a request for bytes, now or later."""
        now = time.monotonic()
        released: list[Callable[[], object]] = []
        with self._lock:
            stale = (token.early and self.authenticated) or self._was_served_locked(token.number)
            if not stale:
                self._note_served_locked(token.number)
                try:
                    self._hear_locked(token)
                except ProtocolError as error:
                    self._fail_locked(error)
                if token.kind is Kind.STREAM and self._kept_until is None:
                    self._begin_stream_locked(token, asker, now, released)
                else:
                    self._waiting.append(_Waiting(token, asker, now + min(token.wait / 1000, MAX_WAIT)))
                    if len(self._waiting) > MAX_ASKERS:
                        self._release_locked(self._waiting.popleft(), released)
            else:
                segment = self._segment_locked(token.number, repeated=True).encode()
                released.append(lambda: asker.respond(segment))
        for answer in released:
            answer()
        self._pump()
        self._set_timer()

    def welcome(self, asker: Asker, carriers: int) -> None:
        """Answer the request that asked for this pipe, with the first bytes that are sent.

        `carriers` are the bits of those that have brought its nonce.
        """
        token = Token(
            self.id,
            Kind.PACKET,
            number=0,
            acknowledged=0,
            limit=UNAUTHENTICATED_WINDOW,
            size=UNAUTHENTICATED_WINDOW,
            wait=round(FIRST_WAIT * 1000),
        )
        welcome = Welcome(self.id, self.secret, carriers).encode()
        with self._lock:
            self._waiting.append(_Waiting(token, asker, time.monotonic() + FIRST_WAIT, welcome))
        self._pump()
        self._set_timer()

    def give_up(self, asker: Asker) -> None:
        """Forget a request that waits: its connection is gone."""
        with self._lock:
            if any(waiting.asker is asker and waiting.welcome for waiting in self._waiting):
                self._end_locked("the connection was closed before its client knew of the pipe", keep=False)
            self._waiting = deque(waiting for waiting in self._waiting if waiting.asker is not asker)
            if self._stream is not None and self._stream.asker is asker:
                self._stream = None
        self._set_timer()

    def stream_free(self, asker: Asker) -> None:
        """Go on with a streamed answer whose connection takes more again."""
        with self._lock:
            if self._stream is not None and self._stream.asker is asker:
                self._stream.busy = False
        self._pump()

    def _begin_stream_locked(
        self, token: Token, asker: Asker, now: float, released: list[Callable[[], object]]
    ) -> None:
        """Have this answer go on where the one before it ends, which is now."""
        before, self._stream = self._stream, _Stream(token, asker, now)
        if before is not None:
            released.append(before.asker.finish)
        self._stream.busy = True
        hello = self._segment_locked(token.number).encode()

        def begin() -> None:
            asker.begin()
            if asker.write(hello):
                self.stream_free(asker)

        released.append(begin)

    def _was_served_locked(self, number: int) -> bool:
        return number < self._floor or number in self._served

    def _note_served_locked(self, number: int) -> None:
        self._served.add(number)
        if len(self._served) > MAX_SERVED:
            self._raise_floor_locked(sorted(self._served)[MAX_SERVED // 2])

    def _raise_floor_locked(self, floor: int) -> None:
        self._floor = max(self._floor, floor)
        self._served = {number for number in self._served if number >= self._floor}

    def _hear_locked(self, token: Token) -> None:
        """Heed what every request says of the bytes that have come to the client.  Raises ProtocolError."""
        now = time.monotonic()
        self._receiving.last_received = now
        limit = 0 if token.ended else token.limit
        self._sending.acknowledge_locked(token.acknowledged, limit, now)
        if token.oldest > self._oldest:
            self._oldest = token.oldest
            self._raise_floor_locked(token.oldest)
            for number, begin, end in self._given:
                if number < token.oldest:
                    self._outgoing.lose(begin, end)
        acknowledged = self._outgoing.acknowledged
        self._given = [given for given in self._given if given[0] >= self._oldest and given[2] > acknowledged]
        if self._stream is not None and token.streams and token.number > self._stream.token.number:
            self._stream.confirmed = True
        if token.ended:
            self._receiving.end_locked(token.limit, PEER_CLOSED)
            self._sending.wake_locked()

    def _segment_locked(self, number: int, at: int = 0, length: int = 0, *, repeated: bool = False) -> Segment:
        incoming = self._receiving.incoming
        ended = self._kept_until is not None
        if not ended:
            self._told_limit = incoming.limit
        limit = self._outgoing.end if ended else self._told_limit
        return Segment(number, incoming.expected, limit, at, length, ended, repeated)

    def _release_locked(self, waiting: _Waiting, released: list[Callable[[], object]]) -> None:
        """Answer a request though there is nothing for it."""
        body = waiting.welcome + self._segment_locked(waiting.token.number).encode()
        released.append(lambda: waiting.asker.respond(body))

    # --- answers

    def _pump(self) -> None:
        """Answer what waits, as far as there is something for it.  Does not block."""
        while True:
            with self._lock:
                answer = self._next_answer_locked()
            if answer is None:
                return
            answer()

    def _next_answer_locked(self) -> Callable[[], object] | None:
        stream = self._stream
        if stream is not None and stream.token.number < self._oldest:
            # The client has done with it, and its connection does not know yet: what it got now would be missing for as
            # long as the client's next request lasts, since only a rise of `_oldest` has it sent again.
            self._stream = None
            return stream.asker.finish
        if stream is not None and stream.confirmed:
            if self._waiting:  # they are needed no more
                needless: list[Callable[[], object]] = []
                self._release_locked(self._waiting.popleft(), needless)
                return needless[0]
            return self._go_on_locked(stream)
        if not self._waiting:
            return None
        if not self._has_bytes:
            if self._kept_until is None and not self._client_needs_limit_locked():
                return None
            released: list[Callable[[], object]] = []
            self._release_locked(self._waiting.popleft(), released)
            return released[0]
        waiting = self._waiting.popleft()
        if waiting.token.number < self._oldest and not waiting.welcome:
            needless = []
            self._release_locked(waiting, needless)
            return needless[0]
        body = waiting.welcome + self._take_locked(waiting.token.number, max(1, waiting.token.size - HEADER_SIZE))
        return lambda: waiting.asker.respond(body)

    def _go_on_locked(self, stream: _Stream) -> Callable[[], object] | None:
        if stream.busy:
            return None
        ended = self._kept_until is not None
        if self._has_bytes:
            data = self._take_locked(stream.token.number, _STREAM_PIECE)
        elif ended or self._client_needs_limit_locked():
            data = self._segment_locked(stream.token.number).encode()
        else:
            return None
        stream.busy = True
        stream.left -= len(data)
        stream.filler_due = time.monotonic() + stream.interval
        last = stream.left <= 0 or (ended and not self._has_bytes)
        if last:
            self._stream = None

        def write() -> None:
            free = stream.asker.write(data)
            if last:
                stream.asker.finish()
            elif free:
                with self._lock:
                    stream.busy = False

        return write

    @property
    def _has_bytes(self) -> bool:
        """Whether an answer may have bytes now; looked at with the lock."""
        return len(self._given) < MAX_GIVEN and bool(self._outgoing.ready)

    def _take_locked(self, number: int, size: int) -> bytes:
        taken = self._sending.take_locked(size)
        assert taken is not None  # something is ready
        at, data = taken
        end = at + len(data)
        if self._given and self._given[-1][0] == number and self._given[-1][2] == at:
            self._given[-1] = (number, self._given[-1][1], end)  # a streamed answer: one range, however many pieces
        else:
            self._given.append((number, at, end))
        return self._segment_locked(number, at, len(data)).encode() + data

    def _client_needs_limit_locked(self) -> bool:
        """Whether the client may be waiting to hear how much more it may send."""
        incoming = self._receiving.incoming
        return (
            incoming.limit - self._told_limit >= incoming.window // 4
            and self._told_limit - incoming.expected <= incoming.window // 2
        )

    # --- time

    def _time_has_come(self) -> None:
        now = time.monotonic()
        released: list[Callable[[], object]] = []
        forget: Forget | None = None
        with self._lock:
            due = [waiting for waiting in self._waiting if waiting.due <= now]
            if due:
                self._waiting = deque(waiting for waiting in self._waiting if waiting.due > now)
                for waiting in due:
                    self._release_locked(waiting, released)
            stream = self._stream
            if stream is not None and not stream.confirmed and stream.ends_at <= now:
                self._stream = None
                released.append(stream.asker.finish)
            elif stream is not None and not stream.busy and stream.filler_due <= now:
                stream.busy = True
                stream.filler_due = now + stream.interval
                filler = self._segment_locked(stream.token.number).encode()

                def fill(stream: _Stream = stream, filler: bytes = filler) -> None:
                    if stream.asker.write(filler):
                        self.stream_free(stream.asker)

                released.append(fill)
            if self._kept_until is not None and now >= self._kept_until:
                forget, self._forget = self._forget, None
        for answer in released:
            answer()
        if forget is not None:
            self._over(forget)
        else:
            self._set_timer()

    def _set_timer(self) -> None:
        with self._lock:
            moments = [waiting.due for waiting in self._waiting]
            if self._stream is not None:
                moments.append(self._stream.filler_due)
                if not self._stream.confirmed:
                    moments.append(self._stream.ends_at)
            if self._kept_until is not None and self._forget is not None:
                moments.append(self._kept_until)
        if moments:
            self._timer.set(min(moments))

    def _over(self, forget: Forget) -> None:
        """Serve no request of this pipe any more."""
        self._timer.cancel()
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
            stream, self._stream = self._stream, None
            released: list[Callable[[], object]] = []
            for each in waiting:
                self._release_locked(each, released)
        for answer in released:
            answer()
        if stream is not None:
            stream.asker.finish()
        forget(self)

    # --- the pipe

    def bind(self, secret: bytes) -> None:
        """See `Pipe.bind`."""
        self._bound = secret

    def send(self, buffer: memoryview) -> None:
        """See `Pipe.send`."""
        with self._lock:
            self._await_room_locked()
            self._sending.append_locked(buffer)
        self._pump()

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
        return self._sending.held_up

    def send_now(self, buffer: memoryview) -> bool:
        """See `Pipe.send_now`."""
        with self._lock:
            self._sending.append_locked(buffer)
        self._pump()
        return self._sending.has_room

    def flush(self) -> None:
        """See `Pipe.flush`."""
        with self._lock:
            self._await_room_locked()

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
            message = self._receiving.receive(seconds)
        except PipeEnded as error:
            self.close(error.message)
            raise self._cause.error() from error
        except ProtocolError as error:
            with self._lock:
                self._fail_locked(error)
            raise ProtocolError(self._cause.text or error.message) from error
        if message is not None and self._client_needs_limit_locked():  # looked at without the lock, as a hint
            self._pump()
        return message

    def readiness(self, watcher: Watcher) -> Readiness:
        """See `Pipe.readiness`."""
        return ReceivingReadiness(self._receiving, watcher)

    def set_read_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_read_timeout`."""
        self._receiving.read_timeout = seconds

    def set_write_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_write_timeout`."""
        self._sending.write_timeout = seconds

    def set_unauthenticated(self, unauthenticated: bool) -> None:
        """See `Pipe.set_unauthenticated`."""
        with self._lock:
            incoming = self._receiving.incoming
            incoming.unauthenticated = unauthenticated
            incoming.window = UNAUTHENTICATED_WINDOW if unauthenticated else WINDOW

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """Do nothing: a pipe without a connection owes nothing for having been read."""

    def close(self, cause: str) -> None:
        """See `Pipe.close`."""
        with self._lock:
            self._end_locked(cause)
        self._pump()
        self._set_timer()

    def let_go(self) -> None:
        """Serve no request any more, if the pipe is closed.  Idempotent; does not block."""
        with self._lock:
            if self._kept_until is None:
                return
            forget, self._forget = self._forget, None
        if forget is not None:
            self._over(forget)

    def _end_locked(self, cause: str, *, keep: bool = True) -> None:
        if self._cause.set(cause):
            keep = keep and self._receiving.peer_gone is None
            self._kept_until = time.monotonic() + (LINGER if keep else ENDED_LINGER)
            self._receiving.wake_locked()
            self._sending.wake_locked()

    def _fail_locked(self, error: ProtocolError) -> None:
        self._end_locked(f"the other end broke the split protocol: {error.message}")

    @property
    def cause(self) -> str | None:
        """See `Pipe.cause`."""
        return self._cause.text


Forget = Callable[[ServerPipe], None]


class SplitPipes:
    """All split pipes of a server.  Safe to use from any thread."""

    def __init__(self, watcher: Watcher, on_fewer: Callable[[], object]) -> None:
        """`on_fewer` is called, without a lock, when one is over."""
        self._watcher = watcher
        self._on_fewer = on_fewer
        self._lock = threading.Lock()
        self._pipes: dict[bytes, ServerPipe] = {}
        self._seen_at: dict[bytes, set[str]] = {}  # by pipe
        self._clients_at = Counter[str]()  # how many pipes' requests have come from each address

    def __len__(self) -> int:
        return len(self._pipes)

    def create(self, peer: str, addresses: tuple[SockAddr, SockAddr] | None) -> ServerPipe:
        """Return a new pipe, whose request comes from there; `ServerPipe.welcome` follows.  Does not block."""
        pipe = ServerPipe(os.urandom(ID_SIZE), peer, addresses, self._watcher, self._forget)
        with self._lock:
            self._pipes[pipe.id] = pipe
        return pipe

    def find(self, unverified: Unverified) -> tuple[ServerPipe, Token] | None:
        """Return the pipe of a request, and what that says; None for one that is nobody's."""
        pipe = self._pipes.get(unverified.id)
        token = None if pipe is None else pipe.verify(unverified)
        return None if pipe is None or token is None else (pipe, token)

    def has_client_at(self, address: str) -> bool:
        """Return whether a connection from this address has brought an authenticated client's requests."""
        return address in self._clients_at

    def note_client_at(self, address: str, pipe: ServerPipe) -> None:
        """Note where a connection came from that has brought requests of `pipe`'s client, who is authenticated."""
        with self._lock:
            if pipe.id not in self._pipes:
                return
            seen_at = self._seen_at.setdefault(pipe.id, set())
            if address not in seen_at and len(seen_at) < MAX_SEEN_AT:
                seen_at.add(address)
                self._clients_at[address] += 1

    def let_go(self) -> None:
        """Serve the requests of closed pipes no more."""
        with self._lock:
            pipes = list(self._pipes.values())
        for pipe in pipes:
            pipe.let_go()

    def _forget(self, pipe: ServerPipe) -> None:
        with self._lock:
            self._pipes.pop(pipe.id, None)
            for address in self._seen_at.pop(pipe.id, ()):
                self._clients_at[address] -= 1
                if not self._clients_at[address]:
                    del self._clients_at[address]
        self._on_fewer()
