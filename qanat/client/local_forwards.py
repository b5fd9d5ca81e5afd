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
from qanat.base.endpoint_addresses import Anywhere, ListenPlace, TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import EndpointError
from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.client.port_lists import describe_failures, describe_place
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
from qanat.endpoints.unix import UnixListener
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.client")

Listens = Listener | UdpListener | UnixListener | DynamicListener
"""What listens for a local forward."""

Accepted = Callable[[Forward, socket.socket, str], None]
OpenFlow = Callable[[Forward, UdpAddress, str, Callable[[bytes], None], Callable[[int, str], None]], UdpFlow]
Enter = Callable[[Forward, socket.socket, str], Callable[[], None] | None]
Ask = Callable[[Forward, PendingConnection, TcpAddress], None]


@dataclass(eq=False)
class _LocalForward:
    """One that listens in one place."""

    forward: Forward
    listener: Listens | None = None
    failure: EndpointError | None = None  # of the last try
    retry_at: float = 0.0


@dataclass(eq=False)
class _Range:
    """One as it was written, which may have many ports; messages are about all of them."""

    forward: Forward
    parts: tuple[_LocalForward, ...]
    told: str = ""  # what was last said of those that failed

    @property
    def failed(self) -> dict[int, str]:
        """Why, by port, those failed that did in the last try."""
        return {_port_of(one.forward): one.failure.message for one in self.parts if one.failure is not None}

    @property
    def failure(self) -> EndpointError | None:
        """Return what to say of all that failed, None when none did."""
        errors = [one.failure for one in self.parts if one.failure is not None]
        if not errors:
            return None
        return EndpointError(describe_failures(self.forward, self.failed), code=errors[0].code, hint=errors[0].hint)


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
        self._ranges = [
            _Range(forward, tuple(map(_LocalForward, forward.parts())))
            for forward in forwards
            if forward.kind == "local"
        ]
        self._all = [one for each in self._ranges for one in each.parts]
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
        failures = [error for each in self._ranges if (error := each.failure) is not None]
        if failures and all_or_nothing:
            self.close()
            raise EndpointError(
                "; ".join(failure.message for failure in failures), code=failures[0].code, hint=failures[0].hint
            )
        for each in self._ranges:
            self._tell(each, each.parts)

    def start(self) -> None:
        """Accept connections from now on, and ask again for what could not be bound.  Does not block."""
        for each in self._ranges:
            for one in each.parts:
                self._start(one)
            self._tell(each)
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
    def states(self) -> list[tuple[str, str, str, str]]:
        """Of each forward, as it is written: its kind, where it listens, where it leads, and why it does not listen."""
        found = []
        for each in self._ranges:
            forward, bound = each.forward, [one.listener for one in each.parts if one.listener is not None]
            kind = "dynamic" if isinstance(forward.to, Anywhere) else "local"
            where = bound[0].address if len(bound) == 1 == forward.ports else str(forward).split(" ")[1]
            failure = each.failure
            missing = "" if len(bound) == len(each.parts) else "it is not bound yet"
            found.append((kind, where, forward.target, missing if failure is None else failure.message))
        return found

    @property
    def ports(self) -> list[int]:
        """The ports that are bound, in the order of the forwards."""
        return [one.listener.port for one in self._all if one.listener is not None]

    def _forwards_loop(self) -> None:
        while missing := [one for one in self._all if one.listener is None]:
            if self._closed.wait(max(0.0, min(one.retry_at for one in missing) - time.monotonic())):
                return
            for each in self._ranges:
                self._try_again([one for one in each.parts if one.listener is None], each)

    def _try_again(self, missing: Sequence[_LocalForward], each: _Range) -> None:
        """Try those of one range whose time has come, and say what came of it."""
        tried = [one for one in missing if one.retry_at <= time.monotonic()]
        for one in tried:
            try:
                self._bind(one)
                self._start(one)
            except Exception:
                log_unexpected(f"listening for {one.forward} failed")
                one.listener, one.retry_at = None, time.monotonic() + RETRY_NOT_ALLOWED
        if tried:
            self._tell(each, tried)

    def _bind(self, one: _LocalForward) -> None:
        """Try once to bind; note what happened."""
        with self._binding:
            if self._closed.is_set():
                return
            try:
                one.listener = self._listener_for(one.forward)
            except EndpointError as error:
                self._failed(one, error)
                return
            one.failure = None
            forward = one.forward
            if isinstance(forward.to, Anywhere) and forward.passwords is None and not _is_ours_alone(forward.listen):
                log.warning(
                    "whoever reaches %s can go through this proxy: give it a password_file, or listen on 127.0.0.1",
                    one.listener.address,
                )

    def _listener_for(self, forward: Forward) -> Listens:
        """Bind where `forward` listens.  Raises EndpointError."""
        at, name = forward.listen, str(forward)
        if isinstance(at, UdpAddress):
            assert isinstance(forward.to, UdpAddress)
            return UdpListener(
                listen_addresses(at.host, at.port),
                partial(self._open_flow, forward, forward.to),
                name,
                self._watcher,
                idle=forward.limits.idle_timeout or IDLE,
            )
        if not isinstance(forward.to, Anywhere):
            return self._stream_listener(forward, partial(self._accepted, forward))
        proxy = DynamicPort(
            name,
            self._watcher,
            partial(self._asked, forward),
            partial(self._open_flow, forward),
            passwords=forward.passwords,
        )
        listener = self._stream_listener(forward, partial(self._take, forward, proxy))
        return DynamicListener(listener, proxy, listener.start)

    def _stream_listener(
        self, forward: Forward, accepted: Callable[[socket.socket, str], None]
    ) -> Listener | UnixListener:
        at, name = forward.listen, str(forward)
        if isinstance(at, UnixAddress):
            return UnixListener(at.path, accepted, name, self._watcher, permissions=forward.permissions)
        assert isinstance(at, TcpAddress)
        addresses = listen_addresses(at.host, at.port)
        return Listener(addresses, accepted, name, self._watcher, keepalive=self._keepalive)

    def _asked(self, forward: Forward, pending: PendingConnection, asked: Asked) -> None:
        self._ask(forward, pending, TcpAddress(asked.host, asked.port))

    def _take(self, forward: Forward, proxy: DynamicPort, sock: socket.socket, peer: str) -> None:
        over = self._enter(forward, sock, peer)
        if over is not None:
            proxy.take(sock, peer, over)

    def _start(self, one: _LocalForward) -> None:
        if one.listener is None:
            return
        try:
            one.listener.start()
        except EndpointError as error:  # no thread or descriptor; its port is free again
            one.listener = None
            self._failed(one, error)

    @staticmethod
    def _failed(one: _LocalForward, error: EndpointError) -> None:
        # Made anew: the traceback of the one that was raised has `one`.
        one.failure = EndpointError(error.message, code=error.code, hint=error.hint)
        wait = RETRY_NOT_ALLOWED if error.code == Reason.NOT_ALLOWED else RETRY_IN_USE
        one.retry_at = time.monotonic() + wait

    @staticmethod
    def _tell(each: _Range, tried: Sequence[_LocalForward] = ()) -> None:
        """Say which of those that were just tried listen, and what has failed, unless that was said already."""
        bound = [one.listener for one in tried if one.listener is not None]
        if bound:
            ports = (listener.port for listener in bound)
            where = bound[0].address if each.forward.ports == 1 else describe_place(each.forward, ports)
            log.info(
                "listening on %s for %s at the server's end",
                where,
                each.forward.target,
                extra={"event": "listening"},
            )
        error = each.failure
        if error is not None and error.message != each.told:
            wait = min(one.retry_at for one in each.parts if one.failure is not None) - time.monotonic()
            log.error("%s: %s; asking again in %.0f s", each.forward, error, max(0.0, wait))
        each.told = "" if error is None else error.message


def _port_of(forward: Forward) -> int:
    return forward.listen.port if isinstance(forward.listen, TcpAddress | UdpAddress) else 0


def _is_ours_alone(at: ListenPlace) -> bool:
    """Return whether nobody but this machine reaches what is listened on there."""
    if not isinstance(at, TcpAddress):
        return True
    literals = [parse_address(address.host) for address in listen_addresses(at.host, at.port)]
    return all(literal is not None and literal.is_loopback for literal in literals)
