"""Pairs of real sockets, and what their ends look like from outside."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from qanat.endpoints.wakeable import WakeableSocket

SECONDS = 20.0


@contextlib.contextmanager
def connected(family: socket.AddressFamily = socket.AF_INET) -> Iterator[tuple[WakeableSocket, socket.socket]]:
    """Our end, wakeable, and the application's; both are closed at the end."""
    with socket.create_server(("127.0.0.1" if family is socket.AF_INET else "::1", 0), family=family) as listener:
        application = socket.create_connection(listener.getsockname()[:2], SECONDS)
        accepted, _ = listener.accept()
    ours = WakeableSocket(accepted)
    try:
        with application:
            yield ours, application
    finally:
        ours.close(orderly=False)


def fill(sock: WakeableSocket) -> None:
    """Send until the kernel takes no more, from a thread that is then woken."""
    while True:
        sock.send_all(memoryview(bytes(1 << 20)))


def read_to_end(sock: socket.socket) -> tuple[bytes, str]:
    """Everything that comes, and how it ended: "end" for a FIN, "reset" for a RST."""
    parts = []
    try:
        while data := sock.recv(1 << 16):
            parts.append(data)
    except ConnectionResetError:
        return b"".join(parts), "reset"
    return b"".join(parts), "end"


def nothing_has_come(sock: socket.socket) -> bool:
    """Whether neither a byte nor an end has reached `sock`."""
    sock.setblocking(False)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(SECONDS)
    return False


def can_bind(port: int) -> bool:
    """Whether nobody has this port on 127.0.0.1."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
