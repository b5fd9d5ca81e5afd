"""Promises of the front door about split requests: strangers learn nothing, and harm nobody on a shared connection."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from h2.events import DataReceived, StreamEnded

from qanat.base.workers import IDLE_NAME
from qanat.config.server_settings import ServerLimits
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door.context import Carry
from qanat.server.front_door.front_door import FrontDoor
from qanat.transports.pipe import Pipe
from qanat.transports.split.segments import SegmentReader, decode_welcome
from qanat.transports.split.sequence import PREFIX
from qanat.transports.split.token import OPENING, SECRET_SIZE, Kind, Token, digest_of
from tests.support.background import DEADLINE, wait_until
from tests.support.server.front_door_rig import (
    connect,
    echo,
    exchange,
    front_door,
    read_to_end,
    request,
    without_date,
)
from tests.support.transports.http2_loopback import RawHttp2
from tests.support.transports.loopback import send_bytes


def greet(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
    """Speak first, as a handshake does, and send back what comes, until it has been silent for a while."""
    pipe.set_read_timeout(1.5)
    send_bytes(pipe, b"hello")
    echo(pipe, address, slot)


@pytest.fixture
def door() -> Iterator[FrontDoor]:
    with front_door(greet) as opened:
        yield opened


def opening(nonce: bytes = bytes(16), path: str = "/tunnel") -> bytes:
    body = OPENING + nonce
    return request(
        f"POST {path} HTTP/1.1",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
        body=body,
    )


def read_answer(sock: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of an answer with a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    while len(body) < size:
        body += sock.recv(65536)
    return head, body


def test_whatever_is_no_request_of_a_pipe_gets_the_answer_that_everything_unknown_gets(door: FrontDoor) -> None:
    nothing = without_date(exchange(door, request("GET /nothing HTTP/1.1")))
    token = Token(bytes(16), Kind.PACKET, 1, 0, 1000, 1, size=1000).encode(bytes(32))
    up = Token(bytes(16), Kind.UP, 1, 0, 1000, 1, size=5).encode(bytes(32))
    for data in (
        request("GET /tunnel HTTP/1.1"),
        request("GET /tunnel HTTP/1.1", f"Authorization: Bearer {token}"),
        request("GET /tunnel HTTP/1.1", f"Cookie: sid={token}"),
        request(f"GET /tunnel?sid={token} HTTP/1.1"),
        request("GET /tunnel HTTP/1.1", "Authorization: Bearer abc"),
        request("POST /tunnel HTTP/1.1", f"Authorization: Bearer {up}", "Content-Length: 5", body=b"hello"),
        request(
            "POST /tunnel HTTP/1.1", "Content-Type: application/octet-stream", "Content-Length: 29", body=bytes(29)
        ),
        opening(path="/other"),
    ):
        assert without_date(exchange(door, data)) == nothing


def test_a_body_that_does_not_come_does_not_keep_a_stranger_beyond_the_deadline() -> None:
    with front_door(greet, limits=ServerLimits(header_timeout=0.3)) as door, connect(door) as sock:
        sock.sendall(opening()[:-5])
        assert read_to_end(sock) == b""


def test_a_connection_may_carry_several_clients_and_a_stranger_ends_only_that(door: FrontDoor) -> None:
    with connect(door) as shared, connect(door) as other:
        welcomes = []
        for number in range(2):
            shared.sendall(opening(bytes([number]) * 16))
            head, body = read_answer(shared)
            assert head.startswith(b"HTTP/1.1 200 OK")
            welcomes.append(decode_welcome(body))
        assert welcomes[0].id != welcomes[1].id
        shared.sendall(request("GET /tunnel HTTP/1.1", "Authorization: Bearer garbage"))
        assert b"404" in read_to_end(shared)
        for number, welcome in enumerate(welcomes):
            message = PREFIX.pack(3) + b"%03d" % number
            for token, body in (
                (Token(welcome.id, Kind.UP, 1, 0, 8000, 1, size=7, digest=digest_of(message), early=True), message),
                (Token(welcome.id, Kind.PACKET, 2, 9, 8000, 2, size=8000, wait=20_000, early=True), b""),
            ):
                text = token.encode(welcome.secret)
                method = "POST" if body else "GET"
                length = (f"Content-Length: {len(body)}",) if body else ()
                other.sendall(
                    request(f"{method} /tunnel HTTP/1.1", f"Authorization: Bearer {text}", *length, body=body)
                )
                _, answer = read_answer(other)
            (_, at, content), *_ = SegmentReader().feed(memoryview(answer))
            assert (at, bytes(content)) == (9, message)


def test_a_request_to_a_proxy_of_http_1_0_is_answered_and_closed(door: FrontDoor) -> None:
    data = exchange(door, opening().replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert data.startswith(b"HTTP/1.1 200 OK")
    assert b"Connection: close" in data


def test_a_body_larger_than_a_stranger_may_send_is_not_read(door: FrontDoor) -> None:
    with connect(door) as sock:
        sock.sendall(opening())
        welcome = decode_welcome(read_answer(sock)[1])
        token = Token(welcome.id, Kind.UP, 1, 0, 8000, 1, size=1 << 20, early=True).encode(welcome.secret)
        sock.sendall(request("POST /tunnel HTTP/1.1", f"Authorization: Bearer {token}", f"Content-Length: {1 << 20}"))
        assert read_to_end(sock).startswith(b"HTTP/1.1 413")


class Http2Client:
    """Makes requests over one connection of HTTP/2."""

    def __init__(self, sock: socket.socket) -> None:
        self.raw = RawHttp2(sock, client=True)

    def ask(self, method: str, text: str = "", body: bytes = b"") -> int:
        fields = {"authorization": f"Bearer {text}"} if text else {"content_type": "application/octet-stream"}
        if method == "POST":
            fields["content_length"] = str(len(body))
        stream_id = self.raw.request(method=method, **fields)
        if method == "POST":
            self.raw.h2.send_data(stream_id, body, end_stream=True)
            self.raw.flush()
        return stream_id

    def body(self, stream_id: int) -> bytes:
        self.raw.read_until(lambda event: isinstance(event, StreamEnded) and event.stream_id == stream_id)
        parts = [event for event in self.raw.events if isinstance(event, DataReceived) and event.stream_id == stream_id]
        return b"".join(part.data for part in parts)


def working() -> int:
    """How many threads there are, without the pooled ones that wait for their next task."""
    return sum(thread.name != IDLE_NAME for thread in threading.enumerate())


def test_over_http2_a_request_waits_without_a_thread_while_others_are_served(door: FrontDoor) -> None:
    with connect(door) as sock:
        client = Http2Client(sock)
        welcome = decode_welcome(client.body(client.ask("POST", body=OPENING + bytes(16))))
        token = Token(welcome.id, Kind.PACKET, 1, 9, 8000, 1, size=8000, wait=60_000, early=True)
        before = working()
        waiting = [client.ask("GET", replace(token, number=number).encode(welcome.secret)) for number in range(1, 6)]
        message = PREFIX.pack(3) + b"abc"
        up = Token(welcome.id, Kind.UP, 9, 9, 8000, 1, size=7, digest=digest_of(message), early=True)
        answer = client.body(client.ask("POST", up.encode(welcome.secret), message))
        (segment, _, _), *_ = SegmentReader().feed(memoryview(answer))
        assert segment.acknowledged == len(message)
        wait_until(lambda: working() <= before + 2, "none has one but the watcher, and who has just served the POST")
        (_, at, content), *_ = SegmentReader().feed(memoryview(client.body(waiting[0])))
        assert (at, bytes(content)) == (9, message)
        unknown = client.ask("GET", replace(token, id=bytes(16)).encode(welcome.secret))
        assert client.body(unknown) == b"Not Found\n"


def test_over_http2_a_connection_on_which_requests_wait_has_no_thread() -> None:
    pipes: queue.SimpleQueue[Pipe] = queue.SimpleQueue()
    secret, welcomed = bytes(range(SECRET_SIZE)), threading.Event()

    def keep(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> Carry:
        pipe.bind(secret)
        pipe.set_unauthenticated(False)
        send_bytes(pipe, b"hello")
        pipes.put(pipe)
        assert welcomed.wait(DEADLINE), "a handshake, too, goes on only once its client was answered"
        return lambda over: None

    def serving() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith(("front 127", "h2"))]

    with front_door(keep) as door, connect(door) as sock:
        client = Http2Client(sock)
        welcome = decode_welcome(client.body(client.ask("POST", body=OPENING + bytes(16))))
        welcomed.set()
        pipe = pipes.get(timeout=DEADLINE)
        for number, seen in ((1, 9), (2, 9 + len(PREFIX.pack(0)) + 9)):
            token = Token(welcome.id, Kind.PACKET, number, seen, 8000, number, size=8000, wait=60_000)
            waiting = client.ask("GET", token.encode(secret))
            wait_until(lambda: not serving(), "nobody waits for the connection")
            send_bytes(pipe, b"message %d" % number)
            (_, _, content), *_ = SegmentReader().feed(memoryview(client.body(waiting)))
            assert bytes(content).endswith(b"message %d" % number)
        pipe.close("the test is over")
