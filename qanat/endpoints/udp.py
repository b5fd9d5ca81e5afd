"""UDP flows: a stream's datagrams at either end, and the socket of a flow at its target.

    UdpFlow    a stream that carries datagrams, for whoever opened it or has its socket
    UdpTarget  the connected socket of one flow, so that its port stays the same as long as the flow lives

The port that many send to is `qanat.endpoints.udp_listener`.  Nothing here has a thread: the watcher reads sockets, and
the lane's reader sends what came through the tunnel.  Nothing waits either: what a socket or the tunnel does not take
at once is dropped, as UDP may.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable, Sequence

from qanat.base.errors import EndpointError, NoThread
from qanat.base.resolve import Address
from qanat.base.sockets import describe_os_error, format_address
from qanat.base.watcher import Flushable, Watcher
from qanat.endpoints.tcp import REASONS
from qanat.endpoints.traffic_limits import UNLIMITED, TrafficLimits
from qanat.mux.frames import Reason
from qanat.mux.stream import LaneOfStream, Stream

log = logging.getLogger("qanat.endpoint")

RECEIVE_BUFFER = 1024 * 1024
"""Bytes of a burst that the kernel keeps for a socket, as far as net.core.rmem_max lets it (socket(7))."""
MAX_PAYLOAD = 65_535
"""Bytes in a datagram at most; UDP itself carries a few less."""
READ_AT_ONCE = 32
"""Datagrams that are read from one socket before others have their turn."""
_UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_SCRATCH = threading.local()


def scratch() -> memoryview:
    """Return this thread's buffer for one datagram, whose content is copied before the next one is read."""
    view: memoryview | None = getattr(_SCRATCH, "view", None)
    if view is None:
        view = _SCRATCH.view = memoryview(bytearray(MAX_PAYLOAD))
    return view


class DatagramSocket:
    """A UDP socket that never blocks and may be closed by any thread while others use it."""

    def __init__(self, sock: socket.socket) -> None:
        """Own `sock`."""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.fd = sock.fileno()
        """The descriptor, for a `Watcher`; valid until `close`."""
        self.name = sock.getsockname()
        """The address that it is bound to."""
        self._sock = sock
        self._lock = threading.Lock()  # guards the next, and that a descriptor is not used once it is another's
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def recv(self) -> bytes:
        """Return the next datagram of a connected socket.  Raises BlockingIOError when there is none, OSError."""
        view = scratch()
        with self._lock:
            if self._closed:
                raise BlockingIOError
            return bytes(view[: self._sock.recv_into(view)])

    def recv_from(self, control: int) -> tuple[bytes, list[tuple[int, int, bytes]], tuple[object, ...]]:
        """Return the next datagram, what came beside it in at most `control` bytes, and who sent it.

        Raises BlockingIOError when there is none, OSError.
        """
        view = scratch()
        with self._lock:
            if self._closed:
                raise BlockingIOError
            if not control:
                size, address = self._sock.recvfrom_into(view)
                return bytes(view[:size]), [], address
            size, beside, _, address = self._sock.recvmsg_into([view], control)
            return bytes(view[:size]), beside, address

    def send(self, payload: bytes) -> None:
        """Send on a connected socket.  Raises OSError; BlockingIOError when it does not take it now."""
        with self._lock:
            if not self._closed:
                self._sock.send(payload)

    def send_to(self, payload: bytes, beside: Sequence[tuple[int, int, bytes]], address: tuple[object, ...]) -> None:
        """Send to `address`, with what goes beside it.  Raises as `send`."""
        with self._lock:
            if self._closed:
                return
            if beside:
                self._sock.sendmsg([payload], beside, 0, address)
            else:
                self._sock.sendto(payload, address)

    def close(self) -> None:
        """Close it.  Idempotent; no other call uses it any more when this returns."""
        with self._lock:
            self._closed = True
            self._sock.close()


class UdpFlow:
    """One stream of datagrams.  Its methods may be called from any thread, and none blocks."""

    def __init__(
        self,
        stream: Stream,
        on_datagram: Callable[[bytes], None],
        on_over: Callable[[int, str], None],
        *,
        limits: TrafficLimits = UNLIMITED,
        done: Callable[[], None] | None = None,
    ) -> None:
        """Take charge of `stream`: only this is used from now on.

        `on_datagram` is called with each datagram that comes.  `on_over(reason, text)` is called once when the other
        end ends the flow, or its session ends (qanat.mux.frames.Reason), and not after `close`; `done` once, whoever
        ends it.  Threads of the lane call these, perhaps before this returns; they must neither block nor raise.  What
        is beyond the rates of `limits` is dropped; its idle time is not heeded here.
        """
        self._stream = stream
        self._limits = limits
        self._on_datagram = on_datagram
        self._lock = threading.Lock()  # guards the next two
        self._on_over: Callable[[int, str], None] | None = on_over
        self._done = done
        stream.datagrams_to(self._received)
        stream.on_failure(self._failed)

    @property
    def label(self) -> str:
        """Its name in logs."""
        return self._stream.label

    @property
    def target(self) -> str:
        """The target's address, as the other end has told it; "" before that."""
        return self._stream.accepted or ""

    def queue(self, payload: bytes) -> LaneOfStream:
        """Queue one datagram; return the lane, which has to be flushed.  Dropped where it would wait for long."""
        rate = self._limits.reading
        if rate is None or rate.take_all(len(payload)):
            self._stream.queue_datagram(payload)
        return self._stream.lane

    def send(self, payload: bytes) -> None:
        """Send one datagram of at most 65,535 bytes, perhaps none.  Dropped where it would wait for long."""
        self.queue(payload).flush()

    def close(self, reason: Reason = Reason.CANCELED, text: str = "") -> None:
        """End the flow, at the other end too.  Idempotent."""
        self._end()
        self._stream.reset(reason, text)
        self._stream.release()

    def _received(self, payload: bytes) -> None:
        rate = self._limits.writing  # which may be another one than before
        if rate is None or rate.take_all(len(payload)):
            self._on_datagram(payload)

    def _failed(self) -> None:
        reason, text = self._stream.failure or (Reason.CANCELED, "")
        on_over = self._end()
        self._stream.release()
        if on_over is not None:
            on_over(reason, text)

    def _end(self) -> Callable[[int, str], None] | None:
        """Say that it is over to `done`; return who else has to be told, unless that was told already."""
        with self._lock:
            on_over, done = self._on_over, self._done
            self._on_over = self._done = None
        if done is not None:
            done()
        return on_over


def connect(addresses: Sequence[Address]) -> socket.socket:
    """Return a UDP socket that is connected to the first of `addresses` to which there is a route.  Does not block.

    That says nothing about whether anybody is there.  Raises EndpointError.
    """
    last = OSError(errno.EHOSTUNREACH, "no address")
    for family, address in addresses:
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.connect(address)
        except OSError as error:
            last = error
            if sock is not None:
                sock.close()
        else:
            return sock
    raise EndpointError(describe_os_error(last), code=REASONS.get(last.errno or 0, Reason.UNREACHABLE)) from last


class UdpTarget:
    """The socket of one flow at its target, until the flow is over.  It owns both."""

    def __init__(
        self,
        stream: Stream,
        sock: socket.socket,
        watcher: Watcher,
        limits: TrafficLimits = UNLIMITED,
        done: Callable[[], None] | None = None,
    ) -> None:
        """Own `stream`, which the peer opened, and `sock`, which is connected.  Nothing is carried before `start`.

        `done` is as for UdpFlow.
        """
        self._done = done
        self._stream = stream
        self._limits = limits
        self._socket = DatagramSocket(sock)
        self._watcher = watcher
        self._peer = format_address(sock.getpeername())
        self._answered = False
        self._flow: UdpFlow | None = None

    def start(self) -> None:
        """Accept the stream, and carry its datagrams from now on.  Does not block."""
        flow = self._flow = UdpFlow(self._stream, self._to_target, self._over, limits=self._limits, done=self._done)
        self._stream.accept(self._peer)
        try:
            self._watcher.add(self._socket.fd, self._readable)
        except (NoThread, OSError) as error:
            log.warning("%s: %s", flow.label, error)
            self._end(Reason.LIMIT, "the other end has no descriptor or thread for it")
            return
        if self._socket.closed:  # the flow ended meanwhile
            self._watcher.remove(self._socket.fd)

    def _readable(self) -> Flushable | None:
        """Carry back what has come, by the watcher."""
        flow = self._flow
        assert flow is not None
        lane = None
        for _ in range(READ_AT_ONCE):
            try:
                payload = self._socket.recv()
            except BlockingIOError:
                break
            except OSError as error:
                if not self._survives(error):
                    break
                continue
            self._answered = True
            lane = flow.queue(payload)
        return lane

    def _to_target(self, payload: bytes) -> None:
        try:
            try:
                self._socket.send(payload)
            except BlockingIOError:
                return
            except OSError as error:
                # It is about an earlier datagram: the kernel tells it instead of sending this one (udp(7)).
                if not self._survives(error):
                    return
                self._socket.send(payload)
        except OSError as error:
            log.debug("%s: a datagram to %s was dropped: %s", self._stream.label, self._peer, error)

    def _survives(self, error: OSError) -> bool:
        """Whether the flow goes on after this: what ICMP said, or a datagram that was too large.

        A target that has answered before is perhaps restarting.  One that never has is told as for TCP.
        """
        code = error.errno or 0
        if self._answered or not (code == errno.ECONNREFUSED or code in _UNREACHABLE):
            return not self._socket.closed
        self._end(REASONS.get(code, Reason.UNREACHABLE), f"{self._peer}/udp: {describe_os_error(error)}")
        return False

    def _end(self, reason: Reason, text: str) -> None:
        if self._flow is not None:
            self._flow.close(reason, text)
        self._over(reason, text)

    def _over(self, reason: int, text: str) -> None:
        del reason, text
        self._watcher.remove(self._socket.fd)
        self._socket.close()
