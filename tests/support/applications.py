"""The applications at the two ends of a tunnel: small servers, and clients that say how it ended.

A `Target` listens and runs one of the handlers below for each connection; it notes how each of them
ended, since an end that an application sees (an orderly one, or a reset) is a promise of the tunnel.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from qanat.base.sockets import close_socket, set_reset_on_close
from tests.support.background import Background
from tests.support.harness import SECONDS

CHUNK = 256 * 1024
WITHIN_BUFFERS = 64 * 1024
"""Bytes that an echo takes from who does not read yet."""

END, RESET = "end", "reset"
"""How a connection ended for the application that read it."""


class Target:
    """A server on loopback with one thread for each connection; ends all of them when it is closed.

    `host` may be the path of a Unix socket, or @NAME of an abstract one; its port is 0 then.
    """

    def __init__(self, handler: Callable[[socket.socket, Target], str], host: str = "127.0.0.1") -> None:
        self.port = 0
        if host.startswith(("/", "@")):
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(unix_address(host))
            self._listener.listen(1024)
            self.address = host
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=1024)
            self.port = self._listener.getsockname()[1]
            self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.closing = threading.Event()
        self.go = threading.Event()
        """For handlers that wait for the test: `stalled` reads from then on."""
        self._handler = handler
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepted = 0
        self._endings: list[str] = []
        self._acceptor = threading.Thread(target=self._accept_loop, name="target", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.closing.set()
        self.go.set()
        close_socket(self._listener)
        self._acceptor.join()
        with self._changed:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        for thread in threads:
            thread.join(SECONDS)

    @property
    def endings(self) -> list[str]:
        """How the connections that are over ended, in their order."""
        with self._changed:
            return list(self._endings)

    def wait_accepted(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._accepted >= count, SECONDS), f"{self._accepted} connections"

    def wait_idle(self) -> int:
        """Block until every connection that came is over; how many that were."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._endings) == self._accepted, SECONDS), "still in use"
            return self._accepted

    def wait_endings(self, count: int, *, seconds: float = SECONDS) -> list[str]:
        """Block until `count` connections are over; how they ended."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self._endings) >= count, seconds)
            assert enough, f"{len(self._endings)} of {count} connections ended: {self._endings}"
            return list(self._endings)

    def _accept_loop(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                self._sockets.add(sock)
                self._accepted += 1
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                thread = threading.Thread(target=self._serve, args=(sock,), name="target-connection", daemon=True)
                self._threads.append(thread)
                self._changed.notify_all()
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            ending = self._handler(sock, self)
        except ConnectionResetError:
            ending = RESET
        except BrokenPipeError:
            ending = END  # Linux says EPIPE when a FIN had come before the reset
        except OSError as error:
            # Likewise ENOTCONN, for who shuts down then; and with `closing` it was `close` that ended it.
            if error.errno != errno.ENOTCONN and not self.closing.is_set():
                raise
            ending = END
        with self._changed:
            self._sockets.discard(sock)
            sock.close()
            self._endings.append(ending)
            self._changed.notify_all()


# --- handlers -------------------------------------------------------------------------------------


def echo(sock: socket.socket, target: Target) -> str:
    """Send back what comes; finish when the other end has."""
    while data := sock.recv(CHUNK):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    return END


def discard(sock: socket.socket, target: Target) -> str:
    """Read to the end."""
    while sock.recv(CHUNK):
        pass
    return END


def stalled(sock: socket.socket, target: Target) -> str:
    """Read nothing until `target.go`; then all, and say how many bytes it was."""
    target.go.wait()
    count = 0
    while data := sock.recv(CHUNK):
        count += len(data)
    sock.sendall(count.to_bytes(8, "big"))
    return END


def reply_after_end(sock: socket.socket, target: Target) -> str:
    """Read to the end, and only then answer with what it was and a megabyte more."""
    data = receive_all(sock)
    sock.sendall(hashlib.sha256(data).digest() + bytes(1 << 20))
    return END


def greeting(sock: socket.socket, target: Target) -> str:
    """Speak first, as SMTP and SSH servers do, then echo."""
    sock.sendall(b"220 hello\r\n")
    return echo(sock, target)


def reset_at_once(sock: socket.socket, target: Target) -> str:
    """Take one byte, then reset."""
    sock.recv(1)
    set_reset_on_close(sock, True)
    return RESET


def source(sock: socket.socket, target: Target) -> str:
    """Send for ever, and never read."""
    block = bytes(CHUNK)
    while not target.closing.is_set():
        sock.sendall(block)
    return END


# --- clients --------------------------------------------------------------------------------------


@contextmanager
def connection(port: int, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection to `port`; every call on it has SECONDS to succeed."""
    with socket.create_connection((host, port), timeout=SECONDS) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


def unix_address(path: str) -> str:
    """What a socket is given for a path, or for @NAME."""
    return "\0" + path[1:] if path.startswith("@") else path


@contextmanager
def unix_connection(path: str) -> Iterator[socket.socket]:
    """A connection to a Unix socket; every call on it has SECONDS to succeed."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SECONDS)
        sock.connect(unix_address(path))
        yield sock


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes; AssertionError at an end before them."""
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(CHUNK, count - len(data)))
        assert part, f"the end after {len(data)} of {count} bytes"
        data += part
    return bytes(data)


def receive_all(sock: socket.socket) -> bytes:
    """All until the orderly end; raises ConnectionResetError when there is none."""
    data = bytearray()
    while part := sock.recv(CHUNK):
        data += part
    return bytes(data)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send `data` to an echo and return what came back, in a thread of its own where buffers may not take all of it."""
    if len(data) <= WITHIN_BUFFERS:
        sock.sendall(data)
        return receive_exactly(sock, len(data))
    sending = Background(lambda: sock.sendall(data))
    came = receive_exactly(sock, len(data))
    sending.result()
    return came


def echoes(port: int, data: bytes = b"are you there?", host: str = "127.0.0.1") -> bool:
    """Whether an echo behind `port` answers with the same, in full, on a connection of its own."""
    with connection(port, host) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock) == data


def wait_until_echoes(port: int, *, seconds: float = SECONDS) -> None:
    """Try until an echo behind `port` answers; for ports that come back after a restart."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if echoes(port):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)  # nothing tells when somebody listens again


def ending_of(sock: socket.socket) -> str:
    """Read until the end; how it was.  AssertionError when there is none in time.

    Only for a socket that one thread uses: Linux reports a reset once, to whoever comes first, and an
    orderly end ever after.
    """
    try:
        while sock.recv(CHUNK):
            pass
    except TimeoutError:
        raise AssertionError("the connection neither ended nor was reset") from None
    except ConnectionResetError:
        return RESET
    return END


def ending_at(port: int) -> str:
    """Connect and read until the end; how it was.  A reset may be there as early as the connection."""
    try:
        with connection(port) as sock:
            return ending_of(sock)
    except ConnectionResetError:
        return RESET


class Conversation(threading.Thread):
    """Talks with an echo until the connection ends, and says how it did.  Fails when the echo is wrong."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(name="conversation", daemon=True)
        self._sock = sock
        self.flowing = threading.Event()
        self.ending = ""
        self.start()

    def run(self) -> None:
        try:
            while True:
                data = os.urandom(16 * 1024)
                self._sock.sendall(data)
                answer = bytearray()
                while len(answer) < len(data):
                    part = self._sock.recv(len(data))
                    if not part:
                        self.ending = END
                        return
                    answer += part
                if answer != data:
                    self.ending = "a wrong answer"
                    return
                self.flowing.set()
        except ConnectionResetError:
            self.ending = RESET
        except BrokenPipeError:
            self.ending = END  # as in Target
        except TimeoutError:
            self.ending = "silence"
