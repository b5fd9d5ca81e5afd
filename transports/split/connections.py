"""The client's requests over HTTP/1.1: one at a time on each connection, which is used again as long as it lasts.

A connection that was idle may have been closed by the other end just when it is used again, so it is looked at before;
and every request of a split pipe may be sent twice, so whoever fails on one simply tries another.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.version import __version__
from qanat.transports.dial.answer_fields import with_newer
from qanat.transports.dial.dialer import dial, opening
from qanat.transports.dial.http_answer import AnswerReader
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import Wire
from qanat.transports.split import http1
from qanat.transports.split.token import COOKIE, Carrier

ALPN = ("http/1.1",)
MAX_REQUESTS = 800
"""Requests on one connection: nginx closes its own after 1,000, and a race is lost now and then."""
CONNECT_TIMEOUT = 10.0
"""Seconds that a further connection may take to be made."""
MAX_IDLE = 60.0
"""Seconds after which an idle connection is not used again."""
MAX_SPARE = 10.0
"""The same for those beyond the one that is used most."""
CONTENT_TYPE = "application/octet-stream"

_DEFAULTS = (("User-Agent", f"qanat/{__version__}"), ("Accept", "*/*"))


class Answer:
    """An answer whose head has come, and whose body comes."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers

    def set_timeout(self, seconds: float) -> None:
        """Have `pieces` raise TransportError when nothing has come for so long."""
        raise NotImplementedError

    def pieces(self) -> Iterator[bytearray]:
        """Yield the body as it comes.  Blocks.  Raises TransportError, also when it is cut, and ProtocolError."""
        raise NotImplementedError


class FirstAnswer:
    """The answer to the request for a pipe."""

    def __init__(self, answer: Answer, reason: str, wire: Wire) -> None:
        self.answer = answer
        self.reason = reason
        """What a Qanat server gives with 400."""
        self.peer = wire.peer
        self.addresses = wire.addresses


class Requests(ABC):
    """How a pipe's requests are made.  Safe to use from any thread."""

    url: TunnelUrl
    answered = False
    """Whether anything has answered in this version of HTTP."""

    def __init__(self, url: TunnelUrl, route: Route, write_timeout: float) -> None:
        """Connect by `route`; what takes nothing for `write_timeout` seconds fails."""
        self.url = url
        self._route = route
        self._write_timeout = write_timeout

    def add_cookies(self, cookies: dict[str, str]) -> None:
        """Send these with every further request: a load balancer wants them back."""
        self._route = replace(self._route, cookies=tuple(with_newer(dict(self._route.cookies), cookies).items()))

    @property
    def has_authorization(self) -> bool:
        """Whether the configuration has an Authorization header of its own, which ours must not replace."""
        return any(name.lower() == "authorization" for name, _ in self._route.headers)

    def _carry(self, carried: Sequence[tuple[Carrier, str]]) -> tuple[str, Route, list[tuple[str, str]]]:
        """Return target, route and fields of a request, with what `carried` says in them."""
        target, route, fields = self.url.path, self._route, list(_DEFAULTS)
        for carrier, text in carried:
            if carrier is Carrier.HEADER:
                fields.append(("Authorization", f"Bearer {text}"))
            elif carrier is Carrier.COOKIE:
                route = replace(route, cookies=(*route.cookies, (COOKIE, text)))
            else:
                target = f"{target}?{COOKIE}={text}"
        return target, route, fields

    @abstractmethod
    def first(
        self, carried: Sequence[tuple[Carrier, str]], body: bytes, deadline: Deadline, cancel: Cancel
    ) -> AbstractContextManager[FirstAnswer]:
        """POST the request for a pipe, and give its answer.  Blocks.  Raises TransportError with a hint, UsageError."""

    @abstractmethod
    def request(
        self, method: str, carried: Sequence[tuple[Carrier, str]], body: bytes | None, timeout: float
    ) -> AbstractContextManager[Answer]:
        """Make a request, and give its answer, for which one waits for `timeout` seconds.  Blocks.

        `carried` says what goes with which carrier.  Raises TransportError, ProtocolError and UsageError.
        """

    @abstractmethod
    def close(self) -> None:
        """Close all connections, and make no more; wakes whoever waits.  Idempotent; does not block."""


class Connection:
    """One connection.  For one thread at a time; `close` from any."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.requests = 0
        self.idle_since = 0.0
        self.reusable = True
        """Whether another request may follow."""
        self.source = http1.ByteSource(wire)
        self._watched = wire.watch() is not None
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

    @property
    def alive(self) -> bool:
        """Whether the other end has neither closed it nor said anything unasked."""
        if not self._watched:
            return True
        try:
            return self.wire.recv_within(memoryview(bytearray(1)), 0) is None
        except TransportError:
            return False

    def close(self) -> None:
        """Close it; wakes whoever waits.  Idempotent; does not block."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self.wire.close()
            if self._watched:
                self.wire.unwatch()


class _Http1Answer(Answer):
    """An answer on a connection of its own."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        """Block for the head.  Raises TransportError and ProtocolError."""
        self._connection = connection
        self.set_timeout(timeout)
        source = connection.source
        status, headers, http10 = http1.read_answer_head(source)
        while 100 <= status < 200:
            status, headers, http10 = http1.read_answer_head(source)
        connection.reusable = http1.keeps_alive(headers, http10=http10)
        super().__init__(status, headers)

    def set_timeout(self, seconds: float) -> None:
        """See `Answer.set_timeout`."""
        self._connection.wire.set_read_timeout(max(0.001, seconds))

    def pieces(self) -> Iterator[bytearray]:
        """See `Answer.pieces`."""
        return http1.body_pieces(self._connection.source, self.headers, of_answer=True)


class _ReadAnswer(Answer):
    """An answer whose head somebody else has read."""

    def __init__(self, connection: Connection, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status, headers)
        self._connection = connection

    def set_timeout(self, seconds: float) -> None:
        """See `Answer.set_timeout`."""
        self._connection.wire.set_read_timeout(max(0.001, seconds))

    def pieces(self) -> Iterator[bytearray]:
        """See `Answer.pieces`."""
        return http1.body_pieces(self._connection.source, self.headers, of_answer=True)


class Connections(Requests):
    """All connections of one pipe.  Safe to use from any thread."""

    def __init__(self, url: TunnelUrl, route: Route, write_timeout: float) -> None:
        """See `Requests`."""
        super().__init__(url, route, write_timeout)
        self._lock = threading.Lock()
        self._cancel = Cancel()
        self._closed = False
        self._idle: list[Connection] = []
        self._used: set[Connection] = set()

    def _head(self, method: str, carried: Sequence[tuple[Carrier, str]], size: int | None) -> bytes:
        """Return a request's head; `size` is how long its body is."""
        url = self.url
        target, route, fields = self._carry(carried)
        if size is not None:
            fields += [("Content-Type", CONTENT_TYPE), ("Content-Length", str(size))]
        lines = [f"{method} {target} HTTP/1.1", f"Host: {route.authority(url)}"]
        lines += [f"{name}: {value}" for name, value in route.with_headers(fields)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    @contextlib.contextmanager
    def first(
        self, carried: Sequence[tuple[Carrier, str]], body: bytes, deadline: Deadline, cancel: Cancel
    ) -> Iterator[FirstAnswer]:
        """See `Requests.first`."""
        url, connection = self.url, self.open(deadline, cancel)
        with cancel.waking(connection.close):
            with contextlib.suppress(TransportError):  # what reading says is better: a server may refuse us and close
                connection.send(self._head("POST", carried, len(body)), body)
            no_answer = "check the port, and the log of the server or the proxy in front of it"
            if not url.tls:
                no_answer = "if the server speaks TLS, write https:// instead of http://; otherwise check the port"
            reader = AnswerReader(
                connection.wire,
                deadline,
                str(url),
                check="check host and port in the URL",
                no_answer=no_answer,
                use_tls="write https:// instead of http:// in the URL",
            )
            status, headers = reader.read()
            while 100 <= status < 200:
                status, headers = reader.read()
            self.answered = True
            reason = reader.read_reason(headers) if status == 400 else ""
            connection.source.rest += reader.rest
            yield FirstAnswer(_ReadAnswer(connection, status, headers), reason, connection.wire)
        self.give_back(connection, reusable=http1.keeps_alive(headers, http10=False))

    @contextlib.contextmanager
    def request(
        self, method: str, carried: Sequence[tuple[Carrier, str]], body: bytes | None, timeout: float
    ) -> Iterator[Answer]:
        """See `Requests.request`."""
        with self.connection(CONNECT_TIMEOUT) as connection:
            connection.send(self._head(method, carried, None if body is None else len(body)), body or b"")
            yield _Http1Answer(connection, timeout)

    def open(self, deadline: Deadline, cancel: Cancel | None = None) -> Connection:
        """Return a new connection, in use.  Blocks.  Raises TransportError and UsageError."""
        cancel = self._cancel if cancel is None else cancel
        wire = dial(self.url, alpn=ALPN, deadline=deadline, route=self._route, cancel=cancel)
        with opening(wire, deadline, cancel, self._route):
            wire.set_write_timeout(self._write_timeout)
            wire.set_read_timeout(None)
            connection = Connection(wire)
        with self._lock:
            self._used.add(connection)
            closed = self._closed
        if closed:
            self.drop(connection)
            raise TransportError("the pipe has ended")
        return connection

    @contextlib.contextmanager
    def connection(self, seconds: float) -> Iterator[Connection]:
        """Give a connection for one request, and keep it for the next if the block does not raise.

        Connecting may take `seconds`.  Raises TransportError and UsageError.
        """
        connection = self._take_idle()
        if connection is None:
            connection = self.open(Deadline(seconds))
        try:
            yield connection
        except BaseException:
            self.drop(connection)
            raise
        self.give_back(connection, reusable=connection.reusable)

    def _take_idle(self) -> Connection | None:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
                if connection is None:
                    return None
                self._used.add(connection)
            if time.monotonic() - connection.idle_since < MAX_IDLE and connection.alive:
                return connection
            self.drop(connection)

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """Keep a connection for the next request, or close it."""
        connection.idle_since = time.monotonic()
        stale: list[Connection] = []
        with self._lock:
            if self._closed or not reusable or connection.requests >= MAX_REQUESTS or connection not in self._used:
                stale.append(connection)
            else:
                self._used.discard(connection)
                self._idle.append(connection)
                oldest = connection.idle_since - MAX_SPARE
                stale += [idle for idle in self._idle if idle.idle_since < oldest]
                self._idle = [idle for idle in self._idle if idle.idle_since >= oldest]
        for each in stale:
            self.drop(each)

    def drop(self, connection: Connection) -> None:
        """Close a connection that is not used again."""
        with self._lock:
            self._used.discard(connection)
        connection.close()

    def close(self) -> None:
        """See `Requests.close`."""
        with self._lock:
            self._closed = True
            connections = [*self._idle, *self._used]
            self._idle.clear()
        self._cancel.cancel()
        for connection in connections:
            connection.close()
