"""One connection to one server, as far as READY: dial, authenticate, exchange HELLO.  Every wait can be canceled.

`Connector` knows a server's candidates (each URL over each transport) and its key.  `qanat.client.server_connection`
uses it for a session's first connection, `qanat.client.reconnector` for all others; both handle failures themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qanat.base.addresses import parse_address
from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import NameLookupError, ProtocolError, QanatError, RefusedError, TransportError
from qanat.base.resolve import SockAddr, numeric_address
from qanat.base.text import printable
from qanat.client.known_hosts import KnownHosts
from qanat.config.settings import ClientSettings, RemoteServer
from qanat.handshake.exchange import SealedPipe, client_handshake, closed_at
from qanat.handshake.hello import Close, CloseReason, Hello, Ready, RecordKind
from qanat.handshake.key_pool import ClientKeyPool
from qanat.handshake.keys import fingerprint_of
from qanat.handshake.machine import ClientHandshake
from qanat.transports.dial.answer_fields import with_newer
from qanat.transports.dial.proxies import Proxy
from qanat.transports.dial.route import Route
from qanat.transports.dial.tcp import learn_failure, learn_success
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import extended_connect, grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.pipe import Pipe
from qanat.transports.split import client as split
from qanat.transports.websocket import upgrade as websocket

_CONNECT: dict[str, Callable[..., Pipe]] = {
    "websocket": websocket.connect,
    "http2": http2.connect,
    "grpc": grpc.connect,
    "split": split.connect,
    "websocket-h2": extended_connect.connect,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to reach a server, tried when its turn comes: a URL, and the transport to use for it."""

    url: TunnelUrl
    transport: str

    def __str__(self) -> str:
        return f"{self.url} over {self.transport}"


class SessionOver(QanatError):
    """The server answered HELLO with the end of the session."""


class NameInUse(RefusedError):
    """Another process is connected under our name.  Passes when that one ends."""


class Connector:
    """Makes connections to one server.  Safe to use from any thread."""

    def __init__(self, settings: ClientSettings, server: RemoteServer, keys: ClientKeyPool, known: KnownHosts) -> None:
        """Read URLs and TLS files.  Raises UsageError for one that cannot be used, or a file that could not be kept."""
        urls = [TunnelUrl.parse(url) for url in server.urls]
        self.candidates = tuple(Candidate(url, transport) for transport in settings.transports for url in urls)
        self._settings = settings
        self._server = server
        self._keys = keys
        self._known_hosts = known
        self._route = route_of(settings)
        self._cookies: dict[str, Mapping[str, str]] = {}  # by host; a load balancer's, each replaced as a whole
        # Files that cannot be used end the start, not each try.
        if any(url.tls for url in urls):
            self._route.tls_context(())
        if server.fingerprint is None:
            known.check_usable([url.address for url in urls])

    @property
    def literal_addresses(self) -> tuple[SockAddr, ...]:
        """The addresses of servers and proxies that are written as such, and that this machine's networks have."""
        hosts = [self._route.target(candidate.url) for candidate in self.candidates]
        if isinstance(self._route.proxy, Proxy):
            hosts.append((self._route.proxy.host, self._route.proxy.port))
        found: dict[SockAddr, None] = {}
        for host, port in hosts:
            if parse_address(host) is not None:
                with contextlib.suppress(NameLookupError):  # its interface may not be there now
                    found[numeric_address(host, port)[1]] = None
        return tuple(found)

    def connect(self, candidate: Candidate, cancel: Cancel, node: str | None = None) -> SealedPipe:
        """Dial and authenticate.  `node` names the server to reach, when several are behind one URL.

        Blocks for `connect_timeout` and `handshake_timeout` at most, or until `cancel` is canceled.
        Raises RefusedError, TransportError, ProtocolError, and UsageError for files that can no longer be used.
        """
        settings = self._settings
        route = replace(self._route, node=node)
        if node is not None:
            route = replace(route, cookies=tuple(self._cookies.get(candidate.url.host, {}).items()))
        pipe = _CONNECT[candidate.transport](
            candidate.url, route=route, deadline=Deadline(settings.connect_timeout), cancel=cancel
        )
        deadline = Deadline(settings.handshake_timeout)
        try:
            with cancel.waking(lambda: pipe.close("the client is stopping")):
                key = self._keys.take(deadline.remaining() or 0.0)
                handshake = ClientHandshake(
                    settings.name, self._server.token, key, lambda spki: self._check_server(candidate.url, spki)
                )
                return client_handshake(pipe, handshake, deadline)
        except BaseException as error:
            pipe.close("the handshake failed")
            self._learn_failure(pipe, error, deadline, cancel)
            raise

    def exchange_hello(
        self, candidate: Candidate, sealed: SealedPipe, hello: Hello, deadline: Deadline, cancel: Cancel
    ) -> Ready:
        """Send HELLO and return the server's READY.  Blocks until `deadline` at most, or until `cancel` is canceled.

        Raises RefusedError (not final) when another process has our name, SessionOver, ProtocolError and
        TransportError; the pipe is closed then.
        """
        try:
            try:
                with cancel.waking(lambda: sealed.close("the client is stopping")), closed_at(deadline, sealed.pipe):
                    sealed.send_record(bytes((RecordKind.HELLO,)) + hello.encode())
                    kind, content = sealed.recv_record()
            except BaseException as error:
                self._learn_failure(sealed.pipe, error, deadline, cancel)
                raise
            if sealed.pipe.addresses is not None:
                learn_success(sealed.pipe.addresses[1])
            host = candidate.url.host
            self._cookies[host] = with_newer(self._cookies.get(host, {}), sealed.pipe.cookies)
            if kind is RecordKind.CLOSE:
                raise _turned_away(Close.decode(content))
            if kind is not RecordKind.READY:
                raise ProtocolError(f"a {kind.name} record where READY was due")
            ready = Ready.decode(content)
            if self._server.fingerprint is None:
                self._known_hosts.remember(candidate.url.address, fingerprint_of(sealed.result.server_spki))
        except BaseException:
            sealed.close("the session did not begin")
            raise
        return ready

    def _learn_failure(self, pipe: Pipe, error: BaseException, deadline: Deadline, cancel: Cancel) -> None:
        """Have the next connection profit from this one, which brought nothing but `error`."""
        if isinstance(error, TransportError | ProtocolError) and pipe.addresses is not None and not cancel.canceled:
            learn_failure(pipe.addresses[1], stalled=deadline.passed)

    def _check_server(self, url: TunnelUrl, spki: bytes) -> None:
        """Raise RefusedError unless this is the server's known key, or none is known yet."""
        fingerprint = fingerprint_of(spki)
        pinned = self._server.fingerprint
        if pinned is None:
            self._known_hosts.check(url.address, fingerprint)
        elif fingerprint != pinned:
            raise RefusedError(
                f"the server's key is {fingerprint}, but {pinned} is pinned",
                hint="someone may be in between; if the server's key was really changed, run `tunnel.py fingerprint` "
                "on the server and put what it prints into server_fingerprint",
            )


def route_of(settings: ClientSettings) -> Route:
    """Return how to reach each URL of each server."""
    return Route(
        ca_file=settings.tls.ca_file,
        certificate=settings.tls.certificate,
        key=settings.tls.key,
        server_name=settings.tls.server_name,
        connect_to=settings.connect_to,
        proxy=settings.proxy,
        host=settings.host,
        headers=settings.headers,
    )


def describe_failure(candidate: Candidate, error: QanatError) -> str:
    """Return what happened, for the log, with the server named once."""
    if candidate.url.host not in error.message:
        return f"cannot connect to {candidate.url}: {error}"
    return str(error) if error.message.startswith("cannot connect") else f"cannot connect: {error}"


def describe_server(sealed: SealedPipe, ready: Ready) -> str:
    """Return the server's name, program and key, for the log."""
    node, agent = printable(ready.node), printable(ready.parameters.agent)
    return f"the server is {node}, {agent}, with key {fingerprint_of(sealed.result.server_spki)}"


def _turned_away(close: Close) -> QanatError:
    text = printable(close.text)
    if close.reason is CloseReason.NAME_IN_USE:
        return NameInUse(
            f"the server refuses this client's name: {text}",
            hint="stop the other process, or give this one a name and token of its own",
            final=False,
        )
    if close.reason in (CloseReason.PROTOCOL, CloseReason.REVOKED, CloseReason.REPLACED):
        return SessionOver(f"the server ended the session: {text}")
    return TransportError(f"the server turned us away: {text}")
