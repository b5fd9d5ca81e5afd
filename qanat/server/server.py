"""The running server: it authenticates what the front door lets in, and begins, resumes and ends sessions.

A connection's thread comes in through `_serve_pipe`, authenticates the client, and then is the reader of a lane of that
client's session until the pipe ends.  The session stays for `resume_for`, for the client to come back to.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from qanat.base.deadline import Deadline
from qanat.base.errors import HandshakeError, ProtocolError, QanatError, RefusedError, SessionEnded
from qanat.base.events import Events
from qanat.base.sockets import format_address
from qanat.base.text import printable
from qanat.base.watcher import Watcher
from qanat.config.changes import changes_between
from qanat.config.server_settings import ServerSettings
from qanat.control.commands import Commands, Request
from qanat.control.kick import kick_command
from qanat.control.listener import ControlSocket
from qanat.control.log_level import log_level
from qanat.control.paths import control_path
from qanat.control.reload import reload_command
from qanat.control.status import status_command
from qanat.handshake.exchange import SealedPipe, closed_at, server_handshake
from qanat.handshake.hello import PROOF_SIZE, Answer, Close, CloseReason, Hello, Intent, Parameters, Ready, RecordKind
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.machine import ServerHandshake
from qanat.monitor.monitor import Monitor, Source, change_monitor, open_monitor
from qanat.monitor.sessions import EVERYTHING, SUMMARY, Wanted
from qanat.monitor.snapshot import ServerSnapshot
from qanat.monitor.summary import summary_of
from qanat.monitor.sums import Sums
from qanat.monitor.watchdog import ServiceReporter, Watchdog
from qanat.mux.lane import Lane, Superseded
from qanat.mux.parameters import FIRST_PIPE, ResumePoint
from qanat.mux.pipe_result import PipeResult
from qanat.process.allocator import MemoryReturn
from qanat.process.log_throttle import LogThrottle
from qanat.process.reloading import Reloader
from qanat.server.accounts import Accounts
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.audit import AuditFile, AuditLog
from qanat.server.enforcement import Enforcement
from qanat.server.front_door.context import Carry
from qanat.server.front_door.front_door import FrontDoor
from qanat.server.observation import ServerObservation
from qanat.server.own_names import certificate_names
from qanat.server.published_names import PublishedNames
from qanat.server.resume_timeouts import ResumeTimeouts
from qanat.server.revocations import Revocations
from qanat.server.session import ServerSession
from qanat.server.sessions import Busy, MeasuredAlready, NameInUse, Registry, Stale
from qanat.server.shared_ports import SharedPorts
from qanat.session.limits import (
    affordable_limits,
    affordable_streams,
    application_keepalive,
    hello_parameters,
    lane_parameters,
    release_threads,
    reserve_threads,
    share,
)
from qanat.session.places import PipePlace
from qanat.transports.pipe import Pipe

log = logging.getLogger("qanat.server")

_REASONS = {
    NameInUse: CloseReason.NAME_IN_USE,
    MeasuredAlready: CloseReason.BUSY,
    Stale: CloseReason.STALE,
    Busy: CloseReason.BUSY,
}

JOIN_TIMEOUT = 5.0
"""Seconds, beyond `drain`, that sessions and connections get to end."""

_AT_START = ("identity", "pid_file", "publish_dir", "publish_mode", "publish_group", "state_dir")
"""Options that count at the start alone."""
_FOR_NEW_SESSIONS = ("keepalive.", "application_keepalive.", "flow.", "resume_for", "limits.streams", "limits.lanes")
"""What is agreed when a session begins."""
_TOLD = ("clients", "listen", "tls", "log.")
"""Options whose changes are told by what was done; those of the log by whoever opens it."""

_NO_SECRET = os.urandom(PROOF_SIZE)
"""Stands in for the secret of a session that there is not."""


class Server:
    """A server from `start` to `stop`.  Methods may be called from any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        """Load or make the identity, and load the certificate; raises UsageError for one that cannot be used."""
        self._configured = settings
        settings = replace(settings, limits=affordable_limits(settings.limits))
        self.settings = settings
        self.identity = load_or_create_identity(settings.identity)
        self.node = settings.node or _host_name()
        self._applying = threading.Lock()  # held for a whole `apply`
        self.events = Events()
        """What has happened so far, counted."""
        self.registry = Registry(settings.limits.sessions, settings.takeover_timeout)
        self._watcher = Watcher()
        self._watcher.add_chore(MemoryReturn(self._watcher.__len__).look)
        self._orders = itertools.count()  # of connections, as they come
        self._resume_timeouts = ResumeTimeouts()
        self._application_keepalive = application_keepalive(settings.application_keepalive)
        self._shared_ports = SharedPorts(self._watcher, self._application_keepalive)
        self._log_throttle = LogThrottle()
        self._max_streams = affordable_streams(settings.limits.streams)
        self.audit = AuditLog()
        """Where what happens is told, if the settings have a file for it."""
        self._revocations = Revocations(settings.state_dir)
        self._accounts = Accounts(settings.clients, self._max_streams, self._watcher, self._revocations.find)
        self._enforcement = Enforcement(self._accounts, self._revocations, self.registry, self.audit, self._watcher)
        self._published = self._make_published()
        self.front_door = FrontDoor(
            settings,
            self._serve_pipe,
            self._watcher.stir,
            watcher=self._watcher,
            names=self._published,
            events=self.events,
        )
        """Where connections come in; it knows how near each limit was."""
        self.monitor: Monitor | None = None
        """Where others can see what this does; None where the settings have none, and before `start`."""
        self.observation = ServerObservation(
            self.node, self.identity.fingerprint, self.registry, self.front_door, [one.name for one in settings.clients]
        )
        self.commands = Commands()
        """What other processes can ask of this one."""
        self.watchdog = Watchdog(self._watcher, self._lanes)
        """Whether all of this moves."""
        self.commands.register("revoke", self._enforcement.revoke)
        self.commands.register("status", status_command(self.snapshot, self.observation.sample))
        kick = kick_command(lambda: self.registry.sessions, self.node)

        def kick_and_tell(request: Request) -> Mapping[str, Any]:
            answer = kick(request)
            self.audit.record("kicked", target=request.text("target"), by=request.by, **answer)
            return answer

        self.commands.register("kick", kick_and_tell)
        self.commands.register("log-level", log_level)
        self._control: ControlSocket | None = None

    def _make_published(self) -> PublishedNames:
        settings = self.settings
        return PublishedNames(
            self._shared_ports,
            self._watcher,
            settings.publish_dir,
            mode=int(settings.publish_mode, 8),
            group=settings.publish_group,
            by_tls=settings.tls is not None,
            own_names=() if settings.tls is None else certificate_names(settings.tls.certificate),
            may_be_published=lambda name: any(client.publish_rules.allows(name) for client in self._accounts),
            keepalive=self._application_keepalive,
        )

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The addresses that are listened on, with the real ports; empty before `start`."""
        return self.front_door.addresses

    @property
    def watcher(self) -> Watcher:
        """What watches all its sockets; it is closed by `stop`."""
        return self._watcher

    def apply(self, settings: ServerSettings) -> list[str]:
        """Put `settings` into effect, and return what that did, line by line; nothing else is touched.

        Sessions that may not be here any more end, and streams and listeners that are not allowed any more; all others
        go on.  Blocks on the disk and until threads that accept have ended.  Raises UsageError for a certificate that
        cannot be used, TransportError for an address that cannot be bound: nothing has changed then.
        """
        with self._applying:
            changes = [one for one in changes_between(self._configured, settings) if not one.key.startswith(_TOLD)]
            accounts = self._accounts.read(settings.clients)
            in_effect, max_streams = self._affordable(settings)
            self._revocations.read_again()
            another = settings.audit != self._configured.audit
            with ExitStack() as undo:
                audit = AuditFile(settings.audit) if another and settings.audit is not None else None
                if audit is not None:
                    undo.callback(audit.close)
                monitor = change_monitor(self.monitor, settings.monitor, self._watcher, self._source)
                undo.callback(monitor.undo)
                lines = self.front_door.change(in_effect)
                undo.pop_all()
            monitor.keep()
            self.monitor = monitor.monitor
            if another:
                self.audit.use(audit)
            self._configured, self.settings, self._max_streams = settings, in_effect, max_streams
            self.node = in_effect.node or _host_name()
            self.registry.change(in_effect.limits.sessions, in_effect.takeover_timeout)
            self._application_keepalive = application_keepalive(in_effect.application_keepalive)
            tls = in_effect.tls
            own_names = () if tls is None else certificate_names(tls.certificate)
            self._published.change(by_tls=tls is not None, own_names=own_names)
            lines += [f"{change}{_when(change.key)}" for change in changes]
            lines += self._accounts.replace(accounts)
            lines += self._enforcement.enforce("a reload")
            self._enforcement.watch_ends()
            for session in self.registry.sessions:
                lines += [f"client {session.name}: {line}" for line in self._follow(session)]
            return lines

    def audit_reload(self, by: str, lines: Sequence[str], error: QanatError | None) -> None:
        """Note a reload in the audit log: what it changed, or why it did not take place."""
        if error is None:
            self.audit.record("reloaded", by=by, changes=list(lines))
        else:
            faults = [str(fault) for fault in getattr(error, "faults", ())] or [error.message]
            self.audit.record("reload failed", by=by, faults=faults)

    def _affordable(self, settings: ServerSettings) -> tuple[ServerSettings, int]:
        """Return `settings` with limits that the system allows, and how many streams it does."""
        if settings.limits == self._configured.limits:
            return replace(settings, limits=self.settings.limits), self._max_streams
        streams = affordable_streams(settings.limits.streams)
        return replace(settings, limits=affordable_limits(settings.limits)), streams

    def _follow(self, session: ServerSession) -> list[str]:
        """Have a session go by what the settings are now; return what that ended."""
        account = self._accounts.find(session.name)
        if account is None:
            return []  # it is ending
        return session.follow(
            account,
            connect_timeout=self.settings.connect_timeout,
            max_forwards=self.settings.limits.forwards,
            trusted_proxies=self.settings.trusted_proxies,
        )

    def start(self) -> None:
        """Bind and accept.  Does not block; raises TransportError when an address cannot be bound."""
        if self.settings.audit is not None:
            self.audit.use(AuditFile(self.settings.audit))
        self.monitor = open_monitor(self.settings.monitor, self._watcher, self._source)
        try:
            self.front_door.start()
            if self.monitor is not None:
                self.monitor.start()
        except BaseException:
            self.front_door.close()
            self._close_monitor()
            self.audit.close()
            raise
        self.audit.record("started", node=self.node, pid=os.getpid())
        self._enforcement.watch_ends()
        self._watcher.stir()  # while there are threads and descriptors for it
        self._resume_timeouts.start()
        reserve_threads(self.front_door.admission.make_room)
        where = ", ".join(format_address(address) for address in self.addresses)
        log.info("listening on %s", where, extra={"event": "listening"})
        log.info("server key fingerprint %s", self.identity.fingerprint)

    @property
    def _source(self) -> Source:
        return Source(self.snapshot, self._sums, self.events)

    def _lanes(self) -> list[Lane]:
        return [lane for session in self.registry.sessions for lane in session.lanes.values()]

    def open_control(self) -> None:
        """Let other processes of this user ask, in `state_dir`, until `stop`.  Does not block."""
        path = control_path(self.settings)
        if path is not None and self._control is None:
            self._control = ControlSocket(path, self._watcher, self.commands)
            self._control.start()

    def _sums(self, label_of: Callable[[str], str]) -> Sums:
        return self.observation.sums(self.settings, self.watchdog.look(0.1), label_of)

    def snapshot(self, wanted: Wanted = EVERYTHING) -> ServerSnapshot:
        """Return how the server is now.  Cheap, and does not block but for another thread that asks too."""
        snapshot = self.observation.snapshot(self.settings, self.watchdog.look(0.1), wanted)
        monitor = self.monitor  # which a reload may take away
        return snapshot if monitor is None else replace(snapshot, findings=monitor.findings)

    def stop(self) -> None:
        """End gracefully: no new connection or stream, `drain` seconds for open ones, then close the sessions.

        Blocks for `drain` and about ten seconds at most.
        """
        self.commands.stopping = True
        if self._control is not None:
            self._control.give_way()
        self.front_door.close()
        sessions = self.registry.close()
        for session in sessions:
            session.stop_listening()
            session.refuse_streams()
        deadline = Deadline(self.settings.drain)
        for session in sessions:
            session.drain(deadline)
        for session in sessions:
            session.stop(CloseReason.SHUTDOWN, f"{self.node} is shutting down")
        deadline = Deadline(JOIN_TIMEOUT)
        for session in sessions:
            if not session.ended.wait(deadline.remaining()):
                session.end("the server is shutting down")
        if self._control is not None:
            self._control.close()
        self._resume_timeouts.close()
        stuck = [*self.front_door.join(JOIN_TIMEOUT), *self._resume_timeouts.join(JOIN_TIMEOUT)]
        for session in sessions:
            stuck += session.joined.join(JOIN_TIMEOUT)
        stuck += self._close_monitor()
        self._watcher.close()
        self._enforcement.close()
        self.audit.record("stopped", node=self.node, pid=os.getpid())
        self.audit.close()
        release_threads()
        if stuck:
            log.warning("still running at the end: %s", ", ".join(stuck))

    def _close_monitor(self) -> list[str]:
        """Serve no metrics any more; return the names of threads that still do.  Idempotent."""
        return [] if self.monitor is None else self.monitor.close(JOIN_TIMEOUT)

    # --- one connection -------------------------------------------------------------------------

    def _serve_pipe(self, pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> Carry | None:
        """Shake hands, and return how to carry the pipe; None when this client was turned away."""
        deadline = Deadline(self.settings.limits.handshake_timeout)
        carry: Carry | None = None
        order = next(self._orders)
        try:
            handshake = ServerHandshake(
                self.identity,
                self._accounts.secrets_of,
                self.front_door.admission.rsa_gate,
                reject=self._accounts.reject,
            )
            sealed = server_handshake(pipe, handshake, deadline)
            with closed_at(deadline, pipe):
                carry = self._admit(sealed, address, deadline, order)
        except RefusedError as error:
            self.events.refused("wrong name or token")
            name = handshake.refused_name or None
            self.audit.record("refused", client=name, address=address.client, via=_via(address), why=str(error))
            log.warning("refused %s: %s", address, error, extra={"event": "refused", "peer": str(address)})
        except (HandshakeError, ProtocolError) as error:
            self.events.refused("handshake failed")
            log.warning("handshake with %s failed: %s", address, error)
        except QanatError as error:
            self.events.refused("cut in the handshake")
            if self._log_throttle.due("cut in handshake"):
                log.info("%s left in the handshake: %s", address, error)
        if carry is not None:  # also when the time was up just after READY: its lane is waiting for somebody
            slot.release()
        return carry

    def _admit(self, sealed: SealedPipe, address: ClientAddress, deadline: Deadline, order: int) -> Carry | None:
        """Judge HELLO and answer it; return what to do with the pipe, or None when this client was turned away."""
        kind, content = sealed.recv_record()
        if kind is not RecordKind.HELLO:
            raise ProtocolError(f"a {kind.name} record where HELLO was due")
        hello = Hello.decode(content)
        if hello.intent is Intent.NEW:
            return self._begin_session(sealed, hello, address, deadline, order)
        return self._resume_session(sealed, hello, address, deadline)

    def _begin_session(
        self, sealed: SealedPipe, hello: Hello, address: ClientAddress, deadline: Deadline, order: int
    ) -> Carry | None:
        """Begin a new session.  One that is for measuring has one lane, and ends with its pipe."""
        settings, client = self.settings, self._accounts.find(sealed.result.name)
        if client is None:
            self._turn_away_revoked(sealed, address)
            return None
        measures = hello.parameters.measure != 0
        if measures and not settings.bench:
            text = f"{self.node} lets nobody measure (bench: false in its configuration)"
            self.events.refused("measuring is off")
            log.warning("turned %s away: %s", address, text)
            self._audit_turned_away(sealed, address, text)
            _turn_away(sealed, RecordKind.CLOSE, Close(CloseReason.BUSY, text).encode())
            return None
        lanes = 1 if measures else max(1, min(hello.parameters.lanes, settings.limits.lanes))
        ours, theirs = self._parameters(lanes), hello.parameters
        if measures:
            ours = replace(ours, resume_for=0, measure=1)
        # A stream costs a file here, and threads while it is busy, whoever opens it: the client's limit is not all.
        theirs = replace(theirs, max_streams=min(theirs.max_streams, ours.max_streams))
        session = ServerSession(
            client.name,
            lane_parameters(
                settings.flow,
                settings.keepalive,
                ours.max_streams,
                theirs,
                client=False,
                lanes=lanes,
                resumable=settings.resume_for > 0,
                observer=self.events,
            ),
            secret=sealed.result.resume,
            resume_for=0.0 if measures else settings.resume_for,
            instance=hello.instance,
            origin=_describe_origin(sealed, address),
            account=client,
            connect_timeout=settings.connect_timeout,
            watcher=self._watcher,
            max_forwards=settings.limits.forwards,
            max_lanes=lanes,
            shared_ports=self._shared_ports,
            order=order,
            keepalive=self._application_keepalive,
            measures=measures,
            published=self._published,
            trusted_proxies=settings.trusted_proxies,
            audit=self.audit,
        )
        session.tokens[0] = sealed.result.token
        try:
            self.registry.claim(session, deadline)
        except tuple(_REASONS) as error:
            self.events.refused(_REASONS[type(error)].name.lower().replace("_", " "))
            log.warning("turned %s away: %s", address, error)
            self._audit_turned_away(sealed, address, str(error))
            session.end("it did not begin")
            _turn_away(sealed, RecordKind.CLOSE, Close(_REASONS[type(error)], str(error)).encode())
            return None
        if self._accounts.why_not(session.name, sealed.result.token):  # since the handshake
            self.registry.release(session)
            session.end("it did not begin")
            self._turn_away_revoked(sealed, address)
            return None
        self._follow(session)  # what may have changed since it was made
        try:
            session.agent = printable(hello.parameters.agent)
            self.observation.begun(session.name)
            session.on_end(lambda: self._session_ended(session))
            ready = Ready(Answer.NEW, self.node, ours, session=session.id)
            sealed.send_record(bytes((RecordKind.READY,)) + ready.encode())
        except BaseException:
            session.end("its connection was lost before it began")
            raise
        log.info(
            "%s connected from %s over %s, %s",
            f"{session.name}, to measure," if measures else session.name,
            address,
            sealed.pipe.transport,
            printable(hello.parameters.agent),
            extra={"event": "connected", "client": session.name, "peer": str(address)},
        )
        self.events.handshakes.add("measure" if measures else "new")
        session.audit.connected(
            "connected",
            0,
            sealed.result.token,
            address.client,
            _via(address) or "",
            sealed.pipe.transport,
            printable(hello.parameters.agent),
        )
        lane = session.add_lane(0)
        return partial(self._carry, session, 0, lane, sealed, address, FIRST_PIPE)

    def _resume_session(
        self, sealed: SealedPipe, hello: Hello, address: ClientAddress, deadline: Deadline
    ) -> Carry | None:
        """Take another pipe for a session.  A stolen, foreign, expired or unknown session gets the same answer."""
        name = sealed.result.name
        session = self.registry.find(name, hello.session)
        proven = hello.proof_holds(_NO_SECRET if session is None else session.secret, sealed.result.transcript)
        lane = None
        with contextlib.suppress(SessionEnded):
            lane = session.lane_for(hello) if session is not None and proven else None
        if session is None or lane is None:
            self.events.refused("session over")
            log.info("%s from %s asked for a session that is over", name, address)
            _turn_away(sealed, RecordKind.READY, Ready(Answer.EXPIRED, self.node, self._parameters(1)).encode())
            return None
        try:
            expected = lane.acquire(hello.epoch, hello.expected, deadline)
        except Superseded as error:
            self.events.refused("stale")
            log.info("%s from %s came too late: %s", name, address, error)
            _turn_away(sealed, RecordKind.CLOSE, Close(CloseReason.STALE, error.message).encode())
            return None
        except ProtocolError as error:
            close = Close(CloseReason.PROTOCOL, error.message)
            session.end(f"the client broke the protocol: {error.message}", close)
            _turn_away(sealed, RecordKind.CLOSE, close.encode())
            return None
        session.tokens[hello.lane] = sealed.result.token
        if self._accounts.why_not(name, sealed.result.token):  # since the handshake
            self._resume_timeouts.begin(session, hello.lane, lane)
            self._turn_away_revoked(sealed, address)
            return None
        self._resume_timeouts.stop(lane)
        try:
            session.origin = _describe_origin(sealed, address)
            session.agent = printable(hello.parameters.agent)
            ready = Ready(Answer.RESUMED, self.node, self._parameters(len(session.lanes)), session.id, expected)
            ready = ready.proven(session.secret, sealed.result.transcript)
            sealed.send_record(bytes((RecordKind.READY,)) + ready.encode())
        except BaseException:
            self._resume_timeouts.begin(session, hello.lane, lane)
            raise
        self.events.handshakes.add(hello.intent.name.lower())
        log.info(
            "%s %s from %s over %s, %s",
            lane.name,
            "resumed" if hello.intent is Intent.RESUME else "joined",
            address,
            sealed.pipe.transport,
            printable(hello.parameters.agent),
            extra={"event": "resumed", "client": name, "lane": hello.lane, "peer": str(address)},
        )
        session.audit.connected(
            "resumed" if hello.intent is Intent.RESUME else "joined",
            hello.lane,
            sealed.result.token,
            address.client,
            _via(address) or "",
            sealed.pipe.transport,
            printable(hello.parameters.agent),
        )
        resume = ResumePoint(hello.epoch, peer_expects=hello.expected, receive_from=expected)
        return partial(self._carry, session, hello.lane, lane, sealed, address, resume)

    def _carry(
        self,
        session: ServerSession,
        number: int,
        lane: Lane,
        sealed: SealedPipe,
        address: ClientAddress,
        resume: ResumePoint,
        on_over: Callable[[], None],
    ) -> None:
        """Carry a lane on its pipe; `on_over` is called when that is over.  Returns when little comes."""
        started = time.monotonic()

        def over(result: PipeResult) -> None:
            try:
                self._pipe_over(session, number, lane, address, resume, started, result)
            finally:
                on_over()

        place = PipePlace(sealed.pipe.transport, address.client, _via(address) or "")
        session.start(number, lane, sealed, resume, over, silence=self.settings.keepalive.timeout, place=place)

    def _pipe_over(
        self,
        session: ServerSession,
        number: int,
        lane: Lane,
        address: ClientAddress,
        resume: ResumePoint,
        started: float,
        result: PipeResult,
    ) -> None:
        """Say how a pipe ended, and have somebody wait for the lane's next one."""
        lived, cause = time.monotonic() - started, printable(result.cause)
        session.audit.disconnected(number, address.client, cause)
        extra = {"event": "disconnected", "client": session.name, "lane": number, "peer": str(address)}
        if session.ended.is_set() or session.find_lane(number) is not lane:
            log.info("%s from %s ended after %.0f s: %s", lane.name, address, lived, cause, extra=extra)
            if session.ended.is_set() and (stuck := session.joined.join(self.settings.connect_timeout + JOIN_TIMEOUT)):
                log.warning("%s: still ending: %s", session.name, ", ".join(stuck))
            return
        if not lane.attached:  # also when another pipe is about to have it, should that come to nothing
            self._resume_timeouts.begin(session, number, lane)
        if lane.epoch != resume.epoch:
            log.info("%s left %s after %.0f s: %s", lane.name, address, lived, cause, extra=extra)
        else:
            log.info(
                "%s from %s was lost after %.0f s: %s; its streams wait %g s for it",
                lane.name,
                address,
                lived,
                cause,
                session.resume_for,
                extra=extra,
            )

    def _session_ended(self, session: ServerSession) -> None:
        self.observation.ended(session)
        session.audit.ended(session.why, session.tally())
        self.registry.release(session)
        for lane in session.lanes.values():
            self._resume_timeouts.stop(lane)
        if not session.carried:
            log.info("the session of %s is over: %s", session.name, session.why)

    def _parameters(self, lanes: int) -> Parameters:
        settings = self.settings
        streams = share(self._max_streams, lanes)
        return hello_parameters(settings.flow, settings.keepalive, streams, lanes=lanes, resume_for=settings.resume_for)

    def _audit_turned_away(self, sealed: SealedPipe, address: ClientAddress, why: str) -> None:
        result = sealed.result
        self.audit.record(
            "turned away", client=result.name, token=result.token, address=address.client, via=_via(address), why=why
        )

    def _turn_away_revoked(self, sealed: SealedPipe, address: ClientAddress) -> None:
        """Say to a client that it is not allowed here since a moment ago; blocks as `_turn_away`."""
        why = self._accounts.why_not(sealed.result.name, sealed.result.token)
        log.warning("turned %s away: %s", address, why)
        self._audit_turned_away(sealed, address, why)
        _turn_away(sealed, RecordKind.CLOSE, Close(CloseReason.REVOKED, why).encode())


def _turn_away(sealed: SealedPipe, kind: RecordKind, content: bytes) -> None:
    """Say the last word to a client that gets no session here; blocks until it has ended the pipe."""
    sealed.send_last(bytes((kind,)) + content, "turned away")


def _describe_origin(sealed: SealedPipe, address: ClientAddress) -> str:
    """Return where a client connects from, in words, for another process that wants its name."""
    return f"{address} ({sealed.pipe.transport}) since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _host_name() -> str:
    # A host's name need not be ASCII, and READY's node name must.
    return socket.gethostname().encode("ascii", "replace").decode()[:255]


def _via(address: ClientAddress) -> str | None:
    """Return the trusted proxy by which somebody came, None without one."""
    return address.peer if address.via_proxy else None


def _when(key: str) -> str:
    """Return when an option that has changed takes effect, if that is not now; to be read after the change."""
    if key.startswith(_AT_START):
        return " (takes effect with a restart)"
    return " (for sessions that begin from now on)" if key.startswith(_FOR_NEW_SESSIONS) else ""


def run_server(
    settings: ServerSettings,
    stop: threading.Event,
    ready: Callable[[], None],
    reloader: Reloader[ServerSettings] | None = None,
) -> None:
    """Serve until `stop` is set; `ready` is called once connections are accepted.  Blocks.

    `reloader` can reload it meanwhile.

    After `stop` it returns within `drain` and about ten seconds.  Raises UsageError for an identity or
    certificate that cannot be used, TransportError for an address that cannot be bound.
    """
    server = Server(settings)
    server.observation.config = None if reloader is None else reloader.path
    server.start()
    server.open_control()
    reporter = ServiceReporter(server.watchdog.look, lambda: summary_of(server.snapshot(SUMMARY)))
    try:
        with nullcontext() if reloader is None else reloader.serving(settings, server.apply, server.watcher):
            if reloader is not None:
                reloader.told = server.audit_reload
                server.commands.register("reload", reload_command(reloader))
            ready()
            reporter.start()
            stop.wait()
        log.info("stopping: open streams have %g s to finish", server.settings.drain)
    finally:
        server.stop()
        reporter.stop()
        log.info("stopped")
