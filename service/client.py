"""The running client: local listeners, one session at a time, and a connector that never gives up.

Threads: the *connector* dials, authenticates, and is then the reader of the session until its pipe
ends; each local forward has an accepting thread; each connection has two pumps.
"""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable

from base.cancel import Cancel
from base.deadline import Deadline
from base.errors import EndpointError, LocalError, ProtocolError, QanatError, RefusedError, TransportError
from base.sockets import format_address
from base.threads import ThreadGroup, start_thread
from endpoints.tcp import Listener
from endpoints.wakeable import WakeableSocket
from handshake.client_keys import ClientKeyPool
from handshake.exchange import SealedPipe, client_handshake, closed_at
from handshake.hello import Answer, Close, CloseReason, Hello, Ready, RecordKind
from handshake.identity import fingerprint_of
from handshake.machine import ClientHandshake
from mux.lane import Ending
from transports import grpc, http2, websocket
from transports.pipe import Pipe
from transports.urls import TunnelUrl

from .backoff import Backoff
from .client_session import ClientSession
from .known_hosts import KnownHosts
from .messages import ConnectTcp, printable
from .seldom import Seldom
from .session import affordable_streams, hello_parameters, lane_parameters, new_id
from .settings import ClientSettings, Forward

log = logging.getLogger("qanat.client")

MAX_STREAMS = 4096
"""Streams that a server may have open towards this client at once."""
SHORT_LIVED = 5.0
"""A pipe that ends within so many seconds of READY, having acknowledged nothing, is short-lived (see Backoff)."""
ENDING = 5.0
"""Seconds, beyond `drain`, that the session and the connector get to end."""

_CONNECT: dict[str, Callable[..., Pipe]] = {
    "websocket": websocket.connect,
    "http2": http2.connect,
    "grpc": grpc.connect,
}


class Client:
    """A client from `start` to `stop`.  `run_client` and tests use it."""

    def __init__(self, settings: ClientSettings, ready: Callable[[], None] = lambda: None) -> None:
        """`ready` is called once, when the first session is up.  Raises UsageError for a bad URL or bad TLS files."""
        self.settings = settings
        self.failure: QanatError | None = None
        """Why the client gave up; None while it does not."""
        self.over = threading.Event()
        """Set when the connector has ended, after `stop` or with `failure`."""
        self._ready = ready
        self._urls = [TunnelUrl.parse(url) for url in settings.urls]
        self._route = settings.route
        if any(url.tls for url in self._urls):
            self._route.tls_context(())  # files that cannot be used end the start, not each try
        self._known_hosts = KnownHosts(settings.state_dir / "known_hosts")
        self._instance = new_id()
        self._backoff = Backoff(settings.reconnect)
        self._succeeded = False
        self._seldom = Seldom()
        self._stopping = threading.Event()
        self._dialling = Cancel()
        self._changed = threading.Condition()
        self._session: ClientSession | None = None
        self._pipe: Pipe | None = None
        self._listeners: list[Listener] = []
        self._waiting = ThreadGroup("client")
        self._former: list[ClientSession] = []  # sessions that are over, with threads that still end
        self._connector: threading.Thread | None = None
        self._keys: ClientKeyPool | None = None
        self._max_streams = affordable_streams(MAX_STREAMS)

    # --- start and stop -------------------------------------------------------------------------

    def start(self) -> None:
        """Bind the local forwards, then connect in the background.  Does not block.

        Raises EndpointError when an address cannot be bound; nothing is left bound then.
        """
        try:
            for number, forward in enumerate(self.settings.forwards):
                if forward.kind == "local":
                    self._listeners.append(self._listen(number, forward))
        except EndpointError:
            self._close_listeners()
            raise
        self._keys = ClientKeyPool()
        for listener in self._listeners:
            listener.start()
        self._connector = start_thread("connector", self._connector_loop)

    def stop(self) -> None:
        """End gracefully: no new connection, `drain` seconds for open ones, then goodbye.  Blocks.  Idempotent."""
        self._stopping.set()
        self._dialling.cancel()
        self._close_listeners()
        with self._changed:
            session, pipe = self._session, self._pipe
            self._changed.notify_all()
        if session is not None:
            deadline = Deadline(self.settings.drain)
            session.drain(deadline)
            self._waiting.join(deadline.remaining() or 0.0)
            session.stop(CloseReason.SHUTDOWN, "the client is stopping")
        elif pipe is not None:
            pipe.close("the client is stopping")
        if session is not None and not session.ended.wait(ENDING):
            session.lane.cut("the client is stopping")
        self.over.wait(ENDING)
        if self._connector is not None and self.over.is_set():
            self._connector.join()
        self._waiting.join(ENDING)
        for former in self._former:
            former.threads.join(ENDING)
        if self._keys is not None:
            self._keys.close()

    @property
    def local_ports(self) -> list[int]:
        """The ports bound for the local forwards, in their order."""
        return [listener.port for listener in self._listeners]

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    # --- local forwards -------------------------------------------------------------------------

    def _listen(self, number: int, forward: Forward) -> Listener:
        host, port = forward.to
        listener = Listener(
            *forward.listen,
            lambda sock, peer: self._accepted(forward, ConnectTcp(host, port, peer).encode(), sock, peer),
            f"listen-{number}",
        )  # fmt: skip
        log.info("listening on %s for %s at the server's end", listener.address, format_address(forward.to))
        return listener

    def _accepted(self, forward: Forward, request: bytes, sock: socket.socket, peer: str) -> None:
        def carry_when_connected() -> None:
            session = self._wait_for_session()
            if session is not None:
                session.carry_outgoing(sock, peer, request, str(forward))
                return
            WakeableSocket(sock, peer).close(orderly=False)
            if self._seldom.due("no session"):
                log.warning("%s: connections are reset while there is no session with the server", forward)

        with self._changed:
            session = self._session
        try:
            if session is None:
                self._waiting.start(f"{peer}-down", carry_when_connected)
            else:
                session.start_outgoing(sock, peer, request, str(forward))
        except RuntimeError as error:
            WakeableSocket(sock, peer).close(orderly=False)
            log.warning("%s: %s; raise the limit on threads (ulimit -u, TasksMax)", forward, error)

    def _wait_for_session(self) -> ClientSession | None:
        """The session; when there is none, wait for one as long as a connection may take."""
        deadline = Deadline(self.settings.connect_timeout)
        with self._changed:
            while self._session is None and not self._stopping.is_set() and not deadline.passed:
                self._changed.wait(deadline.remaining())
            return self._session

    # --- connecting -----------------------------------------------------------------------------

    def _connector_loop(self) -> None:
        try:
            for url in itertools.cycle(self._urls):
                if self._stopping.is_set():
                    return
                retry_after = self._try(url)
                delay = self._backoff.delay(retry_after)
                if self._stopping.is_set() or self.failure is not None:
                    return
                if delay >= 0.5:
                    log.info("trying again in %.1f s", delay)
                self._stopping.wait(delay)
        except Exception:
            self.failure = LocalError("the connector ended by an unexpected error", hint="please report the log")
            raise
        finally:
            self.over.set()

    def _try(self, url: TunnelUrl) -> float | None:
        """One connection from dialling to its end.  Returns the seconds that the server asked us to wait."""
        started = time.monotonic()
        try:
            pipe = self._dial(url)
            deadline = Deadline(self.settings.handshake_timeout)
            sealed = self._authenticate(url, pipe, deadline)
            session = self._greet(url, sealed, deadline)
        except RefusedError as error:
            self._refused(url, error)
            return None
        except QanatError as error:
            if not self._stopping.is_set():
                self._backoff.failed()
                log.error("%s", _not_connected(url, error), extra={"event": "failed", "url": str(url)})
            return error.retry_after if isinstance(error, TransportError) else None
        finally:
            with self._changed:
                self._pipe = None
        self._carry(url, session, sealed, started)
        return None

    def _dial(self, url: TunnelUrl) -> Pipe:
        settings = self.settings
        deadline = Deadline(settings.connect_timeout)
        connect = _CONNECT[settings.transport]
        pipe = connect(url, route=self._route, deadline=deadline, cancel=self._dialling)
        with self._changed:
            self._pipe = pipe
            if self._stopping.is_set():
                pipe.close("the client is stopping")
        return pipe

    def _authenticate(self, url: TunnelUrl, pipe: Pipe, deadline: Deadline) -> SealedPipe:
        settings = self.settings
        assert self._keys is not None
        key = self._keys.take(deadline.remaining() or 0.0)
        handshake = ClientHandshake(settings.name, settings.token, key, lambda spki: self._check_server(url, spki))
        return client_handshake(pipe, handshake, deadline)

    def _check_server(self, url: TunnelUrl, spki: bytes) -> None:
        """Raise RefusedError unless this is the server that we know, or we know none yet."""
        fingerprint = fingerprint_of(spki)
        pinned = self.settings.server_fingerprint
        if pinned is None:
            self._known_hosts.check(url.address, fingerprint)
        elif fingerprint != pinned:
            raise RefusedError(
                f"the server's key is {fingerprint}, but {pinned} is pinned",
                hint="someone may be in between; if the server's key was really changed, run `tunnel.py fingerprint` "
                "on the server and put what it prints into server_fingerprint",
            )

    def _greet(self, url: TunnelUrl, sealed: SealedPipe, deadline: Deadline) -> ClientSession:
        """Say HELLO and hear READY.  Raises RefusedError (not final) when another process has our name."""
        settings = self.settings
        ours = hello_parameters(settings.flow, settings.keepalive, self._max_streams)
        try:
            with closed_at(deadline, sealed.pipe):
                sealed.send_record(bytes((RecordKind.HELLO,)) + Hello(self._instance, ours).encode())
                kind, content = sealed.recv_record()
            if kind is RecordKind.CLOSE:
                self._turned_away(Close.decode(content))
            if kind is not RecordKind.READY:
                raise ProtocolError(f"a {kind.name} record where READY was due")
            ready = Ready.decode(content)
            if ready.answer is not Answer.NEW:
                raise ProtocolError("the server answered NEW with something else")
            if settings.server_fingerprint is None:
                self._known_hosts.remember(url.address, fingerprint_of(sealed.result.server_spki))
        except QanatError:
            sealed.close("the session did not begin")
            raise
        flow, keepalive = settings.flow, settings.keepalive
        parameters = lane_parameters(flow, keepalive, self._max_streams, ready.parameters, client=True)
        remotes = {n: forward for n, forward in enumerate(settings.forwards) if forward.kind == "remote"}
        log.info(
            "connected to %s over %s as %s; the server is %s, %s, with key %s",
            url, sealed.pipe.transport, settings.name, printable(ready.node), printable(ready.parameters.agent),
            fingerprint_of(sealed.result.server_spki), extra={"event": "connected", "url": str(url)},
        )  # fmt: skip
        return ClientSession(settings.name, parameters, ready.session, remotes, settings.connect_timeout)

    @staticmethod
    def _turned_away(close: Close) -> None:
        if close.reason is CloseReason.NAME_IN_USE:
            raise RefusedError(
                f"the server refuses this client's name: {printable(close.text)}",
                hint="stop the other process, or give this one a name and token of its own",
                final=False,
            )
        raise TransportError(f"the server turned us away: {printable(close.text)}")

    def _refused(self, url: TunnelUrl, error: RefusedError) -> None:
        if error.final and not self._succeeded:
            self.failure = error
            return
        log.error("refused by %s: %s", url, error, extra={"event": "refused", "url": str(url)})
        if error.final:
            self._backoff.give_up_hope()
        else:
            self._backoff.failed()

    def _carry(self, url: TunnelUrl, session: ClientSession, sealed: SealedPipe, started: float) -> None:
        """Run the session on its pipe until that ends, and say why it did."""
        session.request_forwards()
        with self._changed:
            self._session = session
            self._changed.notify_all()
        if self._stopping.is_set():
            session.stop(CloseReason.SHUTDOWN, "the client is stopping")
        first, self._succeeded = not self._succeeded, True
        if first:
            self._ready()
        ready_at = time.monotonic()
        ending: Ending | None = None
        try:
            ending = session.run(sealed, self.settings.keepalive.timeout)
        finally:
            with self._changed:
                self._session = None
            self._former = [former for former in (*self._former, session) if len(former.threads)]
        lived = time.monotonic() - ready_at
        if session.lane.acknowledged or lived >= SHORT_LIVED:
            self._backoff.succeeded()
        else:
            self._backoff.ended_early()
        if not self._stopping.is_set():
            log.warning(
                "the connection to %s ended after %.0f s: %s; its streams were reset",
                url, time.monotonic() - started, printable(ending.cause),
                extra={"event": "disconnected", "url": str(url)},
            )  # fmt: skip


def _not_connected(url: TunnelUrl, error: QanatError) -> str:
    """What happened, with the server named once."""
    if url.host not in error.message:
        return f"cannot connect to {url}: {error}"
    return str(error) if error.message.startswith("cannot connect") else f"cannot connect: {error}"


def run_client(settings: ClientSettings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Keep the tunnel up until `stop` is set; `ready` is called once, when the first session is up.  Blocks.

    After `stop` it returns within `drain` and about ten seconds.  Raises EndpointError for a local address
    that cannot be bound, and RefusedError when the server refuses us before any session was ever up.
    """
    client = Client(settings, ready)
    client.start()

    def stop_when_over() -> None:
        client.over.wait()
        stop.set()

    watcher = start_thread("stop-watcher", stop_when_over)
    try:
        stop.wait()
        if client.failure is None:
            log.info("stopping: open streams have %g s to finish", settings.drain)
    finally:
        client.stop()
    watcher.join(ENDING)
    if client.failure is not None:
        raise client.failure
    log.info("stopped")
