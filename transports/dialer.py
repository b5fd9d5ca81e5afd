"""One way to reach a server, for every transport: resolve, connect, TLS.

Every address of the name is tried in turn, IPv6 and IPv4 alternating, each with a fair share of the time
left.  What goes wrong becomes one TransportError that says what to do.  Proxies belong here too.
Used by each transport's client.
"""

from __future__ import annotations

import errno
import ipaddress
import queue
import socket
import ssl
from itertools import chain, zip_longest
from typing import Any

from base.deadline import Deadline
from base.errors import TransportError
from base.sockets import close_socket, format_address
from base.threads import start_thread
from transports.pipe import Wire
from transports.tcp import TcpWire, describe_os_error
from transports.tls import TlsWire
from transports.urls import TunnelUrl

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]

_HINTS = {
    errno.ECONNREFUSED: "nothing listens there: check that the server runs, and the port in the URL",
    errno.ETIMEDOUT: "nothing answers there: check the address, and firewalls on the way",
    errno.ENETUNREACH: "this machine has no route to it: check the network connection",
    errno.EHOSTUNREACH: "there is no way to that machine: check the address, and firewalls on the way",
    errno.EACCES: "this machine's own firewall or policy forbids it",
    errno.EPERM: "this machine's own firewall or policy forbids it",
    errno.EMFILE: "this process has too many open files: raise its limit",
}


def dial(url: TunnelUrl, *, tls: ssl.SSLContext | None, deadline: Deadline) -> Wire:
    """Connect to `url`'s host and do the TLS handshake if `tls` is given.  Blocks until `deadline`.

    Raises TransportError whose hint says what to do.
    """
    sock = _connect(url, _resolve(url, deadline), deadline)
    wire = TcpWire(sock, url.address)
    return wire if tls is None else TlsWire(wire, tls, server_hostname=url.host, deadline=deadline)


def _resolve(url: TunnelUrl, deadline: Deadline) -> list[_Address]:
    """The addresses of the host, families alternating in the system's order of preference."""
    try:
        literal = ipaddress.ip_address(url.host)
    except ValueError:
        return _look_up(url, deadline)
    family = socket.AF_INET6 if literal.version == 6 else socket.AF_INET
    return [(family, (url.host, url.port))]


def _look_up(url: TunnelUrl, deadline: Deadline) -> list[_Address]:
    answers: queue.SimpleQueue[list[_Address] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
            answers.put([(family, address) for family, _, _, _, address in found])
        except OSError as error:
            answers.put(error)
        except UnicodeError:  # a label that is empty or too long
            answers.put(socket.gaierror(socket.EAI_NONAME, "not a host name"))

    # Nothing can interrupt getaddrinfo, so it gets a thread that we need not wait for.
    start_thread(f"resolve {url.host}", look_up)
    try:
        answer = answers.get(timeout=deadline.remaining())
    except queue.Empty:
        raise TransportError(
            f"looking up {url.host} took too long", hint="the name server does not answer: check the network connection"
        ) from None
    if isinstance(answer, OSError):
        raise _explain_look_up(url, answer) from answer
    return _alternate(answer)


def _alternate(addresses: list[_Address]) -> list[_Address]:
    first = [a for a in addresses if a[0] == addresses[0][0]]
    others = [a for a in addresses if a[0] != addresses[0][0]]
    return [a for a in chain.from_iterable(zip_longest(first, others)) if a is not None]


def _connect(url: TunnelUrl, addresses: list[_Address], deadline: Deadline) -> socket.socket:
    failures: list[tuple[str, OSError]] = []
    for index, (family, address) in enumerate(addresses):
        remaining = deadline.remaining()
        share = None if remaining is None else max(0.001, remaining / (len(addresses) - index))
        try:
            return _connect_one(family, address, share)
        except OSError as error:
            failures.append((format_address(address), error))
    raise _explain_connect(url, failures)


def _connect_one(family: socket.AddressFamily, address: tuple[Any, ...], timeout: float | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
    except BaseException:
        close_socket(sock)
        raise
    return sock


def _explain_look_up(url: TunnelUrl, error: OSError) -> TransportError:
    if error.errno == socket.EAI_AGAIN:
        return TransportError(
            f"looking up {url.host} failed for now",
            hint="the name server does not answer: check the network connection",
        )
    return TransportError(f"the name {url.host} is not known", hint="check its spelling in the URL, and your DNS")


def _explain_connect(url: TunnelUrl, failures: list[tuple[str, OSError]]) -> TransportError:
    tried = "; ".join(f"{address}: {_words(error)}" for address, error in failures)
    last = failures[-1][1]
    hint = _HINTS.get(_number(last), "check host and port in the URL, and the network connection")
    return TransportError(f"cannot connect to {url.address}: {tried}", hint=hint)


def _words(error: OSError) -> str:
    # A timeout of our own has no number.
    return "no answer in time" if _number(error) == errno.ETIMEDOUT else describe_os_error(error).lower()


def _number(error: OSError) -> int:
    return errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 0
