"""One place where a local forward listens: bound once, whatever the forward that has it becomes meanwhile.

What becomes of a connection is `qanat.client.client`'s business, which gives it as a `Service`.  Which places there
are, and when one that failed is tried again, is decided by `qanat.client.local_forwards`, one thread at a time.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from qanat.base.addresses import is_loopback, listen_addresses
from qanat.base.endpoint_addresses import Anywhere, ListenPlace, TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import EndpointError
from qanat.base.watcher import Watcher
from qanat.client.forward_shares import ServedForward
from qanat.config.forward_settings import Forward
from qanat.endpoints.application_socket import ApplicationKeepalive
from qanat.endpoints.dynamic.asked import Asked
from qanat.endpoints.dynamic.port import DynamicPort
from qanat.endpoints.pending import PendingConnection
from qanat.endpoints.tcp import Listener
from qanat.endpoints.udp import UdpFlow
from qanat.endpoints.udp_listener import IDLE, UdpListener
from qanat.endpoints.unix import UnixListener
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.client")

RETRY_IN_USE = 10.0
"""Seconds until a forward is asked for again whose port was in use."""
RETRY_NOT_ALLOWED = 60.0
"""The same when a rule refused it: that may change."""

OnDatagram = Callable[[bytes], None]
OnOver = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Service:
    """What is done with those who come to local forwards.  The watcher calls it, and nothing of it may block."""

    accepted: Callable[[ServedForward, socket.socket, str], None]
    """Is given a connection, and where it comes from."""
    open_flow: Callable[[ServedForward, UdpAddress, str, OnDatagram, OnOver], UdpFlow]
    """Opens a flow to a target; as `qanat.endpoints.udp_listener.OpenFlow` otherwise."""
    enter: Callable[[ServedForward, socket.socket, str], Callable[[], None] | None]
    """Counts a connection whose user says where to; returns what to call when it is over, None when it may not come."""
    ask: Callable[[ServedForward, PendingConnection, TcpAddress], None]
    """Opens the stream of such a connection."""


class LocalPort:
    """See the module's docstring."""

    def __init__(
        self, served: ServedForward, service: Service, watcher: Watcher, keepalive: ApplicationKeepalive
    ) -> None:
        """Have nothing bound yet."""
        self.failure: EndpointError | None = None
        """Why the last try failed; None when it did not."""
        self.retry_at = 0.0
        """When to try again, where that failed."""
        self._service = service
        self._watcher = watcher
        self._keepalive = keepalive
        self._serving = served, self._proxy_for(served.forward)  # one value, since the watcher reads both
        self._listener: Listener | UdpListener | UnixListener | None = None

    @property
    def forward(self) -> Forward:
        """The forward of this one port."""
        return self._serving[0].forward

    @property
    def is_bound(self) -> bool:
        """Whether it listens."""
        return self._listener is not None

    @property
    def address(self) -> str:
        """Where it listens, for people; "" while it does not."""
        return "" if self._listener is None else self._listener.address

    @property
    def port(self) -> int:
        """The port that was really bound; 0 for a Unix socket, and while it does not listen."""
        return 0 if self._listener is None else self._listener.port

    def bind(self) -> None:
        """Try once to bind; note what happened.  Does not block, and does not accept before `start`."""
        forward, at = self.forward, self.forward.listen
        try:
            if isinstance(at, UdpAddress):
                addresses = listen_addresses(at.host, at.port)
                idle = forward.limits.idle_timeout or IDLE
                self._listener = UdpListener(addresses, self._open_flow, str(forward), self._watcher, idle=idle)
            elif isinstance(at, UnixAddress):
                self._listener = UnixListener(
                    at.path, self._accepted, str(forward), self._watcher, permissions=forward.permissions
                )
            else:
                assert isinstance(at, TcpAddress)
                addresses = listen_addresses(at.host, at.port)
                self._listener = Listener(
                    addresses, self._accepted, str(forward), self._watcher, keepalive=self._keepalive
                )
        except EndpointError as error:
            self.fail(error)
            return
        self.failure = None
        self._warn_of_open_proxy()

    def start(self) -> None:
        """Accept from now on what is bound; note it where there is no thread or descriptor for that."""
        if self._listener is None:
            return
        try:
            self._listener.start()
        except EndpointError as error:  # its port is free again
            self._listener = None
            self.fail(error)

    def fail(self, error: EndpointError) -> None:
        """Note why it does not listen, and when to try again."""
        # Made anew: the traceback of the one that was raised has much else.
        self.failure = EndpointError(error.message, code=error.code, hint=error.hint)
        wait = RETRY_NOT_ALLOWED if error.code == Reason.NOT_ALLOWED else RETRY_IN_USE
        self.retry_at = time.monotonic() + wait

    def fail_unexpectedly(self) -> None:
        """Note that a fault of this program kept it from listening."""
        self.close()
        self.retry_at = time.monotonic() + RETRY_NOT_ALLOWED

    def change(self, served: ServedForward) -> None:
        """Serve another forward that listens in the same place: who comes from now on is served as that says.

        Streams that are open go on.  Raises EndpointError when the file of a Unix socket cannot have the permissions.
        """
        before, proxy = self._serving
        forward = served.forward
        if isinstance(self._listener, UnixListener) and forward.permissions != before.forward.permissions:
            self._listener.set_permissions(forward.permissions)
        if isinstance(self._listener, UdpListener):
            self._listener.idle = forward.limits.idle_timeout or IDLE
        if proxy is not None and isinstance(forward.to, Anywhere):
            proxy.passwords = forward.passwords
            self._serving = served, proxy
        else:
            self._serving = served, self._proxy_for(forward)
            if proxy is not None:
                proxy.close()
        if not self.is_bound:
            self.retry_at = 0.0
        elif forward.passwords != before.forward.passwords or forward.to != before.forward.to:
            self._warn_of_open_proxy()

    def close(self) -> None:
        """Let nobody come any more, and free the place.  Idempotent; blocks until who is just coming has come.

        What is under way goes on; only a UDP port's flows end, whose socket it is.
        """
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        proxy = self._serving[1]
        if proxy is not None:
            proxy.close()

    def _proxy_for(self, forward: Forward) -> DynamicPort | None:
        if not isinstance(forward.to, Anywhere):
            return None
        return DynamicPort(str(forward), self._watcher, self._asked, self._open_flow_to, passwords=forward.passwords)

    def _accepted(self, sock: socket.socket, peer: str) -> None:
        served, proxy = self._serving
        if proxy is None:
            self._service.accepted(served, sock, peer)
            return
        over = self._service.enter(served, sock, peer)
        if over is not None:
            proxy.take(sock, peer, over)

    def _asked(self, pending: PendingConnection, asked: Asked) -> None:
        self._service.ask(self._serving[0], pending, TcpAddress(asked.host, asked.port))

    def _open_flow_to(self, to: UdpAddress, origin: str, on_datagram: OnDatagram, on_over: OnOver) -> UdpFlow:
        return self._service.open_flow(self._serving[0], to, origin, on_datagram, on_over)

    def _open_flow(self, origin: str, on_datagram: OnDatagram, on_over: OnOver) -> UdpFlow:
        served = self._serving[0]
        assert isinstance(served.forward.to, UdpAddress)
        return self._service.open_flow(served, served.forward.to, origin, on_datagram, on_over)

    def _warn_of_open_proxy(self) -> None:
        forward = self.forward
        if isinstance(forward.to, Anywhere) and forward.passwords is None and not _is_ours_alone(forward.listen):
            log.warning(
                "whoever reaches %s can go through this proxy: give it a password_file, or listen on 127.0.0.1",
                self.address,
            )


def _is_ours_alone(at: ListenPlace) -> bool:
    """Return whether nobody but this machine reaches what is listened on there."""
    if not isinstance(at, TcpAddress):
        return True
    return all(is_loopback(address.host) for address in listen_addresses(at.host, at.port))
