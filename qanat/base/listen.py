"""Binding, listening and accepting: one way for the server's front door and for every forward's port.

`bind` opens the sockets of one port, which may be on several addresses, and `bind_udp` those of a UDP port; an
`Acceptor` takes connections in the thread of whoever calls it, and can be closed by any other.  What happens to a
connection is the caller's business, and so is what to do while the system has no descriptor for one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from qanat.base.addresses import ListenAddress, format_host_port, parse_address
from qanat.base.errors import MORE_FILES, BindError, NameLookupError, OutOfFiles, UsageError
from qanat.base.resolve import numeric_address
from qanat.base.sockets import close_socket, describe_os_error, format_address, set_no_pacing_within_machine

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the system says when there is no descriptor or memory for a socket; that passes by itself."""
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
_SAME_PORT_TRIES = 16
"""How often a free port of the system's choice is sought that is free on all addresses."""

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED_PORTS = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_DYNAMIC_PORTS = range(49_152, 65_536)  # RFC 6335 section 6

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # neither needs a descriptor of its own


def bind(
    addresses: Sequence[ListenAddress],
    *,
    backlog: int,
    configure: Callable[[socket.socket], None] | None = None,
) -> list[socket.socket]:
    """Listen on all of `addresses`, which have one port; return their sockets, at least one.  All or nothing.

    Port 0 is one free port of the system's choice, the same on every address.  An optional address that this machine
    does not have is left out.  `configure` sets options before a socket listens; on Linux what is accepted inherits
    them.  Does not block.  Raises BindError, and UsageError for what is no literal address.
    """
    return _bind_in_one_place(addresses, backlog, configure)


def bind_udp(addresses: Sequence[ListenAddress]) -> list[socket.socket]:
    """Open UDP sockets on all of `addresses`, otherwise as `bind`."""
    return _bind_in_one_place(addresses, None, None)


def _bind_in_one_place(
    addresses: Sequence[ListenAddress], backlog: int | None, configure: Callable[[socket.socket], None] | None
) -> list[socket.socket]:
    """Do as `bind`, on UDP without a `backlog`."""
    tries = _SAME_PORT_TRIES if addresses[0].port == 0 and len(addresses) > 1 else 1
    while True:
        tries -= 1
        try:
            return _bind_all(addresses, backlog, configure)
        except BindError as error:
            if not tries or error.number != errno.EADDRINUSE:
                raise


def may_be_chosen(port: int) -> bool:
    """Return whether the system may choose `port` for who asks for port 0 (ip(7)).  Blocks on /proc alone."""
    try:
        low, high = map(int, _PORT_RANGE.read_text().split())
        reserved = [part.partition("-") for part in _RESERVED_PORTS.read_text().strip().split(",") if part]
        return low <= port <= high and not any(int(a) <= port <= int(b or a) for a, _, b in reserved)
    except (OSError, ValueError):
        return port in _DYNAMIC_PORTS


class Acceptor:
    """Listening sockets, which it owns.  One thread accepts; any thread closes."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        """Own `listeners`.  Raises BindError when there is no descriptor for a wake-up; they are closed then."""
        self._listeners = tuple(listeners)
        names = [sock.getsockname() for sock in self._listeners]
        self.addresses: tuple[tuple[str, int], ...] = tuple((str(name[0]), int(name[1])) for name in names)
        """What is listened on, with the port that was really bound."""
        self._lock = threading.Lock()  # guards the two below
        self._accepting = False
        self._closed = False
        self._ready: deque[socket.socket] = deque()
        try:
            self._wake_read, self._wake_write = socket.socketpair()
        except OSError as error:
            for sock in self._listeners:
                sock.close()
            raise _cannot_listen(format_address(self.addresses[0]), 0, error) from error
        self._selector = _Selector()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        for sock in self._listeners:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def accept(self) -> tuple[socket.socket, tuple[object, ...]] | None:
        """Block for the next connection; return its socket, which blocks, and its address, or None once closed.

        Raises OutOfFiles when the system has no descriptor or memory for it.  The connection stays in the kernel's
        queue; no event says when it can be had, so try again after a while.
        """
        with self._lock:
            if self._closed:
                return None
            self._accepting = True
        try:
            return self._accept()
        finally:
            with self._lock:
                self._accepting = False
                closed = self._closed
            if closed:
                self._close_sockets()

    def close(self) -> None:
        """Stop listening; a blocked `accept` returns.  Idempotent, from any thread; does not block.

        Nobody is accepted any more when this returns (elsewhere than on Linux, as soon as a thread that is inside
        `accept` has left it).
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            busy = self._accepting
            with contextlib.suppress(OSError):
                self._wake_write.send(b"\0")
            for sock in self._listeners:  # Whoever is inside closes them: a descriptor that is waited for stays.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        if not busy:
            self._close_sockets()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _accept(self) -> tuple[socket.socket, tuple[object, ...]] | None:
        while not self._closed:
            if not self._ready:
                self._wait()
                continue
            try:
                sock, address = self._ready.popleft().accept()
            except OSError as error:
                if error.errno in EXHAUSTED:
                    raise OutOfFiles(error) from error
                continue  # it has gone again, or a firewall took it (accept(2))
            sock.setblocking(True)
            return sock, address
        return None

    def _wait(self) -> None:
        """Block until there is a connection, or `close` was called."""
        self._ready.extend(
            key.fileobj
            for key, _ in self._selector.select()
            if isinstance(key.fileobj, socket.socket) and key.fileobj is not self._wake_read
        )

    def _close_sockets(self) -> None:
        self._selector.close()
        for sock in (*self._listeners, self._wake_read, self._wake_write):
            close_socket(sock)


def _bind_all(
    addresses: Sequence[ListenAddress], backlog: int | None, configure: Callable[[socket.socket], None] | None
) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            port = sockets[0].getsockname()[1] if sockets else address.port
            sock = _bind_one(address, port, backlog, configure)
            if sock is not None:
                sockets.append(sock)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_one(
    address: ListenAddress, port: int, backlog: int | None, configure: Callable[[socket.socket], None] | None
) -> socket.socket | None:
    """Return a listening socket, or None for an optional address that this machine does not have."""
    where = format_host_port(address.host, port) + ("/udp" if backlog is None else "")
    if parse_address(address.host) is None:
        raise UsageError(
            f"cannot listen on {where}: {address.host!r} is not an IP address",
            hint="write the address itself, such as 127.0.0.1 or 0.0.0.0",
        )
    try:
        family, sockaddr = numeric_address(address.host, port)
    except NameLookupError as error:
        raise _cannot_listen(where, port, OSError(errno.EADDRNOTAVAIL, error.message)) from error
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM if backlog is None else socket.SOCK_STREAM)
        if os.name == "posix" and backlog is not None:
            # After a restart the port is ours at once, though old connections linger in TIME_WAIT.  With UDP the same
            # option would let another process have what comes for us.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" and "0.0.0.0" can then stand side by side, and no peer is seen as ::ffff:192.0.2.1.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if backlog is not None:
            set_no_pacing_within_machine(sock, sockaddr[0])
        if configure is not None:
            configure(sock)
        sock.bind(sockaddr)
        if backlog is not None:
            sock.listen(backlog)
    except OSError as error:
        if sock is not None:
            sock.close()
        if address.optional and error.errno in _NOT_HERE:
            return None
        raise _cannot_listen(where, port, error) from error
    return sock


def _cannot_listen(where: str, port: int, error: OSError) -> BindError:
    number = error.errno or 0
    hint = ""
    shows = f"ss -{'lunp' if where.endswith('/udp') else 'ltnp'} 'sport = :{port}'"
    if number == errno.EADDRINUSE:
        hint = f"another process has it: choose another port, or stop the one that `{shows}` shows"
    elif number == errno.EACCES:
        hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher one, or listen behind a proxy"
    elif number in _NOT_HERE:
        hint = "this machine does not have that address; use one from `ip addr`, or 0.0.0.0"
    elif number in EXHAUSTED:
        hint = MORE_FILES
    return BindError(f"cannot listen on {where}: {describe_os_error(error)}", number=number, hint=hint)
