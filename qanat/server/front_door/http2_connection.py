"""The requests of one HTTP/2 connection: plain answers, and tunnel streams that become pipes.

A proxy may carry the streams of several clients on one connection, so each tunnel stream is a client of its own: with
its own address, delay, slot and thread.  HTTP/2 itself is `qanat.transports.http2.server`; the connection's first bytes
and its end are `qanat.server.front_door.connection`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from qanat.base.deadline import Deadline
from qanat.base.lazy_waiting import LazyEvent
from qanat.base.unexpected import log_unexpected
from qanat.measure.probes import HEADER as PROBE_HEADER
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door import refusals
from qanat.server.front_door.context import HEALTH_PATH, Carry, FrontDoorContext
from qanat.server.front_door.kept_connection import BODY_TIMEOUT
from qanat.server.front_door.split_requests import find_split, nothing
from qanat.transports.http2 import extended_connect, grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.dialect import Dialect
from qanat.transports.http2.limits import StreamBudget
from qanat.transports.http2.request import Http2Request, PlainAnswer
from qanat.transports.http2.server import Exchange, Http2Server
from qanat.transports.pipe import Wire
from qanat.transports.split import token as split_token
from qanat.transports.split.over_http2 import Http2Asker, SplitRequest, answer_up
from qanat.transports.split.server import ServerPipe
from qanat.transports.split.token import Kind, Token
from qanat.transports.websocket.upgrade import UpgradeRefused

log = logging.getLogger("qanat.front_door")


class Http2Connection:
    """The requests of one HTTP/2 connection, for the `Http2Server` that `serve_on` returns.

    The connection itself counts as unfinished while it carries no pipe.
    """

    def __init__(
        self,
        context: FrontDoorContext,
        peer: str,
        ip: str,
        member: object,
        give_way: Callable[[], None],
        ending: LazyEvent,
    ) -> None:
        """`peer` is for logs.

        `member` counts as unfinished at the front door, and `give_way` ends it; `ending` is set when it has to end.
        """
        self._context = context
        self._peer = peer
        self._ip = ip
        self._member = member
        self._give_way = give_way
        self._ending = ending
        self._lock = threading.Lock()  # guards the two below
        self._streams = 0  # tunnel streams that have come
        self._pipes = 0  # that the server has now
        self.carries_split = False
        """Whether requests of an authenticated client's split pipe have come."""

    def serve_on(self, wire: Wire, first: bytes) -> Http2Server:
        """Return what serves the requests that come on `wire` after `first`, which begins with the preface."""
        return Http2Server(
            wire,
            first,
            self._route,
            self._serve_tunnel,
            self._context.threads,
            has_room=self._context.has_room,
            budget_of=self._budget_of,
        )

    def _budget_of(self, request: Http2Request) -> StreamBudget | None:
        """Return what the client that a trusted proxy names has left; None for whoever came here itself."""
        client, via_proxy = self._context.client_of(self._ip, request.values("x-forwarded-for"))
        if not via_proxy or self._context.client_of(client)[1]:
            return None
        return self._context.budgets.of(client)

    def _route(self, request: Http2Request) -> PlainAnswer | Dialect:
        """Return what to answer, or a tunnel's dialect.  A fault here must not end the other streams."""
        try:
            return self._choose_route(request)
        except Exception:
            log_unexpected(f"a request from {self._peer} ended")
            return PlainAnswer(500, "Internal Server Error\n")

    def _choose_route(self, request: Http2Request) -> PlainAnswer | Dialect:
        settings = self._context.settings
        if request.size > settings.limits.header_bytes:
            if refusals.looks_like_client(request.path, request.headers, settings.path):
                self._context.tell_of(refusals.TOO_LARGE, self._peer, request.path)
            return PlainAnswer(431, "Request Header Fields Too Large\n")
        if not request.well_formed:
            refusal = refusals.malformed("")
            if refusals.looks_like_client(request.path, request.headers, settings.path):
                self._context.tell_of(refusal, self._peer, request.path)
            return PlainAnswer(400, refusal.body)
        if request.path == HEALTH_PATH and request.method in ("GET", "HEAD"):
            return PlainAnswer(200, "ok\n")
        if (probe := self._context.probes.route(request)) is not None:
            return probe
        if request.path == settings.path and (split := self._choose_split(request)) is not None:
            return split
        if request.path == settings.path and extended_connect.is_request(request) and not request.ended:
            return self._choose_websocket(request)
        if request.method == "POST" and not request.ended and not request.values("content-length"):
            content_type = request.value("content-type").lower()
            is_grpc = content_type.partition(";")[0].partition("+")[0] == grpc.CONTENT_TYPE
            if is_grpc and request.path in (settings.path, grpc.METHOD_PATH):
                return grpc.DIALECT
            if content_type == http2.CONTENT_TYPE and request.path == settings.path:
                return http2.DIALECT
        log.debug("404 for %s from %s", request.method, self._peer)
        self._context.tell_of_404(self._peer, request.path, request.headers)
        return PlainAnswer(404, "Not Found\n")

    def _choose_split(self, request: Http2Request) -> PlainAnswer | Dialect | None:
        """Return what to do with a request of a split pipe, or for one; None when it is neither."""
        if request.method not in ("GET", "POST"):
            return None
        found = find_split(self._context.split, request.method, request.headers, _query_of(request))
        if found is not None:
            pipe, token = found
            size = token.size if token.kind is Kind.UP else 0
            if size > pipe.takes or (size and request.ended):
                return PlainAnswer(413, "Content Too Large\n")
            return SplitRequest(size, found)
        if (
            request.method == "POST"
            and not request.ended
            and request.values("content-type") == (http2.CONTENT_TYPE,)
            and request.values("content-length") == (str(split_token.OPENING_SIZE),)
        ):
            return SplitRequest(split_token.OPENING_SIZE, None)
        return None

    def _serve_split(self, exchange: Exchange, pipe: ServerPipe, token: Token) -> None:
        """Serve a request of a client's split pipe; without blocking, unless it has a body."""
        if pipe.authenticated:
            exchange.trust(self._context.watcher)
            self._trust_split(pipe)
        if token.kind is not Kind.UP:
            pipe.ask(token, Http2Asker(exchange, self._context.threads, pipe, exchange.finish))
            return
        body = exchange.body(BODY_TIMEOUT) if token.size else b""
        taken = None if body is None else pipe.take_up(token, bytearray(body))
        if taken is None:
            exchange.refuse(400)
        else:
            answer_up(exchange, taken)
        if not token.size:
            exchange.finish()

    def _trust_split(self, pipe: ServerPipe) -> None:
        """Keep a connection that has brought an authenticated client's requests: it does not give way to others."""
        with self._lock:
            known, self.carries_split = self.carries_split, True
        if not known:
            self._context.split.note_client_at(self._ip, pipe)
            self._count_pipe(+1)

    def _open_split(self, exchange: Exchange, address: ClientAddress, slot: HandshakeSlot) -> None:
        """Make a split pipe, and give it to `on_pipe` in this thread; its further requests come on any connection."""
        context, request = self._context, exchange.request
        body = exchange.body(context.settings.limits.header_timeout)
        nonce = None if body is None else split_token.opening_nonce(bytes(body))
        if nonce is None:
            exchange.refuse(404, "Not Found\n")
            return
        pipe = context.split.create(self._peer, exchange.addresses)
        carriers = split_token.carriers_of(request.headers, _query_of(request), nonce)
        carry: Carry | None = None
        pipe.welcome(Http2Asker(exchange, context.threads, pipe, exchange.finish), carriers)
        try:
            probe = context.probes.take_pipe(request.values(PROBE_HEADER))
            carry = (probe or context.on_pipe)(pipe, address, slot)
        finally:
            slot.release()
            if carry is None:
                pipe.close("the server has ended this connection")
        if carry is not None:
            carry(nothing)

    def _choose_websocket(self, request: Http2Request) -> PlainAnswer | Dialect:
        try:
            return extended_connect.dialect_of(request)
        except UpgradeRefused as refused:
            refusal = refusals.bad_upgrade(refused.reason)
            self._context.tell_of(refusal, self._peer, request.path)
            return PlainAnswer(refused.status, refusal.body)

    def _serve_tunnel(self, exchange: Exchange) -> Carry | None:
        """Serve a tunnel's stream; return how to go on with it, or None when it is over."""
        context = self._context
        dialect = exchange.dialect
        if isinstance(dialect, SplitRequest) and dialect.found is not None:
            self._serve_split(exchange, *dialect.found)
            return None
        client, via_proxy = context.client_of(self._ip, exchange.request.values("x-forwarded-for"))
        if context.probes.serve_stream(exchange, client):
            return None
        address = ClientAddress(peer=self._peer, client=client, via_proxy=via_proxy)
        slot = None
        waited: bool | None = True
        if self._must_wait(client, via_proxy):
            deadline = Deadline(context.settings.limits.header_timeout)
            waited = context.slow_down_stream(client, deadline, partial(exchange.wait_over, self._ending))
        if waited:
            slot = context.enter(address, lambda: exchange.close("it gave way to other clients"))
        elif waited is not None:
            return None
        if slot is None:
            exchange.refuse(503, "Service Unavailable\n", retry_after=context.admission.retry_after(client))
            return None
        carry = None
        try:
            if not context.closing.is_set():
                self._count_pipe(+1)
                try:
                    if isinstance(dialect, SplitRequest):
                        self._open_split(exchange, address, slot)
                        return None
                    probe = context.probes.take_pipe(exchange.request.values(PROBE_HEADER))
                    carry = (probe or context.on_pipe)(exchange.accept(), address, slot)
                finally:
                    if carry is None:
                        self._count_pipe(-1)
        finally:
            slot.release()  # before the peer can see the end, and come again at once
        return None if carry is None else partial(self._carry, carry)

    def _carry(self, carry: Carry, on_over: Callable[[], None]) -> None:
        def over() -> None:
            self._count_pipe(-1)
            on_over()

        carry(over)

    def _must_wait(self, client: str, via_proxy: bool) -> bool:
        """Return whether this stream is charged to its client: the connection itself was, unless a proxy made it."""
        with self._lock:
            self._streams += 1
            if not via_proxy:
                return self._streams > 1
        return not self._context.client_of(client)[1]

    def _count_pipe(self, change: int) -> None:
        unfinished = self._context.admission.unfinished
        self._context.count_pipe(change)
        with self._lock:
            self._pipes += change
            if not self._pipes:
                unfinished.add(self._member, self._ip, self._give_way)
            elif change > 0:
                unfinished.forget(self._member)


def _query_of(request: Http2Request) -> str:
    return request.value(":path").partition("?")[2]
