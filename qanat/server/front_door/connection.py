"""One accepted connection, from its first byte until it is a pipe or has had its answer.

    socket -> (TLS) -> first bytes -> HTTP/1.1: request head -> route: /healthz | tunnel's path | 404
                                      HTTP/2: each request   -> route: /healthz | tunnel's path, gRPC's method | 404
    tunnel -> slowed down? -> handshake slot? -> pipe -> the server

Everything up to the upgrade happens under one deadline (`limits.header_timeout`), at which the front door
calls `cut`; so no read here has a timeout of its own.

Used by `qanat.server.front_door.front_door` alone, which runs `serve` in a thread for each connection.  Parsing
an HTTP/1.1 head is `qanat.server.front_door.http_head`, HTTP/2's requests are those of `http2_connection`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from functools import partial

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, QanatError, TransportError
from qanat.base.lazy_waiting import LazyEvent
from qanat.base.proxy_protocol import HeaderReader
from qanat.base.request_head import BadRequest, HeadReader, RequestHead
from qanat.base.sockets import format_address
from qanat.base.unexpected import log_unexpected
from qanat.measure.probes import HEADER as PROBE_HEADER
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door import refusals
from qanat.server.front_door.client_hello import MAX_BYTES, UNRECOGNIZED_NAME, find_server_name
from qanat.server.front_door.context import HEALTH_PATH, Carry, FrontDoorContext
from qanat.server.front_door.http2_connection import Http2Connection
from qanat.server.front_door.http_head import Opening, answer, classify_opening
from qanat.server.front_door.kept_connection import KeptConnection, Next
from qanat.server.front_door.split_requests import find_split, nothing
from qanat.server.published_names import PublishedNames
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.server import Http2Server
from qanat.transports.pipe import Wire
from qanat.transports.split import token as split_token
from qanat.transports.split.server import ServerPipe
from qanat.transports.split.token import Kind, Token
from qanat.transports.websocket.upgrade import UpgradeRefused, UpgradeRequest, accept, is_upgrade
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire

log = logging.getLogger("qanat.front_door")

_PLAIN_ON_TLS = (
    "plain HTTP from %s on a port that speaks TLS: use https:// or wss://, "
    "or leave `tls` out of the configuration behind a proxy that terminates TLS"
)
_TLS_ON_PLAIN = (
    "TLS from %s on a port that speaks plain HTTP: set `tls` with a certificate and key, "
    "or let the proxy in front terminate TLS and come here with http://"
)

_NO_PROXY_PROTOCOL = (
    "refused %s, which is in `trusted_proxies`: %s.  Have it send the PROXY protocol (HAProxy: send-proxy-v2, nginx: "
    "proxy_protocol on in a stream server), or set proxy_protocol: false"
)

_FIRST_READ = 4096
_PEEKED = 16  # enough for a PROXY protocol header to be known by
_TLS_FIRST_BYTE = b"\x16"  # a handshake record, RFC 8446 §5.1
_LINGER = 1.0
"""Seconds to go on reading after an answer to somebody who is still sending: an unread byte would turn our
close into a reset, which can destroy the answer on its way (RFC 9112 §9.6)."""
_LINGER_BYTES = 256 * 1024


class _NotServed(Exception):
    """This connection is over, and the reason has been handled."""


class FrontConnection:
    """One connection.  `serve` runs in its own thread; everything else may be called from any other."""

    def __init__(
        self,
        context: FrontDoorContext,
        sock: socket.socket,
        address: tuple[object, ...],
        on_over: Callable[[FrontConnection], None],
    ) -> None:
        """Take over `sock`, from `address`.  Its deadline begins now; `on_over` is called once, when it is closed."""
        self._context = context
        self._on_over: Callable[[FrontConnection], None] | None = on_over
        self._carry: Carry | None = None  # how to go on with the pipe that it has become
        self.deadline = Deadline(context.settings.limits.header_timeout)
        self.peer = format_address(address)
        self.ip = str(address[0]).partition("%")[0]
        self._sock = sock
        self._wire: Wire = TcpWire(sock, self.peer)
        self._lock = threading.Lock()
        self._ours = True  # until handed to on_pipe, or closed
        self._ending = LazyEvent()  # wakes what is slowed down
        self._http2: Http2Server | None = None
        self._requests: Http2Connection | None = None  # of that
        self._kept: KeptConnection | None = None  # since a split pipe's request has come on it
        self._pipe: ServerPipe | None = None  # whose request was the last
        self._trusted = False  # an authenticated client's request has come
        self._slowed_down = False

    def serve(self) -> None:
        """Serve the connection to its end, and close it; never raises.

        Blocks, but for a tunnel on which little comes: the calling thread is done with that, and another one will end
        it.
        """
        self._run(self._open_and_serve)

    def _open_and_serve(self) -> Next:
        self._open_wire()
        return self._serve_wire()

    def _run(self, work: Callable[[], Next]) -> None:
        try:
            following = work()
            if self._kept is not None:
                following = self._kept.go_on(following)
            if self._carry is not None:
                self._carry(self._over)
                return  # it may be over by now, or much later
            if following is Next.LEFT:
                return
        except _NotServed:
            pass
        except (QanatError, OSError) as error:
            log.debug("connection from %s ended: %s", self.peer, error)
        except Exception:
            log_unexpected(f"the connection from {self.peer} ended")
        self._over()

    def _over(self) -> None:
        """Close the connection, and say so, once."""
        with self._lock:
            on_over, self._on_over = self._on_over, None
        if on_over is not None:
            try:
                self.close()
            finally:
                on_over(self)

    def close(self) -> None:
        """Close the connection, whatever it is.  Idempotent."""
        with self._lock:
            self._ours = False
            kept = self._kept
        if kept is not None:
            kept.close()
        self._wire.close()

    def cut(self) -> None:
        """End `serve`, since the deadline is over, unless a request or a pipe has come of it.  Does not block."""
        with self._lock:
            http2 = self._http2
            if http2 is None and self._ours and not self._is_trusted:
                self._ending.set()
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
        if http2 is not None and not http2.requests:
            http2.leave()

    def give_way(self) -> None:
        """End `serve`, unless the connection is a pipe, or as soon as it carries none.  Does not block."""
        with self._lock:
            http2, kept = self._http2, self._kept
        # A split pipe's client goes on while the server drains its sessions, and needs its connections for that.
        drains = self._context.closing.is_set() and len(self._context.split) > 0
        if kept is not None and self._is_trusted:
            if not drains:
                kept.close_if_idle()
            return
        if drains and self._requests is not None and self._requests.carries_split:
            return
        self._ending.set()
        if http2 is None:
            self.cut()
        else:
            http2.leave()

    # --- from the socket to a request head

    def _open_wire(self) -> None:
        """Read a trusted proxy's PROXY protocol header, if it has to send one, and finish the TLS handshake, if this
        server speaks TLS.

        An address that comes too often is slowed down here, before TLS costs anything; those behind a trusted
        proxy are known, and slowed down, only when their request has been read, and so is whoever comes without TLS, or
        from where a split pipe's client is, which needs many connections.
        """
        if self._context.settings.proxy_protocol and self._context.client_of(self.ip)[1]:
            self._read_proxy_header()
        if self._context.tls is None:
            return
        if not self._context.split.has_client_at(self.ip):
            self._slow_down_connection()
        first = self._sock.recv(_PEEKED, socket.MSG_PEEK)  # left where it is, for TLS to read
        if first.startswith(_TLS_FIRST_BYTE):
            if self._context.names is not None:
                self._leave_to_published_name(self._context.names)
            context = self._context.tls.context()
            try:
                self._wire = TlsWire(self._wire, context, server_side=True, deadline=self.deadline)
            except TransportError as error:
                if self._context.log_throttle.due("TLS"):
                    log.info("TLS with %s failed: %s", self.peer, error)
                raise
        elif classify_opening(first) is Opening.PROXY:
            self._refuse_proxy_protocol()
            raise _NotServed
        elif first[:1].isalpha():
            self._report("plain HTTP on a TLS port", _PLAIN_ON_TLS)
            self._answer(answer(400, "This port speaks TLS: use https:// or wss://.\n"), linger=True)
            raise _NotServed
        else:
            raise _NotServed

    def _leave_to_published_name(self, names: PublishedNames) -> None:
        """Hand the connection as it came to the client that publishes the name it asks for; raise _NotServed then.

        Blocks until the name has come, or there is none, at most until the deadline.
        """
        name = self._peek_server_name()
        if names.is_away(name):
            self._sock.send(UNRECOGNIZED_NAME)
            raise _NotServed
        if not names.is_published(name):
            return
        self._context.admission.unfinished.forget(self)
        with self._lock:
            if not self._ours:
                raise _NotServed
            self._ours = False
            sock = socket.socket(fileno=self._sock.detach())
        names.hand_over(name, sock, self.peer)
        raise _NotServed

    def _peek_server_name(self) -> str:
        """Return the name in the ClientHello, "" without one; all bytes are left where they are.

        Raises _NotServed at the end.
        """
        seen = 0
        try:
            while True:
                data = self._sock.recv(MAX_BYTES, socket.MSG_PEEK)
                name = find_server_name(data)
                if name is not None:
                    return name
                if len(data) <= seen:
                    raise _NotServed
                seen = len(data)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)  # block until there is more
        finally:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _read_proxy_header(self) -> None:
        """Block for the header in which a proxy says who came, and take that for the connection's other end.

        A header that names nobody, as a health check's, leaves the proxy itself.
        """
        reader = HeaderReader()
        try:
            while reader.endpoints is None:
                first = self._sock.recv(_FIRST_READ, socket.MSG_PEEK)  # what follows it is for TLS or HTTP to read
                if not first:
                    raise _NotServed
                self._sock.recv(reader.feed(first))
        except ProtocolError as error:
            if self._context.log_throttle.due("no PROXY protocol"):
                log.warning(_NO_PROXY_PROTOCOL, self.peer, error.message)
            raise _NotServed from error
        if reader.endpoints.ip:
            self.ip, self.peer = reader.endpoints.ip, f"{reader.endpoints.source} via {self.peer}"
            unfinished = self._context.admission.unfinished
            unfinished.forget(self)
            unfinished.add(self, self.ip, self.give_way)

    def _serve_wire(self) -> Next:
        """Tell the protocol from the first bytes, and serve it.

        They tell as much as ALPN would: an HTTP/2 client sends its preface over TLS too (RFC 9113 §3.4).
        """
        size = min(_FIRST_READ, self._context.settings.limits.header_bytes)
        first = bytearray()
        opening = Opening.UNDECIDED
        while opening is Opening.UNDECIDED:
            first += self._receive(size)
            opening = classify_opening(first)
        if opening is Opening.HTTP1:
            return self._serve_http1(bytes(first))
        self._slow_down_connection()
        if opening is Opening.TLS:
            if self._context.tls is None:
                self._report("TLS on a plain port", _TLS_ON_PLAIN)
        elif opening is Opening.PROXY:
            self._refuse_proxy_protocol()
        else:
            self._serve_http2(bytes(first))
            return Next.LEFT
        return Next.END

    def _serve_http2(self, first: bytes) -> None:
        """Serve every request of the connection, until it ends or rests.  Its deadline is over with the first."""
        requests = Http2Connection(self._context, self.peer, self.ip, self, self.give_way, self._ending)
        server = requests.serve_on(self._wire, first)
        with self._lock:
            self._http2 = server
            self._requests = requests
        if self._context.closing.is_set():
            server.leave()
        server.serve(partial(self._http2_over, server))

    def _http2_over(self, server: Http2Server) -> None:
        self._context.note_connection(server.used_most)
        with self._lock:
            self._ours = False
            self._http2 = self._requests = None  # which hold this by its handlers
        self._over()

    def _serve_http1(self, first: bytes) -> Next:
        """Read the rest of one request head, and serve the request."""
        reader = HeadReader(self._context.settings.limits.header_bytes)
        received = bytearray(first)
        try:
            head = reader.feed(first)
            while head is None:
                more = self._receive(reader.room)
                received += more
                head = reader.feed(more)
        except BadRequest as error:
            self._slow_down_connection()
            log.debug("bad request from %s: %s", self.peer, error)
            refusal = refusals.TOO_LARGE if error.status == 431 else refusals.malformed(str(error))
            if refusals.raw_head_looks_like_client(bytes(received), self._context.settings.path):
                self._context.tell_of(refusal, self.peer, refusals.raw_path(bytes(received)))
            self._answer(answer(error.status, refusal.body if error.status == 400 else ""), linger=True)
            return Next.END
        return self._serve_request(head)

    def _receive(self, size: int) -> bytes:
        """Block for 1 to `size` bytes.  Raises _NotServed at the end: nobody is waiting for an answer then."""
        buffer = bytearray(size)
        count = self._wire.recv_into(memoryview(buffer))
        if count == 0:
            raise _NotServed
        return bytes(buffer[:count])

    # --- from a request head to an answer or a pipe

    def _serve_request(self, head: RequestHead) -> Next:
        found = self._find_split(head)
        if found is not None:
            return self._serve_split(head, *found)
        self._slow_down_connection()
        if self._asks_for_split(head):
            return self._begin_split(head)
        self._serve_other(head)
        return Next.END

    def _serve_other(self, head: RequestHead) -> None:
        to_head = head.method == "HEAD"
        linger = head.has_body or bool(head.rest)
        upgrade = UpgradeRequest(head.target, head.headers, head.method)
        if head.path == self._context.settings.path and head.may_be_upgraded and is_upgrade(upgrade):
            self._serve_tunnel(head, upgrade)
        elif self._context.probes.wants(head):
            client, _ = self._context.client_of(self.ip, head.values("x-forwarded-for"))
            self._context.probes.serve(head, self._wire, client)
        elif head.path == self._context.settings.path and _lost_its_upgrade(head):
            self._context.tell_of(refusals.LOST_UPGRADE, self.peer, head.path)
            # Not 426, which demands an Upgrade header that a proxy would copy into an HTTP/2 answer.
            self._answer(answer(400, refusals.LOST_UPGRADE.body), linger=linger)
        elif head.path == HEALTH_PATH and head.method in ("GET", "HEAD"):
            self._answer(answer(200, "ok\n", to_head=to_head), linger=linger)
        else:
            log.debug("404 for %s from %s", head.method, self.peer)
            if split_token.request_token(head.headers, head.query) is None:  # or its pipe has just ended, as a rule
                self._context.tell_of_404(self.peer, head.path, head.headers)
            self._answer(answer(404, to_head=to_head), linger=linger)

    def _serve_tunnel(self, head: RequestHead, upgrade: UpgradeRequest) -> None:
        entered = self._enter(head, self._wire.close)
        if entered is None:
            return
        address, slot = entered
        try:
            self._hand_over(upgrade, head.rest, address, slot)
        finally:
            slot.release()

    def _enter(self, head: RequestHead, cut: Callable[[], None]) -> tuple[ClientAddress, HandshakeSlot] | None:
        """Return who asks for a tunnel, and a handshake slot; None when there is none, and the answer has said so."""
        client, via_proxy = self._context.client_of(self.ip, head.values("x-forwarded-for"))
        address = ClientAddress(peer=self.peer, client=client, via_proxy=via_proxy)
        _, is_proxy = self._context.client_of(client)
        if via_proxy and not is_proxy:
            self._slow_down(client)
        slot = self._context.enter(address, cut)
        if slot is None:
            busy = answer(503, retry_after=self._context.admission.retry_after(client))
            self._answer(busy, linger=bool(head.rest))
            return None
        return address, slot

    def _hand_over(self, upgrade: UpgradeRequest, rest: bytes, address: ClientAddress, slot: HandshakeSlot) -> None:
        """Make the connection a pipe and give it to `on_pipe`, which owns it from then on."""
        self._context.admission.unfinished.forget(self)  # before the client can know, and count on it
        try:
            pipe = accept(upgrade, self._wire, rest)
        except UpgradeRefused as refused:
            log.debug("unacceptable upgrade from %s: %s", address, refused.reason)
            refusal = refusals.bad_upgrade(refused.reason)
            self._context.tell_of(refusal, str(address), upgrade.target.partition("?")[0])
            self._answer(answer(refused.status, refusal.body), linger=True)
            return
        try:
            with self._lock:
                if self._context.closing.is_set():
                    return
                self._ours = False
            probe = self._context.probes.take_pipe(tuple(v for k, v in upgrade.headers if k == PROBE_HEADER))
            self._carry = (probe or self._context.on_pipe)(pipe, address, slot)
        finally:
            slot.release()  # before the peer can see the end, and come again at once
            if self._carry is None:
                pipe.close("the server has ended this connection")

    # --- split pipes: many requests, on this connection and on others

    def _find_split(self, head: RequestHead) -> tuple[ServerPipe, Token] | None:
        """Return the split pipe that a request belongs to, and what it says, if its client made it."""
        if head.path != self._context.settings.path or head.method not in ("GET", "POST"):
            return None
        return find_split(self._context.split, head.method, head.headers, head.query)

    def _asks_for_split(self, head: RequestHead) -> bool:
        """Return whether this may be a request for a split pipe; its body tells."""
        return (
            head.path == self._context.settings.path
            and head.method == "POST"
            and head.values("content-type") == (http2.CONTENT_TYPE,)
            and head.values("content-length") == (str(split_token.OPENING_SIZE),)
        )

    def _keep(self, head: RequestHead) -> KeptConnection:
        """Return what carries requests on this connection, one after the other."""
        with self._lock:
            kept = self._kept
        if kept is None:
            kept = KeptConnection(
                self._wire, self._context.kept, self, max_head=self._context.settings.limits.header_bytes
            )
            kept.begin(head.rest)
            with self._lock:
                self._kept = kept
        kept.expects(head)
        return kept

    def _serve_split(self, head: RequestHead, pipe: ServerPipe, token: Token) -> Next:
        """Serve a request of a client's split pipe."""
        kept = self._keep(head)
        if token.kind is not Kind.UP:
            self._note_split(pipe)
            return kept.wait(pipe, partial(pipe.ask, token))
        body = kept.body(head, pipe.takes, None if pipe.authenticated else self.deadline)
        if body is None:
            self._answer(answer(413), linger=True)
            return Next.END
        return self._take_up(kept, pipe, token, body)

    def _take_up(
        self, kept: KeptConnection, pipe: ServerPipe, token: Token, body: bytearray, *, late: bool = False
    ) -> Next:
        """Take the bytes of a request, and answer it: `late` by the watcher, once these have been handed on."""
        self._note_split(pipe)
        taken = pipe.take_up(token, body)
        if taken is None:
            self._answer(answer(400), linger=False)
            return Next.END
        return kept.answer_late(pipe, taken) if late else kept.answer(taken)

    def _note_split(self, pipe: ServerPipe) -> None:
        """Keep whose request came last: an authenticated client's connection does not count as unfinished."""
        self._pipe = pipe
        if pipe.authenticated and not self._trusted:
            self._trusted = True
            self._context.split.note_client_at(self.ip, pipe)
            self._context.admission.unfinished.forget(self)

    @property
    def _is_trusted(self) -> bool:
        """Whether a request of an authenticated client has come; the client may have been authenticated since."""
        return self._trusted or (self._pipe is not None and self._pipe.authenticated)

    def _begin_split(self, head: RequestHead) -> Next:
        """Make a split pipe, and give it to `on_pipe` in this thread; the connection goes on without it."""
        context = self._context
        kept = self._keep(head)
        body = kept.body(head, split_token.OPENING_SIZE, self.deadline)
        nonce = None if body is None else split_token.opening_nonce(body)
        if nonce is None:
            self._serve_other(head)
            return Next.END
        pipe = context.split.create(self.peer, self._wire.addresses)
        entered = self._enter(head, lambda: pipe.close("it gave way to other clients"))
        if entered is None:
            pipe.close("there is no room")
            pipe.let_go()
            return Next.END
        address, slot = entered
        carriers = split_token.carriers_of(head.headers, head.query, nonce)
        carry: Carry | None = None
        self._pipe = pipe
        try:
            if kept.wait(pipe, lambda asker: pipe.welcome(asker, carriers)) is Next.REQUEST:
                kept.leave()
            if not context.closing.is_set():
                probe = context.probes.take_pipe(head.values(PROBE_HEADER))
                carry = (probe or context.on_pipe)(pipe, address, slot)
        finally:
            slot.release()  # before the peer can see the end, and come again at once
            if carry is None:
                pipe.close("the server has ended this connection")
        if carry is not None:
            carry(nothing)
        return Next.LEFT

    # --- for the connection that is kept (`kept_connection.Owner`)

    def run(self, work: Callable[[], Next]) -> None:
        """See `Owner.run`."""
        self._run(work)

    def serve_next(self, head: RequestHead) -> Next:
        """See `Owner.serve_next`.  Whoever sent it need not be who sent the one before."""
        self.deadline = Deadline(self._context.settings.limits.header_timeout)
        self._slowed_down = False
        return self._serve_request(head)

    def serve_now(self, head: RequestHead, body: bytearray) -> Next | None:
        """See `Owner.serve_now`."""
        found = self._find_split(head)
        if found is None:
            return None
        pipe, token = found
        kept = self._keep(head)
        if token.kind is not Kind.UP:
            return self._serve_split(head, pipe, token)
        kept.took(len(body))
        return self._take_up(kept, pipe, token, body, late=True)

    def idle(self) -> None:
        """See `Owner.idle`."""
        if self._trusted:
            self._context.admission.unfinished.add(self, self.ip, self.give_way)

    def busy(self) -> None:
        """See `Owner.busy`."""
        if self._trusted:
            self._context.admission.unfinished.forget(self)

    def over(self) -> None:
        """See `Owner.over`."""
        self._over()

    # --- small things

    def _refuse_proxy_protocol(self) -> None:
        """Refuse a header that nobody expects here, or not from this address."""
        accepted = self._context.settings.proxy_protocol
        refusal = refusals.UNTRUSTED_PROXY_PROTOCOL if accepted else refusals.PROXY_PROTOCOL
        self._context.tell_of(refusal, self.peer, "")
        self._answer(answer(400, refusal.body), linger=True)

    def _slow_down_connection(self) -> None:
        """Do as `_slow_down`, for the connection itself, unless a trusted proxy made it."""
        if not self._slowed_down:
            self._slowed_down = True
            _, from_proxy = self._context.client_of(self.ip)
            if not from_proxy:
                self._slow_down(self.ip)

    def _slow_down(self, ip: str) -> None:
        """Block for as long as this address has to wait.  Raises _NotServed when this connection has to end first."""
        if not self._context.slow_down(ip, self.deadline, self._ending.wait):
            raise _NotServed

    def _report(self, subject: str, text: str) -> None:
        """Log a mistake in the set-up, but not often."""
        if self._context.log_throttle.due(subject):
            log.warning(text, self.peer)

    def _answer(self, data: bytes, *, linger: bool) -> None:
        """Send a whole answer, and take in for a moment what the peer is still sending.  The deadline still holds."""
        self._wire.send_all(data)
        if not linger:
            return
        if isinstance(self._wire, TcpWire):  # inside TLS, the end is said with close_notify
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
        pause = Deadline(_LINGER)
        buffer = memoryview(bytearray(16384))
        taken = 0
        while taken < _LINGER_BYTES and not pause.passed:
            self._wire.set_read_timeout(pause.remaining())
            try:
                count = self._wire.recv_into(buffer)
            except TransportError:
                return
            if count == 0:
                return
            taken += count


def _lost_its_upgrade(head: RequestHead) -> bool:
    """Return whether this was a WebSocket request: its other headers are end to end, and pass every proxy."""
    return head.method == "GET" and not head.has_body and bool(head.values("sec-websocket-key"))
