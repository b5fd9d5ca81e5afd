"""The opening handshake: what a server refuses, and what a client says about answers that are not ours."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError, UsageError
from qanat.transports.dial.http_answer import MAX_HEAD
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.websocket.upgrade import UpgradeRefused, UpgradeRequest, accept, connect, is_upgrade
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import ReloadingServerContext
from tests.support.background import DEADLINE, Background
from tests.support.machine.certificates import Authority, Certificate
from tests.support.transports.loopback import (
    client_pipe,
    listen,
    read_head,
    send_bytes,
    socket_pair,
    upgrade_answer,
    websocket_pair,
)

GOOD = {
    "host": "localhost",
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version": "13",
    "sec-websocket-protocol": "qanat.1",
}


def request(method: str = "GET", **changes: str) -> UpgradeRequest:
    headers = GOOD | {name.replace("_", "-"): value for name, value in changes.items()}
    return UpgradeRequest("/tunnel", tuple((name, value) for name, value in headers.items() if value), method)


def answering(stack: ExitStack, answer: Callable[[bytes], bytes], *, hang: bool = False) -> TunnelUrl:
    """A real little server that gives `answer(head)` to one request."""
    listener, port = listen(stack)
    over = threading.Event()

    def serve() -> None:
        with listener.accept()[0] as sock:
            head = read_head(sock)
            with contextlib.suppress(OSError):  # the client may have heard enough and gone
                sock.sendall(answer(head))
                if hang:
                    over.wait(20)
                else:
                    sock.shutdown(socket.SHUT_WR)
                    sock.recv(1)

    serving = Background(serve)
    stack.callback(serving.result)
    stack.callback(over.set)
    return TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")


def failure(url: TunnelUrl, seconds: float = 5, ca_file: object = None) -> TransportError:
    with pytest.raises(TransportError) as caught:
        connect(url, route=Route(ca_file=ca_file), deadline=Deadline(seconds))  # type: ignore[arg-type]
    assert caught.value.hint, "each message says what to do"
    return caught.value


# --- the server


def test_the_answer_is_the_one_of_the_rfc(stack: ExitStack) -> None:
    client, server = socket_pair(stack)
    pipe = accept(request(), TcpWire(server), b"")
    stack.callback(pipe.close, "the test is over")
    head = read_head(client).lower()
    assert head.startswith(b"http/1.1 101 ")
    assert b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in head
    assert b"sec-websocket-protocol: qanat.1" in head


@pytest.mark.parametrize(
    "bad",
    [
        request("POST"),
        request(upgrade=""),
        request(upgrade="h2c"),
        request(connection="keep-alive"),
        request(sec_websocket_version="8"),
        request(sec_websocket_version=""),
        request(sec_websocket_key=""),
        request(sec_websocket_key="short"),
        request(sec_websocket_key="not base64 at all !!!!!!"),
        request(sec_websocket_protocol="chat"),
    ],
)
def test_a_bad_request_is_refused_with_nothing_written(stack: ExitStack, bad: UpgradeRequest) -> None:
    client, server = socket_pair(stack)
    wire = TcpWire(server)
    with pytest.raises(UpgradeRefused) as caught:
        accept(bad, wire, b"")
    assert caught.value.status == 400, "never 426, which demands an Upgrade header (RFC 9110 §15.5.22)"
    wire.close()
    assert client.recv(100) == b""


@pytest.mark.parametrize(
    "good",
    [
        request(),
        request(upgrade="WebSocket", connection="keep-alive, upgrade"),
        request(sec_websocket_protocol="chat, qanat.1"),
        request(sec_websocket_protocol=""),
        request(host="xn--zckzah.\x80:99"),
    ],
)
def test_a_request_in_other_words_is_accepted(stack: ExitStack, good: UpgradeRequest) -> None:
    assert is_upgrade(good)
    _, server = socket_pair(stack)
    accept(good, TcpWire(server), b"").close("the test is over")


def test_an_ordinary_request_is_not_an_upgrade() -> None:
    assert not is_upgrade(UpgradeRequest("/", (("host", "localhost"),)))
    assert not is_upgrade(request("HEAD"))


# --- the client


def test_the_request_is_what_proxies_expect(stack: ExitStack) -> None:
    heads: list[bytes] = []

    def answer(head: bytes) -> bytes:
        heads.append(head)
        return upgrade_answer(head)

    url = answering(stack, answer)
    connect(url, deadline=Deadline(DEADLINE)).close("the test is over")
    first, *lines = heads[0].decode().split("\r\n")
    assert first == "GET /tunnel HTTP/1.1"
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers["host"] == f"127.0.0.1:{url.port}"
    assert headers["upgrade"] == "websocket"
    assert headers["sec-websocket-protocol"] == "qanat.1"
    assert "origin" not in headers
    assert "sec-websocket-extensions" not in headers


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "wss://"),
        (401, "login"),
        (403, "WebSockets on"),
        (404, "`path`"),
        (405, "`path`"),
        (407, "proxy"),
        (426, "proxy_http_version 1.1"),
        (500, "error log"),
        (502, "backend"),
        (503, "no room"),
        (504, "server behind it"),
        (521, "CloudFlare"),
        (200, "web page"),
        (418, "418"),
    ],
)
def test_each_status_is_explained(stack: ExitStack, status: int, words: str) -> None:
    url = answering(stack, lambda _: b"HTTP/1.1 %d Some Reason\r\nContent-Length: 4\r\n\r\nbody" % status)
    error = failure(url)
    assert words in str(error)
    assert str(url) in str(error)


def test_a_body_that_never_ends_is_not_waited_for(stack: ExitStack) -> None:
    url = answering(stack, lambda _: b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 1000000000\r\n\r\n<html>", hang=True)
    assert "502" in str(failure(url))


def test_a_plain_address_that_redirects_to_tls_says_so(stack: ExitStack) -> None:
    url = answering(stack, lambda _: b"HTTP/1.1 301 Moved\r\nLocation: https://example.com/\r\n\r\n")
    error = failure(url)
    assert "https://example.com/" in error.message
    assert "wss://" in error.hint


def test_retry_after_is_passed_on(stack: ExitStack) -> None:
    url = answering(stack, lambda _: b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n")
    assert failure(url).retry_after == 7


def test_early_hints_before_the_answer_do_no_harm(stack: ExitStack) -> None:
    url = answering(stack, lambda h: b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + upgrade_answer(h))
    connect(url, deadline=Deadline(DEADLINE)).close("the test is over")


def test_foreign_headers_do_not_reach_the_library(stack: ExitStack) -> None:
    odd = b"Set-Cookie: a=b; Domain=localhost\r\nX-\xff: \xfe\r\nno colon here\r\n\r\n"
    url = answering(stack, lambda h: upgrade_answer(h)[:-2] + odd)
    connect(url, deadline=Deadline(DEADLINE)).close("the test is over")


@pytest.mark.parametrize("second", [b"Connection: close", b"Connection: keep-alive", b"Upgrade: websocket"])
@pytest.mark.parametrize("first", [False, True])
def test_a_header_that_comes_twice_counts_as_one_with_both_values(stack: ExitStack, second: bytes, first: bool) -> None:
    """Load balancers add a Connection header of their own, before or behind the server's."""

    def answer(head: bytes) -> bytes:
        status, rest = upgrade_answer(head).split(b"\r\n", 1)
        if first:
            return b"\r\n".join((status, second, rest))
        return b"\r\n".join((status, rest[:-4], second, b"", b""))

    connect(answering(stack, answer), deadline=Deadline(20)).close("the test is over")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b"qanat.1", b"chat"), "not a Qanat server"),
        ((b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x"), "not as WebSocket demands"),
        ((b"Upgrade: websocket\r\n", b""), "not as WebSocket demands"),
        ((b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"), "extension"),
    ],
)
def test_a_101_that_is_not_ours_is_refused(stack: ExitStack, change: tuple[bytes, bytes], words: str) -> None:
    url = answering(stack, lambda head: upgrade_answer(head).replace(*change))
    assert words in failure(url).message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 2", "without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not a web server"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS"),
        (b"HTTP/1.1 what\r\n\r\n", "not a web server"),
        (b"HTTP/1.1 101 x\r\nx: " + b"y" * (MAX_HEAD + 20_000), "bytes of headers"),
    ],
)
def test_what_is_not_http_is_recognized(stack: ExitStack, answer: bytes, words: str) -> None:
    url = answering(stack, lambda _: answer)
    with pytest.raises(TransportError, match=words):
        connect(url, deadline=Deadline(DEADLINE))


def test_a_server_that_says_nothing_is_given_up_at_the_deadline(stack: ExitStack) -> None:
    url = answering(stack, lambda _: b"HTTP/1.1 101 Swit", hang=True)
    assert "in time" in failure(url, 0.2).message


def test_the_read_timeout_of_the_handshake_is_lifted_afterwards(stack: ExitStack) -> None:
    pipe, peer = client_pipe(stack)
    peer.send_frame(2, b"x")
    assert pipe.recv() == b"x"
    assert pipe._wire._read_timeout is None  # type: ignore[attr-defined]


# --- with TLS


def test_over_tls_only_http_1_1_is_offered(
    stack: ExitStack, authority: Authority, good_certificate: Certificate
) -> None:
    client, server = websocket_pair(stack, good_certificate, authority.ca_file)
    wire = client._wire  # type: ignore[attr-defined]
    assert isinstance(wire, TlsWire)
    assert wire.alpn == "http/1.1"
    message = os.urandom(1000)
    send_bytes(client, message)
    assert server.recv() == message


@pytest.mark.parametrize(
    ("issue", "words", "advice"),
    [
        ({"name": "elsewhere.example"}, "not for 127.0.0.1", "the name that is in the certificate"),
        ({"since": -9, "until": -2}, "expired", "clock"),
        ({"since": 2, "until": 9}, "not valid yet", "clock"),
        ({"self_signed": True}, "self-signed", "ca_file"),
    ],
)
def test_a_certificate_that_does_not_verify_is_explained(
    stack: ExitStack, authority: Authority, issue: dict[str, object], words: str, advice: str
) -> None:
    url = tls_server(stack, authority.issue(**issue))  # type: ignore[arg-type]
    error = failure(url, ca_file=authority.ca_file)
    assert words in error.message
    assert advice in error.hint


def test_an_unknown_authority_is_explained(stack: ExitStack, good_certificate: Certificate) -> None:
    error = failure(tls_server(stack, good_certificate))
    assert "authority that this machine does not know" in error.message
    assert "ca_file" in error.hint


def test_tls_towards_a_plain_server_is_explained(stack: ExitStack) -> None:
    listener, port = listen(stack)

    def serve() -> None:
        with listener.accept()[0] as sock:
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    serving = Background(serve)
    error = failure(TunnelUrl.parse(f"wss://127.0.0.1:{port}/"))
    assert "does not speak TLS" in error.message
    assert "ws://" in error.hint
    serving.result()


def test_a_ca_file_that_is_no_certificate_is_a_usage_error(stack: ExitStack, authority: Authority) -> None:
    bad = authority.ca_file.with_name("bad.pem")
    bad.write_text("hello")
    for path in (bad, bad.with_name("missing.pem")):
        with pytest.raises(UsageError) as caught:
            connect(TunnelUrl.parse("wss://127.0.0.1:1/"), route=Route(ca_file=path), deadline=Deadline(1))
        assert caught.value.hint


def tls_server(stack: ExitStack, certificate: Certificate) -> TunnelUrl:
    """A server that does one TLS handshake, as far as the client goes along."""
    listener, port = listen(stack)
    context = ReloadingServerContext(certificate.certificate, certificate.key, ("http/1.1",)).context()

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            wire = TlsWire(TcpWire(sock), context, server_side=True, deadline=Deadline(DEADLINE))
            wire.recv_into(memoryview(bytearray(1)))  # in TLS 1.3 the client's refusal comes only now

    serving = Background(serve)
    stack.callback(lambda: isinstance(serving.error(), TransportError))
    return TunnelUrl.parse(f"wss://127.0.0.1:{port}/")
