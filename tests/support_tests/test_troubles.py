"""Promises about the troubled paths themselves: that each does to a request what it says, and nothing to the others."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.background import DEADLINE, Background, wait_until
from tests.support.troubles import ALL, PROGRAMS, TROUBLES, Portal, Relay, Rules, Trouble, trouble
from tests.support.troubles.http1 import Http1Asking
from tests.support.troubles.http2 import Http2Asking
from tests.support.troubles.origin import Origin
from tests.support.troubles.wire import Asking, Request

both = pytest.mark.parametrize("version", [1, 2])


@contextmanager
def asking(
    port: int, path: str, method: str = "GET", *, version: int = 1, body: bytes | None = None, **fields: str
) -> Iterator[Asking]:
    """A request on a connection of its own; a POST without a body stays open."""
    named = tuple((name.replace("_", "-"), value) for name, value in fields.items())
    kind = Http1Asking if version == 1 else Http2Asking
    request = Request(method, path, "localhost", named, version, websocket=method == "CONNECT")
    one = kind(("127.0.0.1", port), request, b"" if method == "GET" else body)
    try:
        yield one
    finally:
        one.cut()
        one.close()


def rest(one: Asking) -> bytes:
    """What comes until the end of the answer."""
    parts = []
    while data := one.receive():
        parts.append(data)
    return b"".join(parts)


def fetch(port: int, path: str, method: str = "GET", **more: Any) -> tuple[int, bytes]:
    """The whole answer."""
    with asking(port, path, method, **more) as one:
        return one.head().status, rest(one)


def post(port: int, body: bytes, *, version: int) -> tuple[int, bytes]:
    return fetch(port, "/store", "POST", version=version, body=body)


def is_cut(one: Asking) -> bool:
    """Whether it ends before its end."""
    try:
        rest(one)
    except OSError:
        return True
    return False


@contextmanager
def path_with(**rules: Any) -> Iterator[tuple[Relay, Origin]]:
    with Origin() as origin, Relay(("127.0.0.1", origin.port), Rules(**rules)) as relay:
        yield relay, origin


@both
def test_an_honest_relay_passes_bodies_on_as_they_come(version: int) -> None:
    with path_with() as (relay, origin):
        with asking(relay.port, "/echo", "POST", version=version) as one:
            assert one.head().status == 200
            for turn in range(5):
                one.send(b"turn %d" % turn)
                assert one.receive() == b"turn %d" % turn
            one.finish()
            assert one.receive() == b""
        body = bytes(3_000_000)
        assert post(relay.port, body, version=version) == (200, body)
        with asking(relay.port, "/two", version=version) as one:
            assert (one.head().status, one.receive()) == (200, b"one")
            origin.go_on.set()
            assert rest(one) == b"two"
        with asking(relay.port, "/", "CONNECT", version=version) as one:
            assert one.head().status == (101 if version == 1 else 200)
            one.send(b"hello")
            assert one.receive() == b"hello"


def test_a_websocket_is_refused_where_none_gets_through() -> None:
    with path_with(upgrade=False, extended_connect=False) as (relay, origin):
        with asking(relay.port, "/", "CONNECT") as one:
            assert one.head().status == 200  # as an ordinary request
        with asking(relay.port, "/", "CONNECT", version=2) as one:
            assert one.head().status == 405
            assert not one.peer_takes_extended_connect
        assert origin.asked == ["GET /"]
    with path_with(upgrade_required=True) as (relay, _):
        with asking(relay.port, "/", version=2) as one:
            head = one.head()
            assert (head.status, head.value("upgrade")) == (426, "websocket")
        assert fetch(relay.port, "/")[0] == 200


@both
def test_a_request_that_is_held_reaches_the_server_at_its_end(version: int) -> None:
    with path_with(hold_request=True, hold_request_grpc=False) as (relay, origin):
        with asking(relay.port, "/echo", "POST", version=version) as one:
            one.send(b"first")
            assert fetch(relay.port, "/", version=version)[0] == 200  # by now it would have come
            assert origin.asked == ["GET /"]
            one.finish()
            assert (one.head().status, rest(one)) == (200, b"first")
        with asking(relay.port, "/echo", "POST", version=version, content_type="application/grpc") as one:
            assert one.head().status == 200


@both
def test_an_answer_is_held_until_its_end_until_a_size_or_for_a_time(version: int) -> None:
    def first_part(relay: Relay, origin: Origin) -> bytes:
        with asking(relay.port, "/two", version=version) as one:
            Background(lambda: wait_until(lambda: "GET /two" in origin.asked, "it came")).result()
            waiting = Background(lambda: (one.head().status, one.receive())[1])
            assert not waiting.wait(0.3)
            origin.go_on.set()
            return waiting.result()

    with path_with(hold_answer_end=True) as (relay, origin):
        assert first_part(relay, origin) == b"onetwo"
    with path_with(hold_answer_bytes=6) as (relay, origin):
        assert first_part(relay, origin) == b"onetwo"
    with path_with(hold_answer_bytes=3) as (relay, _), asking(relay.port, "/two", version=version) as one:
        assert (one.head().status, one.receive()) == (200, b"one")
    with path_with(hold_answer_seconds=1.0) as (relay, _):
        began = time.monotonic()
        with asking(relay.port, "/two", version=version) as one:
            assert (one.head().status, one.receive()) == (200, b"one")
        assert time.monotonic() - began >= 1.0


def test_each_protocol_can_be_the_only_one() -> None:
    with path_with(http1=False) as (relay, _):
        assert fetch(relay.port, "/", version=2)[0] == 200
        with pytest.raises(OSError):
            fetch(relay.port, "/")
    with path_with(http2=False) as (relay, _):
        assert fetch(relay.port, "/")[0] == 200
        with pytest.raises(OSError):
            fetch(relay.port, "/", version=2)


@both
def test_a_body_above_the_limit_is_413_or_cut(version: int) -> None:
    with path_with(body_limit=1000) as (relay, origin):
        assert post(relay.port, bytes(1000), version=version)[0] == 200
        assert post(relay.port, bytes(1001), version=version)[0] == 413
        with asking(relay.port, "/echo", "POST", version=version) as one:
            assert one.head().status == 200
            one.send(bytes(1001))
            assert is_cut(one)
        assert origin.asked == ["POST /store", "POST /echo"]


@both
def test_silence_and_age_cut_an_exchange(version: int) -> None:
    def lived(relay: Relay, path: str, method: str) -> float:
        began = time.monotonic()  # before the relay can begin to count
        with asking(relay.port, path, method, version=version) as one:
            one.head()
            assert is_cut(one) or method == "CONNECT"  # which may end like a connection
            return time.monotonic() - began

    for rules in ({"idle": 0.5}, {"life": 0.5}, {"random_life": (0.5, 0.6)}):
        with path_with(**rules) as (relay, _):
            for path, method in (("/two", "GET"), ("/echo", "POST"), ("/", "CONNECT")):
                assert lived(relay, path, method) >= 0.5
            assert relay.counts["cut"] == 3


def test_talk_keeps_an_exchange_alive_where_silence_would_end_it() -> None:
    with path_with(idle=2.0) as (relay, _), asking(relay.port, "/echo", "POST") as one:
        assert one.head().status == 200
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            one.send(b"x")
            assert one.receive() == b"x"
            time.sleep(0.1)


def test_a_connection_serves_as_many_requests_as_it_may() -> None:
    with (
        path_with(requests_per_connection=3) as (relay, _),
        socket.create_connection(("127.0.0.1", relay.port)) as sock,
    ):
        sock.settimeout(DEADLINE)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 4)
        text = b""
        while data := sock.recv(4096):
            text += data
        assert text.count(b"200") == 3
        assert text.count(b"connection: close") == 1


def test_one_request_at_a_time() -> None:
    with path_with(one_at_a_time=True) as (relay, origin), asking(relay.port, "/two", version=2) as one:
        assert one.head().status == 200
        second = one.another("/")
        waiting = Background(lambda: second.head().status)
        assert not waiting.wait(0.3)
        origin.go_on.set()
        assert rest(one) == b"onetwo"
        assert waiting.result() == 200


@both
def test_posts_are_lost_before_and_behind_the_server_and_come_twice(version: int) -> None:
    with path_with(lose_posts=2) as (relay, origin):
        answers = 0
        for number in range(20):
            with suppress(OSError):
                answers += post(relay.port, b"%d" % number, version=version)[0] == 200
        lost = relay.counts["lost"]
        assert answers == 20 - lost
        assert len(origin.bodies) == 20 - (lost + 1) // 2
    with path_with(repeat_posts=2) as (relay, origin):
        for number in range(20):
            assert post(relay.port, b"%d" % number, version=version) == (200, b"%d" % number)
        assert 0 < relay.counts["repeated"] < 20
        assert len(origin.bodies) == 20 + relay.counts["repeated"]


@both
def test_grpc_is_refused_a_portal_answers_all_and_a_black_hole_swallows_what_was_opened(version: int) -> None:
    with path_with(grpc=False) as (relay, _):
        assert fetch(relay.port, "/", "POST", version=version, content_type="application/grpc")[0] == 403
        assert fetch(relay.port, "/", "POST", version=version, body=b"")[0] == 200
    with path_with(portal=Portal.PAGE) as (relay, origin):
        status, page = fetch(relay.port, "/", version=version)
        assert status == 200
        assert b"<html>" in page
        assert origin.asked == []
    with path_with(portal=Portal.REDIRECT) as (relay, _):
        assert fetch(relay.port, "/", version=version)[0] == 302
    with path_with(black_hole=True) as (relay, _):
        assert fetch(relay.port, "/", version=version)[0] == 200
        with asking(relay.port, "/", "CONNECT", version=version) as one:
            assert one.head().status == (101 if version == 1 else 200)
            one.send(b"hello")
            assert not Background(one.receive).wait(0.3)


# --- the list ---------------------------------------------------------------------------------------


def test_names_are_unique_and_each_says_what_gets_through() -> None:
    names = [one.name for one in TROUBLES]
    assert len(set(names)) == len(names)
    assert all(one.lasts <= one.passes <= ALL for one in TROUBLES)


def get(url_port: int, ca_file: Path | None) -> bytes:
    """What answers GET /store, asked by HTTP/1.1 with or without TLS."""
    sock: socket.socket = socket.create_connection(("localhost", url_port), DEADLINE)
    with sock:
        if ca_file is not None:
            sock = ssl.create_default_context(cafile=ca_file).wrap_socket(sock, server_hostname="localhost")
        with sock:
            sock.sendall(b"GET /store HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return sock.recv(4096)


@pytest.mark.parametrize("one", PROGRAMS, ids=lambda one: one.name)
def test_a_real_program_holds_an_open_request_back_and_drops_the_upgrade(one: Trouble, tmp_path: Path) -> None:
    with Origin() as origin, one.start(origin.port, tmp_path, tls=True) as path:
        assert path.tls is one.has_tls
        assert b"200" in get(path.port, path.ca_file)
        assert origin.asked == ["GET /store"]


def test_an_interceptor_has_a_certificate_that_nobody_trusts(tmp_path: Path) -> None:
    with (
        Origin() as origin,
        trouble("tls-intercepted").start(origin.port, tmp_path) as path,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        get(path.port, path.ca_file)


def test_a_name_whose_first_address_is_dead_has_a_second_one(tmp_path: Path) -> None:
    with Origin() as origin, trouble("dead-first-address").start(origin.port, tmp_path) as path:
        dead, alive = path.addresses
        found = [address[4] for address in socket.getaddrinfo("localhost", path.port, type=socket.SOCK_STREAM)]
        assert found == [dead, alive]
        with ExitStack() as stack:
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                sock.connect(dead)
        assert fetch(path.port, "/")[0] == 200
