"""The client's requests over HTTP/2: streams of one connection, and another one where that is used up or fails.

Whoever waits for an answer reads the connection for all (`Http2Engine.wait_locked`), so it needs no thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence

from h2.exceptions import H2Error

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, TransportError
from qanat.base.threads import start_thread
from qanat.transports.dial.dialer import dial, opening
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2.byte_inbox import ByteInbox
from qanat.transports.http2.client import ALPN, await_answer
from qanat.transports.http2.dialect import Dialect, Headers
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.frames import HEADER_SIZE
from qanat.transports.http2.limits import WINDOW
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.pipe import Wire, silent_for
from qanat.transports.split.connections import (
    CONNECT_TIMEOUT,
    CONTENT_TYPE,
    MAX_REQUESTS,
    Answer,
    FirstAnswer,
    Requests,
)
from qanat.transports.split.token import Carrier
from qanat.transports.wire.tls import TlsWire

_PIECE = 64 * 1024


class _RawBody(Dialect):
    """The bodies of requests and answers as they are."""

    name = "split"

    def request_headers(self) -> Headers:
        """See `Dialect.request_headers`."""
        return []

    def response_headers(self) -> Headers:
        """See `Dialect.response_headers`."""
        return []

    def check_response(self, status: int, headers: Mapping[str, str], url: TunnelUrl) -> TransportError | None:
        """See `Dialect.check_response`."""
        return None


_RAW_BODY = _RawBody()


class _Http2Answer(Answer):
    """An answer on a stream."""

    def __init__(self, engine: Http2Engine, stream: Http2Stream, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status, headers)
        self._engine = engine
        self._stream = stream
        self._timeout = 0.0

    def set_timeout(self, seconds: float) -> None:
        """See `Answer.set_timeout`."""
        self._timeout = seconds

    def pieces(self) -> Iterator[memoryview]:
        """See `Answer.pieces`."""
        engine, stream, inbox = self._engine, self._stream, self._stream.inbox
        assert isinstance(inbox, ByteInbox)
        buffer = memoryview(bytearray(_PIECE))
        while True:
            with engine.lock:
                count = inbox.take(buffer)
                if not count and not stream.over:
                    inbox.lend(buffer)
                    try:
                        engine.wait_locked(
                            stream, stream.readable, lambda: inbox.has_come() or stream.over, self._timeout
                        )
                    finally:
                        count = inbox.take_back()
                if count:
                    engine.core.credit(stream)
                over, whole = stream.over, stream.ended_there and not stream.ended_here
                pending = bool(engine.core.pending_control)
            if pending:
                engine.flush()
            if count:
                yield memoryview(bytearray(buffer[:count]))
            elif whole:
                return
            elif over:
                raise stream.cause.error()
            else:
                raise TransportError(silent_for(self._timeout))


class Http2Requests(Requests):
    """See the module's docstring."""

    def __init__(self, url: TunnelUrl, route: Route, write_timeout: float) -> None:
        """See `Requests`."""
        super().__init__(url, route, write_timeout)
        self._connecting = threading.Lock()  # held while a connection is made, so that one is made
        self._lock = threading.Lock()  # guards the rest
        self._cancel = Cancel()
        self._closed = False
        self._engine: Http2Engine | None = None  # for new requests
        self._requests = 0  # made on that
        self._engines: set[Http2Engine] = set()

    @contextlib.contextmanager
    def first(
        self, carried: Sequence[tuple[Carrier, str]], body: bytes, deadline: Deadline, cancel: Cancel
    ) -> Iterator[FirstAnswer]:
        """See `Requests.first`."""
        engine = self._connect(deadline, cancel)
        with (
            cancel.waking(lambda: engine.end("the client is stopping")),
            self._exchange(engine, "POST", carried, body) as stream,
        ):
            status, headers = await_answer(self.url, engine, stream, deadline)
            self.answered = True
            yield FirstAnswer(_Http2Answer(engine, stream, status, headers), "", engine.wire)

    @contextlib.contextmanager
    def request(
        self, method: str, carried: Sequence[tuple[Carrier, str]], body: bytes | memoryview | None, timeout: float
    ) -> Iterator[Answer]:
        """See `Requests.request`."""
        engine = self._current()
        try:
            with self._exchange(engine, method, carried, body) as stream:
                deadline = Deadline(timeout)
                with engine.lock:
                    engine.wait_locked(
                        stream, stream.readable, lambda: stream.response is not None or stream.over, timeout
                    )
                    response, over = stream.response, stream.over
                    pending = bool(engine.core.pending_control)
                if pending:
                    engine.flush()
                if response is None:
                    raise stream.cause.error() if over else TransportError(silent_for(timeout))
                answer = _Http2Answer(engine, stream, *response)
                answer.set_timeout(deadline.remaining() or 0.001)
                yield answer
        except TransportError:
            self._leave(engine)  # whatever it was, others may do better on another connection
            raise

    @contextlib.contextmanager
    def _exchange(
        self, engine: Http2Engine, method: str, carried: Sequence[tuple[Carrier, str]], body: bytes | memoryview | None
    ) -> Iterator[Http2Stream]:
        """Send a request, and end its stream when the block is over."""
        target, route, fields = self._carry(carried)
        if body is not None:
            fields += [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body)))]
        headers = [
            (":method", method),
            (":scheme", "https" if self.url.tls else "http"),
            (":path", target),
            (":authority", route.authority(self.url)),
            *((name.lower(), value) for name, value in route.with_headers(fields)),
        ]
        with engine.lock:
            if engine.over:
                raise engine.cause.error()
            try:
                stream = engine.core.request(headers, _RAW_BODY, ended=body is None)
            except H2Error as error:  # more streams than the other end takes, say
                raise TransportError(f"a request could not be made: {error}") from error
            stream.write_timeout = self._write_timeout
        try:
            if body is not None:
                if body:
                    engine.send(stream, memoryview(bytearray(HEADER_SIZE) + body), HEADER_SIZE)
                with engine.lock:
                    engine.core.end_request(stream)
            engine.flush()
            yield stream
        finally:
            engine.end_stream(stream, "the request is over")
            with contextlib.suppress(PipeEnded):
                engine.flush()

    def _current(self) -> Http2Engine:
        """Return the connection for a new request.  Blocks.  Raises TransportError and UsageError."""
        with self._connecting:
            with self._lock:
                engine = self._engine
                if engine is not None and self._requests < MAX_REQUESTS and not (engine.over or engine.core.leaving):
                    self._requests += 1
                    return engine
            return self._connect(Deadline(CONNECT_TIMEOUT), self._cancel)

    def _connect(self, deadline: Deadline, cancel: Cancel) -> Http2Engine:
        wire: Wire = dial(self.url, alpn=ALPN, deadline=deadline, route=self._route, cancel=cancel)
        with opening(wire, deadline, cancel, self._route):
            if isinstance(wire, TlsWire) and wire.alpn not in ALPN:
                raise TransportError(f"{self.url.address} does not speak HTTP/2")
            wire.set_write_timeout(self._write_timeout)
            engine = Http2Engine(wire, window=WINDOW)
            start_thread(f"h2-writer {engine.wire.peer}", engine.writer_loop)
        with self._lock:
            self._engine, self._requests = engine, 1
            gone = {each for each in self._engines if each.over or not each.core.streams}
            self._engines = {each for each in self._engines if each not in gone} | {engine}
            closed = self._closed
        for each in gone:
            each.end("it is no longer needed")
        if closed:
            engine.end("the pipe has ended")
            raise TransportError("the pipe has ended")
        return engine

    def _leave(self, engine: Http2Engine) -> None:
        """Make new requests on another connection."""
        with self._lock:
            if self._engine is engine:
                self._engine = None
            idle = not engine.core.streams
        if idle:
            engine.end("a request failed on it")

    def close(self) -> None:
        """See `Requests.close`."""
        with self._lock:
            self._closed = True
            engines, self._engine = list(self._engines), None
        self._cancel.cancel()
        for engine in engines:
            engine.end("the pipe has ended")
