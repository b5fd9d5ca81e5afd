"""Names and listening sockets of forwards: what `qanat.base` looks up and binds, with the reasons of the wire.

Which addresses may be bound is decided elsewhere (`qanat.server.access.rules`); what arrives here has been checked.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence

from qanat.base import listen as tcp_listen
from qanat.base import resolve as names
from qanat.base.addresses import ListenAddress, format_host_port
from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import BindError, Canceled, EndpointError, NameLookupError
from qanat.base.resolve import Address, LookupShare
from qanat.base.sockets import format_address
from qanat.base.watcher import Watcher
from qanat.endpoints.accepting import Accepting
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.mux.frames import Reason

REASONS = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.REFUSED,
    errno.EACCES: Reason.NOT_ALLOWED,
    errno.EPERM: Reason.NOT_ALLOWED,
    errno.EMFILE: Reason.LIMIT,
    errno.ENFILE: Reason.LIMIT,
}
"""What the peer is told for an error of the operating system."""
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
    """The listening TCP sockets of one port.

    `on_connection(socket, peer)` is called in the watcher's thread for each connection and must not block.
    Connections are reset rather than ended when they are closed, or this process dies, before anyone has
    taken charge of them.
    """

    def __init__(
        self,
        addresses: Sequence[ListenAddress],
        on_connection: Callable[[socket.socket, str], None],
        name: str,
        watcher: Watcher,
        *,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        """Bind and listen; does not accept before `start`.  Does not block.

        `addresses` are as for `qanat.base.listen.bind`.  Raises EndpointError (LIMIT when in use).
        """
        try:
            sockets = tcp_listen.bind(addresses, backlog=_BACKLOG, configure=keepalive.configure)
        except BindError as error:
            reason = REASONS.get(error.number, Reason.LIMIT)
            raise EndpointError(error.message, code=reason, hint=error.hint) from error
        names = [sock.getsockname() for sock in sockets]
        self.address: str = " and ".join(format_address(name) for name in names)
        self.port: int = names[0][1]
        self._accepting = Accepting(
            sockets,
            lambda sock, peer: on_connection(sock, format_address(peer)),
            f"{name} on {self.address}",
            watcher,
            prepared=True,
        )

    def start(self) -> None:
        """Accept connections from now on.  Does not block.

        Raises EndpointError when the system gives no thread or descriptor for it; the port is free again then.
        """
        self._accepting.start()

    def close(self) -> None:
        """Stop accepting and free the port.  Idempotent, from any thread.

        Blocks until a call of `on_connection` that has begun has returned, unless that is what calls this.
        """
        self._accepting.close()
