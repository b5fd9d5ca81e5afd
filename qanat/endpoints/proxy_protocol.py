"""The PROXY protocol where forwards begin and end: who came is read from a balancer, and told to a target.

    in    a connection of a trusted proxy -> its header, read by the watcher -> on_connection with whom that names
    out   a target is connected to -> a header that names who came -> the stream's bytes

Others than trusted proxies are handed on as they are.  The headers themselves are `qanat.base.proxy_protocol`'s; the
server's front door, whose connections have threads, reads its own.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from qanat.base.errors import EndpointError, NoThread, ProtocolError
from qanat.base.proxy_protocol import Endpoints, HeaderReader
from qanat.base.sockets import describe_os_error
from qanat.base.watcher import Timer, Watcher
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.endpoint")

HEADER_TIMEOUT = 10.0
"""Seconds from a connection until its header must be whole."""
MAX_WAITING = 1024
"""Connections of one listener whose headers may be awaited at once."""
_PEEKED = 4096
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)

Done = Callable[[], None]


class OnConnection(Protocol):
    """Is given a connection, who came, what to call when it has ended, and what it was made to."""

    def __call__(self, sock: socket.socket, peer: str, done: Done, local: str = "", /) -> None:
        """Take it; must not block."""


class HeaderListener:
    """What listens, as `qanat.endpoints.tcp.Listener` does, and the connections whose headers have not come yet."""

    def __init__(self, listener: Closeable, headers: ProxyHeaders) -> None:
        self._listener = listener
        self._headers = headers
        self.address, self.port = listener.address, listener.port

    def close(self) -> None:
        """Stop listening, and reset the connections whose headers have not come.  Idempotent; blocks as that does."""
        self._listener.close()
        self._headers.close()


class Closeable(Protocol):
    """What listens."""

    address: str
    port: int

    def close(self) -> None:
        """Stop listening."""


class ProxyHeaders:
    """Reads the header of each connection of a trusted proxy.  Safe to use from any thread; holds no thread."""

    def __init__(
        self, on_connection: OnConnection, is_trusted: Callable[[str], bool], name: str, watcher: Watcher
    ) -> None:
        """`is_trusted` is asked about the other end, as `host:port`; `on_connection` must not block."""
        self._on_connection = on_connection
        self._is_trusted = is_trusted
        self._name = name
        self._watcher = watcher
        self._told = False
        self._lock = threading.Lock()  # guards the next two
        self._waiting: dict[socket.socket, Done] = {}
        self._closed = False

    def take(self, sock: socket.socket, peer: str, done: Done = lambda: None) -> None:
        """Take a connection over; hand it on at once, or when its header has come.  Does not block."""
        if not self._is_trusted(peer):
            self._on_connection(sock, peer, done, "")
            return
        with self._lock:
            refused = self._closed or len(self._waiting) >= MAX_WAITING
            if not refused:
                self._waiting[sock] = done
        if refused:
            self._reset(sock, done)
            return
        reader, timer = HeaderReader(), self._watcher.timer(partial(self._drop, sock))
        try:
            timer.set(time.monotonic() + HEADER_TIMEOUT)
            self._watcher.add(sock.fileno(), partial(self._ready, sock, peer, reader, timer))
        except (NoThread, OSError) as error:
            log.warning("%s: %s", self._name, error)
            self._drop(sock)

    def close(self) -> None:
        """Reset the connections whose headers have not come, and take no more.  Idempotent; does not block."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
        for sock in waiting:
            self._drop(sock)

    def _ready(self, sock: socket.socket, peer: str, reader: HeaderReader, timer: Timer) -> None:
        """Read what has come of a header; by the watcher."""
        try:
            first = sock.recv(_PEEKED, socket.MSG_PEEK | _DONT_WAIT)  # what follows it is the stream's
            if first:
                sock.recv(reader.feed(first), _DONT_WAIT)
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._tell(peer, error.message)
            first = b""
        except OSError:
            first = b""
        if not first:
            timer.cancel()
            self._drop(sock)
        elif reader.endpoints is not None:
            timer.cancel()
            self._whole(sock, peer, reader.endpoints)

    def _whole(self, sock: socket.socket, peer: str, ends: Endpoints) -> None:
        done = self._forget(sock)
        if done is not None:
            self._on_connection(sock, ends.source or peer, done, ends.destination)

    def _drop(self, sock: socket.socket) -> None:
        done = self._forget(sock)
        if done is not None:
            self._reset(sock, done)

    def _forget(self, sock: socket.socket) -> Done | None:
        """Watch it no longer; return what to call when it has ended, None when somebody else has it already."""
        with self._lock:
            done = self._waiting.pop(sock, None)
        if done is not None:
            self._watcher.remove(sock.fileno())
        return done

    @staticmethod
    def _reset(sock: socket.socket, done: Done) -> None:
        WakeableSocket(sock).close(orderly=False)
        done()

    def _tell(self, peer: str, why: str) -> None:
        if not self._told:  # once: a balancer would repeat it with each connection
            self._told = True
            log.warning(
                "%s: reset a connection of %s, which is in `trusted_proxies`: %s.  Have it send the PROXY protocol "
                "(HAProxy: send-proxy-v2, nginx: proxy_protocol on), or leave out accept_proxy_protocol",
                self._name,
                peer,
                why,
            )


class Connects(Protocol):
    """What connects to a stream's target, as `qanat.endpoints.target.Target`."""

    name: str

    def connect_now(self) -> WakeableSocket | None:
        """Return the connected socket; None when that has to be waited for."""

    def connect(self) -> WakeableSocket:
        """Block for it."""

    def give_up(self) -> None:
        """Give up what was begun."""


class TargetWithHeader:
    """A target that is told who came, in a header before everything else."""

    def __init__(self, target: Connects, header: bytes) -> None:
        self.name = target.name
        self._target = target
        self._header = header

    def connect_now(self) -> WakeableSocket | None:
        """Do as the target does, and send the header."""
        sock = self._target.connect_now()
        return None if sock is None else self._tell(sock)

    def connect(self) -> WakeableSocket:
        """Do as the target does, and send the header."""
        return self._tell(self._target.connect())

    def give_up(self) -> None:
        """Do as the target does."""
        self._target.give_up()

    def _tell(self, sock: WakeableSocket) -> WakeableSocket:
        try:
            sent = sock.send_now(memoryview(self._header))
        except OSError as error:
            sock.close(orderly=False)
            raise EndpointError(describe_os_error(error), code=Reason.REFUSED) from error
        if sent < len(self._header):  # its buffer was empty
            sock.close(orderly=False)
            raise EndpointError("it takes no PROXY protocol header", code=Reason.REFUSED)
        return sock
