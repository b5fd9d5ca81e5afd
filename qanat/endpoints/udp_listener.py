"""A UDP port that a forward listens on: a flow for each address that sends to it, and replies to that address.

A flow begins with the first datagram from an address and ends when neither direction had one for the idle time.  There
are so many at most; then the one that was idle longest gives way to a new one, unless even that was in use just now.
On a socket bound to every address, a sender that uses two of this machine's addresses has two flows, and each reply
leaves from the address that was asked.

Threads: none; the watcher reads, and closes what is idle.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence

from qanat.base import listen
from qanat.base.addresses import ListenAddress, parse_address
from qanat.base.errors import BindError, EndpointError, NoThread, QanatError
from qanat.base.sockets import format_address
from qanat.base.watcher import Flushable, Watcher
from qanat.endpoints import packet_info
from qanat.endpoints.packet_info import Beside
from qanat.endpoints.tcp import REASONS
from qanat.endpoints.udp import READ_AT_ONCE, DatagramSocket, UdpFlow
from qanat.mux.frames import Reason
from qanat.mux.stream import LaneOfStream

log = logging.getLogger("qanat.endpoint")

IDLE = 60.0
"""Seconds without a datagram after which a flow ends, by default: most NATs forget a flow after 30 to 180 s."""
MAX_FLOWS = 1024
"""Flows of one forward at once."""
IN_USE = 1.0
"""Seconds after its last datagram during which a flow does not give way to a new one."""
PAUSE = 1.0
"""Seconds until a flow is opened anew for an address whose flow was refused; what it sends meanwhile is dropped."""
_LOOKED_AT = 8
"""Flows that are looked at for one that can give way."""

OpenFlow = Callable[[str, Callable[[bytes], None], Callable[[int, str], None]], UdpFlow]
"""Called as `(origin, on_datagram, on_over)`: who sent, and what UdpFlow calls.

Raises QanatError where no flow can be had now: the datagram is dropped then."""


class UdpListener:
    """See the module's docstring.  Its face is that of `qanat.endpoints.tcp.Listener`."""

    def __init__(
        self,
        addresses: Sequence[ListenAddress],
        open_flow: OpenFlow,
        name: str,
        watcher: Watcher,
        *,
        idle: float = IDLE,
        max_flows: int = MAX_FLOWS,
    ) -> None:
        """Bind; nothing is read before `start`.  Does not block.  `idle` is in seconds; `name` is for logs.

        `addresses` are as for `qanat.base.listen.bind_udp`.  `open_flow` is called by the watcher, and must not block.
        Raises EndpointError (LIMIT when in use).
        """
        self._open_flow = open_flow
        self._name = name
        self._watcher = watcher
        self.idle = idle
        """Seconds without a datagram after which a flow ends; it may be changed."""
        self._max_flows = max_flows
        try:
            sockets = listen.bind_udp(addresses)
        except BindError as error:
            reason = REASONS.get(error.number, Reason.LIMIT)
            raise EndpointError(error.message, code=reason, hint=error.hint) from error
        names = [sock.getsockname() for sock in sockets]
        self.address: str = " and ".join(f"{format_address(name)}/udp" for name in names)
        self.port: int = names[0][1]
        self._lock = threading.Lock()  # guards the next two
        self._closed = False
        self._flows: dict[object, _Flow] = {}  # the first was looked at longest ago
        self._timer = watcher.timer(self._close_idle)
        self._ports = [_Port(self, sock) for sock in sockets]

    def start(self) -> None:
        """Take datagrams from now on.  Does not block.

        Raises EndpointError when the system gives no thread or descriptor for it; the port is free again then.
        """
        try:
            for port in self._ports:
                self._watcher.add(port.socket.fd, port.readable)
        except (NoThread, OSError) as error:
            self.close()
            raise EndpointError(f"cannot listen on {self.address}: {error}", code=Reason.LIMIT) from error

    def close(self) -> None:
        """End every flow, and free the port.  Idempotent, from any thread; does not block."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            flows = list(self._flows.values())
            self._flows.clear()
        for port in self._ports:
            self._watcher.remove(port.socket.fd)
            port.socket.close()
        for flow in flows:
            flow.close("the forward has ended")

    def __len__(self) -> int:
        """How many flows there are."""
        return len(self._flows)

    # --- by the watcher -------------------------------------------------------------------------

    def came(self, port: _Port, payload: bytes, reply: Beside, address: tuple[object, ...]) -> LaneOfStream | None:
        """Send a datagram on its way; return what has to be flushed.  Dropped where there is no flow for it."""
        key = (port, address, reply)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._begin(key, _Flow(port, address, reply))
            if flow is None:
                return None
        return flow.queue(payload, self._open_flow)

    def _begin(self, key: object, flow: _Flow) -> _Flow | None:
        """Make room for a flow; None where there is none."""
        with self._lock:
            if self._closed:
                return None
            gone = None
            if len(self._flows) >= self._max_flows:
                gone = self._give_way_locked(time.monotonic())
                if gone is None:
                    return None
            first = not self._flows
            self._flows[key] = flow
        if gone is not None:
            gone.close("others needed its place")
        if first:
            self._look_later()
        return flow

    def _give_way_locked(self, now: float) -> _Flow | None:
        """Take out the flow that was idle longest, as far as a few of them tell; None when these are in use."""
        for _ in range(min(_LOOKED_AT, len(self._flows))):
            key = next(iter(self._flows))
            flow = self._flows.pop(key)
            if now - flow.used_at >= IN_USE:
                return flow
            self._flows[key] = flow  # as the last
        return None

    def _close_idle(self) -> Flushable | None:
        """End the flows that have been idle for long enough, now and then."""
        now = time.monotonic()
        with self._lock:
            idle = [key for key, flow in self._flows.items() if now - flow.used_at >= self.idle]
            flows = [self._flows.pop(key) for key in idle]
            more = bool(self._flows)
        for flow in flows:
            flow.close(f"idle for {self.idle:g} s")
        if more:
            self._look_later()
        return None

    def _look_later(self) -> None:
        try:
            self._timer.set(time.monotonic() + self.idle / 4)
        except (NoThread, OSError) as error:
            log.warning("%s: flows that are idle stay: %s", self._name, error)


class _Port:
    """One of a listener's sockets."""

    def __init__(self, listener: UdpListener, sock: socket.socket) -> None:
        self._listener = listener
        bound = parse_address(sock.getsockname()[0])
        self._control = packet_info.ROOM if bound is not None and bound.is_unspecified else 0
        if self._control:
            packet_info.request(sock)
        self.socket = DatagramSocket(sock)

    def readable(self) -> Flushable | None:
        """Read what has come, by the watcher."""
        lanes: set[LaneOfStream] = set()
        for _ in range(READ_AT_ONCE):
            try:
                payload, beside, address = self.socket.recv_from(self._control)
            except BlockingIOError:
                break
            except OSError as error:
                log.debug("%s: %s", self._listener.address, error)
                if self.socket.closed:
                    break
                continue
            reply = packet_info.reply_from(beside) if beside else ()
            lane = self._listener.came(self, payload, reply, address)
            if lane is not None:
                lanes.add(lane)
        if len(lanes) <= 1:
            return lanes.pop() if lanes else None
        return _Lanes(lanes)


class _Lanes:
    """Several lanes that have to be flushed after one read."""

    def __init__(self, lanes: set[LaneOfStream]) -> None:
        self._lanes = lanes

    def flush(self) -> None:
        """Flush each."""
        for lane in self._lanes:
            lane.flush()


class _Flow:
    """What comes from one address, and the replies to it."""

    __slots__ = ("_address", "_closed", "_flow", "_lock", "_opens_at", "_over", "_port", "_reply", "used_at")

    def __init__(self, port: _Port, address: tuple[object, ...], reply: Beside) -> None:
        self.used_at = time.monotonic()
        self._port = port
        self._address = address
        self._reply = reply
        self._lock = threading.Lock()  # guards the rest
        self._flow: UdpFlow | None = None
        self._over = False  # the one that is being opened has ended
        self._closed = False
        self._opens_at = 0.0

    def queue(self, payload: bytes, open_flow: OpenFlow) -> LaneOfStream | None:
        """Queue a datagram for the target, over a flow that is opened now where there is none.  By the watcher."""
        self.used_at = now = time.monotonic()
        flow = self._flow
        if flow is None and now >= self._opens_at:
            flow = self._open(open_flow)
        return None if flow is None else flow.queue(payload)

    def _open(self, open_flow: OpenFlow) -> UdpFlow | None:
        self._over = False
        try:
            flow = open_flow(format_address(self._address), self._reply_to, self._ended)
        except QanatError as error:
            log.debug("no flow for %s: %s", format_address(self._address), error)
            return None
        with self._lock:
            if self._over:
                return None
            if not self._closed:
                self._flow = flow
                return flow
        flow.close()
        return None

    def _reply_to(self, payload: bytes) -> None:
        """Send a datagram back.  By the lane's reader."""
        self.used_at = time.monotonic()
        try:
            self._port.socket.send_to(payload, self._reply, self._address)
        except OSError as error:  # too much at once, too large, or a firewall's
            log.debug("a datagram to %s was dropped: %s", format_address(self._address), error)

    def _ended(self, reason: int, text: str) -> None:
        """Note that the other end has ended it; what its address sends opens another one after a while."""
        log.debug("the flow of %s ended: %s", format_address(self._address), text)
        with self._lock:
            self._over = True
            self._flow = None
            self._opens_at = 0.0 if reason == Reason.SESSION_ENDED else time.monotonic() + PAUSE

    def close(self, text: str) -> None:
        """End it.  Does not block."""
        with self._lock:
            self._closed = True
            flow, self._flow = self._flow, None
        if flow is not None:
            flow.close(Reason.CANCELED, text)
