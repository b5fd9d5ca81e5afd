"""TCP targets and listening sockets: connecting within a deadline, accepting without spinning.

Which addresses may be reached or bound is decided elsewhere (`qanat.server.access.rules`); what arrives here has
been resolved and checked.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence

from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError, NoThread
from qanat.base.sockets import close_socket, format_address, set_reset_on_close
from qanat.base.threads import start_thread
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.endpoint")

SockAddr = tuple[str, int] | tuple[str, int, int, int]

_REASONS = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.REFUSED,
    errno.EACCES: Reason.NOT_ALLOWED,
    errno.EPERM: Reason.NOT_ALLOWED,
    errno.EMFILE: Reason.LIMIT,
    errno.ENFILE: Reason.LIMIT,
}
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
EXHAUSTED_PAUSE = 0.1
"""Seconds until accepting is tried again when there was no descriptor for a connection."""


def connect(
    addresses: Sequence[tuple[int, SockAddr]], deadline: Deadline, cancelled: Callable[[], bool] = lambda: False
) -> WakeableSocket:
    """Connect to the first of `addresses` (family, address) that answers; blocks until the deadline.

    Addresses share the time that is left, so that a silent first one leaves some for the next.  Raises
    EndpointError with the reason of the last failure, in the words of the operating system.
    """
    failure: OSError = TimeoutError(errno.ETIMEDOUT, "no answer in time")
    for index, (family, address) in enumerate(addresses):
        remaining = deadline.remaining()
        if cancelled() or (remaining is not None and remaining <= 0):
            break
        share = None if remaining is None else remaining / (len(addresses) - index)
        try:
            return WakeableSocket(_connect_one(family, address, share), format_address(address))
        except OSError as error:
            failure = error
    reason = _REASONS.get(failure.errno or 0, Reason.UNREACHABLE)
    raise EndpointError(failure.strerror or "no answer in time", code=reason)


def _connect_one(family: int, address: SockAddr, timeout: float | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        set_reset_on_close(sock, True)
        sock.settimeout(timeout)
        sock.connect(address)
    except TimeoutError as error:
        sock.close()
        raise TimeoutError(errno.ETIMEDOUT, "no answer in time") from error
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """A listening TCP socket with its accepting thread.

    `on_connection(socket, peer)` is called by that thread for each connection and must not block.
    Connections are reset rather than ended when they are closed, or this process dies, before anyone has
    taken charge of them.
    """

    def __init__(self, host: str, port: int, on_connection: Callable[[socket.socket, str], None], name: str) -> None:
        """Bind and listen; does not accept before `start`.  Raises EndpointError (LIMIT when in use)."""
        self._on_connection = on_connection
        self._name = name
        self._closing = threading.Lock()
        self._closed = threading.Event()
        self._exhausted = False
        self._thread: threading.Thread | None = None
        try:
            self._sock = _listening_socket(host, port)
            try:
                self._wake_read, self._wake_write = socket.socketpair()
            except OSError:
                self._sock.close()
                raise
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, Reason.LIMIT)
            text = f"cannot listen on {format_address((host, port))}: {_what(error)}"
            raise EndpointError(text, code=reason, hint=_listen_hint(error, port)) from error
        self.address: str = format_address(self._sock.getsockname())
        self.port: int = self._sock.getsockname()[1]

    def start(self) -> None:
        """Accept connections from now on.  Does not block.

        Raises EndpointError when the system gives no thread; the port is free again then.
        """
        try:
            self._thread = start_thread(self._name, self._accept_loop)
        except NoThread as error:
            self._close_sockets()
            raise EndpointError(
                f"cannot accept on {self.address}: {error.message}", code=Reason.LIMIT, hint=error.hint
            ) from error

    def close(self) -> None:
        """Stop accepting and free the port; joins the thread unless called by it.  Idempotent, from any thread."""
        if self._thread is threading.current_thread():
            self._closed.set()  # The loop frees the port as it ends: another thread may be waiting for just that.
            return
        with self._closing:
            self._closed.set()
            with contextlib.suppress(OSError):
                self._wake_write.send(b"\0")
            if self._thread is not None:
                self._thread.join()
            self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in (self._sock, self._wake_read, self._wake_write):
            close_socket(sock)

    def _accept_loop(self) -> None:
        try:
            while not self._closed.is_set():
                self._wait()
                self._accept()
        finally:
            self._close_sockets()

    def _accept(self) -> None:
        try:
            sock, address = self._sock.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                if not self._exhausted:
                    log.warning("%s: %s; raise the limit (ulimit -n)", self._name, os.strerror(error.errno or 0))
                self._exhausted = True
                # The backlog keeps the rest.  No event says that a descriptor came free somewhere.
                self._closed.wait(EXHAUSTED_PAUSE)
            return  # Otherwise it has gone again (accept(2), ECONNABORTED), or `close` woke us.
        self._exhausted = False
        self._on_connection(sock, format_address(address))

    def _wait(self) -> None:
        """Block until there is a connection, or `close` was called."""
        if not hasattr(select, "poll"):  # Windows
            select.select([self._sock, self._wake_read], [], [])
            return
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        poller.poll()


def _listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=512)
    set_reset_on_close(sock, True)  # What it accepts inherits this.
    sock.setblocking(False)
    return sock


def _what(error: OSError) -> str:
    """The system's words alone: `create_server` adds its own."""
    return str(error) if error.errno is None else os.strerror(error.errno)


def _listen_hint(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"choose another port, or stop the program that holds it: ss -ltnp 'sport = :{port}'"
    if error.errno == errno.EACCES:
        return "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher one"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address; use one from `ip addr`, or 0.0.0.0"
    return ""
