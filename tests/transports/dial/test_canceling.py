"""Connector is over at once when somebody else says so, whatever step it is in."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.transports.dial.proxies import Proxy
from qanat.transports.dial.route import DIRECT, Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.pipe import Pipe
from qanat.transports.websocket import upgrade as websocket
from tests.support.background import DEADLINE, Background
from tests.support.machine.forward_proxies import CrookedProxy
from tests.support.machine.ports import silent_address

CONNECT = {"websocket": websocket.connect, "http2": http2.connect, "grpc": grpc.connect}
AT_ONCE = DEADLINE / 2
"""Seconds; what is not cancelled takes until the deadline."""


def assert_canceled_at_once(connect: Callable[[Cancel], Pipe], begun: Callable[[], object]) -> TransportError:
    """`begun` blocks until the step in question is under way."""
    cancel = Cancel()
    connector = Background(lambda: connect(cancel))
    begun()
    assert not connector.wait(0.05), "it has not ended by itself"
    started = time.monotonic()
    cancel.cancel()
    error = connector.error()
    assert time.monotonic() - started < AT_ONCE
    assert isinstance(error, TransportError)
    return error


def connector(url: str, route: Route = DIRECT, transport: str = "websocket") -> Callable[[Cancel], Pipe]:
    return lambda cancel: CONNECT[transport](
        TunnelUrl.parse(url), route=route, deadline=Deadline(DEADLINE), cancel=cancel
    )


def test_a_name_that_is_being_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        asked.set()
        answered.wait(DEADLINE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    error = assert_canceled_at_once(connector("ws://slow.example/"), lambda: asked.wait(DEADLINE))
    assert error.message == "connecting to slow.example:80 was stopped"
    answered.set()


@pytest.mark.parametrize("family", ["direct", "http", "socks5h"])
def test_a_connection_that_nobody_accepts(stack: ExitStack, family: str) -> None:
    port = silent_address(stack)[1]
    route = DIRECT if family == "direct" else Route(proxy=Proxy.parse(f"{family}://127.0.0.1:{port}"))
    assert_canceled_at_once(connector(f"ws://127.0.0.1:{port}/", route), lambda: None)


def test_the_second_address_is_not_tried_any_more(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    address = silent_address(stack)
    two = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)] * 2
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: two)
    assert_canceled_at_once(connector("ws://two.example/"), lambda: None)


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
def test_a_proxy_that_says_nothing(scheme: str) -> None:
    heard = threading.Event()
    with CrookedProxy(listening(heard)) as silent:
        route = Route(proxy=Proxy.parse(f"{scheme}://127.0.0.1:{silent.port}"))
        assert_canceled_at_once(connector("wss://server.example/", route), lambda: heard.wait(DEADLINE))


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("transport", CONNECT)
def test_a_server_that_says_nothing(transport: str, scheme: str) -> None:
    heard = threading.Event()
    with CrookedProxy(listening(heard)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.port}/"
        assert_canceled_at_once(connector(url, transport=transport), lambda: heard.wait(DEADLINE))


def listening(heard: threading.Event) -> Callable[[socket.socket], object]:
    def talk(sock: socket.socket) -> None:
        sock.recv(1)
        heard.set()
        while sock.recv(65536):
            pass

    return talk


def test_what_is_canceled_already_does_not_begin(stack: ExitStack) -> None:
    cancel = Cancel()
    cancel.cancel()
    started = time.monotonic()
    with pytest.raises(TransportError, match="was stopped"):
        connector(f"ws://127.0.0.1:{silent_address(stack)[1]}/")(cancel)
    assert time.monotonic() - started < AT_ONCE


def test_no_wakeup_comes_after_its_block() -> None:
    cancel = Cancel()
    woken: list[str] = []
    with cancel.waking(lambda: woken.append("first")):
        pass
    with cancel.waking(lambda: woken.append("second")):
        cancel.cancel()
        cancel.cancel()
    with cancel.waking(lambda: woken.append("third")):
        assert cancel.canceled
    assert woken == ["second", "third"]
