"""An HTTP/2 connection at the front door: which requests are answered at once, and which become pipes.

    request -> route: /healthz | http2 or gRPC on the tunnel's path | gRPC on its method's path | 404
    tunnel -> slowed down? -> handshake slot? -> 200, pipe -> the runtime

A proxy may carry the streams of several clients on one connection, so each tunnel stream is a client of its own: with
its own address, delay, slot and thread.  The connection itself counts as unfinished while it carries no pipe.
Frames and threads are `qanat.transports.http2.server`'s.  Used by `qanat.server.front_door.connection`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from qanat.base.deadline import Deadline
from qanat.server.admission.admission import ClientAddress
from qanat.server.front_door.context import HEALTH_PATH, FrontDoorContext
from qanat.transports.http2 import grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.dialect import Dialect
from qanat.transports.http2.request import Http2Request, PlainAnswer
from qanat.transports.http2.server import Exchange, Http2Server
from qanat.transports.pipe import Wire

log = logging.getLogger("qanat.front_door")


class Http2Front:
    """One connection.  `server` is what runs it."""

    def __init__(
        self,
        context: FrontDoorContext,
        wire: Wire,
        first: bytes,
        ip: str,
        member: object,
        give_way: Callable[[], None],
        ending: threading.Event,
    ) -> None:
        """`first` begins with the preface.  `member` is who is unfinished at the front door, and `give_way` ends it.

        `ending` is set when it has to.
        """
        self._context = context
        self._peer = wire.peer
        self._ip = ip
        self._member = member
        self._give_way = give_way
        self._ending = ending
        self._lock = threading.Lock()  # guards the two below
        self._came = 0  # tunnel streams
        self._pipes = 0  # that the runtime has now
        self.server = Http2Server(
            wire, first, self._route, self._serve_tunnel, context.threads, has_room=context.has_room
        )

    def _route(self, request: Http2Request) -> PlainAnswer | Dialect:
        settings = self._context.settings
        if request.size > settings.limits.header_bytes:
            return PlainAnswer(431, "Request Header Fields Too Large\n")
        if request.path == HEALTH_PATH and request.method in ("GET", "HEAD"):
            return PlainAnswer(200, "ok\n")
        if request.method == "POST" and not request.ended and not request.values("content-length"):
            content_type = request.value("content-type").lower()
            is_grpc = content_type.partition(";")[0].partition("+")[0] == grpc.CONTENT_TYPE
            if is_grpc and request.path in (settings.path, grpc.METHOD_PATH):
                return grpc.DIALECT
            if content_type == http2.CONTENT_TYPE and request.path == settings.path:
                return http2.DIALECT
        log.debug("404 for %s from %s", request.method, self._peer)
        return PlainAnswer(404, "Not Found\n")

    def _serve_tunnel(self, exchange: Exchange) -> None:
        context = self._context
        client, via_proxy = context.account(self._ip, exchange.request.values("x-forwarded-for"))
        address = ClientAddress(peer=self._peer, client=client, via_proxy=via_proxy)
        slot = None
        turn: bool | None = True
        if self._must_wait(client, via_proxy):
            deadline = Deadline(context.settings.limits.header_timeout)
            turn = context.slow_down_stream(client, deadline, self._ending)
        if turn:
            slot = context.enter(address, lambda: exchange.close("it gave way to other clients"))
        elif turn is not None:
            return
        if slot is None:
            exchange.refuse(503, "Service Unavailable\n", retry_after=context.admission.retry_after(client))
            return
        try:
            if not context.closing.is_set():
                self._count_pipe(+1)
                try:
                    context.on_pipe(exchange.accept(), address, slot)
                finally:
                    self._count_pipe(-1)
        finally:
            slot.release()  # before the peer can see the end, and come again at once

    def _must_wait(self, client: str, via_proxy: bool) -> bool:
        """Whether this stream is counted on its client's account: the connection itself was, unless a proxy made it."""
        with self._lock:
            self._came += 1
            if not via_proxy:
                return self._came > 1
        return not self._context.account(client)[1]

    def _count_pipe(self, change: int) -> None:
        unfinished = self._context.admission.unfinished
        with self._lock:
            self._pipes += change
            if not self._pipes:
                unfinished.add(self._member, self._ip, self._give_way)
            elif change > 0:
                unfinished.forget(self._member)
