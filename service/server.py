"""The running server: front door, handshake, sessions, and an end that keeps its word.

`run_server` is the whole of it.  A connection's thread comes in through `_on_pipe`, authenticates the
client, and then is the reader of that client's session until its pipe ends.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

from base.deadline import Deadline
from base.errors import HandshakeError, ProtocolError, QanatError, RefusedError, TransportError
from handshake.exchange import SealedPipe, closed_at, server_handshake
from handshake.hello import Answer, Close, CloseReason, Hello, Intent, Ready, RecordKind
from handshake.identity import load_or_create_identity
from handshake.machine import ServerHandshake
from transports.pipe import Pipe

from .access import ConnectRules, ListenRules
from .admission import ClientAddress, HandshakeSlot
from .front_door import FrontDoor
from .messages import printable
from .registry import Full, NameHeld, Registry
from .seldom import Seldom
from .server_session import ServerSession
from .session import affordable_streams, hello_parameters, lane_parameters
from .settings import ClientAccount, ServerSettings

log = logging.getLogger("qanat.server")

ENDING = 5.0
"""Seconds, beyond `drain`, that sessions and connections get to end."""


class Server:
    """A server from `start` to `stop`.  `run_server` and tests use it."""

    def __init__(self, settings: ServerSettings) -> None:
        """Loads or makes the identity; raises UsageError when it cannot be used."""
        self.settings = settings
        self.identity = load_or_create_identity(settings.identity)
        # A host's name need not be ASCII, and READY's node name must.
        self.node = settings.node or socket.gethostname().encode("ascii", "replace").decode()[:255]
        self.registry = Registry(settings.limits.sessions, settings.takeover_timeout)
        self._front_door = FrontDoor(settings, self._on_pipe)
        self._seldom = Seldom()
        self._max_streams = affordable_streams(settings.limits.streams)
        self._accounts = {account.name: _Account(account, self._max_streams) for account in settings.clients}

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """What is listened on, with the real ports."""
        return self._front_door.addresses

    def start(self) -> None:
        """Bind and accept.  Does not block; raises TransportError when an address cannot be bound."""
        self._front_door.start()
        log.info("server key fingerprint %s", self.identity.fingerprint)

    def stop(self) -> None:
        """End gracefully: no new connection or stream, `drain` seconds for open ones, then goodbye. Blocks."""
        self._front_door.close()
        sessions = self.registry.close()
        for session in sessions:
            session.stop_listening()
            session.refuse_streams()
        deadline = Deadline(self.settings.drain)
        for session in sessions:
            session.drain(deadline)
        for session in sessions:
            session.stop(CloseReason.SHUTDOWN, f"{self.node} is shutting down")
        deadline = Deadline(ENDING)
        for session in sessions:
            if not session.ended.wait(deadline.remaining()):
                session.lane.cut("the server is shutting down")
        stuck = self._front_door.join(ENDING)
        if stuck:
            log.warning("still running at the end: %s", ", ".join(stuck))

    # --- one connection -------------------------------------------------------------------------

    def _on_pipe(self, pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        deadline = Deadline(self.settings.limits.handshake_timeout)
        try:
            handshake = ServerHandshake(self.identity, self._find_tokens, self._front_door.admission.rsa_gate)
            sealed = server_handshake(pipe, handshake, deadline)
            with closed_at(deadline, pipe):
                session, hello = self._admit(sealed, address, deadline)
        except RefusedError as error:
            log.warning("refused %s: %s", address, error, extra={"event": "refused", "peer": str(address)})
        except (HandshakeError, ProtocolError) as error:
            log.warning("handshake with %s failed: %s", address, error)
        except TransportError as error:
            if self._seldom.due("cut in handshake"):
                log.info("%s left in the handshake: %s", address, error)
        else:
            if session is not None:
                slot.release()
                self._serve(session, hello, sealed, address)

    def _admit(
        self, sealed: SealedPipe, address: ClientAddress, deadline: Deadline
    ) -> tuple[ServerSession | None, Hello]:
        """Judge HELLO and answer it; None when this client was told that it has to go."""
        kind, content = sealed.recv_record()
        if kind is not RecordKind.HELLO:
            raise ProtocolError(f"a {kind.name} record where HELLO was due")
        hello = Hello.decode(content)
        limits, flow, keepalive = self.settings.limits, self.settings.flow, self.settings.keepalive
        ours = hello_parameters(flow, keepalive, self._max_streams)
        if hello.intent is not Intent.NEW:
            self._say(sealed, RecordKind.READY, Ready(Answer.EXPIRED, self.node, ours).encode())
            return None, hello
        account = self._accounts[sealed.result.name]
        session = ServerSession(
            account.name,
            lane_parameters(flow, keepalive, self._max_streams, hello.parameters, client=False),
            instance=hello.instance,
            holder=f"{address} ({sealed.pipe.transport}) since {time.strftime('%Y-%m-%d %H:%M:%S')}",
            connect_rules=account.connect_rules,
            listen_rules=account.listen_rules,
            connect_timeout=self.settings.connect_timeout,
            connecting=account.connecting,
            max_forwards=limits.forwards,
        )
        try:
            self.registry.claim(session, deadline)
        except (NameHeld, Full) as error:
            log.warning("turned %s away: %s", address, error)
            reason = CloseReason.NAME_IN_USE if isinstance(error, NameHeld) else CloseReason.BUSY
            self._say(sealed, RecordKind.CLOSE, Close(reason, str(error)).encode())
            return None, hello
        try:
            ready = Ready(Answer.NEW, self.node, ours, session=session.id)
            sealed.send_record(bytes((RecordKind.READY,)) + ready.encode())
        except BaseException:
            self.registry.release(session)
            session.ended.set()  # somebody may be waiting for its end already
            raise
        return session, hello

    def _serve(self, session: ServerSession, hello: Hello, sealed: SealedPipe, address: ClientAddress) -> None:
        started = time.monotonic()
        log.info(
            "%s connected from %s over %s, %s",
            session.name, address, sealed.pipe.transport, printable(hello.parameters.agent),
            extra={"event": "connected", "client": session.name, "peer": str(address)},
        )  # fmt: skip
        try:
            ending = session.run(sealed, self.settings.keepalive.timeout)
        finally:
            self.registry.release(session)
        log.info(
            "%s from %s ended after %.0f s: %s",
            session.name, address, time.monotonic() - started, printable(ending.cause),
            extra={"event": "disconnected", "client": session.name, "peer": str(address)},
        )  # fmt: skip
        stuck = session.threads.join(self.settings.connect_timeout + ENDING)
        if stuck:
            log.warning("%s: still ending: %s", session.name, ", ".join(stuck))

    def _say(self, sealed: SealedPipe, kind: RecordKind, content: bytes) -> None:
        """Send a last record and wait for the client to end, so that a reset does not overtake it."""
        sealed.send_record(bytes((kind,)) + content)
        sealed.set_read_timeout(2.0)
        try:
            while True:
                sealed.recv_record()
        except QanatError:
            sealed.close("turned away")

    def _find_tokens(self, name: str) -> tuple[bytes, ...] | None:
        account = self._accounts.get(name)
        return None if account is None else account.tokens


class _Account:
    """A client's account with its rules read once, and what all its sessions share."""

    def __init__(self, account: ClientAccount, max_streams: int) -> None:
        self.name = account.name
        self.tokens = account.tokens
        self.connect_rules = ConnectRules(account.allow_connect)
        self.listen_rules = ListenRules(account.allow_listen)
        self.connecting = threading.BoundedSemaphore(max_streams)


def run_server(settings: ServerSettings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Serve until `stop` is set; `ready` is called once connections are accepted.  Blocks.

    After `stop` it returns within `drain` and about ten seconds.  Raises UsageError for an identity or
    certificate that cannot be used, TransportError for an address that cannot be bound.
    """
    server = Server(settings)
    server.start()
    try:
        ready()
        stop.wait()
        log.info("stopping: open streams have %g s to finish", settings.drain)
    finally:
        server.stop()
        log.info("stopped")
