"""Names to addresses within a deadline.

`getaddrinfo` cannot be interrupted, so each call runs in a named thread of its own that is not joined: when the
deadline passes first, or the caller is canceled, the caller goes on and the thread ends when the resolver lets it.
Until then it keeps its slot, so the number of such threads is bounded, over all and for each `LookupShare`: a client
that asks for dead names cannot keep the others from theirs.

Used by `qanat.transports.dial.tcp` for servers and proxies, and by `qanat.endpoints.tcp` for the targets of forwards.
Connecting to what comes out of here is `connect`'s.
"""

from __future__ import annotations

import queue
import socket
import threading

from qanat.base.addresses import ascii_name, parse_address
from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import Canceled, NameLookupError, NoThread
from qanat.base.threads import start_thread

SockAddr = tuple[str, int] | tuple[str, int, int, int]
Address = tuple[socket.AddressFamily, SockAddr]
"""A family and the sockaddr to pass to `connect` or `bind`; its host is always a literal."""

MAX_LOOKUPS = 64
"""Lookups at once in this process; more wait for a slot until their deadline."""
MAX_SHARE = 16
"""Lookups at once for one LookupShare."""

_slots = threading.Condition()  # guards the next, and `_used` of every share
_in_use = 0


class LookupShare:
    """One user's part of the lookups: at most `limit` at once.  Safe to use from any thread."""

    def __init__(self, limit: int = MAX_SHARE) -> None:
        self._limit = limit
        self._used = 0

    def acquire(self, deadline: Deadline, cancel: Cancel) -> bool:
        """Take a slot; return False when there was none until the deadline or until `cancel`.  Blocks."""
        global _in_use
        with cancel.waking(_wake_waiters), _slots:
            _slots.wait_for(lambda: cancel.canceled or self._free(), deadline.remaining())
            if cancel.canceled or not self._free():
                return False
            self._used += 1
            _in_use += 1
            return True

    def release(self) -> None:
        """Give a slot back.  Does not block."""
        global _in_use
        with _slots:
            self._used -= 1
            _in_use -= 1
            _slots.notify_all()

    def _free(self) -> bool:
        return self._used < self._limit and _in_use < MAX_LOOKUPS


def resolve(
    host: str, port: int, deadline: Deadline, share: LookupShare, cancel: Cancel | None = None
) -> list[Address]:
    """Return every TCP address of `host`, in the system's order of preference (RFC 6724), at least one.

    Blocks until `deadline`, or until `cancel` is canceled.  A literal address is not looked up.  Raises
    NameLookupError, and Canceled.
    """
    if parse_address(host) is not None:
        return [numeric_address(host, port)]
    cancel = cancel or Cancel()
    if not share.acquire(deadline, cancel):
        if cancel.canceled:
            raise Canceled
        raise NameLookupError(
            "too many names are being looked up at once",
            busy=True,
            hint="the name server does not answer: check the network connection",
        )
    answers: queue.SimpleQueue[list[Address] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(_get_address_info(ascii_name(host), port, 0))
        except (OSError, ValueError) as error:  # UnicodeError, from a name that IDNA refuses, is a ValueError
            answers.put(error)
        finally:
            share.release()

    try:
        start_thread(f"look up {host[:80]}", look_up)
    except NoThread as error:
        share.release()
        raise NameLookupError(error.message, busy=True, hint=error.hint) from error
    try:
        with cancel.waking(lambda: answers.put(Canceled())):
            answer = answers.get(timeout=deadline.remaining())
    except queue.Empty:
        raise NameLookupError(
            f"looking up the name {host} took too long",
            hint="the name server does not answer: check the network connection",
        ) from None
    if isinstance(answer, Canceled):
        raise Canceled
    if isinstance(answer, Exception):
        raise _explain(host, answer) from answer
    if not answer:
        raise _unknown(host)
    return answer


def numeric_address(host: str, port: int) -> Address:
    """Return the address of the literal `host`.  Does not block.

    Raises NameLookupError for an interface that this machine does not have (fe80::1%nowhere), and for what is no
    literal.
    """
    try:
        return _get_address_info(host, port, socket.AI_NUMERICHOST)[0]
    except (OSError, ValueError, IndexError) as error:
        raise NameLookupError(
            f"{host} is no address of this machine's networks", hint="check the address, and the interface after %"
        ) from error


def _wake_waiters() -> None:
    with _slots:
        _slots.notify_all()


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


def _explain(host: str, error: Exception) -> NameLookupError:
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return NameLookupError(
            f"looking up the name {host} failed for now",
            hint="the name server does not answer: check the network connection",
        )
    return _unknown(host)


def _unknown(host: str) -> NameLookupError:
    return NameLookupError(f"the name {host} is not known", unknown=True, hint="check its spelling, and your DNS")
