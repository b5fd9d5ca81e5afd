"""The far end of the streams that measure: echo, sink and source, each in a thread on one end of a socket pair.

The other end of the pair is joined to the stream like any target, so that what is measured is the way that every
connection takes.  `qanat.server.session` opens them, in sessions that are for measuring alone; what they say on the
stream is in docs/PROTOCOL.md §4.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable

from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError, NoThread
from qanat.base.threads import ThreadGroup
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason
from qanat.session.messages import Measurement

log = logging.getLogger("qanat.session")

MAX_STREAMS = 16
"""Streams that measure at once in a session."""
MAX_SECONDS = 300.0
"""Seconds that one of them may last."""
REPORT = struct.Struct("!QQ")
"""What a sink says: bytes that came, and microseconds since the first of them."""
REPORT_INTERVAL = 0.1
"""Seconds between two reports while bytes come; the last one follows the end of what comes."""

_BLOCK = 256 * 1024
_ECHO_BLOCK = 16 * 1024


class FarEnds:
    """The echoes, sinks and sources of one session.  Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def connect(self, what: Measurement, threads: ThreadGroup) -> WakeableSocket:
        """Start one in a thread of `threads`; return the socket that leads to it.  Does not block.

        Raises EndpointError where there are MAX_STREAMS already, or there is no socket or thread for another.
        """
        with self._lock:
            if self._count >= MAX_STREAMS:
                raise EndpointError(f"{MAX_STREAMS} streams measure already", code=Reason.LIMIT)
            self._count += 1
        try:
            ours, far = socket.socketpair()
        except OSError as error:
            self._ended()
            raise EndpointError(f"no socket to measure with: {error.strerror}", code=Reason.LIMIT) from error
        name = what.name.lower()
        try:
            threads.start(f"measure {name}", lambda: self._serve(far, _SERVICES[what]))
        except NoThread as error:
            self._ended()
            ours.close()
            far.close()
            raise EndpointError(error.message, code=Reason.LIMIT) from error
        return WakeableSocket(ours, name)

    def _serve(self, sock: socket.socket, service: Callable[[socket.socket, Deadline], None]) -> None:
        try:
            with sock, contextlib.suppress(OSError):  # the stream was reset, or its time is up
                service(sock, Deadline(MAX_SECONDS))
        finally:
            self._ended()

    def _ended(self) -> None:
        with self._lock:
            self._count -= 1


def _echo(sock: socket.socket, deadline: Deadline) -> None:
    while True:
        sock.settimeout(_remaining(deadline))
        data = sock.recv(_ECHO_BLOCK)
        if not data:
            return
        sock.sendall(data)


def _sink(sock: socket.socket, deadline: Deadline) -> None:
    block = bytearray(_BLOCK)
    received, began, reported = 0, 0.0, 0.0
    while True:
        sock.settimeout(_remaining(deadline))
        size = sock.recv_into(block)
        now = time.monotonic()
        if not received:
            began = reported = now
        received += size
        if not size or now - reported >= REPORT_INTERVAL:
            sock.sendall(REPORT.pack(received, round((now - began) * 1e6)))
            reported = now
        if not size:
            return


def _source(sock: socket.socket, deadline: Deadline) -> None:
    block = bytes(_BLOCK)
    sock.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while True:
            ready = selector.select(_remaining(deadline))
            # What comes is the client's end: it has nothing to say to a source.
            if any(events & selectors.EVENT_READ for _, events in ready) and not sock.recv(_ECHO_BLOCK):
                return
            with contextlib.suppress(BlockingIOError):
                sock.send(block)


def _remaining(deadline: Deadline) -> float | None:
    if deadline.passed:
        raise TimeoutError
    return deadline.remaining()


_SERVICES: dict[Measurement, Callable[[socket.socket, Deadline], None]] = {
    Measurement.ECHO: _echo,
    Measurement.SINK: _sink,
    Measurement.SOURCE: _source,
}
