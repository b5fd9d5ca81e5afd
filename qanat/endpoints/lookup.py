"""Names to addresses within a deadline.

`getaddrinfo` cannot be interrupted, so each call runs in a named thread of its own that is not
joined: when the deadline passes first, the caller goes on and the thread ends when the resolver
lets it.  Until then it keeps its slot, so the number of such threads is bounded, over all and for
each `Share`: a client that asks for dead names cannot keep the others from theirs.
`qanat.server.access.rules` calls this, and whatever else must resolve a forward's target.
"""

from __future__ import annotations

import queue
import socket
import threading

from qanat.base.addresses import parse_address
from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError, NoThread
from qanat.base.sockets import format_address
from qanat.base.threads import start_thread
from qanat.mux.frames import Reason

SockAddr = tuple[str, int] | tuple[str, int, int, int]
Address = tuple[socket.AddressFamily, SockAddr]
"""A family and the sockaddr to pass to `connect` or `bind`; its host is always a literal."""

MAX_LOOKUPS = 64
"""Lookups at once in this process; more wait for a slot until their deadline."""
MAX_SHARE = 16
"""Lookups at once for one Share."""

_common = threading.BoundedSemaphore(MAX_LOOKUPS)


class Share:
    """One user's part of the lookups: at most `limit` at once."""

    def __init__(self, limit: int = MAX_SHARE) -> None:
        self._own = threading.BoundedSemaphore(limit)
        self._common = _common

    def acquire(self, deadline: Deadline) -> bool:
        """Take a slot; False when there was none until the deadline.  Blocks."""
        if not self._own.acquire(timeout=deadline.remaining()):
            return False
        if self._common.acquire(timeout=deadline.remaining()):
            return True
        self._own.release()
        return False

    def release(self) -> None:
        self._common.release()
        self._own.release()


def resolve(host: str, port: int, deadline: Deadline, share: Share) -> list[Address]:
    """Every TCP address of `host`, in the resolver's order, at least one.  Blocks until `deadline`.

    A literal address is not looked up.  Raises EndpointError: UNREACHABLE when the name does not
    exist or was not answered in time, LIMIT when no slot became free.
    """
    if parse_address(host) is not None:
        return _usable(host, port, _numeric(host, port))
    what = format_address((host, port))
    if not share.acquire(deadline):
        raise EndpointError(f"{what}: too many names are being looked up at once", code=Reason.LIMIT)
    answers: queue.SimpleQueue[list[Address] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(_get_address_info(host, port, 0))
        except (OSError, ValueError) as error:  # UnicodeError, from a name that IDNA refuses, is a ValueError
            answers.put(error)
        finally:
            share.release()

    try:
        start_thread(f"look up {host[:80]}", look_up)
    except NoThread as error:
        share.release()
        raise EndpointError(f"{what}: {error.message}", code=Reason.LIMIT, hint=error.hint) from error
    try:
        answer = answers.get(timeout=deadline.remaining())
    except queue.Empty:
        raise EndpointError(f"{what}: the name was not answered in time", code=Reason.UNREACHABLE) from None
    if isinstance(answer, Exception):
        raise _explained(what, answer) from answer
    return _usable(host, port, answer)


def _numeric(host: str, port: int) -> list[Address]:
    try:
        return _get_address_info(host, port, socket.AI_NUMERICHOST)
    except (OSError, ValueError) as error:  # a scope that this machine does not have: fe80::1%nowhere
        raise _explained(format_address((host, port)), error) from error


def _get_address_info(host: str, port: int, flags: int) -> list[Address]:
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags | socket.AI_NUMERICSERV
    )
    addresses: list[Address] = []
    for family, _, _, _, sockaddr in found:
        host_part, port_part = str(sockaddr[0]), int(sockaddr[1])
        if family == socket.AF_INET:
            addresses.append((family, (host_part, port_part)))
        elif family == socket.AF_INET6 and len(sockaddr) == 4:
            addresses.append((family, (host_part, port_part, sockaddr[2], sockaddr[3])))
    return addresses


def _usable(host: str, port: int, addresses: list[Address]) -> list[Address]:
    if not addresses:
        raise EndpointError(f"{format_address((host, port))}: the name has no address", code=Reason.UNREACHABLE)
    return addresses


def _explained(what: str, error: Exception) -> EndpointError:
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return EndpointError(f"{what}: the name server does not answer", code=Reason.UNREACHABLE)
        return EndpointError(f"{what}: the name was not found", code=Reason.UNREACHABLE)
    return EndpointError(f"{what}: this is not a name that can be looked up", code=Reason.UNREACHABLE)
