"""What listens in front: connections of HTTP/1.1 and HTTP/2, of which each request is handled in a thread.

Used by the relay, and by an `Origin` that answers by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from qanat.base.sockets import close_socket, set_no_delay
from tests.support.machine.certificates import Certificate
from tests.support.troubles.http1 import Http1Connection
from tests.support.troubles.http2 import PREFACE, Http2Asked, Http2Connection
from tests.support.troubles.rules import Rules
from tests.support.troubles.wire import Asked

SECONDS = 20.0

Handler = Callable[[Asked, bool], object]
"""Gets a request, and whether its connection ends behind it; what it does not answer is cut."""


class Front:
    """Listens on 127.0.0.1, at `port` or where the system chooses; with a `certificate` it speaks TLS.

    Of the `rules` it obeys those about protocols and connections.
    """

    def __init__(
        self, handler: Handler, rules: Rules, certificate: Certificate | None = None, *, port: int = 0
    ) -> None:
        self._handler, self._rules = handler, rules
        self._context = None if certificate is None else _context(certificate, rules)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept_loop, "front accepts")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cut all connections and wait for all threads."""
        close_socket(self._listener)
        deadline = time.monotonic() + SECONDS
        while True:
            self.cut()
            with self._lock:
                threads = [thread for thread in self._threads if thread.is_alive()]
            if not threads or time.monotonic() > deadline:
                break
            threads[0].join(0.2)
        assert not threads, f"still running: {[thread.name for thread in threads]}"

    def cut(self) -> None:
        """Cut every connection."""
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept_loop(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            set_no_delay(sock)
            with self._lock:
                self.accepted += 1
                self._sockets.add(sock)
            self._spawn(lambda sock=sock: self._serve(sock), "front connection")

    def _serve(self, sock: socket.socket) -> None:
        plain = sock
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._sockets.discard(plain)
                    self._sockets.add(sock)
            first = _first_bytes(sock)
            if first.startswith(PREFACE[:4]):
                if self._rules.http2:
                    self._serve_http2(sock, first)
                else:
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            elif first and self._rules.http1:
                self._serve_http1(sock, first)
        except (OSError, ssl.SSLError):
            pass
        finally:
            with self._lock:
                self._sockets -= {sock, plain}
            sock.close()
            plain.close()

    def _serve_http1(self, sock: socket.socket, first: bytes) -> None:
        connection = Http1Connection(sock, first)
        limit = self._rules.requests_per_connection
        for number in itertools.count(1):
            asked = connection.next_request()
            if asked is None:
                return
            last = limit > 0 and number >= limit
            self._handler(asked, last)
            if last or not connection.again():
                return

    def _serve_http2(self, sock: socket.socket, first: bytes) -> None:
        turn = threading.Lock()
        numbers = itertools.count(1)
        limit = self._rules.requests_per_connection

        def on_request(asked: Http2Asked) -> None:
            last = limit > 0 and next(numbers) >= limit
            self._spawn(lambda: one(asked, last), "front stream")

        def one(asked: Http2Asked, last: bool) -> None:
            with turn if self._rules.one_at_a_time else contextlib.nullcontext():
                self._handler(asked, last)
            asked.forget()

        connection = Http2Connection(
            sock, client=False, extended_connect=self._rules.extended_connect, on_request=on_request
        )
        connection.read_loop(first)

    def _spawn(self, function: Callable[[], object], name: str) -> None:
        thread = threading.Thread(target=function, name=name, daemon=True)
        with self._lock:
            self._threads = [*(one for one in self._threads if one.is_alive()), thread]
            thread.start()


def _context(certificate: Certificate, rules: Rules) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    context.set_alpn_protocols(["h2"] * rules.http2 + ["http/1.1"] * rules.http1)
    return context


def _first_bytes(sock: socket.socket) -> bytes:
    """As much as it takes to tell the two protocols apart."""
    data = b""
    while len(data) < 4 and PREFACE.startswith(data):
        part = sock.recv(4096)
        if not part:
            return b""
        data += part
    return data
