"""Names and listening sockets of forwards: what `qanat.base` looks up and binds, with the reasons of the wire.

Which addresses may be bound is decided elsewhere (`qanat.server.access.rules`); what arrives here has been checked.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Sequence

from qanat.base import listen as tcp_listen
from qanat.base import resolve as names
from qanat.base.addresses import ListenAddress, format_host_port
from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import BindError, Canceled, EndpointError, NameLookupError, NoThread, OutOfFiles
from qanat.base.resolve import Address, LookupShare
from qanat.base.sockets import format_address
from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.mux.frames import Reason

log = logging.getLogger("qanat.endpoint")

REASONS = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.REFUSED,
    errno.EACCES: Reason.NOT_ALLOWED,
    errno.EPERM: Reason.NOT_ALLOWED,
    errno.EMFILE: Reason.LIMIT,
    errno.ENFILE: Reason.LIMIT,
}
"""What the peer is told for an error of the operating system."""
EXHAUSTED_PAUSE = 0.1
"""Seconds until accepting is tried again when there was no descriptor for a connection."""
_BACKLOG = 512


def resolve(
    host: str, port: int, deadline: Deadline, share: LookupShare, cancel: Cancel | None = None
) -> list[Address]:
    """Return every TCP address of `host`, in the resolver's order, at least one.  Blocks until `deadline` or `cancel`.

    Raises EndpointError: UNREACHABLE when the name does not exist or was not answered in time, LIMIT when no slot
    became free.
    """
    try:
        return names.resolve(host, port, deadline, share, cancel)
    except NameLookupError as error:
        code = Reason.LIMIT if error.busy else Reason.UNREACHABLE
        raise EndpointError(f"{format_host_port(host, port)}: {error.message}", code=code, hint=error.hint) from error
    except Canceled as error:
        raise EndpointError(error.message, code=Reason.CANCELED) from error


class Listener:
    """The listening TCP sockets of one port, with their accepting thread.

    `on_connection(socket, peer)` is called by that thread for each connection and must not block.
    Connections are reset rather than ended when they are closed, or this process dies, before anyone has
    taken charge of them.
    """

    def __init__(
        self,
        addresses: Sequence[ListenAddress],
        on_connection: Callable[[socket.socket, str], None],
        name: str,
        *,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        """Bind and listen; does not accept before `start`.  Does not block.

        `addresses` are as for `qanat.base.listen.bind`.  Raises EndpointError (LIMIT when in use).
        """
        self._on_connection = on_connection
        self._name = name
        self._closed = threading.Event()
        self._exhausted = False
        self._thread: threading.Thread | None = None
        try:
            sockets = tcp_listen.bind(addresses, backlog=_BACKLOG, configure=keepalive.configure)
            self._acceptor = tcp_listen.Acceptor(sockets)
        except BindError as error:
            reason = REASONS.get(error.number, Reason.LIMIT)
            raise EndpointError(error.message, code=reason, hint=error.hint) from error
        self.address: str = " and ".join(format_address(address) for address in self._acceptor.addresses)
        self.port: int = self._acceptor.addresses[0][1]

    def start(self) -> None:
        """Accept connections from now on.  Does not block.

        Raises EndpointError when the system gives no thread; the port is free again then.
        """
        try:
            self._thread = start_thread(self._name, self._accept_loop)
        except NoThread as error:
            self._acceptor.close()
            raise EndpointError(
                f"cannot accept on {self.address}: {error.message}", code=Reason.LIMIT, hint=error.hint
            ) from error

    def close(self) -> None:
        """Stop accepting and free the port; joins the thread unless called by it.  Idempotent, from any thread."""
        self._closed.set()
        self._acceptor.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _accept_loop(self) -> None:
        try:
            while not self._closed.is_set():
                self._accept()
        finally:
            self._acceptor.close()

    def _accept(self) -> None:
        try:
            accepted = self._acceptor.accept()
        except OutOfFiles as error:
            if not self._exhausted:
                log.warning("%s: %s", self._name, error)
            self._exhausted = True
            self._closed.wait(EXHAUSTED_PAUSE)
            return
        except Exception:
            log_unexpected(f"{self._name}: accepting a connection failed")
            self._closed.wait(EXHAUSTED_PAUSE)
            return
        if accepted is not None:
            self._exhausted = False
            sock, address = accepted
            try:
                self._on_connection(sock, format_address(address))
            except Exception:
                sock.close()
                log_unexpected(f"{self._name}: the connection from {format_address(address)} ended")
