"""The running client: local listeners, and connections to the servers, of which one or all are wanted.

Threads: each server's connection has its own (`qanat.client.server_connection`), and so do the local forwards
(`qanat.client.local_forwards`); with several servers of which one is wanted, the *failover* thread decides which.
"""

from __future__ import annotations

import itertools
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import EndpointError, NoThread, QanatError, UsageError, WouldBlock
from qanat.base.events import Events
from qanat.base.proxy_protocol import encode
from qanat.base.sockets import local_of
from qanat.base.text import printable
from qanat.base.threads import ThreadGroup, start_thread
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.client.connect import Connector
from qanat.client.forward_changes import Fate, ForwardChange, compare_forwards
from qanat.client.forward_shares import ForwardShares, ServedForward
from qanat.client.known_hosts import KnownHosts
from qanat.client.live_forwards import add_command, remove_command
from qanat.client.local_forwards import LocalForwards
from qanat.client.local_port import Service
from qanat.client.network_watch import NetworkWatch
from qanat.client.observation import ClientObservation
from qanat.client.reload import MOVES, ServerPlan, describe_options, describe_server_change, effective, plan_servers
from qanat.client.remote_forwards import ForwardNumbers, change_of_remote
from qanat.client.server_connection import STOPPING, ServerConnection
from qanat.client.session import ClientSession
from qanat.client.status import Status, status_file
from qanat.config.client_settings import ClientSettings, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.control.commands import Commands
from qanat.control.kick import kick_command
from qanat.control.listener import ControlSocket
from qanat.control.log_level import log_level
from qanat.control.paths import control_path
from qanat.control.reload import reload_command
from qanat.control.status import status_command
from qanat.endpoints.pending import PendingConnection
from qanat.endpoints.stream_quota import StreamRoom, address_of
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.endpoints.udp import UdpFlow
from qanat.endpoints.wakeable import WakeableSocket
from qanat.handshake.hello import CloseReason
from qanat.handshake.key_pool import ClientKeyPool
from qanat.monitor.monitor import Monitor, Source, change_monitor, open_monitor
from qanat.monitor.sessions import EVERYTHING, SUMMARY, Wanted
from qanat.monitor.snapshot import ClientSnapshot
from qanat.monitor.summary import summary_of
from qanat.monitor.sums import Sums
from qanat.monitor.watchdog import ServiceReporter, Watchdog
from qanat.mux.frames import Reason, reason_name
from qanat.mux.lane import Lane
from qanat.process.allocator import MemoryReturn
from qanat.process.log_throttle import LogThrottle
from qanat.process.reloading import Reloader
from qanat.session.limits import CLIENT_STREAMS, affordable_streams, application_keepalive
from qanat.session.messages import Connect

log = logging.getLogger("qanat.client")

_NO_SESSION = "connections are reset while there is no session with the server"
ANSWER_TIMEOUT = 5.0
"""Seconds that connected servers get to say what became of remote forwards that are asked for while it runs."""
ALL = "all"
"""What `connect` says where each server has a session."""
JOIN_TIMEOUT = 5.0
"""Seconds, beyond `drain`, that sessions and threads get to end."""


@dataclass(slots=True)
class _Prepared:
    """What was made for the servers of other settings before anything was changed, by their index there."""

    connectors: dict[int, Connector] = field(default_factory=dict)
    """Of servers that stay and are reached otherwise from now on."""
    added: dict[int, ServerConnection] = field(default_factory=dict)


class Client:
    """A client from `start` to `stop`.  Methods may be called from any thread."""

    def __init__(self, settings: ClientSettings) -> None:
        """Read URLs and TLS files; raises UsageError when one of them cannot be used."""
        self.settings = settings
        """What it runs with now."""
        self._server_settings = settings.servers
        self._succeeded = False  # whether any session has been up
        self.failure: QanatError | None = None
        """Why the client gave up; None while it does not."""
        self.over = threading.Event()
        """Set when no server is tried any more, after `stop` or with `failure`."""
        self.events = Events()
        """What has happened so far, counted."""
        self._log_throttle = LogThrottle()
        self._stopping = threading.Event()
        self._max_streams = affordable_streams(CLIENT_STREAMS)
        self._keys = ClientKeyPool()
        self._watch = NetworkWatch()
        self._watcher = Watcher()
        self._watcher.add_chore(MemoryReturn(self._watcher.__len__).look)
        self._changed = threading.Condition()
        self._status = Status(status_file(settings))
        self.applying = threading.RLock()
        """Held for a change of the settings: one comes after the other."""
        self._room = StreamRoom(self._max_streams, tidy=self._watcher.tidy)
        self._granted = self._max_streams  # streams, the most that a server has
        self._shares = ForwardShares(self._room, self._watcher)
        self._shares.change(settings.forwards)
        self._numbers = ForwardNumbers(settings.forwards)
        self._local = LocalForwards(
            settings.forwards,
            self._shares.serve,
            Service(self._accepted, self._open_flow, self._enter, self._ask),
            self._watcher,
            application_keepalive(settings.application_keepalive),
        )
        self.commands = Commands()
        """What other processes can ask of this one."""
        path = control_path(settings)
        self._control = None if path is None else ControlSocket(path, self._watcher, self.commands, self.connect)
        self.monitor: Monitor | None = None
        """Where others can see what this does; None where the settings have none, and before `start`."""
        self._waiting = ThreadGroup("client")
        self._failover: threading.Thread | None = None
        self._known_hosts = KnownHosts((settings.state_dir or Path()) / "known_hosts")
        self._connectors = itertools.count(1)
        self.servers = tuple(self._connection(settings, server) for server in settings.servers)
        """The connections to the servers, in the order of the settings."""
        self._leaving: list[ServerConnection] = []  # to servers that are not in the settings any more
        self.observation = ClientObservation(settings.name, self.servers, self._local)
        self.watchdog = Watchdog(self._watcher, self._lanes)
        """Whether all of this moves."""
        self.commands.register("status", status_command(self.snapshot, self.observation.sample))
        self.commands.register("kick", kick_command(self._sessions, f"the client {settings.name}"))
        self.commands.register("log-level", log_level)
        self.commands.register("add", add_command(self))
        self.commands.register("remove", remove_command(self))

    def _connection(self, settings: ClientSettings, server: RemoteServer) -> ServerConnection:
        """Return a connection to a server, which does nothing yet.  Raises UsageError."""
        number = next(self._connectors)
        return ServerConnection(
            f"connector {number}" if len(settings.servers) > 1 or number > 1 else "connector",
            settings,
            server,
            keys=self._keys,
            known=self._known_hosts,
            watch=self._watch,
            watcher=self._watcher,
            max_streams=self._max_streams,
            changed=self._update,
            remotes=self._numbers.forwards,
            limits=self._shares.traffic,
            events=self.events,
        )

    # --- start and stop -------------------------------------------------------------------------

    def start(self) -> None:
        """Bind the local forwards, then connect in the background.  Does not block.

        A forward whose address cannot be bound is logged and asked for again.  With `exit_on_forward_failure` raises
        EndpointError instead, which names each of them; nothing is left bound then.  A remote one that a server cannot
        have sets `failure` later.
        """
        self.monitor = open_monitor(self.settings.monitor, self._watcher, self._source)
        try:
            self._local.bind(all_or_nothing=self.settings.exit_on_forward_failure)
            if self.monitor is not None:
                self.monitor.start()
        except BaseException:
            if self.monitor is not None:
                self.monitor.close()
            raise
        self._keys.start()
        self._watch.start()
        if self._control is not None:
            self._control.start()
        self._local.start()
        wanted = self.servers if self.settings.connect == ALL else self.servers[:1]
        for server in wanted:
            server.want(True)
        for server in self.servers:
            server.start()
        if len(wanted) < len(self.servers):
            self._failover = start_thread("failover", self._failover_loop)

    def stop(self) -> None:
        """End gracefully: no new connection, `drain` seconds for open ones, then close the sessions.

        Blocks for `drain` and about ten seconds at most.  Idempotent.
        """
        self._stopping.set()
        self.commands.stopping = True
        if self._control is not None:
            self._control.give_way()
        with self.applying:
            servers = (*self.servers, *self._leaving)
        for server in servers:
            server.stop_connecting()
        self._local.close()
        with self._changed:
            self._changed.notify_all()
        sessions = [server.session for server in servers if server.session is not None]
        deadline = Deadline(self.settings.drain)
        for session in sessions:
            session.drain(deadline)
        self._waiting.join(deadline.remaining() or 0.0)
        for session in sessions:
            session.stop(CloseReason.SHUTDOWN, STOPPING)
        deadline = Deadline(JOIN_TIMEOUT)
        for session in sessions:
            session.ended.wait(deadline.remaining())
        for server in servers:
            server.close()
        self._waiting.join(JOIN_TIMEOUT)
        if self._failover is not None:
            self._failover.join(JOIN_TIMEOUT)
        self._watch.close()
        if self._control is not None:
            self._control.close()
        if self.monitor is not None:
            self.monitor.close(JOIN_TIMEOUT)
        self._watcher.close()
        self._keys.close()
        self._status.close()

    def wait_unshared(self) -> None:
        """Block until no other process has a stream of this client, or it is stopped."""
        if self._control is not None:
            self._control.wait_unused()

    def _sums(self, label_of: Callable[[str], str]) -> Sums:
        return self.observation.sums(self.watchdog.look(0.1), label_of)

    def snapshot(self, wanted: Wanted = EVERYTHING) -> ClientSnapshot:
        """Return how the client is now.  Cheap, and does not block but for another thread that asks too."""
        snapshot = self.observation.snapshot(self.watchdog.look(0.1), wanted)
        monitor = self.monitor  # which a reload may take away
        return snapshot if monitor is None else replace(snapshot, findings=monitor.findings)

    @property
    def _source(self) -> Source:
        return Source(self.snapshot, self._sums, self.events)

    @property
    def watcher(self) -> Watcher:
        """What watches all its sockets; it is closed by `stop`."""
        return self._watcher

    def apply(self, settings: ClientSettings) -> list[str]:
        """Put `settings` into effect, and return what that did in words; nothing else is touched.

        Blocks until connected servers have answered for remote forwards, at most ANSWER_TIMEOUT.
        """
        with self.applying:
            if self._stopping.is_set():
                return []
            before, now = self.settings, effective(self.settings, settings)
            plan = plan_servers(before.servers, now.servers)
            change = self._prepare(before, now, plan)
            monitor = change_monitor(self.monitor, now.monitor, self._watcher, self._source)
            monitor.keep()
            self.monitor = monitor.monitor
            self.settings = replace(now, forwards=before.forwards)
            self._local.keepalive = application_keepalive(now.application_keepalive)
            done = [*describe_options(before, settings), *self._change_servers(now, plan, change)]
            return done + [str(change) for change in self._change_forwards(settings.forwards, ANSWER_TIMEOUT)]

    @property
    def local_ports(self) -> list[int]:
        """The ports bound for the local forwards, in their order; known after `start`."""
        return self._local.ports

    # --- while it runs ----------------------------------------------------------------------------

    def change_forwards(self, forwards: Sequence[Forward], timeout: float = ANSWER_TIMEOUT) -> list[ForwardChange]:
        """Have these forwards in place of the present ones; return what came of each that differs.

        The others are not touched.  Blocks until connected servers have answered, at most `timeout` seconds.
        """
        with self.applying:
            return self._change_forwards(forwards, timeout)

    def bound_ports(self, forward: Forward) -> tuple[int, ...]:
        """Return the ports that really are bound for a forward: here, or at each server that listens for it."""
        found = list(self._local.bound_ports(forward))
        number = next((one for one in self._numbers.forwards if one.forward == forward), None)
        if number is not None:
            for session in self._sessions():
                found += session.remotes.bound_ports(number)
        return tuple(found)

    def _change_forwards(self, forwards: Sequence[Forward], timeout: float) -> list[ForwardChange]:
        if self._stopping.is_set() or tuple(forwards) == self.settings.forwards:
            return []
        fates = compare_forwards(
            *([one for one in each if one.kind == "remote"] for each in (self.settings.forwards, forwards))
        )
        self._shares.change(forwards)
        self._numbers.change(forwards)
        changes = self._local.change(forwards, self._shares.serve)
        self.settings = replace(self.settings, forwards=tuple(forwards))
        sessions = [server.change_remotes(self._numbers.forwards) for server in self.servers]
        asked = [session.remotes for session in sessions if session is not None and session.attached]
        begun = [one for one in self._numbers.forwards if one.forward in fates.changed or one.forward in fates.added]
        deadline = Deadline(timeout)
        for remotes in asked:
            remotes.wait(begun, deadline)
        changes += [ForwardChange(Fate.REMOVED, forward) for forward in fates.removed]
        for one in begun:
            changes.append(change_of_remote(one, fates.changed.get(one.forward), asked))
        return changes

    def _lanes(self) -> list[Lane]:
        return [lane for session in self._sessions() for lane in session.lanes.values()]

    def _sessions(self) -> list[ClientSession]:
        return [session for server in self.servers if (session := server.session) is not None]

    def _prepare(self, before: ClientSettings, now: ClientSettings, plan: ServerPlan) -> _Prepared:
        """Make what the servers of other settings need.  Raises UsageError, which says all that is wrong."""
        faults: list[UsageError] = []
        prepared = _Prepared()
        pairs = (*plan.kept, *(() if plan.moved is None else (plan.moved,)))
        for index, server in enumerate(now.servers):
            former = next((self.servers[old] for old, new in pairs if new == index), None)
            try:
                if former is None:
                    prepared.added[index] = self._connection(now, server)
                elif not former.connector.goes(now, server):
                    prepared.connectors[index] = Connector(now, server, self._keys, self._known_hosts)
            except UsageError as error:
                faults.append(error)
        if faults:
            raise UsageError("; ".join(dict.fromkeys(fault.message for fault in faults)), hint=faults[0].hint)
        return prepared

    def _change_servers(self, now: ClientSettings, plan: ServerPlan, prepared: _Prepared) -> list[str]:
        """Go on with the servers of these settings; return what that did, in words."""
        done: list[str] = []
        before, servers = self._server_settings, dict[int, ServerConnection]()
        for old, new in plan.kept:
            connection, server = self.servers[old], now.servers[new]
            done += describe_server_change(before[old], server)
            done += connection.adopt(now, server, prepared.connectors.get(new))
            servers[new] = connection
        if plan.moved is not None:
            old, new = plan.moved
            connection, server = self.servers[old], now.servers[new]
            former = connection.connector
            done.append(f"server {server.urls[0]} in place of {before[old].urls[0]}: {MOVES}, if it is the same one")
            done += connection.adopt(
                now,
                server,
                prepared.connectors.get(new),
                lambda: self._go_elsewhere(connection, before[old], former),
            )
            servers[new] = connection
        removed = [self.servers[old] for old in plan.removed]
        for old in plan.removed:
            done.append(f"removed server {before[old].urls[0]}: its session ends with its last stream")
        for new, connection in prepared.added.items():
            done.append(f"added server {now.servers[new].urls[0]}")
            servers[new] = connection
        with self._changed:
            self.servers = tuple(servers[index] for index in range(len(now.servers)))
            self._server_settings = now.servers
        for connection in prepared.added.values():
            connection.change_remotes(self._numbers.forwards)
            connection.start()
        self._choose_servers()
        self._dismiss(removed)
        return done

    def _go_elsewhere(self, connection: ServerConnection, server: RemoteServer, former: Connector) -> None:
        """Let the session stay where it is, and begin another one: the server in the settings is not its own."""

        def part() -> None:
            with self.applying:
                if self._stopping.is_set() or self.servers != (connection,):
                    return
                try:
                    new = self._connection(self.settings, self.settings.servers[0])
                except UsageError as error:
                    log.error("%s", error)
                    return
                connection.adopt(self.settings, server, former)
                with self._changed:
                    self.servers = (new,)
                new.start()
                self._choose_servers()
                log.info("%s is another server: streams stay with the former one until they end", new.url)
                self._dismiss([connection])

        try:
            self._waiting.start("another-server", part)
        except NoThread as error:
            log.warning("the former server is kept for now: %s", error)

    def _dismiss(self, connections: Sequence[ServerConnection]) -> None:
        """Part from servers that are not in the settings any more."""
        for connection in connections:
            connection.dismiss()
        gone = [one for one in self._leaving if one.over]
        self._leaving = [*(one for one in self._leaving if not one.over), *connections]
        self.observation.servers = (*self.servers, *self._leaving)
        for one in gone:
            one.close()
        self._update()

    def _choose_servers(self) -> None:
        """Want the servers that are needed now."""
        if self._failover is None and len(self.servers) > 1 and self.settings.connect != ALL:
            self._failover = start_thread("failover", self._failover_loop)
        with self._changed:
            self._choose_servers_locked(time.monotonic())
            self._changed.notify_all()

    def _update(self) -> None:
        """Draw the conclusions from a change of any server's connection, and wake those who wait for a session."""
        servers = self.servers
        refusals = [server.refused for server in servers if server.refused is not None]
        self._succeeded = self._succeeded or any(server.succeeded for server in servers)
        granted = max((session.peer_max_streams for server in servers if (session := server.session)), default=0)
        if granted > self._granted:
            self._granted = granted
            self._room.grow(affordable_streams(granted, asked=False))
        if self.failure is None and not self._stopping.is_set():
            self.failure = next(filter(None, (server.forward_failure for server in servers)), None)
            if self.failure is None and len(refusals) == len(servers) and not self._succeeded:
                self.failure = refusals[0]
        if self.failure is not None or all(server.over for server in servers):
            self.over.set()
        with self._changed:
            self._changed.notify_all()
        try:
            self._status.update(self._look)
        except Exception:
            log_unexpected("telling the client's status failed")

    def _look(self) -> tuple[bool, str]:
        """Return whether a session is connected, and what the servers' connections are doing."""
        sessions = [server.session for server in self.servers]
        connected = any(session is not None and session.attached for session in sessions)
        return connected, "; ".join(filter(None, (server.status for server in self.servers)))

    # --- local forwards -------------------------------------------------------------------------

    def _accepted(self, served: ServedForward, sock: socket.socket, peer: str) -> None:
        forward = served.forward
        assert isinstance(forward.to, TcpAddress | UnixAddress)
        request, over = Connect(forward.to, peer).encode(), self._enter(served, sock, peer)
        if over is None:
            return
        what = served.name
        first = encode(forward.proxy_protocol, peer, local_of(sock)) if forward.proxy_protocol else b""

        def give_up(error: QanatError) -> None:
            WakeableSocket(sock, peer).close(orderly=False)
            over()
            if self._log_throttle.due(type(error).__name__ + error.message):
                log.warning("%s: %s", what, error)

        def join(session: ClientSession) -> None:
            session.join_accepted(sock, peer, request, what, over, served.traffic, first=first)

        self._join(peer, join, give_up)

    def _enter(self, served: ServedForward, sock: socket.socket, peer: str) -> Callable[[], None] | None:
        """Count a connection to a forward; return what has to be called when it is over, None when it may not come."""
        address = address_of(peer)
        refused = served.quota.enter(address)
        if not refused:
            return partial(served.quota.leave, address)
        self.events.refused("quota")
        sock.close()  # which resets it
        if self._log_throttle.due(f"quota of {served.forward}"):
            log.warning("%s: closed the connection from %s: %s", served.forward, peer, refused)
        return None

    def _ask(self, served: ServedForward, pending: PendingConnection, to: TcpAddress) -> None:
        what = str(served.forward)
        self.connect(pending, to, f"{what}, to {to}", served.traffic, kind="dynamic", forward=what)

    def connect(
        self,
        pending: PendingConnection,
        to: TcpAddress,
        what: str,
        limits: TrafficLimits | None = None,
        *,
        kind: str = "stdio",
        forward: str = "",
    ) -> None:
        """Open a stream to `to` for a connection whose user waits for word of it.  Does not block.

        `kind` and `forward` are for people.  Whatever fails is told to `pending`.
        """
        request = Connect(to, pending.origin).encode()

        def give_up(error: QanatError) -> None:
            code = error.code if isinstance(error, EndpointError) else Reason.LIMIT
            pending.refused(Reason(code), error.message)

        def join(session: ClientSession) -> None:
            session.join_pending(pending, request, what, limits, kind=kind, forward=forward)

        self._join(pending.origin, join, give_up)

    def _join(self, who: str, join: Callable[[ClientSession], None], give_up: Callable[[QanatError], None]) -> None:
        """Call `join` with the session for a new stream, as soon as there is one, else `give_up`.  Does not block."""

        session = self._choose()
        try:
            if session is not None:
                join(session)
                return
            if len(self._waiting) >= self._max_streams:
                raise EndpointError(f"{self._max_streams} connections wait for a session already", code=Reason.LIMIT)
            self._waiting.start(f"{who}-down", lambda: self._join_when_connected(join, give_up))
        except (NoThread, EndpointError) as error:
            give_up(error)

    def _join_when_connected(
        self, join: Callable[[ClientSession], None], give_up: Callable[[QanatError], None]
    ) -> None:
        """Do as `_join`, and block for the session."""
        session = self._wait_for_session()
        try:
            if session is None:
                raise EndpointError(_NO_SESSION, code=Reason.SESSION_ENDED)
            join(session)
        except (NoThread, EndpointError) as error:
            give_up(error)

    def _open_flow(
        self,
        served: ServedForward,
        to: UdpAddress,
        origin: str,
        on_datagram: Callable[[bytes], None],
        on_over: Callable[[int, str], None],
    ) -> UdpFlow:
        """Open a flow for who sent to a local forward.  Does not block.  Raises as `Session.open_flow`."""

        forward, quota = served.forward, served.quota

        def warn(why: str) -> None:
            if self._log_throttle.due(f"{forward}: {why}"):
                log.warning("%s from %s: %s", forward, origin, why)

        def over(reason: int, text: str) -> None:
            if reason not in (Reason.CANCELED, Reason.SESSION_ENDED):
                warn(f"{reason_name(reason)}: {printable(text)}")
            on_over(reason, text)

        session = self._choose()
        if session is None:
            raise WouldBlock
        address = address_of(origin)
        refused = quota.enter(address)
        try:
            if refused:
                self.events.refused("quota")
                raise EndpointError(refused, code=Reason.LIMIT)
            return session.open_flow(
                Connect(to, origin).encode(),
                on_datagram,
                over,
                limits=served.traffic,
                done=lambda: quota.leave(address),
                forward=str(forward),
            )
        except QanatError as error:
            if not refused:
                quota.leave(address)
            if isinstance(error, EndpointError):
                warn(str(error))
            raise

    def _wait_for_session(self) -> ClientSession | None:
        """Return a session that is connected; when there is none, block for one for `connect_timeout`.

        After that, return one that may be connected again; None when there is none at all.
        """
        deadline = Deadline(self.settings.connect_timeout)
        with self._changed:
            while (session := self._choose()) is None and not self._stopping.is_set() and not deadline.passed:
                self._changed.wait(deadline.remaining())
            if session is None:
                session = next((server.session for server in self.servers if server.session is not None), None)
            return session

    def _choose(self) -> ClientSession | None:
        """Return the session for a new stream: the first server's in order, or of all wanted the least loaded one.

        None while there is none.  With or without the lock: it is a choice of this moment, and may be over by the next.
        """
        live: list[ClientSession] = []
        for server in self.servers:
            session = server.session
            if session is not None and session.attached and not session.retired:
                if self.settings.connect != ALL:
                    return session
                live.append(session)
        random.shuffle(live)  # among equals, not always the first
        return min(live, key=lambda session: session.open_streams, default=None)

    # --- which server ---------------------------------------------------------------------------

    def _failover_loop(self) -> None:
        with self._changed:
            while not self._stopping.is_set():
                try:
                    again = self._choose_servers_locked(time.monotonic())
                except Exception:
                    log_unexpected("choosing a server failed")
                    again = self.settings.failover_after
                self._changed.wait(again)

    def _choose_servers_locked(self, now: float) -> float | None:
        """Want the servers that are needed, and only these; return the seconds until the choice may change by itself.

        A server is needed while every one before it has been disconnected for `failover_after`, or refuses us.
        """
        needed, again = True, None
        for server in self.servers if self.settings.connect != ALL else ():
            server.want(needed)
            session = server.session
            if session is not None:
                if needed:
                    session.return_to_service()
                else:
                    session.retire()
            if needed and server.refused is None:
                since = server.disconnected_since
                remaining = None if since is None else since + self.settings.failover_after - now
                if remaining is None or remaining > 0:
                    needed, again = False, remaining
        if self.settings.connect == ALL:
            for server in self.servers:
                server.want(True)
                if server.session is not None:
                    server.session.return_to_service()
        return again


def run_client(
    settings: ClientSettings,
    stop: threading.Event,
    ready: Callable[[], None],
    reloader: Reloader[ClientSettings] | None = None,
) -> None:
    """Run a client until `stop` is set; `ready` is called once it listens and has begun to connect.  Blocks.

    `reloader` can reload it meanwhile.

    After `stop` it returns within `drain` and about ten seconds.  Raises EndpointError for forwards that cannot be had,
    with `exit_on_forward_failure`, and RefusedError when the server refuses us before any session was ever up.
    """
    client = Client(settings)
    client.observation.config = None if reloader is None else reloader.path
    client.start()

    def stop_when_over() -> None:
        client.over.wait()
        stop.set()

    watcher = start_thread("stop-watcher", stop_when_over)
    reporter = ServiceReporter(client.watchdog.look, lambda: summary_of(client.snapshot(SUMMARY)))
    try:
        with nullcontext() if reloader is None else reloader.serving(settings, client.apply, client.watcher):
            if reloader is not None:
                client.commands.register("reload", reload_command(reloader))
            ready()
            reporter.start()
            stop.wait()
        if client.failure is None:
            log.info("stopping: open streams have %g s to finish", client.settings.drain)
    finally:
        client.stop()
        reporter.stop()
    watcher.join(JOIN_TIMEOUT)
    if client.failure is not None:
        raise client.failure
    log.info("stopped")
