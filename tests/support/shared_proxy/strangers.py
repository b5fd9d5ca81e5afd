"""Those without a token, behind the same proxy: each kind tries one thing, again and again, from an address of its own.

They speak HTTP/2 over TLS with the proxy, and see what a stranger sees.  What the proxy itself stops never gets
further; what it hands on is the server's to stop.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error

from qanat.transports.http2 import octet_stream as http2
from tests.support.background import Background
from tests.support.harness import SECONDS
from tests.support.machine.web import HOST
from tests.support.transports.http2_loopback import framed

_OPEN = 50
"""Streams that a stranger leaves open before it begins anew."""

TUNNEL = (("content-type", "application/octet-stream"),)
GRPC = (("content-type", "application/grpc+proto"), ("te", "trailers"))


class Visit:
    """One connection of a stranger to the proxy."""

    def __init__(self, port: int, address: str, answers: Counter[str]) -> None:
        self._answers = answers
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), SECONDS, source_address=(address, 0))
        self._sock = context.wrap_socket(plain, server_hostname=HOST)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._h2.initiate_connection()
        self._answered: set[int] = set()
        self.over = False

    def close(self) -> None:
        self._sock.close()

    def post(self, *headers: tuple[str, str], method: str = "POST", ended: bool = False) -> int:
        """Send a request's head; the stream's id."""
        stream_id = self._h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "https"), (":path", "/tunnel"), (":authority", HOST)]
        self._h2.send_headers(stream_id, [*fields, *headers], end_stream=ended)
        return stream_id

    def send(self, stream_id: int, data: bytes, *, ended: bool = False) -> None:
        with contextlib.suppress(H2Error):  # it has been reset meanwhile
            self._h2.send_data(stream_id, data, end_stream=ended)

    def reset(self, stream_id: int) -> None:
        with contextlib.suppress(H2Error):
            self._h2.reset_stream(stream_id)

    def exchange(self, seconds: float = 0.0) -> None:
        """Send what is due, and read what comes within this time."""
        self._sock.sendall(self._h2.data_to_send())
        while not self.over and (self._sock.pending() or self._poll.poll(1000 * seconds)):
            data = self._sock.recv(65536)
            self.over |= not data
            for event in self._h2.receive_data(data):
                if isinstance(event, ResponseReceived):
                    self._answers[dict(event.headers)[":status"]] += 1
                if isinstance(event, ResponseReceived | StreamEnded | StreamReset):
                    self._answered.add(event.stream_id)
                self.over |= isinstance(event, ConnectionTerminated)
            self._sock.sendall(self._h2.data_to_send())
            seconds = 0.0

    def await_answer(self, stream_id: int) -> None:
        """Read until the server or the proxy has said something about this stream; not for long."""
        for _ in range(20):
            if self.over or stream_id in self._answered:
                return
            self.exchange(0.1)


Attack = Callable[[Visit, int], None]
"""What a stranger does once; the number is how often it has done so on this connection."""


def post_and_reset(visit: Visit, turn: int) -> None:
    """Ask for a tunnel and give it up; wait for the answer now and then, to see what it is."""
    stream_id = visit.post(*(TUNNEL if turn % 2 else GRPC))
    visit.exchange()
    if turn % 8 == 7:
        visit.await_answer(stream_id)
    visit.reset(stream_id)


def open_and_wait(visit: Visit, turn: int) -> None:
    """Ask for tunnels, and never say a word on them."""
    visit.await_answer(visit.post(*TUNNEL))
    visit.over |= turn == _OPEN


def send_garbage(visit: Visit, turn: int) -> None:
    stream_id = visit.post(*(TUNNEL if turn % 2 else GRPC))
    visit.send(stream_id, b"\xff" * 100)
    visit.await_answer(stream_id)


def send_slowly(visit: Visit, turn: int) -> None:
    """A byte now and then, on many streams."""
    if turn < _OPEN:
        visit.post(*TUNNEL)
    for stream_id in range(1, 2 * min(turn, _OPEN), 2):
        visit.send(stream_id, b"\0")
    visit.over |= turn == 4 * _OPEN


def send_huge_headers(visit: Visit, turn: int) -> None:
    stream_id = visit.post(*TUNNEL, *((f"x-{number}", "y" * 1000) for number in range(20)))
    visit.await_answer(stream_id)


def send_malformed_headers(visit: Visit, turn: int) -> None:
    """What RFC 9113 §8.2 forbids, and some proxies hand on."""
    stream_id = visit.post(*TUNNEL, (("x-a", "v "), ("x-a", "\tv"), ("te", "gzip"), ("keep-alive", "5"))[turn % 4])
    visit.await_answer(stream_id)


def end_at_once(visit: Visit, turn: int) -> None:
    """A tunnel request that is over before it has begun, in one of three ways."""
    if turn % 3:
        stream_id = visit.post(*TUNNEL)
        visit.send(stream_id, b"" if turn % 3 == 1 else b"\x00\x00\x02hi", ended=True)
    else:
        stream_id = visit.post(*TUNNEL, ended=True)
    visit.await_answer(stream_id)


def leave_without_a_word(visit: Visit, turn: int) -> None:
    """Twenty requests, and the connection is gone."""
    for _ in range(20):
        visit.post(*TUNNEL)
    visit.exchange(0.5)
    visit.over = True


def guess_and_leave(visit: Visit, turn: int) -> None:
    """A well-formed message of the handshake's size that makes no sense."""
    stream_id = visit.post(*TUNNEL)
    visit.send(stream_id, framed(http2.DIALECT, b"\1" * 400))
    visit.await_answer(stream_id)
    visit.reset(stream_id)


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing to try, at most so many times a second."""

    attack: Attack
    rate: float


KINDS = {
    "posts and resets": Kind(post_and_reset, 40),
    "the same, in an office": Kind(post_and_reset, 40),
    "opens and waits": Kind(open_and_wait, 10),
    "sends garbage": Kind(send_garbage, 10),
    "sends slowly": Kind(send_slowly, 10),
    "huge headers": Kind(send_huge_headers, 10),
    "malformed headers": Kind(send_malformed_headers, 10),
    "ends at once": Kind(end_at_once, 10),
    "leaves without a word": Kind(leave_without_a_word, 10),
    "guesses and leaves": Kind(guess_and_leave, 10),
}


class Stranger:
    """Does what its kind does, from `with` to its end."""

    def __init__(self, name: str, port: int, address: str) -> None:
        self.name, self.kind, self.address = name, KINDS[name], address
        self.answers: Counter[str] = Counter()
        """How many answers of each status it has seen."""
        self.attacks = 0
        self._port = port
        self._over = threading.Event()
        self._running: Background[None] | None = None

    def begin(self) -> None:
        self._running = Background(self._attack_loop)

    def end(self) -> None:
        self._over.set()
        if self._running is not None:
            self._running.result(3 * SECONDS)

    def _attack_loop(self) -> None:
        while not self._over.is_set():
            # The proxy may end the connection at any moment, which is its way of refusing.
            with contextlib.suppress(OSError, H2Error):
                self._visit()

    def _visit(self) -> None:
        visit = Visit(self._port, self.address, self.answers)
        turn = 0
        try:
            while not visit.over and not self._over.wait(1 / self.kind.rate):
                self.kind.attack(visit, turn)
                visit.exchange()
                turn += 1
                self.attacks += 1
        finally:
            visit.close()
