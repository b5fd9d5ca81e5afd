"""A connected socket whose blocked threads can be woken without sending anything to its peer.

`shutdown` would wake them, but it sends FIN, and an application must never see a clean end that its
stream did not have.  So: SO_LINGER 0 from the start (a close, or the death of this process, is a RST);
a reader is woken by shutting down the receiving side alone, which sends nothing; a writer sends without
blocking, and waits in `poll` for the socket or for a wake-up.  Only the orderly end turns lingering off.

The reverse holds too: a RST must never look like a clean end.  The kernel reports it to one call only, and
when that is a `send`, the `recv` of the other thread returns as if the peer had finished.  So an end is
believed only after asking whether a send has failed meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading

from qanat.base.sockets import peer_of, set_no_delay, set_reset_on_close
from qanat.endpoints.application_socket import PreparedSocket
from qanat.endpoints.vanished import Acknowledgments

_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)


class Aborted(Exception):
    """This socket was aborted by `WakeableSocket.abort` while a call was waiting."""


class WakeableSocket:
    """A blocking TCP or Unix socket.  One thread reads, one writes, any thread aborts."""

    def __init__(self, sock: socket.socket, peer: str = "", *, prepared: bool = False) -> None:
        """`peer` is for people.  With `prepared` it blocks, and has all options of an application's socket."""
        if not prepared and sock.gettimeout() is not None:
            sock.setblocking(True)
        if not prepared and type(sock) is not PreparedSocket:
            set_no_delay(sock)
            set_reset_on_close(sock, True)
        self._sock = sock
        self.peer = peer or peer_of(sock)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._send_error: tuple[int | None, str] | None = None  # not the error itself, whose traceback has this object
        self._aborted = False
        self._closed = False
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._acknowledgments: Acknowledgments | None = None  # made for the first look

    def recv(self, limit: int) -> bytes:
        """Block for at least one byte; b"" at the peer's orderly end.  Raises OSError, Aborted."""
        data = self._sock.recv(limit)
        if not data:
            self._check_end()
        return data

    @property
    def fd(self) -> int:
        """The descriptor, for a `Watcher`; valid until `close`."""
        return self._sock.fileno()

    def recv_now(self, limit: int) -> bytes:
        """Read what is there without blocking.  Raises BlockingIOError when nothing is, OSError, Aborted.

        b"" is the peer's orderly end.
        """
        if not _DONT_WAIT and not select.select([self._sock], [], [], 0)[0]:
            raise BlockingIOError
        data = self._sock.recv(limit, _DONT_WAIT)
        if not data:
            self._check_end()
        return data

    def recv_available_into(self, buffer: memoryview) -> int:
        """Read what is there without blocking.  Raises BlockingIOError when nothing is, OSError, Aborted.

        0 is the peer's orderly end.
        """
        if not _DONT_WAIT and not select.select([self._sock], [], [], 0)[0]:
            raise BlockingIOError
        count = self._sock.recv_into(buffer, 0, _DONT_WAIT)
        if not count:
            self._check_end()
        return count

    def _check_end(self) -> None:
        """Return when the peer has really finished."""
        if _DONT_WAIT:
            with self._sending:  # A send that was told of the RST has left its error here when it lets go.
                error = self._send_error
            # EPIPE is what a send gets after the peer's FIN, which is an end (Linux, tcp_reset).
            if error is not None and error[0] != errno.EPIPE:
                raise OSError(*error)
        if self._aborted:
            raise Aborted

    def wait_readable(self, seconds: float) -> bool:
        """Block until there is something to read, an end or an error; False after `seconds`.  Raises OSError."""
        if not hasattr(select, "poll"):  # Windows
            return bool(select.select([self._sock], [], [], seconds)[0])
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def send_now(self, data: memoryview) -> int:
        """Send what the kernel takes at once; return how many bytes that were.  Does not block.  Raises OSError.

        On Windows it may block.
        """
        if not _DONT_WAIT:  # Windows: it may block, so not under the lock; its errors are told to every call.
            return self._sock.send(data)
        with self._sending:
            try:
                return self._sock.send(data, _DONT_WAIT)
            except BlockingIOError:
                return 0
            except OSError as error:
                self._send_error = error.errno, error.strerror or ""
                raise

    def send_all(self, data: memoryview) -> bool:
        """Block until the kernel has taken all; return whether it did so at once.  Raises OSError, Aborted.

        After `abort` it goes on as long as the kernel takes bytes at once, so that what a stream
        received before its reset is still delivered, and gives up where it would wait.
        """
        at_once = True
        while data:
            sent = self.send_now(data)
            if not sent:
                at_once = False
                self._wait_writable()
            data = data[sent:]
        return at_once

    def silence(self) -> float | None:
        """See `Acknowledgments.silence`; None also when this is closed."""
        with self._lock:
            if self._closed:
                return None
            if self._acknowledgments is None:
                self._acknowledgments = Acknowledgments()
            return self._acknowledgments.silence(self._sock)

    def half_close(self, *, closing: bool = False) -> None:
        """Send FIN: the stream's peer has finished.  Raises OSError.

        Nothing when the caller is `closing` it: its orderly `close` comes next, and sends FIN itself.
        """
        if not closing:
            self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Wake both threads; sends nothing.  Idempotent, from any thread, does not block."""
        with self._lock:
            if self._closed or self._aborted:
                return
            self._aborted = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)
            if self._wake is not None:
                self._wake[1].send(b"\0")

    def close(self, *, orderly: bool) -> None:
        """Close once both threads are done with it: FIN when `orderly`, RST otherwise.  Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if orderly:
                set_reset_on_close(self._sock, False)
            self._sock.close()
            for end in self._wake or ():
                end.close()

    def _wait_writable(self) -> None:
        with self._lock:
            if self._aborted:
                raise Aborted
            if self._wake is None:
                # Made only for a target that is slower than the tunnel, so that thousands of streams
                # do not need thousands of descriptors more.
                self._wake = socket.socketpair()
            wake = self._wake[0]
        if not _wait_writable_or_woken(self._sock, wake):
            raise Aborted


def _wait_writable_or_woken(sock: socket.socket, wake: socket.socket) -> bool:
    """Block until `sock` takes bytes or has failed (True), or `wake` alone is readable (False)."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([wake], [sock], [sock])[1])
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    poller.register(wake, select.POLLIN)
    return any(fd == sock.fileno() for fd, _ in poller.poll())
