"""The ports of a client's local forwards: those that can be had are bound at once, the others as soon as they are free.

What becomes of a connection is `qanat.client.client`'s business, which calls this.

Threads: the watcher accepts; while a forward is not bound, the *forwards* thread asks again.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from qanat.base.addresses import listen_addresses, parse_address
from qanat.base.endpoint_addresses import Anywhere, ListenPlace, TcpAddress, UdpAddress
from qanat.base.errors import EndpointError
from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.client.session import RETRY_IN_USE, RETRY_NOT_ALLOWED
from qanat.config.settings import Forward
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.dynamic.asked import Asked
from qanat.endpoints.dynamic.listener import DynamicListener
from qanat.endpoints.dynamic.port import DynamicPort
from qanat.endpoints.pending import PendingConnection
from qanat.endpoints.tcp import Listener
from qanat.endpoints.udp import UdpFlow
from qanat.endpoints.udp_listener import IDLE, UdpListener
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.client")

Accepted = Callable[[Forward, socket.socket, str], None]
OpenFlow = Callable[[Forward, UdpAddress, str, Callable[[bytes], None], Callable[[int, str], None]], UdpFlow]
Enter = Callable[[Forward, socket.socket, str], Callable[[], None] | None]
Ask = Callable[[Forward, PendingConnection, TcpAddress], None]


@dataclass(eq=False)
class _LocalForward:
    number: int
    forward: Forward
    listener: Listener | UdpListener | DynamicListener | None = None
    failure: EndpointError | None = None  # of the last try
    retry_at: float = 0.0


class LocalForwards:
    """The local ones of a client's forwards, from `bind` to `close`.  `close` may be called from any thread."""

    def __init__(
        self,
        forwards: Sequence[Forward],
        accepted: Accepted,
        open_flow: OpenFlow,
        enter: Enter,
        ask: Ask,
        watcher: Watcher,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        """`watcher` calls `accepted(forward, socket, peer)` and `open_flow(forward, to, …)`, which must not block.

        `open_flow` is otherwise as `qanat.endpoints.udp_listener.OpenFlow`.  For connections whose users say
        where to, `enter(forward, socket, peer)` returns what to call when one is over, None when it may not come, and
        `ask(forward, pending, to)` opens its stream.  Neither blocks.
        """
        self._accepted = accepted
        self._open_flow = open_flow
        self._enter = enter
        self._ask = ask
        self._watcher = watcher
        self._keepalive = keepalive
        self._all = [_LocalForward(n, forward) for n, forward in enumerate(forwards) if forward.kind == "local"]
        self._closed = threading.Event()
        self._binding = threading.Lock()  # so that nothing is bound after `close`
        self._thread: threading.Thread | None = None

    def bind(self, *, all_or_nothing: bool) -> None:
        """Bind what can be bound; log what cannot.  Does not block, and does not accept before `start`.

        With `all_or_nothing` raises EndpointError, which names every forward that failed; nothing is left bound then.
        """
        try:
            for one in self._all:
                self._bind(one)
        except BaseException:
            self.close()
            raise
        failures = [one.failure for one in self._all if one.failure is not None]
        if failures and all_or_nothing:
            self.close()
            raise EndpointError(
                "; ".join(failure.message for failure in failures), code=failures[0].code, hint=failures[0].hint
            )
        for one in self._all:
            if one.failure is not None:
                self._report(one, one.failure)

    def start(self) -> None:
        """Accept connections from now on, and ask again for what could not be bound.  Does not block."""
        for one in self._all:
            if one.listener is not None:
                self._start(one, one.listener)
        if any(one.listener is None for one in self._all):
            self._thread = start_thread("forwards", self._forwards_loop)

    def close(self) -> None:
        """Stop accepting, and free the ports.  Idempotent; joins the threads."""
        self._closed.set()
        with self._binding:
            listeners = [one.listener for one in self._all if one.listener is not None]
        for listener in listeners:
            listener.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def ports(self) -> list[int]:
        """The ports that are bound, in the order of the forwards."""
        return [one.listener.port for one in self._all if one.listener is not None]

    def _forwards_loop(self) -> None:
        while missing := [one for one in self._all if one.listener is None]:
            if self._closed.wait(max(0.0, min(one.retry_at for one in missing) - time.monotonic())):
                return
            for one in missing:
                if one.retry_at <= time.monotonic():
                    self._try_again(one)

    def _try_again(self, one: _LocalForward) -> None:
        before = one.failure
        try:
            self._bind(one)
            if one.listener is not None:
                self._start(one, one.listener)
        except Exception:
            log_unexpected(f"listening for {one.forward} failed")
            one.listener, one.retry_at = None, time.monotonic() + RETRY_NOT_ALLOWED
            return
        if one.failure is not None and (before is None or before.message != one.failure.message):
            self._report(one, one.failure)

    def _bind(self, one: _LocalForward) -> None:
        """Try once to bind; note what happened."""
        forward = one.forward
        with self._binding:
            if self._closed.is_set():
                return
            try:
                one.listener = self._listener(forward)
            except EndpointError as error:
                self._failed(one, error)
                return
            one.failure = None
        log.info(
            "listening on %s for %s at the server's end",
            one.listener.address,
            forward.to,
            extra={"event": "listening"},
        )
        if isinstance(forward.to, Anywhere) and forward.passwords is None and not _is_ours_alone(forward.listen):
            log.warning(
                "whoever reaches %s can go through this proxy: give it a password_file, or listen on 127.0.0.1",
                one.listener.address,
            )

    def _listener(self, forward: Forward) -> Listener | UdpListener | DynamicListener:
        """Bind where `forward` listens.  Raises EndpointError."""
        at = forward.listen
        if isinstance(at, UdpAddress):
            assert isinstance(forward.to, UdpAddress)
            return UdpListener(
                listen_addresses(at.host, at.port),
                partial(self._open_flow, forward, forward.to),
                str(forward),
                self._watcher,
                idle=forward.limits.idle_timeout or IDLE,
            )
        assert isinstance(at, TcpAddress)
        proxy: DynamicPort | None = None
        if isinstance(forward.to, Anywhere):
            proxy = DynamicPort(
                str(forward),
                self._watcher,
                partial(self._asked, forward),
                partial(self._open_flow, forward),
                passwords=forward.passwords,
            )
        listener = Listener(
            listen_addresses(at.host, at.port),
            partial(self._accepted, forward) if proxy is None else partial(self._take, forward, proxy),
            str(forward),
            self._watcher,
            keepalive=self._keepalive,
        )
        return listener if proxy is None else DynamicListener(listener, proxy, listener.start)

    def _asked(self, forward: Forward, pending: PendingConnection, asked: Asked) -> None:
        self._ask(forward, pending, TcpAddress(asked.host, asked.port))

    def _take(self, forward: Forward, proxy: DynamicPort, sock: socket.socket, peer: str) -> None:
        over = self._enter(forward, sock, peer)
        if over is not None:
            proxy.take(sock, peer, over)

    def _start(self, one: _LocalForward, listener: Listener | UdpListener | DynamicListener) -> None:
        try:
            listener.start()
        except EndpointError as error:  # no thread or descriptor; its port is free again
            one.listener = None
            self._failed(one, error)
            self._report(one, error)

    @staticmethod
    def _failed(one: _LocalForward, error: EndpointError) -> None:
        # Made anew: the traceback of the one that was raised has `one`.
        one.failure = EndpointError(error.message, code=error.code, hint=error.hint)
        wait = RETRY_NOT_ALLOWED if error.code == Reason.NOT_ALLOWED else RETRY_IN_USE
        one.retry_at = time.monotonic() + wait

    @staticmethod
    def _report(one: _LocalForward, error: EndpointError) -> None:
        log.error("%s: %s; asking again in %.0f s", one.forward, error, max(0.0, one.retry_at - time.monotonic()))


def _is_ours_alone(at: ListenPlace) -> bool:
    """Return whether nobody but this machine reaches what is listened on there."""
    if not isinstance(at, TcpAddress):
        return True
    literals = [parse_address(address.host) for address in listen_addresses(at.host, at.port)]
    return all(literal is not None and literal.is_loopback for literal in literals)
