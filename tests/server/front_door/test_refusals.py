"""Promises about what the server says of those it refuses: a line in its log, and a reason in the answer."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

import pytest
from h2.events import ResponseReceived

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.websocket import upgrade as websocket
from tests.support.background import wait_until
from tests.support.server.front_door_rig import WEBSOCKET, Certificate, connect, exchange, front_door, request
from tests.support.transports.http2_loopback import RawHttp2

TUNNEL = f"GET /tunnel HTTP/1.1\r\n{WEBSOCKET}\r\n"
V1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (V1 + TUNNEL.encode(), 400, "a PROXY protocol header came before"),
        (V2 + TUNNEL.encode(), 400, "a PROXY protocol header came before"),
        (TUNNEL.replace("Host: x", "Host: x\r\nHost: y").encode(), 400, "two Host headers"),
        (TUNNEL.replace("Host: x\r\n", "").encode(), 400, "no Host header"),
        (TUNNEL.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "").encode(), 400, "Sec-WebSocket-Key"),
        (TUNNEL.replace("Host: x", "Cookie: " + "x" * 70_000).encode(), 431, "limits.header_bytes"),
        (TUNNEL.replace("/tunnel", "/tunnel/").encode(), 404, "no tunnel at this path"),
        (TUNNEL.replace("/tunnel", "//tunnel").encode(), 404, "no tunnel at this path"),
        (TUNNEL.replace("/tunnel", "/other").encode(), 404, "no tunnel at this path"),
    ],
)
def test_a_client_that_is_refused_is_told_of_once(
    data: bytes, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with front_door() as door:
        answers = [exchange(door, data) for _ in range(3)]
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert (words.encode() in answer) is (status == 400)
    (line,) = said(caplog)
    assert words in line


def test_a_path_in_the_log_is_bounded_and_printable(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with front_door() as door:
        exchange(door, TUNNEL.replace("/tunnel", "/\x1b[2J" + "x" * 5000).encode())
    assert all(len(line) < 600 and line.isprintable() for line in said(caplog))


def test_strangers_that_look_for_something_else_are_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with front_door() as door:
        for line in ("GET /wp-login.php HTTP/1.1", "POST /cgi-bin/x HTTP/1.1", "GET / HTTP/1.1"):
            exchange(door, request(line))
        exchange(door, b"GET / HTTP/1.1\r\n\r\n")
    assert said(caplog) == []


def test_a_client_says_the_reason_that_the_server_gives() -> None:
    with front_door() as door:
        url = TunnelUrl.parse(f"ws://127.0.0.1:{door.addresses[0][1]}/tunnel")
        route = Route(headers=(("Sec-WebSocket-Version", "12"),))
        with pytest.raises(TransportError, match="the server refused the request: not version 13") as caught:
            websocket.connect(url, route=route, deadline=Deadline(20))
    assert "nginx" not in caught.value.hint


@pytest.mark.parametrize(
    ("path", "headers", "words"),
    [
        ("/tunnel/", {"content_type": "application/octet-stream"}, "no tunnel at this path"),
        ("/other", {"user_agent": "qanat/1"}, "no tunnel at this path"),
        ("/qanat.Tunnel/Other", {"content_type": "application/grpc+proto"}, "no tunnel at this path"),
        ("/tunnel", {"content_type": "text/plain"}, "the request is none for a tunnel"),
        ("/tunnel", {"content_type": "application/octet-stream", "content_length": "9"}, "hold the body back"),
    ],
)
def test_a_request_over_http2_that_is_refused_is_told_of_once(
    path: str, headers: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with front_door() as door, ExitStack() as stack:
        peer = RawHttp2(stack.enter_context(connect(door)), client=True)
        for _ in range(3):
            peer.request(path, **headers)
            event = peer.expect(ResponseReceived)
            assert isinstance(event, ResponseReceived)
            assert str(dict(event.headers)[":status"]) == "404"
        peer.request("/admin", content_type="application/octet-stream")
        peer.expect(ResponseReceived)
    (line,) = said(caplog)
    assert words in line


def test_a_failed_tls_handshake_and_a_proxy_header_before_tls_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with front_door(tls=Certificate(tmp_path).tls) as door:
        for data in (b"\x16\x03\x01\0\x05junk!", V2, V1):
            for _ in range(2):
                exchange(door, data)
        wait_until(lambda: len(said(caplog)) == 2, "both were logged")
    assert "TLS with 127.0.0.1" in said(caplog)[0]
    assert "PROXY protocol" in said(caplog)[1]
