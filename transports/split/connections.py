"""The client's requests over HTTP/1.1: one at a time on each connection, which is used again as long as it lasts.

A connection that was idle may have been closed by the other end just when it is used again, so it is looked at before;
and every request of a split pipe may be sent twice, so whoever fails on one simply tries another.

Once there is a watcher it reads what comes on idle connections, and the answers of requests that are made without a
thread (`Connections.begin`); a thread that takes a connection takes it away from there first.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.version import __version__
from qanat.base.watcher import Watcher
from qanat.transports.dial.answer_fields import with_newer
from qanat.transports.dial.dialer import dial, opening
from qanat.transports.dial.http_answer import AnswerReader
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import Wire
from qanat.transports.split import http1
from qanat.transports.split.exchange import Connection, Exchange, OnOver, Taker
from qanat.transports.split.token import COOKIE, Carrier

ALPN = ("http/1.1",)
MAX_REQUESTS = 800
"""Requests on one connection: nginx closes its own after 1,000, and a race is lost now and then."""
CONNECT_TIMEOUT = 10.0
"""Seconds that a further connection may take to be made."""
MAX_IDLE = 60.0
"""Seconds after which an idle connection is not used again."""
MAX_SPARE = 20.0
"""The same for those beyond the one that is used most: more than between two PINGs, for which an idle pipe needs two at
once when both ends ask."""
CONTENT_TYPE = "application/octet-stream"

_TOKEN_HERE, _SIZE_HERE = "\0", "\1"  # no header may have these
_DEFAULTS = (("User-Agent", f"qanat/{__version__}"), ("Accept", "*/*"))


class Answer:
    """An answer whose head has come, and whose body comes."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers

    def set_timeout(self, seconds: float) -> None:
        """Have `pieces` raise TransportError when nothing has come for so long."""
        raise NotImplementedError

    def pieces(self) -> Iterator[memoryview]:
        """Yield the body as it comes, in pieces that are the caller's.  Blocks.

        Raises TransportError, also when it is cut, and ProtocolError.
        """
        raise NotImplementedError

    def leave(self, taker: Taker, on_over: OnOver) -> Exchange | None:
        """Have the watcher read the rest, after a piece of `pieces`; None where it cannot.

        What has come already is its as well.  `Connections.watch` follows, and nothing else is done with this.
        """
        return None


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
        self, method: str, carried: Sequence[tuple[Carrier, str]], body: bytes | memoryview | None, timeout: float
    ) -> AbstractContextManager[Answer]:
        """Make a request, and give its answer, for which one waits for `timeout` seconds.  Blocks.

        `carried` says what goes with which carrier.  Raises TransportError, ProtocolError and UsageError.
        """

    def watch_with(self, watcher: Watcher) -> Connections | None:
        """Have `watcher` read answers from now on; return what then makes requests without threads, if that can be."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close all connections, and make no more; wakes whoever waits.  Idempotent; does not block."""


class _Http1Answer(Answer):
    """An answer on a connection of its own."""

    def __init__(self, connection: Connection, status: int, headers: Mapping[str, str]) -> None:
        """Take over after the head."""
        super().__init__(status, headers)
        self._connection = connection
        self._body: http1.BodyReader | None = None
        self.left = False
        """Whether the watcher reads on."""

    def set_timeout(self, seconds: float) -> None:
        """See `Answer.set_timeout`."""
        _set_timeout(self._connection, seconds)

    def pieces(self) -> Iterator[memoryview]:
        """See `Answer.pieces`."""
        self._body = http1.BodyReader(self._connection.source, self.headers, of_answer=True)
        self._connection.reusable &= not self._body.to_the_end
        while (piece := self._body.next()) is not None:
            yield piece

    def leave(self, taker: Taker, on_over: OnOver) -> Exchange | None:
        """See `Answer.leave`."""
        connection = self._connection
        if connection.fd is None:
            return None
        self.left = True
        connection.exchange = Exchange(connection, taker, on_over, self._body)
        return connection.exchange


def _await_answer(connection: Connection, timeout: float) -> _Http1Answer:
    """Block for an answer's head.  Raises TransportError and ProtocolError."""
    _set_timeout(connection, timeout)
    status, headers, http10 = http1.AnswerHeads().next(connection.source)
    connection.reusable = http1.keeps_alive(headers, http10=http10)
    return _Http1Answer(connection, status, headers)


def _set_timeout(connection: Connection, seconds: float) -> None:
    connection.wire.set_read_timeout(max(0.001, seconds))


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
        self._watcher: Watcher | None = None
        self._watchable = False  # this system's sockets can be
        self._head_templates: dict[tuple[str, Carrier], str] = {}  # heads, by method and carrier

    def add_cookies(self, cookies: dict[str, str]) -> None:
        """See `Requests.add_cookies`."""
        super().add_cookies(cookies)
        self._head_templates.clear()

    def _head(self, method: str, carried: Sequence[tuple[Carrier, str]], size: int | None) -> bytes:
        """Return a request's head; `size` is how long its body is.

        Those of one pipe differ in two values alone.
        """
        if len(carried) > 1:
            return self._whole_head(method, carried, None if size is None else str(size)).encode("latin-1")
        carrier, text = carried[0]
        template = self._head_templates.get((method, carrier))
        if template is None:
            template = self._whole_head(method, [(carrier, _TOKEN_HERE)], None if size is None else _SIZE_HERE)
            self._head_templates[method, carrier] = template
        return template.replace(_TOKEN_HERE, text).replace(_SIZE_HERE, str(size)).encode("latin-1")

    def _whole_head(self, method: str, carried: Sequence[tuple[Carrier, str]], size: str | None) -> str:
        url = self.url
        target, route, fields = self._carry(carried)
        if size is not None:
            fields += [("Content-Type", CONTENT_TYPE), ("Content-Length", size)]
        lines = [f"{method} {target} HTTP/1.1", f"Host: {route.authority(url)}"]
        lines += [f"{name}: {value}" for name, value in route.with_headers(fields)]
        return "\r\n".join(lines) + "\r\n\r\n"

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
            for _ in range(http1.MAX_INTERIM):
                if 100 <= status < 200:
                    status, headers = reader.read()
            self.answered = True
            reason = reader.read_reason(headers) if status == 400 else ""
            connection.source.rest += reader.rest
            yield FirstAnswer(_Http1Answer(connection, status, headers), reason, connection.wire)
        self.give_back(connection, reusable=http1.keeps_alive(headers, http10=False))

    @contextlib.contextmanager
    def request(
        self, method: str, carried: Sequence[tuple[Carrier, str]], body: bytes | memoryview | None, timeout: float
    ) -> Iterator[Answer]:
        """See `Requests.request`."""
        connection = self._take_idle() or self.open(Deadline(CONNECT_TIMEOUT))
        try:
            connection.send(self._head(method, carried, None if body is None else len(body)), body or b"")
            answer = _await_answer(connection, timeout)
            yield answer
        except BaseException:
            self.drop(connection)
            raise
        if not answer.left:
            self.give_back(connection, reusable=connection.reusable)

    def open(self, deadline: Deadline, cancel: Cancel | None = None) -> Connection:
        """Return a new connection, in use.  Blocks.  Raises TransportError and UsageError."""
        cancel = self._cancel if cancel is None else cancel
        wire = dial(self.url, alpn=ALPN, deadline=deadline, route=self._route, cancel=cancel)
        with opening(wire, deadline, cancel, self._route):
            wire.set_write_timeout(self._write_timeout)
            wire.set_read_timeout(None)
            connection = Connection(wire)
        self._watchable = connection.fd is not None
        with self._lock:
            self._used.add(connection)
            closed = self._closed
        if closed:
            self.drop(connection)
            raise TransportError("the pipe has ended")
        return connection

    def watch_with(self, watcher: Watcher) -> Connections | None:
        """See `Requests.watch_with`."""
        if not self._watchable:
            return None
        self._watcher = watcher
        return self

    def reserve(self) -> Connection | None:
        """Return a connection that is idle, and that the watcher reads, for `send_now`; None where there is none.

        Does not block.
        """
        fresh = time.monotonic() - MAX_IDLE
        with self._lock:
            for connection in reversed(self._idle):
                if connection.watcher is not None and connection.wire.can_send_now and connection.idle_since > fresh:
                    self._idle.remove(connection)
                    self._used.add(connection)
                    return connection
        return None

    def send_now(
        self, exchange: Exchange, method: str, carried: Sequence[tuple[Carrier, str]], body: bytes | memoryview | None
    ) -> bool:
        """Send the request of `exchange`, on a reserved connection; False when a part is left, for `Connection.flush`.

        Does not block.  Raises TransportError.
        """
        head = self._head(method, carried, None if body is None else len(body))
        return exchange.connection.send_now(exchange, head, body or b"")

    def watch(self, exchange: Exchange) -> bool:
        """Have the watcher read what `Answer.leave` has left, or a thread has held; False where it cannot.

        Blocks while a thread reads.
        """
        assert self._watcher is not None  # or there are no exchanges
        watched = exchange.watch(self._watcher, partial(self._readable, exchange.connection))
        self.read_soon(exchange)
        return watched

    def read_soon(self, exchange: Exchange) -> None:
        """Have the watcher read what has come already.  Does not block."""
        assert self._watcher is not None
        self._watcher.post(partial(self._readable, exchange.connection))

    def _readable(self, connection: Connection) -> None:
        """Read what has come on a connection, by the watcher."""
        exchange = connection.exchange
        if exchange is not None:
            if exchange.read():
                self.read_soon(exchange)
            return
        with self._lock:
            idle = connection in self._idle
            if idle:
                self._idle.remove(connection)
        if idle:  # it was closed by the other end, or said something unasked
            self.drop(connection)

    def _take_idle(self) -> Connection | None:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
                if connection is None:
                    return None
                self._used.add(connection)
            connection.unwatch()
            if time.monotonic() - connection.idle_since < MAX_IDLE and connection.alive:
                return connection
            self.drop(connection)

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """Keep a connection for the next request, or close it.  Does not block."""
        connection.idle_since = time.monotonic()
        reusable = reusable and not connection.has_more  # it would be taken for the next answer
        if reusable and self._watcher is not None:
            connection.watch(self._watcher, partial(self._readable, connection))
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
        """Close a connection that is not used again.  Does not block."""
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
