"""One accepted connection, from its first byte until it is a pipe or has had its answer.

    socket -> (TLS) -> first bytes -> HTTP/1.1: request head -> route: /healthz | tunnel's path | 404
                                      HTTP/2: each request   -> route: /healthz | tunnel's path, gRPC's method | 404
    tunnel -> slowed down? -> handshake slot? -> pipe -> the server

Everything up to the upgrade happens under one deadline (`limits.header_timeout`), at which the front door
calls `cut`; so no read here has a timeout of its own.  A proxy may carry the streams of several clients on one HTTP/2
connection, so each of its tunnel streams is a client of its own: with its own address, delay, slot and thread.

Used by `qanat.server.front_door.front_door` alone, which runs `serve` in a thread for each connection.  Parsing
an HTTP/1.1 head is `qanat.server.front_door.http_head`, HTTP/2 is `qanat.transports.http2.server`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, QanatError, TransportError
from qanat.base.events import Events
from qanat.base.lazy_waiting import LazyEvent
from qanat.base.proxy_protocol import HeaderReader
from qanat.base.request_head import BadRequest, HeadReader, RequestHead
from qanat.base.sockets import format_address
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.base.usage import Peaks, Usage
from qanat.base.watcher import Watcher
from qanat.config.settings import ServerSettings
from qanat.measure.probes import HEADER as PROBE_HEADER
from qanat.process.log_throttle import LogThrottle
from qanat.server.admission.admission import Admission, HandshakeSlot
from qanat.server.admission.client_address import ClientAddress, client_address, is_internal
from qanat.server.front_door import refusals
from qanat.server.front_door.address_budgets import AddressBudgets
from qanat.server.front_door.client_hello import MAX_BYTES, UNRECOGNIZED_NAME, find_server_name
from qanat.server.front_door.http_head import Opening, answer, classify_opening
from qanat.server.front_door.kept_connection import BODY_TIMEOUT, KeptConnection, KeptConnections, Next
from qanat.server.front_door.probes import Probes
from qanat.server.published_names import PublishedNames
from qanat.transports.http2 import extended_connect, grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.dialect import Dialect
from qanat.transports.http2.limits import StreamBudget
from qanat.transports.http2.request import Http2Request, PlainAnswer
from qanat.transports.http2.server import Exchange, Http2Server
from qanat.transports.pipe import Pipe, Wire
from qanat.transports.split import token as split_token
from qanat.transports.split.over_http2 import Http2Asker, SplitRequest, answer_up
from qanat.transports.split.server import ServerPipe, SplitPipes
from qanat.transports.split.token import Kind, Token
from qanat.transports.websocket.upgrade import UpgradeRefused, UpgradeRequest, accept, is_upgrade
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import ReloadingServerContext

log = logging.getLogger("qanat.front_door")

HEALTH_PATH = "/healthz"
"""What monitoring asks for, and gets 200."""

Carry = Callable[[Callable[[], None]], None]
"""Carries a pipe to its end; returns when little comes on it, and calls what it is given once the pipe is over."""
OnPipe = Callable[[Pipe, ClientAddress, HandshakeSlot], Carry | None]
"""What to do with a pipe; it returns how to go on with it, or None when that is over."""

_PLAIN_ON_TLS = (
    "plain HTTP from %s on a port that speaks TLS: use https:// or wss://, "
    "or leave `tls` out of the configuration behind a proxy that terminates TLS"
)
_TLS_ON_PLAIN = (
    "TLS from %s on a port that speaks plain HTTP: set `tls` with a certificate and key, "
    "or let the proxy in front terminate TLS and come here with http://"
)

_UNTRUSTED_PROXY = (
    "%s sends X-Forwarded-For and is not in `trusted_proxies`: all who come through it count as one address, so one of "
    "them can slow all others down.  If it is your proxy, set trusted_proxies: [%s]"
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


@dataclass(slots=True, eq=False)
class FrontDoorContext:
    """What all connections of one front door share.  Safe to use from any thread.

    The front door changes `settings`, `tls` and `names` when it gets other settings: new connections, and new requests
    on those there are, go by these.
    """

    settings: ServerSettings
    tls: ReloadingServerContext | None
    admission: Admission
    on_pipe: OnPipe
    closing: threading.Event
    log_throttle: LogThrottle
    threads: ThreadGroup
    probes: Probes
    split: SplitPipes
    kept: KeptConnections
    names: PublishedNames | None
    events: Events
    watcher: Watcher
    _once: LogThrottle = field(default_factory=lambda: LogThrottle(interval=math.inf), init=False)
    budgets: AddressBudgets = field(default_factory=AddressBudgets, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)  # guards the others
    _peaks: Peaks = field(default_factory=Peaks, init=False)
    _counts: Counter[str] = field(default_factory=Counter[str], init=False)
    _waiting: Counter[str] = field(default_factory=Counter[str], init=False)  # by address, streams that are slowed down

    def client_of(self, ip: str, forwarded_for: tuple[str, ...] = ()) -> tuple[str, bool]:
        """Return the address that a connection from `ip` is charged to, and whether `ip` is a trusted proxy.

        What looks like a proxy that was forgotten in `trusted_proxies` is logged, once.
        """
        client, via_proxy = client_address(ip, forwarded_for, self.settings.trusted_proxies)
        if forwarded_for and not via_proxy and is_internal(ip) and self._once.due("untrusted proxy"):
            log.warning(_UNTRUSTED_PROXY, ip, ip)
        return client, via_proxy

    def tell_of(self, refusal: refusals.Refusal, peer: str, path: str) -> None:
        """Log why a client of a tunnel, as it seems, was refused; not often.  `path` is what it asked for."""
        self.events.refused(refusal.subject)
        if self.log_throttle.due(f"refused: {refusal.subject}: {refusal.reason}"):
            log.log(
                logging.WARNING if refusal is refusals.LOST_UPGRADE else logging.INFO,
                "refused %s, which asked for %s: %s; %s",
                peer,
                refusals.shown(path) or "nothing yet",
                refusal.reason,
                refusal.remedy,
            )

    def tell_of_404(self, peer: str, path: str, headers: tuple[tuple[str, str], ...]) -> None:
        """Log a request that found nothing here, if it looks like a tunnel's client; not often."""
        if not refusals.looks_like_client(path, headers, self.settings.path):
            self.events.refused("not found")
        else:
            right = path in (self.settings.path, grpc.METHOD_PATH)
            self.tell_of(refusals.NO_TUNNEL_REQUEST if right else refusals.WRONG_PATH, peer, path)

    def slow_down(self, ip: str, deadline: Deadline, wait_over: Callable[[float], bool]) -> bool:
        """Block for as long as this address has to wait, at most until `deadline`.

        `wait_over` blocks for so many seconds, and returns whether it has become needless to wait; this returns False
        then.
        """
        delay = self.admission.delay(ip)
        return not (delay and wait_over(min(delay, deadline.remaining() or 0.0)))

    def slow_down_stream(self, ip: str, deadline: Deadline, wait_over: Callable[[float], bool]) -> bool | None:
        """Do as `slow_down`, for one of many streams of a connection; None when too many of this address wait already.

        Each has a thread, and no other connection's place to lose, so only `limits.handshakes` of an address may wait.
        """
        with self._lock:
            if self._waiting[ip] >= self.settings.limits.handshakes:
                return None
            self._waiting[ip] += 1
            waiting = Usage(self._waiting[ip], self.settings.limits.handshakes)
            self._peaks.note("streams of one address that wait", waiting)
        try:
            return self.slow_down(ip, deadline, wait_over)
        finally:
            with self._lock:
                self._waiting[ip] -= 1
                if not self._waiting[ip]:
                    del self._waiting[ip]

    def note_connection(self, used_most: dict[str, Usage]) -> None:
        """Keep how near a connection came to its limits, now that it is over."""
        with self._lock:
            self._peaks.note_all(used_most)

    @property
    def used_most(self) -> dict[str, Usage]:
        """How near connections that are over came to each limit, by the limit's name."""
        with self._lock:
            return self._peaks.copy()

    def enter(self, address: ClientAddress, cut: Callable[[], None]) -> HandshakeSlot | None:
        """Return a handshake slot, or None when there is none: then answer 503.  `cut` is as for `Admission.enter`."""
        slot = self.admission.enter(address.client, cut)
        if slot is None:
            self.events.refused("too many handshakes")
        if slot is None and self.log_throttle.due("too many handshakes"):
            log.warning(
                "too many handshakes at once (limits.handshakes) or a second (limits.handshake_rate): "
                "%s was told when to come back",
                address,
            )
        return slot

    def has_room(self) -> bool:
        """Return whether one more stream of an HTTP/2 connection may have a thread, and a pipe.

        Each connection has a thread, so there may be as many streams again.
        """
        most = 2 * self.settings.limits.connections
        return len(self.threads) < most + len(self.settings.listen) and self._counts["pipes"] < most

    def count_pipe(self, change: int) -> None:
        """Count the pipes on streams of HTTP/2 that there are, be they quiet and without a thread."""
        with self._lock:
            self._counts["pipes"] += change


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

    def _take_up(self, kept: KeptConnection, pipe: ServerPipe, token: Token, body: bytearray) -> Next:
        self._note_split(pipe)
        taken = pipe.take_up(token, body)
        if taken is None:
            self._answer(answer(400), linger=False)
            return Next.END
        return kept.answer(taken)

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
            carry(_nothing)
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
        return self._take_up(kept, pipe, token, body)

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


def find_split(
    pipes: SplitPipes, method: str, headers: tuple[tuple[str, str], ...], query: str
) -> tuple[ServerPipe, Token] | None:
    """Return the split pipe that a request belongs to, and what it says, if its client made it."""
    unverified = split_token.request_token(headers, query)
    found = None if unverified is None else pipes.find(unverified)
    if found is None or (found[1].kind is Kind.UP) is not (method == "POST"):
        return None
    return found


def _query_of(request: Http2Request) -> str:
    return request.value(":path").partition("?")[2]


def _nothing() -> None:
    """Do nothing: a split pipe's end is not that of a connection."""


def _lost_its_upgrade(head: RequestHead) -> bool:
    """Return whether this was a WebSocket request: its other headers are end to end, and pass every proxy."""
    return head.method == "GET" and not head.has_body and bool(head.values("sec-websocket-key"))


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
            carry(_nothing)

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
