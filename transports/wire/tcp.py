"""A TCP (or Unix) socket as a `Wire`.

What lives here: reading and writing one connected socket from two threads, a timeout for silence and another
one for writes that get nowhere, and one way to close.  Connecting is `dialer`, TLS is `tls` on top of this.
Used by the dialer and by the front door for every accepted connection.

A descriptor is given back to the system only when no thread is inside a call on it: another socket
could get the same number, and a reader that was just about to call `recv` would read another connection's bytes.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from qanat.base.errors import TransportError
from qanat.base.sockets import (
    acknowledge_now,
    describe_os_error,
    peer_of,
    set_no_delay,
    set_not_sent_low_watermark,
)
from qanat.base.sockets import unacknowledged as _unacknowledged
from qanat.base.sockets import unsent as _unsent
from qanat.transports.pipe import SockAddr, Wire, silent_for, stuck_for

NOT_SENT_LIMIT = 128 * 1024
"""Bytes left unsent in the kernel; more would only delay what becomes urgent later."""

_CLOSED_HERE = "the connection was closed here"

_SENDING_IS_OVER = (errno.EPIPE, errno.ECONNRESET)
"""After these the peer's last bytes can still be read, and reading ends by itself."""

_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
_USER_TIMEOUTS = 4
"""How many write timeouts the kernel goes on trying for (RFC 5482)."""

_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", None)

_LOOKS = 1 if sys.platform == "win32" else 8
"""How often within a write timeout a blocked writer looks whether anything moves.  Windows: a socket whose send has
timed out is of no more use."""


class TcpWire(Wire):
    """A connected socket.  Owns `sock` from now on; sets its options."""

    can_send_now: bool = _DONT_WAIT is not None
    """See `Wire.can_send_now`: while nothing is left."""

    def __init__(self, sock: socket.socket, peer: str | None = None) -> None:
        """`peer` is for logs; asked from the socket when None."""
        sock.settimeout(None)
        set_no_delay(sock)
        set_not_sent_low_watermark(sock, NOT_SENT_LIMIT)
        self.peer = peer if peer is not None else peer_of(sock)
        self.addresses = _addresses_of(sock)
        self._sock = sock
        self._lock = threading.Lock()  # guards the two below
        self._users = 0
        self._closed = False
        self._gone: str | None = None  # why nothing can be sent any more; what has come can still be read
        self._read_timeout: float | None = None
        self._write_timeout: float | None = None
        self._accepted = 0  # bytes that the kernel has taken; this and the rest are the writer's
        self._left = b""  # what `send_now` took and the kernel did not
        self._through: int | None = None  # how many of them had come through at the last look
        self._look_at = math.inf  # when to look next whether bytes come through
        self._moved_at = 0.0

    def recv_into(self, buffer: memoryview) -> int:
        """See `Wire.recv_into`."""
        self._enter()
        try:
            count = self._recv_into(buffer, 0)
        finally:
            self._leave()
        if count is None:
            raise TransportError(silent_for(self._read_timeout or 0))
        return count

    def watch(self) -> int | None:
        """See `Wire.watch`."""
        if _DONT_WAIT is None:
            return None
        self._enter()
        return self._sock.fileno()

    def unwatch(self) -> None:
        """See `Wire.unwatch`."""
        self._leave()

    def recv_within(self, buffer: memoryview, seconds: float) -> int | None:
        """See `Wire.recv_within`."""
        if not seconds:
            assert _DONT_WAIT is not None  # or nobody could watch
            return self._recv_into(buffer, _DONT_WAIT)
        if seconds != self._read_timeout:
            self.set_read_timeout(seconds)
        self._enter()
        try:
            return self._recv_into(buffer, 0)
        finally:
            self._leave()

    def acknowledge_now(self) -> None:
        """See `Wire.acknowledge_now`."""
        with self._lock:
            if not self._closed:
                acknowledge_now(self._sock)

    def _recv_into(self, buffer: memoryview, flags: int) -> int | None:
        """Return the number of bytes received, or None when the time was up."""
        try:
            count = self._sock.recv_into(buffer, 0, flags)
        except (BlockingIOError, TimeoutError) as error:
            if error.errno == errno.ETIMEDOUT:  # the kernel gave up on the connection
                raise self._failure("receiving failed", error) from error
            return None
        except OSError as error:
            raise self._failure("receiving failed", error) from error
        if count == 0 and self._closed:
            raise TransportError(_CLOSED_HERE)
        if count == 0 and self._gone is not None:
            raise TransportError(self._gone)
        return count

    @property
    def unsent(self) -> int:
        """See `Wire.unsent`."""
        with self._lock:
            return 0 if self._closed else _unsent(self._sock) + len(self._left)

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `Wire.send_all`."""
        self._enter()
        try:
            if self._left:
                self._send_left()
            self._send(memoryview(data))
        except OSError as error:
            raise self._sending_failed(error) from error
        finally:
            self._leave()

    def send_now(self, data: bytes | bytearray | memoryview) -> bool:
        """See `Wire.send_now`."""
        assert _DONT_WAIT is not None  # or it would not have been called
        try:
            with self._lock:  # Not for long enough to count as a user.
                if self._closed:
                    raise TransportError(_CLOSED_HERE)
                if time.monotonic() >= self._look_at:
                    self._look(blocked=False)
                try:
                    count = self._sock.send(data, _DONT_WAIT)
                except BlockingIOError:
                    count = 0
        except OSError as error:
            raise self._sending_failed(error) from error
        self._accepted += count
        if count == len(data):
            return True
        self._left = bytes(memoryview(data)[count:])
        self.can_send_now = False
        return False

    def _send_left(self) -> None:
        left, self._left = self._left, b""
        self.can_send_now = _DONT_WAIT is not None
        self._send(memoryview(left))

    def _sending_failed(self, error: OSError) -> TransportError:
        failure = self._failure("sending failed", error)
        if error.errno not in _SENDING_IS_OVER and self._gone is None:
            self.close()
        return failure

    def _send(self, rest: memoryview) -> None:
        """As `sendall`, which does not tell how far it came when the time is up."""
        blocked = False
        while True:
            if time.monotonic() >= self._look_at:
                self._look(blocked)
            try:
                count = self._sock.send(rest)
            except BlockingIOError:
                count = 0
            except TimeoutError:  # Windows' word for the same, or the kernel's last one
                self._give_up()
                raise
            self._accepted += count
            if count == len(rest):
                return
            rest = rest[count:]
            blocked = True

    def _look(self, blocked: bool) -> None:
        """Raise TimeoutError when no byte has come through for the write timeout; a part of that later it is due again.

        What the kernel takes from us would not do as a measure: it sleeps on until there is a large piece of room, and
        takes many small writes for a path that is dead.
        """
        timeout, now = self._write_timeout, time.monotonic()
        if timeout is None:  # meanwhile
            return
        self._look_at = now + timeout / _LOOKS / 2
        waiting = _unacknowledged(self._sock)
        through = self._accepted - (waiting or 0)
        if through != self._through or not (blocked if waiting is None else waiting):
            self._through, self._moved_at = through, now
        elif now - self._moved_at >= timeout:
            self._give_up()
            raise TimeoutError

    def _give_up(self) -> None:
        """Nothing goes out any more.  Wakes the reader too, which gets what has come, and then the reason."""
        if self._write_timeout is not None and self._gone is None:
            self._gone = stuck_for(self._write_timeout)
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def set_read_timeout(self, seconds: float | None) -> None:
        # SO_RCVTIMEO and not settimeout(), which would apply to the writing thread too.
        """See `Wire.set_read_timeout`."""
        self._enter()
        try:
            self._read_timeout = seconds
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _pack_timeout(seconds))
        except OSError as error:
            raise self._failure("setting the read timeout failed", error) from error
        finally:
            self._leave()

    def set_write_timeout(self, seconds: float | None) -> None:
        """On Linux also ends what the kernel took long ago and nobody has acknowledged: noticed by the next write.

        TCP_USER_TIMEOUT is several times as long: Linux 6.18, measured, counts on from the first probe of a closed
        window while small windows open and are filled, and so would cut a peer that is only slow.  It is for
        what nobody here watches: an idle connection, and the kernel's tries to deliver what a closed one has left.
        """
        self._enter()
        try:
            look = None if seconds is None else seconds / _LOOKS
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _pack_timeout(look))
            if _USER_TIMEOUT is not None and self._sock.family in (socket.AF_INET, socket.AF_INET6):
                kernel = 0 if seconds is None else round(_USER_TIMEOUTS * seconds * 1000)
                self._sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, kernel)
            self._through, self._write_timeout = None, seconds
            self._look_at = math.inf if seconds is None else 0.0
        except OSError as error:
            raise self._failure("setting the write timeout failed", error) from error
        finally:
            self._leave()

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """Do nothing: a plain socket owes nothing for having been read."""

    def flush(self) -> None:
        """Send what `send_now` has left; a plain socket owes nothing for having been read."""
        if self._left:
            self.send_all(b"")

    def close(self, final: bytes = b"") -> None:
        """See `Wire.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            unused = self._users == 0
        if final and not self._left and _DONT_WAIT is not None:
            with contextlib.suppress(OSError):
                self._sock.send(final, _DONT_WAIT)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes whoever is inside; the last to leave closes
        if unused:
            self._sock.close()

    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise TransportError(_CLOSED_HERE)
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and self._users == 0
        if last:
            self._sock.close()

    def _failure(self, what: str, error: OSError) -> TransportError:
        if self._closed:
            return TransportError(_CLOSED_HERE)
        if self._gone is not None:
            return TransportError(self._gone)
        return TransportError(f"{what}: {describe_os_error(error)}")


def _addresses_of(sock: socket.socket) -> tuple[SockAddr, SockAddr] | None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        return sock.getsockname(), sock.getpeername()
    except OSError:
        return None


def _pack_timeout(seconds: float | None) -> bytes:
    """Return the value of SO_RCVTIMEO and SO_SNDTIMEO; zero means for ever, so nothing is rounded down to that."""
    milliseconds = 0 if seconds is None else max(1, round(seconds * 1000))
    if sys.platform == "win32":
        return struct.pack("L", milliseconds)
    return struct.pack("ll", milliseconds // 1000, milliseconds % 1000 * 1000)
