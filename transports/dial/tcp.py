"""From a host's name to a connected socket, with errors that say what to do.

Looking up and connecting are `qanat.base.resolve` and `qanat.base.connect`; what goes wrong there becomes one
TransportError here.  Used by `dialer` alone, for the server or for the proxy in front of it.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from qanat.base.addresses import format_host_port
from qanat.base.cancel import Cancel
from qanat.base.connect import connect as connect_to_first
from qanat.base.deadline import Deadline
from qanat.base.errors import Canceled, ConnectError, NameLookupError, TransportError
from qanat.base.resolve import LookupShare, resolve
from qanat.base.sockets import describe_os_error, format_address

_HINTS = {
    errno.ECONNREFUSED: "nothing listens there: check that the {what} runs, and the port in {where}",
    errno.ETIMEDOUT: "nothing answers there: check the address, and firewalls on the path",
    errno.ENETUNREACH: "this machine has no route to it: check the network connection",
    errno.EHOSTUNREACH: "there is no route to that machine: check the address, and firewalls on the path",
    errno.EACCES: "this machine's own firewall or policy forbids it",
    errno.EPERM: "this machine's own firewall or policy forbids it",
    errno.EMFILE: "this process has too many open files: raise its limit (ulimit -n, LimitNOFILE)",
}

_share = LookupShare()


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to connect, and how to speak of it."""

    host: str
    port: int
    what: str = "server"  # or "proxy"
    where: str = "the URL"  # what names host and port

    @property
    def address(self) -> str:
        """`host:port`, for messages."""
        return format_host_port(self.host, self.port)

    def __str__(self) -> str:
        return self.address if self.what == "server" else f"the {self.what} {self.address}"


def connect(destination: Destination, deadline: Deadline, cancel: Cancel) -> socket.socket:
    """Return a connected, blocking socket.  Blocks until `deadline`, or until `cancel`.  Raises TransportError."""
    try:
        addresses = resolve(destination.host, destination.port, deadline, _share, cancel)
        return connect_to_first(addresses, deadline, cancel)[0]
    except NameLookupError as error:
        hint = f"check its spelling in {destination.where}, and your DNS" if error.unknown else error.hint
        raise TransportError(error.message, hint=hint) from error
    except ConnectError as error:
        raise _explain(destination, error) from error
    except Canceled as error:
        raise TransportError(f"connecting to {destination} was stopped") from error


def _explain(destination: Destination, error: ConnectError) -> TransportError:
    tried = [(format_address(address), describe_os_error(failure).lower()) for address, failure in error.attempts]
    if [address for address, _ in tried] == [destination.address]:
        words = tried[0][1]  # the address is named already
    else:
        words = "; ".join(f"{address}: {failure}" for address, failure in tried)
    hint = _HINTS.get(error.last.errno or 0, "check host and port in {where}, and the network connection")
    return TransportError(
        f"cannot connect to {destination}: {words}", hint=hint.format(what=destination.what, where=destination.where)
    )
