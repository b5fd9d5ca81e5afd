"""The UDP of one SOCKS5 user: a socket for his datagrams, for as long as his connection is there (RFC 1928 §7).

Each datagram has the target in front, and each target a flow of its own, which ends when it was idle for long enough.
Only the address that the connection comes from is listened to, and of its ports the first that sends.  Fragments are
dropped, as the RFC allows.  Threads: none; the watcher reads, and the lane's reader sends what comes back.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable

from qanat.base.addresses import parse_address, unmap
from qanat.base.endpoint_addresses import UdpAddress
from qanat.base.errors import NoThread, QanatError
from qanat.base.sockets import format_address
from qanat.base.watcher import Watcher
from qanat.endpoints.dynamic.asked import split_address
from qanat.endpoints.dynamic.socks5 import pack_address, split_datagram
from qanat.endpoints.udp import READ_AT_ONCE, DatagramSocket, UdpFlow
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.dynamic")

IDLE = 60.0
"""Seconds without a datagram after which a flow ends."""
MAX_FLOWS = 128
"""Targets of one user at once; the one that was idle longest gives way."""
PAUSE = 1.0
"""Seconds until a flow is opened anew to a target whose flow was refused."""

OpenFlow = Callable[[UdpAddress, str, Callable[[bytes], None], Callable[[int, str], None]], UdpFlow]
"""Called as `(to, origin, on_datagram, on_over)`.

Raises QanatError where no flow can be had now: the datagram is dropped then."""


class Association:
    """See the module's docstring.  From `start` until it is closed, when `on_over` is called once."""

    def __init__(
        self,
        sock: socket.socket,
        origin: str,
        watcher: Watcher,
        open_flow: OpenFlow,
        on_over: Callable[[Association], None],
    ) -> None:
        """Own `sock`, the user's connection, which does not block.  Raises OSError; `sock` is still the caller's then.

        `open_flow` is called by the watcher, and must not block.
        """
        self.origin = origin
        self._connection = sock
        self._watcher = watcher
        self._open_flow = open_flow
        self._on_over = on_over
        user = sock.getpeername()
        self._host = _plain(user[0])
        udp = socket.socket(sock.family, socket.SOCK_DGRAM)
        try:
            udp.bind((sock.getsockname()[0], 0, *sock.getsockname()[2:]))
        except BaseException:
            udp.close()
            raise
        self._socket = DatagramSocket(udp)
        self.address = format_address(self._socket.name)
        """Where to send the datagrams."""
        self._user: tuple[object, ...] | None = None  # where they come from
        self._lock = threading.Lock()  # guards the next two
        self._flows: dict[UdpAddress, _Flow] = {}  # the first was used longest ago
        self._closed = False
        self._timer = watcher.timer(self._close_idle)

    def start(self) -> None:
        """Carry datagrams from now on.  Does not block."""
        try:
            self._watcher.add(self._socket.fd, self._came)
            self._watcher.add(self._connection.fileno(), self._connection_ready)
        except (NoThread, OSError) as error:
            log.warning("%s: %s", self.origin, error)
            self.close()

    def close(self) -> None:
        """End it, and the connection.  Idempotent, from any thread; does not block."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            flows = list(self._flows.values())
            self._flows.clear()
        self._timer.cancel()
        self._watcher.remove(self._socket.fd)
        self._watcher.remove(self._connection.fileno())
        self._socket.close()
        self._connection.close()
        for flow in flows:
            flow.close()
        self._on_over(self)

    def finish(self) -> None:
        """End it: a datagram has no end to wait for.  Idempotent."""
        self.close()

    def reply(self, payload: bytes) -> None:
        """Send a datagram, with its header, to the user.  Does not block."""
        user = self._user
        if user is not None:
            with contextlib.suppress(OSError):  # too much at once: dropped, as UDP may be
                self._socket.send_to(payload, (), user)

    # --- by the watcher -----------------------------------------------------------------------------

    def _connection_ready(self) -> None:
        """End with the connection; what comes on it means nothing."""
        data = b""
        try:
            data = self._connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            pass  # it is gone
        if not data:
            self.close()

    def _came(self) -> None:
        for _ in range(READ_AT_ONCE):
            try:
                datagram, _, source = self._socket.recv_from(0)
            except BlockingIOError:
                return
            except OSError:
                continue  # what ICMP said of an earlier reply
            if self._user is None and _plain(str(source[0])) == self._host:
                self._user = source
            found = split_datagram(datagram) if source == self._user else None
            if found is not None:
                host, port, payload = found
                self._send(UdpAddress(host, port), payload)

    def _send(self, to: UdpAddress, payload: bytes) -> None:
        now = time.monotonic()
        gone = None
        with self._lock:
            if self._closed:
                return
            flow = self._flows.pop(to, None)
            if flow is None:
                flow = _Flow(self, to)
                if len(self._flows) >= MAX_FLOWS:
                    gone = self._flows.pop(next(iter(self._flows)))
            first = not self._flows
            self._flows[to] = flow
        if gone is not None:
            gone.close()
        if first:
            with contextlib.suppress(NoThread, OSError):  # then they stay until the connection ends
                self._timer.set(now + IDLE / 4)
        flow.send(payload, now, self._open_flow)

    def _close_idle(self) -> None:
        now = time.monotonic()
        with self._lock:
            idle = [self._flows.pop(to) for to, flow in list(self._flows.items()) if now - flow.used_at >= IDLE]
            more = bool(self._flows)
        for flow in idle:
            flow.close()
        if more:
            with contextlib.suppress(NoThread, OSError):
                self._timer.set(now + IDLE / 4)


class _Flow:
    """What one user sends to one target, and what comes back."""

    def __init__(self, association: Association, to: UdpAddress) -> None:
        self.used_at = time.monotonic()
        self._association = association
        self._to = to
        self._lock = threading.Lock()  # guards the next four
        self._flow: UdpFlow | None = None
        self._over = self._closed = False
        self._opens_at = 0.0

    def send(self, payload: bytes, now: float, open_flow: OpenFlow) -> None:
        """Send a datagram, over a flow that is opened now where there is none.  By the watcher."""
        self.used_at = now
        with self._lock:
            flow, self._over = self._flow, False
            opens = flow is None and not self._closed and now >= self._opens_at
        if opens:
            try:
                flow = open_flow(self._to, self._association.origin, self._came, self._ended)
            except QanatError as error:
                log.debug("no flow from %s to %s: %s", self._association.origin, self._to, error)
                return
            with self._lock:
                over, closed = self._over, self._closed
                self._flow = None if over or closed else flow
            if closed:
                flow.close()
            if over or closed:
                return
        if flow is not None:
            flow.send(payload)

    def close(self) -> None:
        """End it.  Does not block."""
        with self._lock:
            self._closed = True
            flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()

    def _came(self, payload: bytes) -> None:
        """Send a datagram back, with its sender in front: the address that the name had, where a name was given."""
        self.used_at = time.monotonic()
        flow = self._flow
        host, port = (self._to.host, self._to.port)
        if parse_address(host) is None and flow is not None:
            host, port = split_address(flow.target)
        self._association.reply(struct.pack("!xxx") + pack_address(host, port) + payload)

    def _ended(self, reason: int, text: str) -> None:
        log.debug("the flow from %s to %s ended: %s", self._association.origin, self._to, text)
        with self._lock:
            self._over = True
            self._flow = None
            self._opens_at = 0.0 if reason == Reason.SESSION_ENDED else time.monotonic() + PAUSE


def _plain(host: str) -> str:
    """Return an address without what differs between a connection and a datagram from it."""
    address = parse_address(host)
    return host if address is None else str(unmap(address))
