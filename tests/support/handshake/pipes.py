"""The smallest pipe over a real socket, for tests in which the network itself matters.

Each message has its length in front as u32.  Only tests use it; the program's transports are HTTP.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from qanat.base.sockets import close_socket
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import Pipe

_LENGTH = 4


class SocketPipe(Pipe):
    """One end of a socket pair."""

    transport = "socket"
    peer = "socket"
    headroom = _LENGTH

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._cause = FirstCause()

    def send(self, buffer: memoryview) -> None:
        buffer[:_LENGTH] = (len(buffer) - _LENGTH).to_bytes(_LENGTH, "big")
        try:
            self.sock.sendall(buffer)
        except OSError as error:
            self._fail(f"sending failed: {error.strerror}")

    def recv(self) -> memoryview:
        return memoryview(self._exactly(int.from_bytes(self._exactly(_LENGTH), "big")))

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        filled = 0
        while filled < size:
            try:
                count = self.sock.recv_into(memoryview(data)[filled:])
            except OSError as error:
                self._fail(f"receiving failed: {error.strerror}")
            if count == 0:
                self._fail("the other end closed the pipe")
            filled += count
        return data

    def _fail(self, cause: str) -> NoReturn:
        self.close(cause)
        raise self._cause.error()

    def set_read_timeout(self, seconds: float | None) -> None:
        with suppress(OSError):
            self.sock.settimeout(seconds)

    def set_write_timeout(self, seconds: float | None) -> None:
        """The handshake has a deadline of its own."""

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """Nothing is ever pending here."""

    def flush(self) -> None:
        """Nothing is ever pending here."""

    def close(self, cause: str) -> None:
        self._cause.set(cause)
        close_socket(self.sock)

    @property
    def cause(self) -> str | None:
        return self._cause.text


def socket_pipes() -> tuple[SocketPipe, SocketPipe]:
    """Two pipes joined by a socket pair; the test closes both."""
    left, right = socket.socketpair()
    return SocketPipe(left), SocketPipe(right)


def send(pipe: Pipe, message: bytes) -> None:
    """Send `message` as it is."""
    pipe.send(memoryview(bytearray(pipe.headroom) + message))
