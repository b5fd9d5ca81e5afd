"""A TCP (or Unix) socket as a `Wire`.

What lives here: reading and writing one connected socket from two threads, a silence timeout for
reads alone, and one way to close.  Connecting is `dialer`, TLS is `tls` on top of this.  Used by the
dialer and by the front door for every accepted connection.

A descriptor is given back to the system only when no thread is inside a call on it: another socket
could get the same number, and a reader that was just about to call `recv` would read a stranger's bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable

from base.errors import TransportError
from base.sockets import format_address, set_no_delay, set_not_sent_low_watermark
from transports.pipe import Wire

NOT_SENT_LIMIT = 128 * 1024
"""Bytes left unsent in the kernel; more would only be in the way of what becomes urgent later."""

_SENDING_IS_OVER = (errno.EPIPE, errno.ECONNRESET)
"""After these the peer's last bytes can still be read, and reading ends by itself."""

_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", None)


class TcpWire(Wire):
    """A connected socket.  Owns `sock` from now on; sets its options."""

    def __init__(self, sock: socket.socket, peer: str | None = None) -> None:
        """`peer` is for logs; asked from the socket when None."""
        sock.settimeout(None)
        set_no_delay(sock)
        set_not_sent_low_watermark(sock, NOT_SENT_LIMIT)
        self.peer = peer if peer is not None else _peer_of(sock)
        self._sock = sock
        self._lock = threading.Lock()  # guards the two below
        self._users = 0
        self._closed = False
        self._read_timeout: float | None = None

    def recv_into(self, buffer: memoryview) -> int:
        self._enter()
        try:
            count = self._sock.recv_into(buffer)
        except (BlockingIOError, TimeoutError) as error:
            if error.errno == errno.ETIMEDOUT:  # the kernel gave up on the connection
                raise self._failure("receiving failed", error) from error
            raise TransportError(f"nothing received for {self._read_timeout or 0:g} s") from error
        except OSError as error:
            raise self._failure("receiving failed", error) from error
        finally:
            self._leave()
        if count == 0 and self._closed:
            raise TransportError("the connection was closed here")
        return count

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._enter()
        try:
            self._sock.sendall(data)
        except OSError as error:
            failure = self._failure("sending failed", error)
            if error.errno not in _SENDING_IS_OVER:
                self.close()
            raise failure from error
        finally:
            self._leave()

    def set_read_timeout(self, seconds: float | None) -> None:
        # SO_RCVTIMEO and not settimeout(), which would apply to the writing thread too.
        self._enter()
        try:
            self._read_timeout = seconds
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _pack_timeout(seconds))
        except OSError as error:
            raise self._failure("setting the read timeout failed", error) from error
        finally:
            self._leave()

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """A plain socket owes nothing for having been read."""

    def flush(self) -> None:
        """A plain socket owes nothing for having been read."""

    def close(self, last_words: bytes = b"") -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            unused = self._users == 0
        if last_words and _DONT_WAIT is not None:
            with contextlib.suppress(OSError):
                self._sock.send(last_words, _DONT_WAIT)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes whoever is inside; the last to leave closes
        if unused:
            self._sock.close()

    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise TransportError("the connection was closed here")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and self._users == 0
        if last:
            self._sock.close()

    def _failure(self, what: str, error: OSError) -> TransportError:
        if self._closed:
            return TransportError("the connection was closed here")
        return TransportError(f"{what}: {describe_os_error(error)}")


def describe_os_error(error: OSError) -> str:
    """The system's words for `error`, without the number that Python puts in front."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)


def _peer_of(sock: socket.socket) -> str:
    try:
        return format_address(sock.getpeername())
    except OSError:
        return "unknown"


def _pack_timeout(seconds: float | None) -> bytes:
    """SO_RCVTIMEO's value; zero means for ever, so nothing is rounded down to that."""
    milliseconds = 0 if seconds is None else max(1, round(seconds * 1000))
    if sys.platform == "win32":
        return struct.pack("L", milliseconds)
    return struct.pack("ll", milliseconds // 1000, milliseconds % 1000 * 1000)
