"""Ports that several clients' remote forwards share: each connection goes to the least loaded client that is there.

A port is bound when the first client asks for it and freed when the last one has left.  Who may share which port
is `qanat.server.access.rules`'s to say.  One `SharedPorts` serves all sessions of a server, and its published names
(`qanat.server.published_names`), which are shared in the same way.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Hashable
from typing import Protocol

from qanat.base.addresses import ListenAddress
from qanat.base.watcher import Watcher
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.tcp import Listener

Accept = Callable[[socket.socket, str, Callable[[], None]], None]


class SharedListener(Protocol):
    """What accepts connections at a place: a `Listener` of any kind."""

    address: str
    port: int

    def start(self) -> None:
        """Accept connections from now on.  Raises EndpointError."""

    def close(self) -> None:
        """Stop, and free the place."""


Listen = Callable[[Callable[[socket.socket, str], None]], SharedListener]


class Acceptor(Protocol):
    """What serves connections: a session."""

    name: str

    @property
    def attached(self) -> bool:
        """Whether its client is connected right now."""


class Membership:
    """One forward's share of a port.  As a `Listener`, it has `address` and `port`, and is closed once."""

    def __init__(self, ports: SharedPorts, shared: _SharedPort, acceptor: Acceptor, accept: Accept) -> None:
        self._ports = ports
        self._shared = shared
        self.acceptor = acceptor
        self.accept = accept
        self.open = 0  # connections given to it that have not ended; guarded by the shared port's lock
        self.last = 0  # the number of the last connection given to it
        self.address = shared.listener.address
        self.port = shared.listener.port

    def done(self) -> None:
        """Count a connection that `accept` was called with as ended."""
        with self._shared.lock:
            self.open -= 1

    def close(self) -> None:
        """Take no more connections; the last member to leave frees the port.  Idempotent, from any thread."""
        self._ports.leave(self._shared, self)


class _SharedPort:
    """One listener and its members, who come and go under the lock of `SharedPorts` as well as this one's."""

    def __init__(self, asked_for: Hashable, listen: Listen) -> None:
        self.lock = threading.Lock()
        self.members: list[Membership] = []
        self.asked_for = asked_for
        self._numbers = itertools.count(1)  # of connections, guarded by the lock
        self.listener = listen(self.accepted)

    def accepted(self, sock: socket.socket, peer: str) -> None:
        """Hand a connection to one of the members."""
        with self.lock:
            # One that is not connected is left out, unless all are: then it is for whoever comes back.
            member = min(self.members, key=lambda m: (not m.acceptor.attached, m.open, m.last), default=None)
            if member is not None:
                member.open += 1
                member.last = next(self._numbers)
        if member is None:
            sock.close()  # which resets it: the last member has just left
        else:
            member.accept(sock, peer, member.done)


class SharedPorts:
    """The shared ports of one server.  Safe to use from any thread."""

    def __init__(self, watcher: Watcher, keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE) -> None:
        """`watcher` accepts; it is closed, by its owner, after the last member has left."""
        self._watcher = watcher
        self._keepalive = keepalive
        self._lock = threading.Lock()
        self._ports: dict[Hashable, _SharedPort] = {}

    def join(self, addresses: tuple[ListenAddress, ...], acceptor: Acceptor, accept: Accept) -> Membership:
        """Share these addresses, which are those that `ListenRules.check` returns.

        `accept(socket, peer, done)` must not block; `done` is called when that has ended.  Does not block.  Raises
        EndpointError when the port cannot be bound.
        """

        def listen(on_connection: Callable[[socket.socket, str], None]) -> Listener:
            return Listener(addresses, on_connection, "a shared port", self._watcher, keepalive=self._keepalive)

        return self.join_at(addresses, listen, acceptor, accept)

    def join_at(self, place: Hashable, listen: Listen, acceptor: Acceptor, accept: Accept) -> Membership:
        """Share a place of any kind; `listen(on_connection)` makes its listener for the first.  Otherwise as `join`."""
        with self._lock:
            shared = self._ports.get(place)
            if shared is None:
                shared = _SharedPort(place, listen)
                shared.listener.start()
                self._ports[place] = shared
            member = Membership(self, shared, acceptor, accept)
            with shared.lock:
                shared.members.append(member)
        return member

    def __contains__(self, place: Hashable) -> bool:
        """Return whether anybody shares `place` now."""
        with self._lock:
            return place in self._ports

    def accepted(self, place: Hashable, sock: socket.socket, peer: str) -> bool:
        """Hand a connection that came elsewhere to a member of `place`; False when there is none.  Does not block."""
        with self._lock:
            shared = self._ports.get(place)
        if shared is None:
            return False
        shared.accepted(sock, peer)
        return True

    def leave(self, shared: _SharedPort, member: Membership) -> None:
        """Take a member out, and free the port after the last one.  For `Membership.close`."""
        with self._lock:
            with shared.lock:
                if member not in shared.members:
                    return
                shared.members.remove(member)
                if shared.members:
                    return
            del self._ports[shared.asked_for]
            shared.listener.close()  # before anybody can ask for the port again
