"""From a host's name to a connected socket, with errors that say what to do.

Looking up and connecting are `qanat.base.resolve` and `qanat.base.connect`; what goes wrong there becomes one
TransportError here.  What goes wrong later, on a connection that could be made, is learned here too, for the next one.
Used by `dialer`, for the server or for the proxy in front of it, and by the client, which learns most.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from qanat.base.addresses import format_host_port
from qanat.base.cancel import Cancel
from qanat.base.connect import connect as connect_to_first
from qanat.base.connect import demote
from qanat.base.deadline import Deadline
from qanat.base.errors import MORE_FILES, Canceled, ConnectError, NameLookupError, TransportError
from qanat.base.resolve import Address, LookupShare, SockAddr, resolve
from qanat.base.sockets import describe_os_error, format_address

_HINTS = {
    errno.ECONNREFUSED: "nothing listens there: check that the {what} runs, and the port in {where}",
    errno.ETIMEDOUT: "nothing answers there: check the address, and firewalls on the path",
    errno.ENETUNREACH: "this machine has no route to it: check the network connection",
    errno.EHOSTUNREACH: "there is no route to that machine: check the address, and firewalls on the path",
    errno.EACCES: "this machine's own firewall or policy forbids it",
    errno.EPERM: "this machine's own firewall or policy forbids it",
    errno.EMFILE: f"this process has too many open files: {MORE_FILES}",
}

SMALL_SEGMENT = 1220
"""Bytes of payload in a segment where full ones may be lost: what every path of IPv6 has to carry (RFC 8200 §5)."""
PATIENCE = 3
"""How many failures in a row an address may have before others of its name are tried first."""
REMEMBERED_FOR = 3600.0
"""Seconds for which connections to an address get small segments after one that stalled."""
_MAX_REMEMBERED = 256

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
        _experience.found([address for _, address in addresses])
        configure = _ask_for_small_segments if any(map(_experience.has_stalled, addresses)) else None
        return connect_to_first(addresses, deadline, cancel, configure=configure)[0]
    except NameLookupError as error:
        hint = f"check its spelling in {destination.where}, and your DNS" if error.unknown else error.hint
        raise TransportError(error.message, hint=hint) from error
    except ConnectError as error:
        raise _explain(destination, error) from error
    except Canceled as error:
        raise TransportError(f"connecting to {destination} was stopped") from error


class _Experience:
    """What became of connections that could be made, by address.  Bounded; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: OrderedDict[SockAddr, int] = OrderedDict()  # in a row
        self._stalled: OrderedDict[SockAddr, float] = OrderedDict()  # when the last one did
        self._siblings: OrderedDict[SockAddr, Sequence[SockAddr]] = OrderedDict()

    def failed(self, address: SockAddr) -> bool:
        """Count a failure; return whether it was one too many, from which on they are counted anew."""
        with self._lock:
            count = self._failures.pop(address, 0) + 1
            if count < PATIENCE:
                _keep(self._failures, address, count)
            return count >= PATIENCE

    def worked(self, address: SockAddr) -> None:
        """Forget the failures."""
        with self._lock:
            self._failures.pop(address, None)

    def stalled(self, address: SockAddr) -> None:
        """Remember that a connection stalled."""
        with self._lock:
            _keep(self._stalled, address, time.monotonic())

    def has_stalled(self, address: Address) -> bool:
        """Return whether one did, not long ago."""
        with self._lock:
            since = self._stalled.get(address[1])
        return since is not None and time.monotonic() - since < REMEMBERED_FOR

    def found(self, addresses: Sequence[SockAddr]) -> None:
        """Remember that one name has these addresses."""
        with self._lock:
            for address in addresses:
                _keep(self._siblings, address, addresses)

    def siblings(self, address: SockAddr) -> Sequence[SockAddr]:
        """Return the addresses that its name had last, itself among them."""
        with self._lock:
            return self._siblings.get(address, ())

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._failures.clear()
            self._siblings.clear()
            self._stalled.clear()


_experience = _Experience()


def learn_failure(address: SockAddr, *, stalled: bool) -> None:
    """Remember that a connection to `address` could be made, and nothing came of it.  Does not block.

    Where its name has other addresses, those are tried first once it has failed PATIENCE times in a row, or stalled:
    IPv6 may be broken beyond the first packets, or one of several servers.  Not sooner, since a session that is
    resumed may live behind this one alone.
    """
    if stalled:
        learn_stall(address)
    if _experience.failed(address) or stalled:
        demote(address)


def learn_stall(address: SockAddr) -> None:
    """Remember that a connection to `address` was silent, or took nothing, for too long.  Does not block.

    The path may lose large packets without a word (a black hole of path MTU discovery, RFC 4821 §1).  So the next
    connections ask for small segments, in both directions: TCP tells its peer how large they may be.
    """
    _experience.stalled(address)


def has_others(address: SockAddr, given_up: Collection[SockAddr]) -> bool:
    """Return whether the name that led to `address` has another one that is not among those `given_up`."""
    return any(other != address and other not in given_up for other in _experience.siblings(address))


def learn_success(address: SockAddr) -> None:
    """Forget the failures of `address`: a connection to it is what it should be.  Does not block."""
    _experience.worked(address)


def _keep(memory: OrderedDict[SockAddr, Any], address: SockAddr, value: Any) -> None:
    memory[address] = value
    memory.move_to_end(address)
    while len(memory) > _MAX_REMEMBERED:
        memory.popitem(last=False)


def _ask_for_small_segments(sock: socket.socket) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not everywhere
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT)


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
