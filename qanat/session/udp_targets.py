"""The UDP flows of a session whose targets are at this end: each gets a socket of its own once its name is known.

A flow counts as a stream for the limits, and is none that a session which stops waits for: it has no end of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from qanat.base.addresses import parse_address
from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import UdpAddress
from qanat.base.errors import EndpointError, NoThread
from qanat.base.resolve import Address
from qanat.base.sockets import format_address
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.endpoints.udp import UdpTarget, connect
from qanat.mux.frames import Reason
from qanat.mux.stream import Stream
from qanat.session.joined_streams import INTERNAL_TEXT, StreamObserver, refuse

log = logging.getLogger("qanat.session")


class UdpTargets:
    """See the module's docstring.  Safe to use from any thread."""

    def __init__(
        self,
        name: str,
        watcher: Watcher,
        threads: ThreadGroup,
        limits: TrafficLimits,
        observer: StreamObserver | None = None,
    ) -> None:
        """`name` is for logs; `threads` are those of the session, which look names up, `limits` its streams'."""
        self._name = name
        self._watcher = watcher
        self._threads = threads
        self._limits = limits
        self._observer = observer

    def join(
        self,
        stream: Stream,
        to: UdpAddress,
        look_up: Callable[[Deadline], list[Address]],
        *,
        timeout: float,
        places: threading.Semaphore | None = None,
        limits: TrafficLimits | None = None,
        on_joined: Callable[[], None] = lambda: None,
    ) -> None:
        """Join a flow that the peer opened to a socket for `to`, or refuse it.  Does not block.

        `look_up` returns the addresses to try, or raises EndpointError; it does not block where the host is a literal
        address, and otherwise has `timeout` seconds, in a thread that takes one of `places`.  `limits` are by default
        the session's.  `on_joined`, which must not block, is called once they are joined.
        """
        limits = self._limits if limits is None else limits
        look_up_in_time = partial(look_up, Deadline(timeout))
        if parse_address(to.host) is not None:
            self._join(stream, to, look_up_in_time, limits, on_joined)
            return
        if places is not None and not places.acquire(blocking=False):
            refuse(stream, Reason.LIMIT, "too many targets are being connected to at once")
            return

        def look_up_and_join() -> None:
            try:
                self._join(stream, to, look_up_in_time, limits, on_joined)
            finally:
                if places is not None:
                    places.release()

        try:
            self._threads.start(f"{stream.label}-connect", look_up_and_join)
        except NoThread as error:
            if places is not None:
                places.release()
            log.warning("%s: to %s: %s", self._name, to, error)
            refuse(stream, Reason.LIMIT, "no more threads at the other end")

    def _join(
        self,
        stream: Stream,
        to: UdpAddress,
        look_up: Callable[[], list[Address]],
        limits: TrafficLimits,
        on_joined: Callable[[], None],
    ) -> None:
        try:
            sock, observer = connect(look_up()), self._observer
            if observer is not None:
                observer.opened(stream, format_address(sock.getpeername()))
            done = None if observer is None else partial(observer.closed, stream)
            UdpTarget(stream, sock, self._watcher, limits, done).start()
            on_joined()
        except EndpointError as error:
            log.info("%s to %s: %s", self._name, to, error.log_text)
            if self._observer is not None:
                self._observer.refused(stream, error.code, error.message)
            refuse(stream, Reason(error.code), error.message)
        except Exception:
            log_unexpected(f"{stream.label} to {to} ended")
            refuse(stream, Reason.INTERNAL, INTERNAL_TEXT)
