"""The server's side of `tunnel.py doctor`: answers that show what a path does to requests, answers and silence.

Anybody may ask, as anybody may knock, so what it costs is bounded: a few hundred kilobytes and some seconds for each
probe, so many at once for all and for one address (`ProbeBudget`), and none with `doctor: false`.  No key is used, and
nothing is remembered.  What each probe is stands in `qanat.measure.probes`.

Used by `qanat.server.front_door.connection`.  No thread is started here: a probe has the one that serves its request.
"""

from __future__ import annotations

import contextlib
import email.utils
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from qanat.base.addresses import bucket_key
from qanat.base.errors import QanatError
from qanat.base.request_head import RequestHead
from qanat.measure.probes import (
    GREETING,
    HEADER,
    MAX_MESSAGE,
    MAX_MESSAGES,
    MAX_SUNK,
    TRICKLE_SIZES,
    TRICKLE_STEP,
    VERSION,
    Arrived,
    Order,
    Probe,
    seconds_of,
)
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door.http_head import answer
from qanat.transports.http2.dialect import Dialect, Headers
from qanat.transports.http2.octet_stream import Http2Dialect
from qanat.transports.http2.request import Http2Request, PlainAnswer
from qanat.transports.http2.server import Exchange
from qanat.transports.pipe import Pipe, Wire

log = logging.getLogger("qanat.front_door")

MAX_PROBES = 128
"""Probes at once; and as many more that are silent, which last for minutes."""
MAX_OF_ADDRESS = 64
"""Of these, from one address."""
_PATIENCE = 6.0
"""Seconds that a probe waits for a byte."""
_RETRY_AFTER = 5
_NO_BUFFERING = (("Cache-Control", "no-store, no-transform"), ("X-Accel-Buffering", "no"))
"""What the transports say with their answers, so that a probe meets what they would meet."""


class ProbeBudget:
    """How many probes there are now, over all and by address.  Safe to use from any thread; does not block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_address: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, address: str) -> Iterator[bool]:
        """Count one more while the block runs; yields False, and counts nothing, when there are too many."""
        key = bucket_key(address)
        with self._lock:
            room = self._by_address[key] < MAX_OF_ADDRESS and self._by_address.total() < MAX_PROBES
            if room:
                self._by_address[key] += 1
        try:
            yield room
        finally:
            with self._lock:
                if room:
                    self._by_address[key] -= 1
                if not self._by_address[key]:
                    del self._by_address[key]


class Probes:
    """All probes of one front door.  Safe to use from any thread."""

    def __init__(self, path: str, *, enabled: bool, closing: threading.Event) -> None:
        """`path` is the tunnel's; `closing` is set when the server stops, which ends every probe."""
        self._path = path
        self._enabled = enabled
        self._closing = closing
        self._budget, self._silent = ProbeBudget(), ProbeBudget()
        self._lock = threading.Lock()
        self._pipes: set[Pipe] = set()

    def change(self, path: str, *, enabled: bool) -> None:
        """Answer at another path, or nobody, from now on; a probe that has begun goes on."""
        self._path, self._enabled = path, enabled

    def close(self) -> None:
        """End the pipes that are probed.  Does not block."""
        with self._lock:
            pipes = list(self._pipes)
        for pipe in pipes:
            pipe.close("the server is closing")

    # --- HTTP/1.1

    def wants(self, head: RequestHead) -> bool:
        """Return whether this request is a probe that `serve` answers; one for a PIPE is not."""
        probe = self._probe(head.path, head.values(HEADER))
        return probe is not None and probe is not Probe.PIPE

    def serve(self, head: RequestHead, wire: Wire, address: str) -> None:
        """Answer a probe.  Blocks for some seconds at most; raises TransportError."""
        probe = self._probe(head.path, head.values(HEADER))
        with self._budget.one(address) as room:
            if not room:
                wire.send_all(answer(503, retry_after=_RETRY_AFTER))
            elif probe is Probe.TRICKLE and head.method == "GET":
                self._answer_in_parts(head, wire, self._trickle())
            elif probe is Probe.ECHO and head.has_body:
                self._answer_in_parts(head, wire, self._echo(head.rest, wire))
            else:
                via, forwarded = bool(head.values("via")), bool(head.values("x-forwarded-for"))
                wire.send_all(_plain(Arrived("1.0" if head.version == "1.0" else "1.1", via, forwarded).encode()))

    def _answer_in_parts(self, head: RequestHead, wire: Wire, parts: Iterator[bytes]) -> None:
        """Send 200 and then each part as it comes; chunked, but for HTTP/1.0, where the connection's end is the end."""
        chunked = head.version != "1.0"
        fields = [*_NO_BUFFERING, ("Connection", "close"), (HEADER, VERSION)]
        if chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        wire.send_all(_head(fields))
        for part in parts:
            wire.send_all(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        if chunked:
            wire.send_all(b"0\r\n\r\n")

    def _trickle(self) -> Iterator[bytes]:
        """Yield the parts, each with its number and the time since the first in milliseconds at its beginning."""
        began = time.monotonic()
        for number, size in enumerate(TRICKLE_SIZES):
            if number and self._closing.wait(max(0.0, began + number * TRICKLE_STEP - time.monotonic())):
                return
            yield f"{number} {(time.monotonic() - began) * 1000:.0f} ".encode().ljust(size - 1, b".") + b"\n"

    def _echo(self, rest: bytes, wire: Wire) -> Iterator[bytes]:
        yield b"begun\n"
        if not rest:
            wire.set_read_timeout(_PATIENCE)
            if not wire.recv_into(memoryview(bytearray(1024))):
                return
        yield b"came\n"

    # --- HTTP/2

    def route(self, request: Http2Request) -> PlainAnswer | Dialect | None:
        """Return what becomes of a probe over HTTP/2; None for what is none, or for a PIPE.  Does not block."""
        probe = self._probe(request.path, request.values(HEADER))
        if probe is None or probe is Probe.PIPE:
            return None
        if (probe is Probe.TRICKLE and request.method == "GET") or (probe is Probe.ECHO and request.method == "POST"):
            return _DIALECT
        arrived = Arrived("2", bool(request.values("via")), bool(request.values("x-forwarded-for")))
        return PlainAnswer(200, arrived.encode(), [(HEADER, VERSION)])

    def serve_stream(self, exchange: Exchange, address: str) -> bool:
        """Answer what `route` gave a dialect to; return whether this was one.  Blocks as `serve` does."""
        probe = self._probe(exchange.request.path, exchange.request.values(HEADER))
        if probe is None or probe is Probe.PIPE:
            return False
        with self._budget.one(address) as room:
            if not room:
                exchange.refuse(503, retry_after=_RETRY_AFTER)
                return True
            pipe = exchange.accept()
            pipe.set_unauthenticated(True)
            with self._ended_at_close(pipe):
                if probe is Probe.TRICKLE:
                    for part in self._trickle():
                        _send(pipe, part)
                else:
                    _send(pipe, b"begun\n")
                    pipe.set_read_timeout(_PATIENCE)
                    pipe.recv()
                    _send(pipe, b"came\n")
            return True

    # --- pipes

    def take_pipe(self, values: tuple[str, ...]) -> Callable[[Pipe, ClientAddress, HandshakeSlot], None] | None:
        """Return what to do with a pipe whose request has these `values` of HEADER; None when it is no probe."""
        if self._enabled and values and Probe.of(values[0]) is Probe.PIPE:
            return self._serve_pipe
        return None

    def _serve_pipe(self, pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        slot.release()  # no handshake follows
        silence: bytes | None = None
        with self._ended_at_close(pipe), contextlib.suppress(QanatError, ValueError):
            with self._budget.one(address.client) as room:
                if room:
                    pipe.set_unauthenticated(True)
                    silence = self._echo_messages(pipe)
            if silence is not None:
                with self._silent.one(address.client) as room:
                    if room and not self._closing.wait(seconds_of(silence)):
                        _send(pipe, silence)
        pipe.close("the probe is over")

    def _echo_messages(self, pipe: Pipe) -> bytes | None:
        """Send back what comes, until it asks for silence, which is returned."""
        _send(pipe, GREETING)
        left: dict[int, int] = {Order.ECHO: MAX_MESSAGES, Order.SINK: MAX_SUNK, Order.SILENCE: 1}
        pipe.set_read_timeout(_PATIENCE)
        while True:
            message = bytes(pipe.recv())
            order = message[0] if 0 < len(message) <= MAX_MESSAGE else 0
            if not left.get(order, 0):
                return None
            left[order] -= 1
            if order == Order.SILENCE:
                return message
            if order == Order.ECHO:
                _send(pipe, message[1:])

    # --- small things

    def _probe(self, path: str, values: tuple[str, ...]) -> Probe | None:
        if not self._enabled or not values or path != self._path:
            return None
        return Probe.of(values[0])

    @contextlib.contextmanager
    def _ended_at_close(self, pipe: Pipe) -> Iterator[None]:
        with self._lock:
            self._pipes.add(pipe)
        try:
            if self._closing.is_set():
                pipe.close("the server is closing")
            yield
        finally:
            with self._lock:
                self._pipes.discard(pipe)


class _ProbeDialect(Http2Dialect):
    """What is asked is framed as over http2, what is answered is as it comes; a request may end before its answer."""

    name = "probe"
    overhead = 0
    half_closes = True

    def wrap(self, buffer: memoryview, at: int) -> int:
        """See `Dialect.wrap`."""
        return at

    def response_headers(self) -> Headers:
        """See `Dialect.response_headers`."""
        fields = [(name.lower(), value) for name, value in _NO_BUFFERING]
        return [(":status", "200"), ("content-type", "text/plain"), (HEADER, VERSION), *fields]


_DIALECT = _ProbeDialect()


def _send(pipe: Pipe, message: bytes) -> None:
    pipe.send(memoryview(bytearray(pipe.headroom) + message))


def _plain(body: str) -> bytes:
    return _head([("Content-Length", str(len(body))), ("Connection", "close"), (HEADER, VERSION)]) + body.encode()


def _head(fields: list[tuple[str, str]]) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Date: {email.utils.formatdate(usegmt=True)}", "Content-Type: text/plain"]
    lines += [f"{name}: {value}" for name, value in fields]
    return "\r\n".join([*lines, "", ""]).encode("ascii")
