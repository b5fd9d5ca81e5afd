"""One client's session on the server: its streams reach what its rules allow, its listeners bind where they may.

One that is for measuring reaches nothing but what measures it (`qanat.measure.far_end`), and listens nowhere.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from qanat.base.addresses import ListenAddress, split_host_port
from qanat.base.endpoint_addresses import ListenPlace, PublishedName, TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import EndpointError, NoThread, ProtocolError
from qanat.base.listen import may_be_chosen
from qanat.base.sockets import local_of
from qanat.base.text import printable
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.dynamic.asked import Asked
from qanat.endpoints.dynamic.listener import DynamicListener
from qanat.endpoints.dynamic.port import DynamicPort
from qanat.endpoints.pending import PendingConnection
from qanat.endpoints.proxy_protocol import HeaderListener, OnConnection, ProxyHeaders
from qanat.endpoints.stream_quota import StreamQuota, StreamRoom, address_of
from qanat.endpoints.target import Target
from qanat.endpoints.tcp import Listener
from qanat.endpoints.udp import UdpFlow
from qanat.endpoints.udp_listener import IDLE, UdpListener
from qanat.endpoints.unix import DEFAULT_MODE, Permissions, UnixListener, UnixTarget
from qanat.endpoints.wakeable import WakeableSocket
from qanat.handshake.hello import Close, CloseReason, Features, Hello, Intent
from qanat.measure.far_end import FarEnds
from qanat.mux.frames import Reason, reason_name
from qanat.mux.lane import Lane
from qanat.mux.observer import reason_label
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream import Stream
from qanat.process.log_throttle import LogThrottle
from qanat.server.accounts import Account
from qanat.server.admission.client_address import client_address
from qanat.server.audit import AuditLog
from qanat.server.published_names import PublishedNames
from qanat.server.session_audit import SessionAudit
from qanat.server.shared_ports import Accept, Membership, SharedPorts
from qanat.session.connect_rules import ConnectRules
from qanat.session.forward_limits import quota_of_options
from qanat.session.joined_streams import INTERNAL_TEXT
from qanat.session.messages import (
    Connect,
    Listen,
    ListenAgain,
    ListenEnded,
    ListenFailed,
    Listening,
    ListenOption,
    MalformedListen,
    Measure,
    Published,
    StreamRequest,
    Through,
    Unlisten,
    decode_control,
    decode_request,
)
from qanat.session.session import Session, new_id

log = logging.getLogger("qanat.session")


Listens = Listener | UdpListener | Membership | UnixListener | HeaderListener | DynamicListener
"""What listens for a remote forward."""

LEFT_SECONDS = 5.0
"""Seconds without its client after which a session takes no visitors for a published name."""


class ServerSession(Session):
    """One session of a client.  Methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        parameters: LaneParameters,
        *,
        secret: bytes,
        resume_for: float,
        instance: bytes,
        origin: str,
        account: Account,
        connect_timeout: float,
        watcher: Watcher,
        max_forwards: int,
        max_lanes: int,
        shared_ports: SharedPorts,
        order: int = 0,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
        measures: bool = False,
        published: PublishedNames | None = None,
        trusted_proxies: Sequence[str] = (),
        audit: AuditLog | None = None,
    ) -> None:
        """Begin a session of the client `name`, with `measures` one that is for measuring alone.

        `instance` is its process's, `origin` says in words where it connects from.  `account` has the rules and what
        all sessions of this client share, as the bound on the targets that are being connected to: a session that has
        ended gives its own up, and its client can be back at once for more.  Of a client's sessions, the one with the
        highest `order` began with the latest connection.  `trusted_proxies` are the networks whose PROXY protocol
        headers are believed where a remote forward listens.
        """
        session_id = new_id()
        self.audit = SessionAudit(audit or AuditLog(), name, session_id)
        """Where the audit log is told of what it does."""
        super().__init__(
            name, parameters, session_id, secret, resume_for, watcher, keepalive, account.limits, self.audit
        )
        self.instance = instance
        self.origin = origin
        self.order = order
        self.measures = measures
        self._far_ends = FarEnds()
        self.tokens: dict[int, str] = {}
        """The fingerprint of the token by which the last pipe of each lane was authenticated."""
        self._account = account
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._max_forwards = max_forwards
        self._log_throttle = LogThrottle()
        self._max_lanes = max_lanes
        self._joining = threading.Lock()  # so that those who join at once are counted one by one
        self._shared_ports = shared_ports
        self._proxies = trusted_proxies
        self._published = published
        self._listening = threading.RLock()  # guards the next four; held while one binds, which does not block
        self._listeners: dict[int, Listens] = {}
        self._bound: dict[int, tuple[Listen, Hashable]] = {}  # what was asked, and what the rules made of it
        self._forbidden: set[int] = set()  # forwards whose listener was ended by other rules
        self._refused = False  # whether the client has a forward that it cannot have, and was not told to ask again
        # For those who come to its remote forwards.
        self._room = StreamRoom(parameters.peer_max_streams * max_lanes, tidy=watcher.tidy)

    def stop_listening(self) -> None:
        """Take no new connection for the remote forwards; those that are open go on."""
        with self._listening:
            listeners = tuple(self._listeners.values())
        for listener in listeners:
            listener.close()

    # --- streams towards us ---------------------------------------------------------------------

    def _on_open(self, stream: Stream, request: StreamRequest) -> None:
        if self.measures or isinstance(request, Measure):
            self._measure(stream, request)
            return
        if not isinstance(request, Connect):
            self.refuse(stream, Reason.NOT_ALLOWED, "a server has no forwards of its own")
            return
        to = stream.target = request.to  # before the rules are looked at: whoever changes them judges it by that
        rules, connecting = self._account.connect_rules, self._account.connecting

        def joined() -> None:
            if self._account.connect_rules is not rules:  # since it began to connect
                self._judge(stream)

        if isinstance(to, UdpAddress):
            self.udp_targets.join(
                stream,
                to,
                lambda deadline: rules.resolve(to.host, to.port, deadline, self._stopping, udp=True),
                timeout=self._connect_timeout,
                places=connecting,
                on_joined=joined,
            )
            return
        target = self._target_for(to, rules)
        what = f"to {target.name}"
        if self.joined.connect_now(stream, target.connect_now, what, on_joined=joined):
            return

        def connect() -> WakeableSocket:
            try:
                return target.connect()
            finally:
                connecting.release()

        started = False
        try:
            if connecting.acquire(blocking=False):
                started = self.joined.connect(stream, connect, what, on_joined=joined)
                if not started:
                    connecting.release()  # which `connect` does otherwise
            else:
                self.refuse(stream, Reason.LIMIT, "too many targets are being connected to at once")
        finally:
            if not started:
                target.give_up()

    def _target_for(self, to: TcpAddress | UnixAddress, rules: ConnectRules) -> Target | UnixTarget:
        """Return what connects to `to`, as the rules allow it."""
        timeout = self._connect_timeout
        if isinstance(to, UnixAddress):
            path = to.path
            return UnixTarget(lambda: rules.unix.connectable(path), path, timeout=timeout, cancel=self._stopping)
        host, port = to.host, to.port
        return Target(
            host,
            port,
            lambda deadline: rules.resolve(host, port, deadline, self._stopping),
            timeout=timeout,
            cancel=self._stopping,
            keepalive=self._keepalive,
        )

    def _measure(self, stream: Stream, request: StreamRequest) -> None:
        if not self.measures:
            self.refuse(stream, Reason.NOT_ALLOWED, "only a session that is for measuring may measure")
        elif not isinstance(request, Measure):
            self.refuse(stream, Reason.NOT_ALLOWED, "this session is for measuring alone")
        else:
            what, threads = request.what, self.joined.threads
            self.joined.connect_now(stream, lambda: self._far_ends.connect(what, threads), f"to measure {what.name}")

    # --- remote forwards ------------------------------------------------------------------------

    def _on_control(self, content: bytes) -> None:
        try:
            message = decode_control(content)
        except MalformedListen as error:
            log.info("%s: refused to listen: %s", self.name, error)
            self.send_control(ListenFailed(error.forward, Reason.NOT_ALLOWED, error.message).encode())
            return
        if isinstance(message, Listen):
            with self._listening:  # so that the answer is on its way before other rules invite to ask again
                self.send_control(self._listen(message).encode())
        elif isinstance(message, Unlisten):
            with self._listening:
                listener = self._listeners.pop(message.forward, None)
                self._bound.pop(message.forward, None)
            if listener is not None:
                listener.close()
                log.info("%s: stopped listening on %s", self.name, listener.address)
                self.audit.listens_no_more(message.forward, listener.address, "its client has withdrawn it")
        else:
            raise ProtocolError(f"a client may not send {type(message).__name__}")

    def _listen(self, message: Listen) -> Listening | Published | ListenFailed:
        """Bind at once: none of this blocks, since the address is a literal.  Whatever fails is the answer."""
        number = message.forward
        try:
            if self.measures:
                raise EndpointError("this session is for measuring alone", code=Reason.NOT_ALLOWED)
            with self._listening:
                listener = self._listen_locked(message)
        except EndpointError as error:
            self._parameters.observer.refused(f"listen: {reason_label(error.code)}")
            self._refused = True
            log.warning("%s: %s", self.name, error)
            self.audit.listen_refused(number, str(message.at), error.code, error.message)
            return ListenFailed(number, error.code, error.message)
        except Exception:
            log_unexpected(f"{self.name}: listening for forward {number} failed")
            return ListenFailed(number, Reason.INTERNAL, INTERNAL_TEXT)
        if self._stopping.canceled:  # perhaps since `_release` went through them
            listener.close()
        log.info("%s: listening on %s", self.name, listener.address)
        self.audit.listening(number, listener.address)
        if isinstance(message.at, PublishedName):
            return Published(number, listener.address)
        return Listening(number, listener.port)

    def _listen_locked(self, message: Listen) -> Listens:
        """Bind, and keep the listener.  Raises EndpointError."""
        number = message.forward
        if number in self._listeners:
            raise EndpointError(f"forward {number} listens already", code=Reason.LIMIT)
        if len(self._listeners) >= self._max_forwards:
            text = f"{self._max_forwards} remote forwards are in use, as many as limits.forwards allows"
            raise EndpointError(text, code=Reason.LIMIT)
        place = self._place_of(message.at)
        listener = self._bind(message, StreamQuota(self._room, quota_of_options(message.options)))
        self._listeners[number], self._bound[number] = listener, (message, place)
        self._forbidden.discard(number)
        return listener

    def _place_of(self, at: ListenPlace) -> Hashable:
        """Return what the rules make of a place to listen: the same again means the same.  Raises EndpointError."""
        rules = self._account.listen_rules
        match at:
            case TcpAddress(host, port):
                return rules.check(host, port), rules.is_shared(host, port)
            case UdpAddress(host, port):
                return rules.check(host, port, udp=True)
            case UnixAddress(path):
                return rules.unix.bindable(path)
            case PublishedName(name):
                return self._full_name(name)
        raise EndpointError(f"listening on {at} is not allowed by any rule", code=Reason.NOT_ALLOWED)

    def _bind(self, message: Listen, quota: StreamQuota) -> Listens:
        """Listen where the rules allow it.  Raises EndpointError."""
        at = message.at
        if isinstance(at, UdpAddress):
            return self._bind_udp(message, quota, at)
        if isinstance(at, PublishedName):
            return self._publish(message.forward, quota, at.name)
        if not isinstance(at, TcpAddress | UnixAddress):
            raise EndpointError(f"listening on {at} is not allowed by any rule", code=Reason.NOT_ALLOWED)
        if message.options.get(ListenOption.DYNAMIC):
            return self._bind_dynamic(message, quota, at)
        return self._bind_streams(message, at, partial(self._accepted, message.forward, quota))

    def _bind_streams(
        self, message: Listen, at: TcpAddress | UnixAddress, accept: OnConnection
    ) -> Listener | Membership | UnixListener | HeaderListener:
        """Listen on a TCP port or a Unix socket, with what the client asks for beside that."""
        what = f"{self.name}: remote forward {message.forward}"
        if isinstance(at, UnixAddress):
            path = self._account.listen_rules.unix.bindable(at.path)
            permissions = _permissions(message.options)
            unix = UnixListener(path, partial(_take, accept), what, self._watcher, permissions=permissions)
            unix.start()
            return unix
        if not message.options.get(ListenOption.PROXY_PROTOCOL):
            return self._bind_tcp(message, at, accept)
        if not self._proxies:
            raise EndpointError("accept_proxy_protocol needs `trusted_proxies` on the server", code=Reason.NOT_ALLOWED)
        headers = ProxyHeaders(accept, self._is_trusted, what, self._watcher)
        return HeaderListener(self._bind_tcp(message, at, headers.take), headers)

    def _is_trusted(self, peer: str) -> bool:
        return client_address(split_host_port(peer)[0].partition("%")[0], (), self._proxies)[1]

    def _bind_udp(self, message: Listen, quota: StreamQuota, at: UdpAddress) -> UdpListener:
        addresses = self._account.listen_rules.check(at.host, at.port, udp=True)
        number = message.forward

        def open_flow(
            origin: str, on_datagram: Callable[[bytes], None], on_over: Callable[[int, str], None]
        ) -> UdpFlow:
            address = address_of(origin)
            refused = quota.enter(address)
            if refused:
                self._parameters.observer.refused("quota")
                if self._log_throttle.due(f"quota of {number}"):
                    log.warning("%s: remote forward %s: dropped what came from %s: %s", self.name, at, origin, refused)
                raise EndpointError(refused, code=Reason.LIMIT)

            def over(reason: int, text: str) -> None:
                if reason not in (Reason.CANCELED, Reason.SESSION_ENDED):
                    why = f"{reason_name(reason)}: {printable(text)}"
                    if self._log_throttle.due(f"{number}: {why}"):
                        log.warning("%s: remote forward %s from %s: %s", self.name, at, origin, why)
                on_over(reason, text)

            request = Through(number, origin).encode()
            try:
                return self.open_flow(request, on_datagram, over, done=lambda: quota.leave(address), forward=str(at))
            except BaseException:
                quota.leave(address)
                raise

        name = f"{self.name}: remote forward {number}"
        idle = message.options.get(ListenOption.UDP_IDLE) or IDLE

        def listen(where: tuple[ListenAddress, ...]) -> UdpListener:
            listener = UdpListener(where, open_flow, name, self._watcher, idle=idle)
            listener.start()
            return listener

        return _keeping_port(message, addresses, listen)

    def _publish(self, number: int, quota: StreamQuota, asked: str) -> Membership:
        name = self._full_name(asked)
        if self._published is None:
            raise EndpointError("this server publishes no names", code=Reason.NOT_ALLOWED)

        def accept(sock: socket.socket, peer: str, done: Callable[[], None]) -> None:
            if self.away >= LEFT_SECONDS:  # a proxy answers 502 at once then
                sock.close()
                done()
            else:
                self._accepted(number, quota, sock, peer, done, place=name)

        return self._published.join(name, self, accept)

    def _full_name(self, asked: str) -> str:
        """Return the name that is published for `asked`.  Raises EndpointError."""
        name = self._account.publish_rules.full_name(asked)
        if name is None:
            raise EndpointError(
                f"publishing {asked} is not allowed by any rule",
                code=Reason.NOT_ALLOWED,
                hint=f"add {asked} to this client's allow_publish",
            )
        return name

    def _bind_tcp(self, message: Listen, at: TcpAddress, accept: Accept) -> Listener | Membership:
        rules = self._account.listen_rules
        addresses = rules.check(at.host, at.port)
        if rules.is_shared(at.host, at.port):
            return self._shared_ports.join(addresses, self, accept)
        what = f"{self.name}: remote forward {message.forward}"

        def listen(where: tuple[ListenAddress, ...]) -> Listener:
            listener = Listener(where, partial(_take, accept), what, self._watcher, keepalive=self._keepalive)
            listener.start()
            return listener

        return _keeping_port(message, addresses, listen)

    def _bind_dynamic(self, message: Listen, quota: StreamQuota, at: TcpAddress | UnixAddress) -> DynamicListener:
        """Listen likewise, and ask the client for what each connection asks for.  Raises EndpointError."""
        number, name = message.forward, f"{self.name}: remote forward {at}"

        def ask(pending: PendingConnection, asked: Asked) -> None:
            to = TcpAddress(asked.host, asked.port)
            request = Through(number, pending.origin, to).encode()
            self.join_pending(pending, request, f"{name}, to {to}", forward=str(at))

        def take(sock: socket.socket, peer: str, done: Callable[[], None], local: str = "") -> None:
            over = self._enter(number, quota, name, sock, peer, done)
            if over is not None:
                proxy.take(sock, peer, over)

        def open_flow(
            to: UdpAddress, origin: str, on_datagram: Callable[[bytes], None], on_over: Callable[[int, str], None]
        ) -> UdpFlow:
            return self.open_flow(Through(number, origin, to).encode(), on_datagram, on_over, forward=str(at))

        proxy = DynamicPort(name, self._watcher, ask, open_flow, passwords=self._account.settings.dynamic_passwords)
        return DynamicListener(self._bind_streams(message, at, take), proxy)

    def _enter(
        self, number: int, quota: StreamQuota, what: str, sock: socket.socket, peer: str, done: Callable[[], None]
    ) -> Callable[[], None] | None:
        """Count a connection to a forward; return what has to be called when it is over, None when it may not come.

        That calls `done` then, and so does this where it may not come.
        """
        address = address_of(peer)
        refused = quota.enter(address)
        if refused:
            self._parameters.observer.refused("quota")
            sock.close()  # which resets it
            done()
            if self._log_throttle.due(f"quota of {number}"):
                log.warning("%s: closed the connection from %s: %s", what, peer, refused)
            return None

        def over() -> None:
            quota.leave(address)
            done()

        return over

    def _accepted(
        self,
        number: int,
        quota: StreamQuota,
        sock: socket.socket,
        peer: str,
        done: Callable[[], None],
        local: str = "",
        *,
        place: str = "",
    ) -> None:
        """Serve a connection that came for a remote forward; call `done` once, when it has ended.

        `local` is what it was made to, as a balancer says that made it, by default what was connected to here; `place`
        is what people know that by.
        """
        here = local_of(sock)
        what = f"{self.name}: remote forward {place or here}"
        over = self._enter(number, quota, what, sock, peer, done)
        if over is None:
            return
        known = self._parameters.peer_features & Features.KINDS
        request = Through(number, peer, local=(local or here) if known else "")
        try:
            self.join_accepted(sock, peer, request.encode(), what, over, forward=place or here)
        except (NoThread, EndpointError) as error:
            WakeableSocket(sock, peer).close(orderly=False)
            over()
            if self._log_throttle.due("no thread"):
                log.warning("%s: %s", self.name, error)
        except BaseException:
            over()
            raise

    @property
    def listening(self) -> tuple[tuple[int, str], ...]:
        """The remote forwards that this server listens for: the number of each, and where."""
        return tuple((number, listener.address) for number, listener in tuple(self._listeners.items()))

    # --- other rules than before ------------------------------------------------------------------

    def follow(
        self, account: Account, *, connect_timeout: float, max_forwards: int, trusted_proxies: Sequence[str]
    ) -> list[str]:
        """Go by other settings from now on; return what that ended, in words.

        A stream that they do not allow is reset with that reason, and a remote forward's port closed; what they allow
        goes on as it is.  Blocks as `stop_listening` does.
        """
        with self._listening:
            before, self._account = self._account, account
            other = max_forwards > self._max_forwards or trusted_proxies != self._proxies
            other |= account is not before and _listens_by(account) != _listens_by(before)
            invite = other and self._refused  # not for what ends now
            self._connect_timeout, self._max_forwards, self._proxies = connect_timeout, max_forwards, trusted_proxies
            changed = account is not before
            for listener in self._listeners.values():
                if isinstance(listener, DynamicListener):
                    listener.ask_for(account.settings.dynamic_passwords)
            ended = self._judge_listeners_locked() if changed else []
        if changed:
            self.joined.limits_changed()
        lines = [line for one in ended for line in self._listen_no_more(*one)]
        if changed and before.connect_rules is not account.connect_rules:
            streams = [stream for lane in self.lanes.values() for stream in lane.streams]
            lines += [line for stream in streams if (line := self._judge(stream))]
        if invite and self._parameters.peer_features & Features.LATER_RULES:
            # Once, until it is refused something again: of many reloads a client that is away reads one.
            with self._listening:
                self._refused = bool(ended)
                self.send_control(ListenAgain().encode())
        return lines

    def _judge_listeners_locked(self) -> list[tuple[Listen, Listens, EndpointError | None]]:
        """Take out the forwards that the rules see otherwise now, with why they may not listen; None where they may."""
        ended: list[tuple[Listen, Listens, EndpointError | None]] = []
        for number, (message, place) in tuple(self._bound.items()):
            error = None
            try:
                if self._place_of(message.at) == place:
                    continue
            except EndpointError as refused:
                error = refused
                self._forbidden.add(number)
            del self._bound[number]
            ended.append((message, self._listeners.pop(number), error))
        return ended

    def _listen_no_more(self, message: Listen, listener: Listens, error: EndpointError | None) -> list[str]:
        """Close a forward's port; listen anew where the rules allow it in another way than before."""
        number, address = message.forward, listener.address
        listener.close()
        if error is None:
            return self._listen_anew(message, listener.port, address)
        log.warning("%s: listens no more on %s: %s", self.name, address, error)
        self.audit.listens_no_more(number, address, error.message)
        text = f"not allowed any more: {error.message}"
        self._tell_ended(number, Reason.NOT_ALLOWED, error.message)
        for lane in self.lanes.values():
            for stream in lane.streams:
                if _forward_of(stream) == number:
                    stream.reset(Reason.NOT_ALLOWED, text)
        return [f"listens no more on {address}: {error.message}"]

    def _listen_anew(self, message: Listen, port: int, address: str) -> list[str]:
        """Listen again where that is on other addresses, or shared, by now; the client hears only of what it must."""
        number = message.forward
        asked = message
        if isinstance(message.at, TcpAddress | UdpAddress) and not message.at.port:
            asked = replace(message, options={**message.options, ListenOption.KEEP_PORT: port})
        answer = self._listen(asked)
        if isinstance(answer, ListenFailed):
            self._tell_ended(number, answer.reason, answer.text)
            return [f"cannot listen anew on {address}: {answer.text}"]
        if isinstance(answer, Listening) and answer.port != port:
            # It must be told of the port, and only an answer can do that: so it asks again.
            with self._listening:
                listener = self._listeners.pop(number)
                del self._bound[number]
            listener.close()
            self._tell_ended(number, Reason.LIMIT, f"port {port} is in use by now on one of its addresses")
            if self._parameters.peer_features & Features.LATER_RULES:
                self.send_control(ListenAgain().encode())
            return [f"cannot listen anew on {address}: the port is in use"]
        return [f"listens anew on {address} for a remote forward"]

    def _tell_ended(self, number: int, reason: int, text: str) -> None:
        """Tell the client that a forward that it asked for is listened for no more."""
        self._refused = True
        if self._parameters.peer_features & Features.LATER_RULES:
            self.send_control(ListenEnded(number, reason, text).encode())

    def _judge(self, stream: Stream) -> str:
        """Reset a stream that the client opened if the rules do not allow it; return what was done, in words."""
        return "" if stream.target is None else self._account.connect_rules.judge(stream, stream.target)

    def open_stream(self, request: bytes, *, wait: bool = True, kind: str = "", forward: str = "") -> Stream:
        """Do as any session, and reset what waited for it while its forward's port was closed by other rules."""
        stream = super().open_stream(request, wait=wait, kind=kind, forward=forward)
        if self._forbidden and _forward_of(stream) in self._forbidden:
            stream.reset(Reason.NOT_ALLOWED, "this remote forward is not allowed any more")
        return stream

    def _release(self) -> None:
        self.stop_listening()
        with self._listening:
            self._listeners.clear()
            self._bound.clear()

    def revoke(self, why: str) -> None:
        """Reset all streams, free the ports, and have CLOSE (revoked) sent behind that; `end` it soon after.

        Does not block but as `stop_listening`.
        """
        self.refuse_streams()
        self.stop_listening()
        for lane in self.lanes.values():
            for stream in lane.streams:
                stream.reset(Reason.SESSION_ENDED, f"the session is over: {why}")
        self.stop(CloseReason.REVOKED, why)

    def replace(self, why: str) -> None:
        """End this session, and tell its client that another one has its name now."""
        self.end(why, Close(CloseReason.REPLACED, why))

    def lane_for(self, hello: Hello) -> Lane | None:
        """Return the lane that a HELLO of this session's own client asks for; None when it cannot have it.

        A lane that a client joins is made now, unless that has happened before.  Raises SessionEnded.
        """
        with self._joining:
            lane = self.find_lane(hello.lane)
            if lane is not None or hello.intent is not Intent.JOIN or len(self.lanes) >= self._max_lanes:
                return lane
            return self.add_lane(hello.lane)


def _forward_of(stream: Stream) -> int | None:
    """Return the remote forward of a stream, None for one that the client opened."""
    try:
        request = decode_request(stream.request)
    except ProtocolError:
        return None
    return request.forward if isinstance(request, Through) else None


def _listens_by(account: Account) -> tuple[object, ...]:
    """Return what decides where a client may listen."""
    settings = account.settings
    return settings.allow_listen, settings.shared_listen, settings.allow_publish


def _take(accept: Accept, sock: socket.socket, peer: str) -> None:
    """Give `accept` a connection of a port that nobody counts."""
    accept(sock, peer, _nothing)


def _nothing() -> None:
    """Nobody asks when it has ended."""


L = TypeVar("L")


def _keeping_port(
    message: Listen, addresses: tuple[ListenAddress, ...], listen: Callable[[tuple[ListenAddress, ...]], L]
) -> L:
    """Return what `listen` makes of `addresses`, for port 0 at the port that the client had before, if that is free.

    Whoever may have any port of the system's choice could try until it is that one, so no rule is needed for it; but a
    port that the system never chooses is not to be had so.  Raises EndpointError.
    """
    port = message.options.get(ListenOption.KEEP_PORT, 0)
    if addresses[0].port == 0 and port and may_be_chosen(port):
        with contextlib.suppress(EndpointError):
            return listen(tuple(replace(address, port=port) for address in addresses))
    return listen(addresses)


def _permissions(options: Mapping[int, int]) -> Permissions:
    """Return what the client wants for the file of a Unix socket."""
    return Permissions(
        options.get(ListenOption.MODE, DEFAULT_MODE) & 0o777,
        str(options.get(ListenOption.OWNER, "")),
        str(options.get(ListenOption.GROUP, "")),
    )
