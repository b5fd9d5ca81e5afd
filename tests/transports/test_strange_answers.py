"""Whatever answers a client's request: it is one failed try, with an error of ours that can be printed.

A stranger on the path, a captive portal or a broken proxy may send any of these.  What escaped as another error would
end the client's process, and every live session with it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, TransportError
from qanat.base.untrusted import MAX_RETRY_AFTER
from qanat.transports.dial.proxies import Proxy
from qanat.transports.dial.route import DIRECT, Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.websocket import upgrade as websocket
from tests.support.background import DEADLINE
from tests.support.transports.loopback import listen

CONNECT = {"websocket": websocket.connect, "http2": http2.connect, "grpc": grpc.connect}

HUGE = b"9" * 5000
FAR = b"Mon, 01 Jan 2020 00:00:99999999999999999999 GMT"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field, never indexed (RFC 7541 §6.2.2)."""

    def string(data: bytes) -> bytes:
        if len(data) < 127:
            return bytes((len(data),)) + data
        rest, prefix = len(data) - 127, b"\x7f"
        while rest >= 128:
            prefix += bytes((rest & 127 | 128,))
            rest >>= 7
        return prefix + bytes((rest,)) + data

    return b"\x00" + string(name) + string(value)


SETTINGS = frame(4, 0, 0, b"")


def answer(*fields: tuple[bytes, bytes], ended: bool = True) -> bytes:
    block = b"".join(literal(name, value) for name, value in fields)
    return SETTINGS + frame(1, 5 if ended else 4, 1, block)


SWITCHING = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"

ANSWERS: dict[str, tuple[str, bytes]] = {
    "a status of 5,000 digits": ("websocket", b"HTTP/1.1 " + HUGE + b" x\r\n\r\n"),
    "a status of no digits": ("websocket", b"HTTP/1.1 abc x\r\n\r\n"),
    "a status of superscripts": ("websocket", b"HTTP/1.1 \xb2\xb3\xb9 x\r\n\r\n"),
    "status 0": ("websocket", b"HTTP/1.1 0 x\r\n\r\n"),
    "no status": ("websocket", b"HTTP/1.1 \r\n\r\n"),
    "an upgrade that is not UTF-8": ("websocket", SWITCHING.replace(b"websocket", b"websocket\xff") + b"\r\n"),
    "a connection that is not UTF-8": ("websocket", SWITCHING.replace(b"Upgrade\r\n", b"\xe9\r\n") + b"\r\n"),
    "a key's answer that is not UTF-8": ("websocket", SWITCHING + b"Sec-WebSocket-Accept: \xff\xfe\r\n\r\n"),
    "a redirect with escapes": ("websocket", b"HTTP/1.1 302 x\r\nLocation: https://e\x1b]0;pwn\x07\x9b31m/\r\n\r\n"),
    "a retry-after of 400 digits": ("websocket", b"HTTP/1.1 503 x\r\nRetry-After: " + b"9" * 400 + b"\r\n\r\n"),
    "a retry-after in the year 99999": (
        "websocket",
        b"HTTP/1.1 503 x\r\nRetry-After: Mon, 01 Jan 99999 00:00:00 GMT\r\n\r\n",
    ),
    "a retry-after far off in time zones": (
        "websocket",
        b"HTTP/1.1 503 x\r\nRetry-After: Mon, 01 Jan 2020 00:00:00 +99999999999\r\n\r\n",
    ),
    "a retry-after before all years": (
        "websocket",
        b"HTTP/1.1 503 x\r\nRetry-After: Mon, 01 Jan 0001 00:00:00 +2359\r\n\r\n",
    ),
    "a retry-after with too many seconds": ("websocket", b"HTTP/1.1 503 x\r\nRetry-After: " + FAR + b"\r\n\r\n"),
    "a limit with a year too far": (
        "websocket",
        b"HTTP/1.1 429 x\r\nRetry-After: Mon, 01 Jan 99999999999 00:00:00 GMT\r\n\r\n",
    ),
    "http2: a retry-after with too many seconds": ("http2", answer((b":status", b"503"), (b"retry-after", FAR))),
    "http2: a status of 5,000 digits": ("http2", answer((b":status", HUGE))),
    "http2: an informational status of 5,000 digits": ("http2", answer((b":status", b"1" * 5000), ended=False)),
    "http2: a negative status": ("http2", answer((b":status", b"-1"))),
    "http2: a status of superscripts": ("http2", answer((b":status", b"\xb2\xb3"))),
    "http2: no status": ("http2", answer((b"x", b"y"))),
    "http2: a push": ("http2", SETTINGS + frame(5, 4, 1, struct.pack("!I", 2) + literal(b":method", b"GET"))),
    "http2: an alternative service": ("http2", SETTINGS + frame(10, 0, 0, b"\x00\x01ax")),
    "http2: a GOAWAY with escapes": ("http2", SETTINGS + frame(7, 0, 0, struct.pack("!II", 0, 2) + b"\x1b[31m\xe2")),
    "http2: the largest windows": (
        "http2",
        frame(4, 0, 0, struct.pack("!HI", 4, 0x7FFFFFFF)) + frame(8, 0, 0, struct.pack("!I", 0x7FFFFFFF)),
    ),
    "http2: frames of no size": ("http2", frame(4, 0, 0, struct.pack("!HI", 5, 0))),
    "http2: a header table of 4 GiB": (
        "http2",
        frame(4, 0, 0, struct.pack("!HI", 1, 0xFFFFFFFF)) + answer((b":status", b"200")),
    ),
    "grpc: a push-back of 5,000 digits": (
        "grpc",
        answer(
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"14"),
            (b"grpc-retry-pushback-ms", HUGE),
            (b"grpc-message", b"%1b%5b31m%ff%"),
        ),
    ),
    "grpc: a status of 5,000 digits": (
        "grpc",
        answer((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", HUGE)),
    ),
}

CLOSES = {
    "a reason that is not UTF-8": b"\x88\x04\x03\xe8\xff\xfe",
    "a reason that was cut inside a character": b"\x88\x03\x03\xe8\xe2",
    "a reason that is half of a pair": b"\x88\x05\x03\xe8\xed\xa0\x80",
    "a reason with escapes": b"\x88\x06\x03\xe8\x1b[2J",
    "one byte": b"\x88\x01\x03",
    "code 0": b"\x88\x02\0\0",
    "reserved bits": b"\xc2\x01x",
    "a fragment of nothing": b"\x80\x01x",
    "a bad close in the middle of a message": b"\x02\x01x\x88\x04\x03\xe8\xff\xff",
}


def server(stack: ExitStack, reply: Callable[[bytes], bytes]) -> int:
    """Reads a request, sends what `reply` makes of it, and closes.  Returns its port."""
    listener, port = listen(stack)

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(DEADLINE)
            sock.sendall(reply(sock.recv(65536)))
            sock.shutdown(socket.SHUT_WR)
            try:
                while sock.recv(65536):
                    pass
            except OSError:
                pass

    thread = threading.Thread(target=serve, name="strange server")
    thread.start()
    stack.callback(thread.join)
    return port


def failure(transport: str, port: int, route: Route = DIRECT) -> TransportError | ProtocolError:
    """How connecting, and then reading, fails."""
    url = TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")

    def connect_and_read() -> None:
        pipe = CONNECT[transport](url, route=route, deadline=Deadline(DEADLINE))
        try:
            pipe.recv()
        finally:
            pipe.close("the test is over")

    with pytest.raises((TransportError, ProtocolError)) as caught:
        connect_and_read()
    text = str(caught.value)
    assert text.isprintable(), text
    assert len(text) < 1000
    return caught.value


@pytest.mark.parametrize("name", ANSWERS)
def test_a_strange_answer_is_one_failed_try(stack: ExitStack, name: str) -> None:
    transport, reply = ANSWERS[name]
    error = failure(transport, server(stack, lambda request: reply))
    retry_after = error.retry_after if isinstance(error, TransportError) else None
    assert retry_after is None or 0 <= retry_after <= MAX_RETRY_AFTER


@pytest.mark.parametrize("name", [name for name, (transport, _) in ANSWERS.items() if transport == "websocket"])
def test_a_proxys_strange_answer_is_one_failed_try(stack: ExitStack, name: str) -> None:
    port = server(stack, lambda request: ANSWERS[name][1])
    failure("websocket", 9, Route(proxy=Proxy.parse(f"http://127.0.0.1:{port}")))


@pytest.mark.parametrize("name", CLOSES)
def test_a_strange_close_is_one_failed_try(stack: ExitStack, name: str) -> None:
    def upgrade(request: bytes) -> bytes:
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
        assert key is not None
        proof = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        return SWITCHING + b"Sec-WebSocket-Accept: " + proof + b"\r\n\r\n" + CLOSES[name]

    failure("websocket", server(stack, upgrade))
