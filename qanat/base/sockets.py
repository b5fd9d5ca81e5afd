"""Habits with sockets that must be the same everywhere: one way to close, to reset, and to name things to people."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys

from qanat.base.addresses import format_host_port, is_loopback

if sys.platform == "linux":
    import fcntl
    import termios

_LINGER_RESET = struct.pack("ii", 1, 0)
_LINGER_OFF = struct.pack("ii", 0, 0)

PACING = (b"bbr",)
"""How the names of congestion controls begin that pace what is sent.  A path within one machine carries as much as the
processor copies, and the timers for that cost up to 40 % of it (docs/PERFORMANCE.md)."""
_WITHOUT_PACING = b"cubic", b"reno"
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)  # Linux
_NAME_SIZE = 16  # TCP_CA_NAME_MAX
_SIOCOUTQNSD = 0x894B  # linux/sockios.h


def close_socket(sock: socket.socket) -> None:
    """Shut down, which wakes every thread blocked in `sock`, then close.  Idempotent."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        sock.close()


def acknowledge_now(sock: socket.socket) -> None:
    """Have the kernel acknowledge at once what has been read, and a little of what follows, where it can.

    A sender without TCP_NODELAY holds the end of a message back until all before it is acknowledged (RFC 896), which
    Linux puts off by up to 40 ms on a connection that carries questions and answers.  Does not block.
    """
    if _QUICK_ACK is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)


def set_no_delay(sock: socket.socket) -> None:
    """Send small writes at once (TCP_NODELAY); silently nothing on a socket that is not TCP."""
    try:  # noqa: SIM105 - for each connection
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        pass


def set_reset_on_close(sock: socket.socket, enabled: bool) -> None:
    """When enabled, closing sends RST instead of FIN, also when the process is killed (SO_LINGER 0)."""
    try:  # noqa: SIM105 - for each connection
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET if enabled else _LINGER_OFF)
    except OSError:
        pass


def set_not_sent_low_watermark(sock: socket.socket, limit: int) -> None:
    """Leave at most about `limit` unsent bytes in the kernel (TCP_NOTSENT_LOWAT), where that exists."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, limit)


def set_no_pacing_within_machine(sock: socket.socket, host: str) -> None:
    """Have `sock` not pace what it sends where `host`, a literal address, is a loopback one; else it is left alone.

    Before it connects or listens: what is accepted from it inherits that, and pacing once begun goes on.  Silently
    nothing where the system's own choice does not pace, or there is no other.
    """
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is None or not is_loopback(host):
        return
    try:
        paces = sock.getsockopt(socket.IPPROTO_TCP, option, _NAME_SIZE).startswith(PACING)
    except OSError:
        return
    if not paces:
        return
    for control in _WITHOUT_PACING:
        with contextlib.suppress(OSError):  # not in this kernel, or not allowed
            sock.setsockopt(socket.IPPROTO_TCP, option, control)
            return


def unacknowledged(sock: socket.socket) -> int | None:
    """Return the bytes that the kernel has taken and the other end has not acknowledged; None where it cannot tell."""
    # SIOCOUTQ by another name, tcp(7)
    return _bytes_told(sock, termios.TIOCOUTQ) if sys.platform == "linux" else None


def unsent(sock: socket.socket) -> int:
    """Return the bytes that the kernel has taken and not sent yet, not even once; 0 where it cannot tell."""
    return _bytes_told(sock, _SIOCOUTQNSD) or 0 if sys.platform == "linux" else 0


def _bytes_told(sock: socket.socket, request: int) -> int | None:
    """Return the number that the kernel answers to an ioctl; None where it does not.  Linux only."""
    try:
        answer = fcntl.ioctl(sock, request, bytes(4))
    except OSError:
        return None
    return max(0, int.from_bytes(answer, sys.byteorder, signed=True))


def format_address(address: object) -> str:
    """Return `host:port` of a socket's address, with IPv6 in brackets, or a Unix socket's path, for people and logs."""
    if isinstance(address, tuple) and len(address) >= 2:
        return format_host_port(str(address[0]), address[1])
    if isinstance(address, bytes):  # as Python has Linux's abstract names
        address = address.decode(errors="replace").replace("\0", "@", 1)
    return str(address) or "unknown"


def peer_of(sock: socket.socket) -> str:
    """Return the other end's address for people and logs, "unknown" when it is gone."""
    try:
        return format_address(sock.getpeername())
    except OSError:
        return "unknown"


def local_of(sock: socket.socket) -> str:
    """Return this end's address, "" when it is gone."""
    try:
        return format_address(sock.getsockname())
    except OSError:
        return ""


def describe_os_error(error: OSError) -> str:
    """Return the system's words for `error`, without the number that Python puts in front."""
    if error.strerror:
        return error.strerror
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
