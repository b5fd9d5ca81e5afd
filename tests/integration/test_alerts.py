"""Promise of deploy/prometheus-rules.yml: each alert fires where a server or a client is in the state that it is for.

Real servers and clients are brought into those states, and a real Prometheus scrapes them and evaluates the rules, all
of them at once, since a Prometheus and the tunnels cost more than what is asked of them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from qanat.base.errors import RefusedError
from qanat.client import client as client_module
from qanat.client.client import Client
from qanat.config.load import load_config
from qanat.handshake.key_pool import ClientKeyPool
from qanat.handshake.tokens import generate_token, parse_token
from qanat.server.server import Server
from tests.support.applications import Target, discard, echo
from tests.support.background import wait_until
from tests.support.chaos import ChaosRelay
from tests.support.harness import Relay, Tunnel
from tests.support.identities import CLIENT_KEYS, placed_identity
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.prometheus import Prometheus
from tests.support.server.raw_peers import RawClient

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus-rules.yml"
SECONDS = 30.0
OFTEN = 13
"""More than the ten that an alert lets pass, by what a rate over a short time makes of them."""
UPGRADE = (
    b"GET /tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: qanat.1\r\n\r\n"
)
CLIENTS = ("far", "gone", "nowhere", "cut", "silent")
EXPECTED = {
    ("QanatDown", "few files"),
    ("QanatClientGone", "server"),
    ("QanatServerNotReached", "nowhere"),
    ("QanatConnectionsLostOften", "cut"),
    ("QanatOutboxFull", "silent"),
    ("QanatRoundTripHigh", "far"),
    ("QanatTargetsSlow", "far"),
    ("QanatTargetsFail", "server"),
    ("QanatStreamsNotAllowed", "server"),
    ("QanatWrongTokens", "server"),
    ("QanatHandshakesTurnedAway", "small"),
    ("QanatConnectionsNearLimit", "small"),
    ("QanatVisitorsTurnedAway", "cut"),
    ("QanatForwardFailed", "nowhere"),
    ("QanatFilesNearLimit", "few files"),
}


class World:
    """Servers and clients of this process, by the names that they have as instances; `stack` ends them all."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.targets: dict[str, str] = {}
        """Where each is scraped."""
        self._directory = directory
        self._stack = stack
        self._tokens = {name: generate_token() for name in CLIENTS}
        self.fingerprint = placed_identity(directory / "server.key").fingerprint

    def server(self, name: str, **settings: Any) -> Server:
        """A server that knows all clients."""
        accounts = [
            {"name": each, "token_file": self._token_file(each), "allow_connect": "127.0.0.1:*"} for each in CLIENTS
        ]
        settings = {"clients": accounts, "listen": "127.0.0.1:0", "identity": "server.key", **settings}
        server = Server(self._load(name, "server", settings))
        server.start()
        self._stack.callback(server.stop)
        assert server.monitor is not None
        self.targets[name] = server.monitor.address
        return server

    def client(self, name: str, port: int, *, forwards: Sequence[dict[str, Any]] = (), **settings: Any) -> Client:
        """A client of the server at `port`, which connects in the background."""
        settings = {
            "name": name,
            "url": f"ws://127.0.0.1:{port}/tunnel",
            "transport": "websocket",
            "token_file": self._token_file(name),
            "server_fingerprint": self.fingerprint,
            "reconnect": {"min": 0.1, "max": 0.3},
            "forwards": list(forwards),
            **settings,
        }
        client = Client(self._load(name, "client", settings))
        client.start()
        self._stack.callback(client.stop)
        assert client.monitor is not None
        self.targets[name] = client.monitor.address
        return client

    def _load(self, name: str, role: Any, settings: dict[str, Any]) -> Any:
        file = self._directory / f"{name}.yaml"
        common = {"monitor": {"listen": "127.0.0.1:0"}, "drain": 0, "keepalive": {"interval": 1, "timeout": 120}}
        file.write_text(yaml.safe_dump({role: {**common, **settings}}))
        return load_config(file, want=role, environ={})

    def _token_file(self, name: str) -> str:
        file = self._directory / f"{name}.token"
        if not file.exists():
            file.write_text(self._tokens[name])
            file.chmod(0o600)
        return file.name


def connected(client: Client) -> bool:
    session = client.servers[0].session
    return session is not None and session.attached


def wait_connected(client: Client) -> None:
    wait_until(lambda: connected(client), "the client is connected")


def touch(port: int) -> None:
    """Connect, send a little, and read to the end."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as sock:
        sock.sendall(b"x")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass


def files_of(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def hold(stack: ExitStack, port: int, count: int, data: bytes = b"") -> list[socket.socket]:
    """Connect so many times, send `data` on each, and stay."""
    found = []
    for _ in range(count):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))
        sock.sendall(data)
        found.append(sock)
    return found


@pytest.fixture(autouse=True)
def _keys_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ClientKeyPool", partial(ClientKeyPool, generate=CLIENT_KEYS.take))


def test_each_alert_fires_in_the_state_that_it_is_for(tmp_path: Path) -> None:
    require_program("prometheus")
    assert {name for name, _ in EXPECTED} == {
        rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    }
    with ExitStack() as stack:
        world = World(tmp_path, stack)
        answering, swallowing = stack.enter_context(Target(echo)), stack.enter_context(Target(discard))
        flow = {"outbox": 1 << 20, "initial_window": 1 << 20}
        server = world.server("server", flow=flow)
        port = server.addresses[0][1]
        cut, silent = stack.enter_context(Relay(port)), stack.enter_context(Relay(port))
        far = ChaosRelay(port, calm=True, delay=0.55)
        stack.callback(far.close)
        small = world.server("small", limits={"connections": 10, "handshakes": 1, "header_timeout": 300})

        def local(to: int, host: str = "127.0.0.1", **limits: Any) -> dict[str, Any]:
            return {"local": "127.0.0.1:0", "to": f"{host}:{to}", **limits}

        # A PING whose answer takes longer than `interval` is followed by another one, and measures nothing.
        patient = {"interval": 3, "timeout": 120}
        distant = world.client("far", far.port, forwards=[local(answering.port)], keepalive=patient)
        gone = world.client("gone", port)
        nowhere = world.client("nowhere", unused_port(), forwards=[{"local": f"127.0.0.1:{port}", "to": "127.0.0.1:1"}])
        reconnecting = world.client(
            "cut",
            cut.port,
            forwards=[local(unused_port()), local(9, "127.0.0.2"), local(answering.port, max_streams=1)],
        )
        pushing = world.client("silent", silent.port, forwards=[local(swallowing.port)], flow=flow)
        few = Tunnel(
            tmp_path / "few",
            server={"monitor": {"listen": f"127.0.0.1:{unused_port()}"}, "limits": {"header_timeout": 300}},
        )
        stack.enter_context(few)
        few.start_server()
        world.targets["few files"] = few.server_settings["monitor"]["listen"]
        for client in (gone, reconnecting, pushing):
            wait_connected(client)

        prometheus = stack.enter_context(Prometheus(tmp_path / "prometheus", world.targets, RULES))
        prometheus.wait_for("up == 1", len(world.targets))
        prometheus.wait_for('qanat_client_connected{client="gone"} == 1', 1)

        gone.stop()
        assert not connected(nowhere)
        refused, forbidden, limited = reconnecting.local_ports
        for _ in range(OFTEN):
            touch(refused)
            touch(forbidden)
            with pytest.raises(RefusedError), RawClient(server, "cut", parse_token(generate_token())):
                pass
        hold(stack, limited, 1, b"here to stay")
        for _ in range(OFTEN):
            touch(limited)
        for count in range(1, 9):
            cut.cut()
            wait_until(lambda count=count: reconnecting.events.recoveries.read()[0][-1] >= count, "it is back")
        silent.fall_silent()
        hold(stack, pushing.local_ports[0], 4, bytes(1 << 19))
        hold(stack, small.addresses[0][1], 3, UPGRADE)
        hold(stack, small.addresses[0][1], 9)
        wait_connected(distant)
        hold(stack, distant.local_ports[0], 3, b"x")
        before = files_of(few.server.pid)
        hold(stack, few.port, 100)
        wait_until(lambda: files_of(few.server.pid) >= before + 100, "all have been accepted")
        files = files_of(few.server.pid)
        resource.prlimit(few.server.pid, resource.RLIMIT_NOFILE, (files + 8, files + 8))

        missing = EXPECTED - {("QanatDown", "few files")}
        prometheus.wait_until(lambda: missing <= prometheus.fired(), lambda: sorted(missing - prometheus.fired()))
        few.server.kill()
        prometheus.wait_until(lambda: prometheus.fired() >= EXPECTED, lambda: "the alert of what does not answer")
