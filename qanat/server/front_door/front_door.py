"""The server's listening sockets: binds them, accepts, and gives each connection a thread of its own.

What happens on a connection is `qanat.server.front_door.connection`; who is let in is
`qanat.server.admission.admission`.  `qanat.server.server` owns one FrontDoor, and the pipes that it hands over.

Threads: `accept HOST:PORT`, one for each listener, blocks in accept() or, when the process can hold no more
connections, on a condition; `front HOST:PORT`, one for each connection, named after the other end; `front door
deadlines`, which cuts connections that take too long to become a pipe.  `close` ends all but those that carry a
pipe; `join` waits for all.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from qanat.base.addresses import listen_addresses
from qanat.base.deadline import Deadline
from qanat.base.deadline_watch import DeadlineWatch
from qanat.base.errors import BindError, NoThread, OutOfFiles, QanatError, TransportError
from qanat.base.events import Events
from qanat.base.listen import Acceptor, bind
from qanat.base.sockets import close_socket, format_address
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.base.usage import Usage
from qanat.base.watcher import Watcher
from qanat.config.server_settings import ServerSettings, ServerTls
from qanat.process.log_throttle import LogThrottle
from qanat.server.admission.admission import Admission
from qanat.server.front_door.connection import FrontConnection
from qanat.server.front_door.context import FrontDoorContext, OnPipe
from qanat.server.front_door.kept_connection import KeptConnections
from qanat.server.front_door.probes import Probes
from qanat.server.published_names import PublishedNames
from qanat.transports.split.server import SplitPipes
from qanat.transports.wire.tls_contexts import ReloadingServerContext

log = logging.getLogger("qanat.front_door")

ALPN = ("h2", "http/1.1")
"""What is offered over TLS, in order of preference."""

_BACKLOG = 1024
"""Connections the kernel keeps for us while we are busy; it applies its own ceiling (net.core.somaxconn)."""

_PAUSE = 1.0
"""Seconds after which accept is tried again though no connection of ours has ended: others free resources, too."""

_TRIES = 3
"""How often a connection for which there is no thread has others give way."""
_THREAD_COMES_BACK = 0.02
"""Seconds from a connection's end until the pool has its thread again."""


class FrontDoor:
    """Accepts connections from `start` until `close`.

    `on_pipe(pipe, address, slot)` is called in the connection's own thread once a client has upgraded, before any
    handshake message; it owns the pipe until it returns, and the pipe is closed then.  It calls `slot.release()`
    when the client is authenticated; otherwise the slot is released when it returns.
    """

    def __init__(
        self,
        settings: ServerSettings,
        on_pipe: OnPipe,
        on_end: Callable[[], object] = lambda: None,
        *,
        watcher: Watcher | None = None,
        names: PublishedNames | None = None,
        events: Events | None = None,
    ) -> None:
        """Load the certificate, if there is one; raises UsageError when it cannot be used.

        `on_end` is called when a connection is over, and must not block.  `watcher` waits for what split pipes' clients
        send; without one, the front door has its own.  A TLS connection that asks for one of `names` is theirs.
        `events` counts who is turned away, and why.
        """
        self._settings = settings
        self._names = names
        self._on_end = on_end
        events = Events() if events is None else events
        self.admission = Admission(settings.limits, events=events)
        self._closing = threading.Event()
        self._log_throttle = LogThrottle()
        self._threads = ThreadGroup("front door")
        context = None if settings.tls is None else _tls_context(settings.tls)
        self._own_watcher = Watcher() if watcher is None else None
        watching = self._own_watcher if watcher is None else watcher
        assert watching is not None  # it is one of the two
        self._split = SplitPipes(watching, self._split_pipe_over)
        self._kept = KeptConnections(watching, self._threads, settings.limits.header_timeout)
        self._context = FrontDoorContext(
            settings=settings,
            tls=context,
            admission=self.admission,
            on_pipe=on_pipe,
            closing=self._closing,
            log_throttle=self._log_throttle,
            threads=self._threads,
            probes=Probes(settings.path, enabled=settings.doctor, closing=self._closing),
            split=self._split,
            names=names if _takes_names(settings) else None,
            kept=self._kept,
            events=events,
            watcher=watching,
        )
        self._deadlines = DeadlineWatch("front door deadlines")
        self._listeners: list[tuple[tuple[str, int], Acceptor]] = []  # with what the settings say
        self.addresses: tuple[tuple[str, int], ...] = ()
        """What is listened on, with the ports that were really bound; empty before `start`."""
        self._changed = threading.Condition()  # guards _connections; notified when one ends, and by close
        self._connections: set[FrontConnection] = set()

    @property
    def used_most(self) -> dict[str, Usage]:
        """How near all that came has been to each limit, by the limit's name; connections count once they are over."""
        connections = Usage(self.admission.unfinished.most, self._settings.limits.connections)
        return {**self._context.used_most, **self.admission.used_most, "connections that are no pipes": connections}

    @property
    def used_most_by_address(self) -> tuple[dict[str, Usage], dict[str, Usage]]:
        """What each address used of its budget behind trusted proxies, and of `limits.per_address_burst`."""
        return self._context.budgets.used_most, self.admission.used_most_by_address

    def start(self) -> None:
        """Bind every address of `settings.listen`, then accept.  Does not block; all or nothing.

        Raises TransportError when an address cannot be bound, and UsageError when it is no address at all.
        """
        try:
            for asked in self._settings.listen:
                self._listeners.append((asked, _bind(asked)))
        except QanatError:
            self.close()
            raise
        self._note_addresses()
        self._deadlines.start()
        for _, listener in self._listeners:
            self._accept_from(listener)

    def _note_addresses(self) -> None:
        self.addresses = tuple(address for _, listener in self._listeners for address in listener.addresses)

    def _accept_from(self, listener: Acceptor) -> None:
        where = format_address(listener.addresses[0])
        self._threads.start(f"accept {where}", partial(self._accept_loop, listener))

    def change(self, settings: ServerSettings) -> list[str]:
        """Go by other settings from now on, and return what that did to listeners and certificates, in words.

        Connections that there are stay, and so do listeners that are still wanted.  Does not block.  Raises UsageError
        for a certificate that cannot be used, TransportError for an address that cannot be bound, and NoThread: nothing
        has changed then.
        """
        context, lines = self._context.tls, list[str]()
        if settings.tls != self._settings.tls or (context is not None and context.changed):
            context = None if settings.tls is None else _tls_context(settings.tls)
            lines.append("tls: new connections get the new certificate" if context else "tls: none any more")
        lines += self._listen_on(settings.listen)
        self._settings = self._context.settings = settings
        self._context.tls = context
        self._context.names = self._names if _takes_names(settings) else None
        self.admission.change(settings.limits)
        self._context.probes.change(settings.path, enabled=settings.doctor)
        self._kept.header_timeout = settings.limits.header_timeout
        return lines

    def _listen_on(self, wanted: Sequence[tuple[str, int]]) -> list[str]:
        """Bind what is wanted and not bound, then leave what is not wanted any more.  All or nothing."""
        missing = Counter(wanted)
        unwanted = []
        for asked, listener in self._listeners:
            if missing[asked]:
                missing[asked] -= 1
            else:
                unwanted.append((asked, listener))
        # An address that another one stands in the way of, as 0.0.0.0 of 127.0.0.1, has to wait until that is left.
        ports = {port for (_, port), _ in unwanted}
        new = sorted(missing.elements(), key=lambda asked: asked[1] in ports)
        bound: list[tuple[tuple[str, int], Acceptor]] = []
        left: list[tuple[str, int]] = []
        try:
            for asked in new:
                try:
                    bound.append((asked, _bind(asked)))
                except TransportError:
                    in_the_way = [one for one in unwanted if one[0][1] == asked[1] and one[0] not in left]
                    if not in_the_way:
                        raise
                    for one in in_the_way:
                        self._leave(one)
                        left.append(one[0])
                    bound.append((asked, _bind(asked)))
            for _, listener in bound:
                self._accept_from(listener)
        except QanatError:
            for _, listener in bound:
                listener.close()
            for asked in left:  # which was free a moment ago
                self._take_back(asked)
            raise
        for one in unwanted:
            if one[0] not in left:
                self._leave(one)
        self._listeners += bound
        self._note_addresses()
        lines = [f"listen: {format_address(listener.addresses[0])} added" for _, listener in bound]
        return lines + [f"listen: {format_address(listener.addresses[0])} removed" for _, listener in unwanted]

    def _leave(self, one: tuple[tuple[str, int], Acceptor]) -> None:
        self._listeners.remove(one)
        one[1].close()

    def _take_back(self, asked: tuple[str, int]) -> None:
        try:
            listener = _bind(asked)
            self._accept_from(listener)
        except QanatError as error:
            log.error("%s; it was listened on before, and is not any more", error)
        else:
            self._listeners.append((asked, listener))
            self._note_addresses()

    def close(self) -> None:
        """Stop accepting, then end the connections that are no pipes yet.  Idempotent; does not block.

        Pipes that were handed over are their owner's to end.
        """
        self._closing.set()
        for _, listener in self._listeners:
            listener.close()
        with self._changed:
            self._changed.notify_all()
            for connection in self._connections:
                connection.give_way()
        self._context.probes.close()
        self._deadlines.close()
        self._split_pipe_over()

    def _split_pipe_over(self) -> None:
        """Have the connections end that split pipes' requests came on, once the last of these pipes is over."""
        if self._closing.is_set() and not len(self._split):
            self._kept.close()
            with self._changed:
                connections = list(self._connections)
            for connection in connections:
                connection.give_way()

    def join(self, timeout: float) -> list[str]:
        """Wait at most `timeout` seconds for every thread and connection; return the names of those still there."""
        deadline = Deadline(timeout)
        self._split.let_go()
        stuck = self._threads.join(timeout) + self._deadlines.join(deadline.remaining() or 0.0)
        if stuck:
            return stuck
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, deadline.remaining())
            stuck = [f"the connection from {connection.peer}" for connection in self._connections]
        if self._own_watcher is not None:
            self._own_watcher.close()
        return stuck

    # --- accepting

    def _accept_loop(self, listener: Acceptor) -> None:
        accepting = True
        while accepting:
            try:
                accepting = self._accept(listener)
            except OutOfFiles as error:
                if self._log_throttle.due("accept"):
                    log.error("cannot accept connections: %s; who is not authenticated gives way", error)
                self._make_room()
            except Exception:
                log_unexpected("accepting a connection failed")
                self._wait_for_an_end()

    def _accept(self, listener: Acceptor) -> bool:
        """Block for one connection, and serve it in a thread of its own; return False once closing."""
        accepted = listener.accept()
        if accepted is None:
            return False
        sock, address = accepted
        try:
            if self._wait_for_room():
                self._serve_in_thread(sock, address)
                return True
        except BaseException:
            close_socket(sock)
            raise
        close_socket(sock)
        return False

    def _wait_for_room(self) -> bool:
        """Block while `limits.connections` are open; return False once closing.

        One that is no pipe yet gives way: the oldest of the address that has most of them, so that nobody can
        keep others out by doing nothing.  When all are pipes, newcomers wait in the kernel's backlog.
        """
        limit = self._settings.limits.connections
        with self._changed:
            while not self._closing.is_set() and len(self._connections) >= limit:
                if self._log_throttle.due("connections"):
                    log.warning("%d connections are open (limits.connections): others wait until one ends", limit)
                # Again after a while: the one that was asked may have become a pipe meanwhile.
                self.admission.unfinished.displace()
                self._changed.wait(_PAUSE)
        return not self._closing.is_set()

    def _make_room(self) -> None:
        """End one that is not authenticated, for its descriptor or thread, and block until one has ended, or a while.

        Without that, connections that do nothing would keep everybody out.  To try again at once would only burn the
        processor.
        """
        with self._changed:
            self.admission.make_room()
            if not self._closing.is_set():
                self._changed.wait(_PAUSE)

    def _wait_for_an_end(self) -> None:
        with self._changed:
            if not self._closing.is_set():
                self._changed.wait(_PAUSE)

    def _serve_in_thread(self, sock: socket.socket, address: tuple[object, ...]) -> None:
        connection = FrontConnection(self._context, sock, address, self._forget)
        with self._changed:
            self._connections.add(connection)
            self.admission.unfinished.add(connection, connection.ip, connection.give_way)
            closing = self._closing.is_set()
        if closing:
            connection.cut()
        self._deadlines.add(connection)
        started = False
        try:
            started = self._start_or_make_room(connection)
        finally:
            if not started:
                self._forget(connection)
                connection.close()
        if not started:
            self._wait_for_an_end()

    def _start_or_make_room(self, connection: FrontConnection) -> bool:
        """Serve a connection in a thread, if need be in that of one which has to end for it; False without one."""
        for _ in range(_TRIES):
            try:
                self._threads.start(f"front {connection.peer}", connection.serve)
            except NoThread as error:
                if self._log_throttle.due("threads"):
                    log.error("cannot serve connections: %s; who is not authenticated gives way", error)
            else:
                return True
            self._make_room()
            self._closing.wait(_THREAD_COMES_BACK)
        return False

    def _forget(self, connection: FrontConnection) -> None:
        self._deadlines.forget(connection)
        self.admission.unfinished.forget(connection)
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()
        self._on_end()


def _bind(asked: tuple[str, int]) -> Acceptor:
    """Return what listens there.  Raises TransportError, and UsageError for what is no address at all."""
    host, port = asked
    try:
        return Acceptor(bind(listen_addresses(host, port), backlog=_BACKLOG))
    except BindError as error:
        raise TransportError(error.message, hint=error.hint or "see `listen` in the configuration") from error


def _tls_context(tls: ServerTls) -> ReloadingServerContext:
    return ReloadingServerContext(tls.certificate, tls.key, ALPN, client_ca=tls.client_ca)


def _takes_names(settings: ServerSettings) -> bool:
    """Return whether TLS connections for published names come in here."""
    return settings.tls is not None and any(client.allow_publish for client in settings.clients)
