"""A client that is stopped while it dials does not wait for the network."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from qanat.base.errors import UsageError
from qanat.client import long_try
from qanat.client.client import Client
from qanat.config.client_settings import ClientSettings, ClientTls, RemoteServer
from qanat.transports.dial.proxies import Proxy
from tests.support.background import DEADLINE, wait_until
from tests.support.machine.forward_proxies import CrookedProxy
from tests.support.machine.ports import silent_address


def settings(directory: Path, url: str, **changes: object) -> ClientSettings:
    remote = RemoteServer((url,), os.urandom(32))
    values = {"name": "a", "servers": (remote,), "connect_timeout": 3 * DEADLINE, "state_dir": directory}
    return ClientSettings(**(values | changes))  # type: ignore[arg-type]


def seconds_to_stop(client: Client, connector: Callable[[], bool]) -> float:
    client.start()
    wait_until(connector, "it dials")
    started = time.monotonic()
    client.stop()
    assert client.over.is_set()
    return time.monotonic() - started


def is_waiting(client: Client) -> Callable[[], bool]:
    """Whether there is something that `stop` would wake."""
    return lambda: bool(client.servers[0]._cancel_new._wakeups)


@pytest.mark.parametrize("transport", ["websocket", "http2", "grpc", "websocket-h2"])
def test_connecting_to_a_black_hole_ends_at_once(tmp_path: Path, transport: str, at_once: float) -> None:
    with ExitStack() as stack:
        url = f"ws://127.0.0.1:{silent_address(stack)[1]}/tunnel"
        client = Client(settings(tmp_path, url, transports=(transport,)))
        assert seconds_to_stop(client, is_waiting(client)) < at_once


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
def test_a_silent_proxy_holds_nobody(tmp_path: Path, scheme: str, at_once: float) -> None:
    heard: list[bytes] = []
    with CrookedProxy(lambda sock: (heard.append(sock.recv(1)), sock.makefile("rb").read())) as silent:
        proxy = Proxy.parse(f"{scheme}://127.0.0.1:{silent.port}")
        client = Client(settings(tmp_path, "wss://server.example/tunnel", proxy=proxy))
        assert seconds_to_stop(client, lambda: bool(heard)) < at_once


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_silent_server_holds_nobody(tmp_path: Path, scheme: str, at_once: float) -> None:
    heard: list[bytes] = []
    with CrookedProxy(lambda sock: (heard.append(sock.recv(1)), sock.makefile("rb").read())) as silent:
        client = Client(settings(tmp_path, f"{scheme}://127.0.0.1:{silent.port}/tunnel"))
        assert seconds_to_stop(client, lambda: bool(heard)) < at_once


@pytest.mark.parametrize(
    ("transport", "said"),
    [
        ("websocket", "sent a GET with Upgrade: websocket; nothing came back for "),
        ("auto", "websocket: sent a GET with Upgrade: websocket; nothing came back for "),
    ],
)
def test_the_log_says_what_a_try_waits_for_long_before_it_is_given_up(
    tmp_path: Path,
    transport: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(long_try, "SAID_EVERY", 0.1)
    caplog.set_level("INFO")
    with CrookedProxy(lambda sock: sock.makefile("rb").read()) as silent:
        url = f"ws://127.0.0.1:{silent.port}/tunnel"
        client = Client(settings(tmp_path, url, transports=(transport,)))
        client.start()

        def lines() -> list[str]:
            return [message for message in caplog.messages if message.startswith(f"still connecting to {url} after ")]

        try:
            wait_until(lambda: sum(said in line for line in lines()) > 1, "it says so, again and again")
        finally:
            client.stop()


def test_files_that_cannot_be_used_are_said_before_anything_begins(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("hello")
    bad = tmp_path / "bad.pem"
    for tls in (ClientTls(ca_file=bad), ClientTls(certificate=bad, key=bad)):
        with pytest.raises(UsageError, match=r"bad\.pem"):
            Client(settings(tmp_path, "wss://server.example/tunnel", tls=tls))
