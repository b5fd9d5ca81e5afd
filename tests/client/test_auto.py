"""Promises of `transport: auto` over real paths: what gets through is found, remembered, left and returned to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qanat.base import connect as base_connect
from qanat.base.endpoint_addresses import TcpAddress
from qanat.client import race
from qanat.client.client import Client
from qanat.config.settings import ClientTls, Forward
from qanat.handshake.keys import ServerIdentity
from qanat.server import server as server_module
from qanat.server.server import Server
from qanat.transports.dial import tcp
from tests.support.applications import Target, connection, echo, exchange
from tests.support.harness import SECONDS
from tests.support.server.raw_sessions import client_to, real_server
from tests.support.troubles import RELAYS, Relay, Rules, Trouble

MOVED = "moved to a fresh connection to"
SLOW = {"answer-held-2s"}
"""Troubles that take seconds however one goes."""
LATER = {"cdn-without-grpc"}
"""Those that want `split` over HTTP/2."""


@dataclass
class Counted:
    """What has reached the server: connections that were given its key, and operations with its private key."""

    connections: int = 0
    private: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            setattr(self, what, getattr(self, what) + 1)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    decrypt, shake = ServerIdentity.decrypt, server_module.server_handshake

    def counting_decrypt(*arguments: Any) -> Any:
        counted.count("private")
        return decrypt(*arguments)

    def counting_shake(*arguments: Any, **named: Any) -> Any:
        counted.count("connections")
        return shake(*arguments, **named)

    monkeypatch.setattr(ServerIdentity, "decrypt", counting_decrypt)
    monkeypatch.setattr(server_module, "server_handshake", counting_shake)
    return counted


@pytest.fixture(autouse=True)
def _fresh(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO, "qanat.client")
    yield
    tcp._experience.clear()
    base_connect._slow.clear()


@dataclass(frozen=True)
class Place:
    """A server, and an echo that can be reached through it."""

    server: Server
    target: Target

    @property
    def port(self) -> int:
        return int(self.server.addresses[0][1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        server = stack.enter_context(real_server(tmp_path_factory.mktemp("server")))
        yield Place(server, stack.enter_context(Target(echo)))


@contextmanager
def client_at(place: Place, directory: Path, *urls: str, ca_file: Path | None = None, **more: Any) -> Iterator[Client]:
    forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", place.target.port))
    settings = {"transports": ("auto",), "tls": ClientTls(ca_file=ca_file), "connect_timeout": SECONDS, **more}
    with client_to(urls, place.server.identity.fingerprint, directory, forward, **settings) as client:
        yield client


def answers(client: Client) -> bool:
    with connection(client.local_ports[0]) as sock:
        return exchange(sock, b"hello") == b"hello"


def chosen(client: Client) -> str:
    """The transport of the present session's connection."""
    found = client.servers[0].connector.ways
    assert found is not None
    assert found.current is not None
    return found.current.transport


def url(port: int) -> str:
    return f"ws://127.0.0.1:{port}/tunnel"


# --- what gets through is found -----------------------------------------------------------------------


PASSABLE = [one for one in RELAYS if one.passes and one.name not in SLOW | LATER]


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("one", PASSABLE, ids=lambda one: one.name)
def test_whatever_lets_any_transport_through_lets_this_client_through(
    place: Place, tmp_path: Path, one: Trouble, tls: bool, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        one.start(place.port, tmp_path / "path", tls=tls) as path,
        client_at(place, tmp_path, path.url, ca_file=path.ca_file) as client,
    ):
        assert answers(client)
        tries = 1 + caplog.text.count("cannot connect")
        assert counted.connections <= race.MAX_HANDSHAKES * tries
        transport = chosen(client)
        assert any(passed.removesuffix("-streamed").removesuffix("-packets") == transport for passed in one.passes)


def test_one_line_says_of_each_way_that_failed_what_was_sent_what_came_back_and_what_that_means(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = Rules(upgrade=False, extended_connect=False, grpc=False)
    with (
        Relay(("127.0.0.1", place.port), rules) as relay,
        client_at(place, tmp_path, url(relay.port)) as client,
    ):
        assert answers(client)
    told = [record.message for record in caplog.records if "does not work here" in record.message]
    assert len(told) == 2
    (websocket,) = [line for line in told if "over websocket does" in line]
    for part in ("sent a GET with Upgrade: websocket", "came back: 400", "meaning: ", "proxy_set_header Upgrade"):
        assert part in websocket
