"""From a host's name to a connected socket: resolve, then try each address.

Every address of the name is tried in turn, IPv6 and IPv4 alternating, each with a fair share of the time
left.  What goes wrong becomes one TransportError that says what to do.  Used by `dialer` alone, for the server or
for the proxy in front of it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import queue
import selectors
import socket
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.sockets import close_socket, format_address
from qanat.base.threads import start_thread
from qanat.transports.wire.tcp import describe_os_error

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]

_HINTS = {
    errno.ECONNREFUSED: "nothing listens there: check that the {what} runs, and the port in {where}",
    errno.ETIMEDOUT: "nothing answers there: check the address, and firewalls on the way",
    errno.ENETUNREACH: "this machine has no route to it: check the network connection",
    errno.EHOSTUNREACH: "there is no way to that machine: check the address, and firewalls on the way",
    errno.EACCES: "this machine's own firewall or policy forbids it",
    errno.EPERM: "this machine's own firewall or policy forbids it",
    errno.EMFILE: "this process has too many open files: raise its limit",
}
_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect, and how to speak of it."""

    host: str
    port: int
    what: str = "server"  # or "proxy"
    where: str = "the URL"  # what names host and port

    def __str__(self) -> str:
        address = format_address((self.host, self.port))
        return address if self.what == "server" else f"the {self.what} {address}"


def connect(place: Place, deadline: Deadline, cancel: Cancel) -> socket.socket:
    """A connected, blocking socket.  Blocks until `deadline`, or until `cancel`.  Raises TransportError."""
    addresses = _resolve(place, deadline, cancel)
    failures: list[tuple[str, OSError]] = []
    for index, (family, address) in enumerate(addresses):
        remaining = deadline.remaining()
        share = None if remaining is None else max(0.001, remaining / (len(addresses) - index))
        try:
            return _connect_one(family, address, share, cancel)
        except OSError as error:
            failures.append((format_address(address), error))
            if cancel.cancelled:
                break
    raise _explain_connect(place, failures)


def _resolve(place: Place, deadline: Deadline, cancel: Cancel) -> list[_Address]:
    """The addresses of the host, families alternating in the system's order of preference."""
    try:
        literal = ipaddress.ip_address(place.host)
    except ValueError:
        return _look_up(place, deadline, cancel)
    family = socket.AF_INET6 if literal.version == 6 else socket.AF_INET
    return [(family, (place.host, place.port))]


def _look_up(place: Place, deadline: Deadline, cancel: Cancel) -> list[_Address]:
    answers: queue.SimpleQueue[list[_Address] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
            answers.put([(family, address) for family, _, _, _, address in found])
        except OSError as error:
            answers.put(error)
        except UnicodeError:  # a label that is empty or too long
            answers.put(socket.gaierror(socket.EAI_NONAME, "not a host name"))

    # Nothing can interrupt getaddrinfo, so it gets a thread that we need not wait for.
    start_thread(f"resolve {place.host}", look_up)
    try:
        with cancel.waking(lambda: answers.put(OSError(errno.ECANCELED, "stopped"))):
            answer = answers.get(timeout=deadline.remaining())
    except queue.Empty:
        raise TransportError(
            f"looking up {place.host} took too long",
            hint="the name server does not answer: check the network connection",
        ) from None
    if isinstance(answer, OSError):
        raise _explain_look_up(place, answer) from answer
    return _alternate(answer)


def _alternate(addresses: list[_Address]) -> list[_Address]:
    first = [a for a in addresses if a[0] == addresses[0][0]]
    others = [a for a in addresses if a[0] != addresses[0][0]]
    return [a for a in chain.from_iterable(zip_longest(first, others)) if a is not None]


def _connect_one(
    family: socket.AddressFamily, address: tuple[Any, ...], timeout: float | None, cancel: Cancel
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        number = sock.connect_ex(address)
        if number in _UNDER_WAY:
            _wait_until_connected(sock, timeout, cancel)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        sock.setblocking(True)
    except BaseException:
        close_socket(sock)
        raise
    return sock


def _wait_until_connected(sock: socket.socket, timeout: float | None, cancel: Cancel) -> None:
    """Wait for the kernel's verdict.  A second socket wakes us: shutting down the first would do so on Linux only."""
    ours, theirs = socket.socketpair()
    with ours, theirs, selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        selector.register(ours, selectors.EVENT_READ)
        with cancel.waking(lambda: theirs.send(b"x")):
            if not selector.select(timeout):
                raise TimeoutError
    if cancel.cancelled:
        raise OSError(errno.ECANCELED, "stopped")


def _explain_look_up(place: Place, error: OSError) -> TransportError:
    if error.errno == socket.EAI_AGAIN:
        return TransportError(
            f"looking up {place.host} failed for now",
            hint="the name server does not answer: check the network connection",
        )
    return TransportError(
        f"the name {place.host} is not known", hint=f"check its spelling in {place.where}, and your DNS"
    )


def _explain_connect(place: Place, failures: list[tuple[str, OSError]]) -> TransportError:
    tried = "; ".join(f"{address}: {_words(error)}" for address, error in failures)
    last = failures[-1][1]
    hint = _HINTS.get(_number(last), "check host and port in {where}, and the network connection")
    return TransportError(f"cannot connect to {place}: {tried}", hint=hint.format(what=place.what, where=place.where))


def _words(error: OSError) -> str:
    # A timeout of our own has no number.
    return "no answer in time" if _number(error) == errno.ETIMEDOUT else describe_os_error(error).lower()


def _number(error: OSError) -> int:
    return errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 0
