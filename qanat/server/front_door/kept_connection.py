"""An HTTP/1.1 connection that carries requests of split pipes, one after the other, perhaps of several clients.

    a thread reads a request  -> answers it, and waits a moment for the next one
    a request waits for bytes -> nobody's thread: whoever sends on the pipe answers it
    nothing comes             -> the watcher waits, and serves what is small and complete itself

What each request is, and what becomes of one that is no split pipe's, is `connection`'s.  A proxy that uses its
connections again brings anybody's requests here, so nothing that was learned of one request holds for the next.
"""

from __future__ import annotations

import contextlib
import email.utils
import enum
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread, TransportError
from qanat.base.request_head import BadRequest, HeadReader, RequestHead
from qanat.base.threads import ThreadGroup
from qanat.base.untrusted import number
from qanat.base.watcher import Timer, Watcher
from qanat.transports.dial.answer_fields import mapping
from qanat.transports.pipe import Wire
from qanat.transports.split import http1
from qanat.transports.split.server import MAX_BODY, Asker, ServerPipe

IDLE = 90.0
"""Seconds that a connection is kept without a request."""
MOMENT = 0.1
"""Seconds that a thread waits for the next request before it leaves the connection to the watcher; and at a time for
the bytes of a body."""
BODY_TIMEOUT = 30.0
"""Seconds of silence after which a request whose body does not come to its end is over."""
WRITE_TIMEOUT = 30.0
"""Seconds without progress after which a connection that takes no more of an answer is closed."""
_INLINE = 16 * 1024
"""Bytes of a request that the watcher reads, and serves without a thread."""

_HEAD = (
    "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/octet-stream\r\n{length}"
    "Cache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n{connection}\r\n"
)


def _date() -> str:
    """Return the value of Date (RFC 9110 §6.6.1), which is written anew each second."""
    return _date_of(time.time() // 1)


@functools.lru_cache(maxsize=1)
def _date_of(second: float) -> str:
    return email.utils.formatdate(second, usegmt=True)


class Owner(Protocol):
    """Whoever made a kept connection, and knows what its requests mean."""

    def serve_next(self, head: RequestHead) -> Next:
        """Serve a request.  May block; raises what `run` takes care of."""

    def serve_now(self, head: RequestHead, body: bytearray) -> Next | None:
        """Do the same without blocking, for a request that is whole; None for one that is left to `serve_next`."""

    def run(self, work: Callable[[], Next]) -> None:
        """Do this in a thread, go on with the connection after that, and take care of whatever is raised."""

    def idle(self) -> None:
        """Note that no request is in progress on the connection: it may give way."""

    def busy(self) -> None:
        """Note that one is."""

    def over(self) -> None:
        """Close the connection.  Idempotent."""


class KeptConnections:
    """What all kept connections of a front door share, and which of them have nothing to do: those end in time."""

    def __init__(self, watcher: Watcher, threads: ThreadGroup, header_timeout: float) -> None:
        """Give the head of each request `header_timeout` seconds from its first byte."""
        self.watcher = watcher
        self.threads = threads
        self.closing = False
        """Whether each of them ends as soon as it has nothing to do."""
        self.header_timeout = header_timeout
        """It may be changed."""
        self._lock = threading.Lock()  # guards the two below
        self._idle: OrderedDict[KeptConnection, float] = OrderedDict()
        self._unfinished: OrderedDict[KeptConnection, float] = OrderedDict()
        self._timer: Timer = watcher.timer(self._sweep)

    def add_idle(self, connection: KeptConnection, *, unfinished: bool) -> None:
        """Have it closed after a time, unless it is forgotten before; `unfinished` is whether a head has begun."""
        at = time.monotonic() + (self.header_timeout if unfinished else IDLE)
        with self._lock:
            if unfinished:
                self._idle.pop(connection, None)
                self._unfinished.setdefault(connection, at)
            else:
                self._idle[connection] = at
        with contextlib.suppress(NoThread, OSError):
            self._timer.set(at)

    def forget(self, connection: KeptConnection) -> None:
        """Note that it is busy, or over.  Idempotent."""
        with self._lock:
            self._idle.pop(connection, None)
            self._unfinished.pop(connection, None)

    def close(self) -> None:
        """Have each end as soon as it has nothing to do.  Idempotent; does not block."""
        self.closing = True
        with self._lock:
            connections = [*self._idle, *self._unfinished]
        for connection in connections:
            connection.close_if_idle()

    def _sweep(self) -> None:
        now = time.monotonic()
        due: list[KeptConnection] = []
        with self._lock:
            for waiting in (self._idle, self._unfinished):
                while waiting and next(iter(waiting.values())) <= now:
                    due.append(waiting.popitem(last=False)[0])
            following = [next(iter(waiting.values())) for waiting in (self._idle, self._unfinished) if waiting]
        for connection in due:
            connection.close_if_idle()
        if following:
            self._timer.set(min(following))


class Next(enum.Enum):
    """What becomes of a connection after a request."""

    REQUEST = enum.auto()  # whoever served it may read another one
    LEFT = enum.auto()  # others go on with it, or it is over
    END = enum.auto()  # it has to end


class KeptConnection:
    """See the module's docstring.

    One at a time *holds* the connection: a thread, or the watcher while it calls.  Only the holder reads, and only
    while nobody holds it does the watcher wait for more.
    """

    def __init__(self, wire: Wire, shared: KeptConnections, owner: Owner, *, max_head: int) -> None:
        """Hold the connection for the caller, who has read its first request's head; `begin` follows.

        A head may have `max_head` bytes.
        """
        self.peer = wire.peer
        self._wire = wire
        self._shared = shared
        self._owner = owner
        self._max_head = max_head
        self._source = http1.ByteSource(wire)
        self._reader: HeadReader | None = None  # of a head that has begun to come; the holder's, or the watcher's
        self._keep = True  # another request may follow the present one; the holder's
        self._http10 = False  # likewise
        self._fd: int | None = None
        self._lock = threading.Lock()  # guards what follows
        self._over = False
        self._held = True
        self._asking: tuple[ServerPipe, Asker] | None = None  # the request that waits
        self._backlog: bytearray | None = None  # what could not be sent at once: a thread sends it
        self._ends_in_backlog = False  # the answer does
        self._watching = False

    def begin(self, rest: bytes) -> None:
        """Take over the connection, with the bytes that came after its first request's head."""
        self._source.rest += rest
        self._wire.set_read_timeout(None)
        self._wire.set_write_timeout(WRITE_TIMEOUT)
        self._fd = self._wire.watch()

    # --- one request after the other, by a holder that may block

    def go_on(self, following: Next) -> Next:
        """Serve what comes while it comes quickly, after a request with this outcome.

        Return LEFT when the watcher waits for more, or others go on, and END.  Blocks.
        """
        while following is Next.REQUEST:
            head = self._next_head()
            following = head if isinstance(head, Next) else self._owner.serve_next(head)
        return following

    def _next_head(self) -> RequestHead | Next:
        """Return the next request's head, or how it ended: the watcher waits for one, or the connection is over."""
        reader = HeadReader(self._max_head)
        data = bytes(self._source.rest)
        self._source.rest.clear()
        began = bool(data)
        buffer = memoryview(bytearray(_INLINE))
        try:
            if self._fd is None:
                self._wire.set_read_timeout(IDLE)
            while True:
                head = reader.feed(data) if data else None
                if head is not None:
                    self._source.rest += head.rest
                    return head
                room = buffer[: min(reader.room, len(buffer))]
                count: int | None
                count = self._wire.recv_into(room) if self._fd is None else self._wire.recv_within(room, MOMENT)
                if count is None:
                    self.leave(reader if began else None)
                    return Next.LEFT
                if not count:
                    return Next.END
                data, began = bytes(buffer[:count]), True
        except (TransportError, BadRequest):
            return Next.END

    def body(self, head: RequestHead, most: int, deadline: Deadline | None = None) -> bytearray | None:
        """Return a request's body, None for one that is too large.  Blocks.  Raises TransportError, ProtocolError.

        All of it has to come until the deadline; without one only silence ends it.
        """
        if not head.has_body:
            return bytearray()
        source = self._source
        source.deadline, source.patience = deadline, BODY_TIMEOUT
        if self._fd is None:
            self._wire.set_read_timeout(BODY_TIMEOUT)
        else:
            source.within = MOMENT  # as for a head: to set another timeout costs as much as to read
        body = http1.read_body(source, mapping(head.headers), most, of_answer=False)
        source.deadline = None
        return body

    def expects(self, head: RequestHead) -> None:
        """Note the request that is answered next."""
        self._http10 = head.version == "1.0"
        self._keep = http1.keeps_alive(mapping(head.headers), http10=self._http10)

    def answer(self, body: bytes) -> Next:
        """Answer the present request.  Does not block."""
        self._send(self._answer_head(len(body)) + body, last=True)
        return self._after_answer()

    def answer_late(self, pipe: ServerPipe, body: bytes) -> Next:
        """Answer the present request once what the watcher's round brings has been handed on.

        Outside the watcher's thread at once.  Does not block.
        """
        return self.wait(pipe, lambda asker: self._shared.watcher.call_late(lambda: asker.respond(body)))

    def wait(self, pipe: ServerPipe, ask: Callable[[Asker], None]) -> Next:
        """Have the present request wait until its asker is answered, which `ask` may do at once.  Does not block."""
        asker = _Http1Asker(self)
        with self._lock:
            if self._over:
                return Next.LEFT
            self._asking = pipe, asker
        ask(asker)
        following = self._after_answer()
        if following is Next.LEFT:
            self._watch()
        return following

    def _after_answer(self) -> Next:
        """Return whether the holder may go on; it holds the connection no more when not."""
        with self._lock:
            if self._over:
                return Next.LEFT
            if self._asking is None and self._backlog is None:
                return Next.REQUEST
            self._held = False
            return Next.LEFT

    # --- answers, by whoever has them

    def _answer_head(self, length: int | None) -> bytes:
        keep = self._keep = self._keep and not self._shared.closing and (length is not None or not self._http10)
        if length is not None:
            delimiter = f"Content-Length: {length}\r\n"
        else:
            delimiter = "" if self._http10 else "Transfer-Encoding: chunked\r\n"
        connection = "" if keep and not self._http10 else f"Connection: {'keep-alive' if keep else 'close'}\r\n"
        return _HEAD.format(date=_date(), length=delimiter, connection=connection).encode("ascii")

    def respond(self, body: bytes) -> None:
        """Answer the request that waits."""
        self._send(self._answer_head(len(body)) + body, last=True)

    def begin_stream(self) -> None:
        """Send the head of an answer that goes on."""
        self._send(self._answer_head(None), last=False)

    def write_stream(self, data: bytes) -> bool:
        """Send more of it; False when not all of it could be sent at once."""
        if not self._http10:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        return self._send(data, last=False)

    def end_stream(self) -> None:
        """End it."""
        self._send(b"" if self._http10 else b"0\r\n\r\n", last=True)

    def _send(self, data: bytes, *, last: bool) -> bool:
        """Send what does not block, and leave the rest to a thread; False if there is a rest."""
        failed = False
        with self._lock:
            if self._over:
                return True
            if self._backlog is not None:
                self._backlog += data
                self._ends_in_backlog |= last
                return False
            taken = not data
            try:
                if data and self._wire.can_send_now:
                    taken = self._wire.send_now(data)
                    data = b""  # the wire keeps what it could not send
            except TransportError:
                failed = True
            if not failed and not taken:
                self._backlog, self._ends_in_backlog = bytearray(data), last
        if failed:
            self._owner.over()
            return True
        if not taken:
            self._start(self._flush_loop)
        elif last:
            self._answered()
        return taken

    def _flush_loop(self) -> None:
        """Send what could not be sent at once."""
        while True:
            with self._lock:
                data, self._backlog = self._backlog, bytearray()
            try:
                self._wire.flush()  # what `send_now` has left with the wire
                if data:
                    self._wire.send_all(data)
            except TransportError:
                self._owner.over()
                return
            with self._lock:
                if self._over:
                    return
                if self._backlog:
                    continue
                self._backlog = None
                ends, self._ends_in_backlog = self._ends_in_backlog, False
                asking = self._asking
                break
        if ends:
            self._answered()
        elif asking is not None:
            asking[0].stream_free(asking[1])

    def _answered(self) -> None:
        """Go on after an answer: by the holder, if there is one, or else by the watcher."""
        with self._lock:
            self._asking = None
            held = self._held
        if not self._keep:
            self._owner.over()
        elif not held:
            self._wait_for_request()

    # --- the watcher

    def leave(self, reader: HeadReader | None = None) -> None:
        """Have the watcher wait for the next request, of which `reader` may have the beginning.  By the holder."""
        self._source.trim()
        self._reader = reader
        with self._lock:
            self._held = False
        self._wait_for_request()

    def _wait_for_request(self) -> None:
        with self._lock:
            if self._over or self._held:
                return
            thread = self._fd is None or bool(self._source.rest)
            if thread:  # the next request has come already
                self._held = True
                self._unwatch_locked()
        if thread:
            self._start(self._serve_what_came)
            return
        self._owner.idle()
        self._shared.add_idle(self, unfinished=self._reader is not None)
        self._watch()
        if self._shared.closing:
            self.close_if_idle()

    def _serve_what_came(self) -> None:
        self._owner.run(lambda: Next.REQUEST)

    def _watch(self) -> None:
        try:
            with self._lock:
                if self._fd is not None and not self._over and not self._held and not self._watching:
                    self._watching = True
                    self._shared.watcher.add(self._fd, self._readable)
        except (NoThread, OSError):
            self._owner.over()

    def _unwatch_locked(self) -> None:
        if self._watching and self._fd is not None:
            self._watching = False
            self._shared.watcher.remove(self._fd)

    def _readable(self) -> None:
        """Read what has come, by the watcher."""
        with self._lock:
            if self._over or self._held:
                self._unwatch_locked()
                return
        reader = self._reader or HeadReader(self._max_head)
        buffer = memoryview(bytearray(min(reader.room, _INLINE)))
        try:
            count = self._wire.recv_within(buffer, 0)
        except TransportError:
            count = 0
        if count is None:
            return
        if not count:
            self._owner.over()
            return
        data = bytes(buffer[:count])
        with self._lock:
            if self._over:
                return
            if self._asking is not None or self._backlog is not None:
                # The next request, before this one has its answer: nobody reads further until it has.
                self._source.rest += data
                self._unwatch_locked()
                return
            self._held = True
        self._feed(reader, data)

    def _feed(self, reader: HeadReader, data: bytes) -> None:
        """Serve a request, by the watcher, if it is whole and can be served without blocking."""
        try:
            head = reader.feed(data)
        except BadRequest:
            self._owner.over()
            return
        if head is None:
            self._reader = reader
            self._shared.add_idle(self, unfinished=True)
            with self._lock:
                self._held = False
            return
        self._reader = None
        self._shared.forget(self)
        self._owner.busy()
        self._source.rest += head.rest
        body = self._whole_body(head)
        following = None if body is None else self._owner.serve_now(head, body)
        if following is Next.REQUEST:
            with self._lock:
                self._held = False
            self._wait_for_request()
        elif following is Next.END:
            self._owner.over()
        elif following is None:
            with self._lock:
                self._unwatch_locked()
            self._start(lambda: self._owner.run(lambda: self._owner.serve_next(head)))

    def _whole_body(self, head: RequestHead) -> bytearray | None:
        """Return the body, which stays where it is until `took`, if all of it has come; else None."""
        if head.values("transfer-encoding"):
            return None
        lengths = head.values("content-length")
        size = number(lengths[0], MAX_BODY) if lengths else 0
        if size is None or len(self._source.rest) < size:
            return None
        return self._source.rest[:size]

    def took(self, size: int) -> None:
        """Note that the body of so many bytes, which had come with the head, has been taken."""
        del self._source.rest[:size]

    def _start(self, work: Callable[[], None]) -> None:
        try:
            self._shared.threads.start(f"front {self.peer}", work)
        except NoThread:
            self._owner.over()

    # --- the end

    def close_if_idle(self) -> None:
        """End the connection if no request is in progress on it.  Does not block."""
        with self._lock:
            busy = self._held or self._asking is not None or self._backlog is not None
        if not busy:
            self._owner.over()

    def close(self) -> None:
        """Let go of the wire, which is closed next.  Idempotent; does not block."""
        with self._lock:
            if self._over:
                return
            self._over = True
            asking, self._asking = self._asking, None
            self._backlog = None
            self._unwatch_locked()
        self._shared.forget(self)
        if self._fd is not None:
            self._wire.unwatch()
        if asking is not None:
            asking[0].give_up(asking[1])


class _Http1Asker(Asker):
    """A request on a kept connection that waits for bytes."""

    def __init__(self, connection: KeptConnection) -> None:
        self._connection = connection

    def respond(self, body: bytes) -> None:
        self._connection.respond(body)

    def begin(self) -> None:
        self._connection.begin_stream()

    def write(self, data: bytes) -> bool:
        return self._connection.write_stream(data)

    def finish(self) -> None:
        self._connection.end_stream()
