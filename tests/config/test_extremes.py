"""Promises of the declared bounds: what `check` accepts connects and carries bytes, and what is beyond is refused.

Every number of both sections, at its least and at its most, is put into a configuration file; a real server and a real
client run with what was read from it, in this process.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from qanat.client import backoff
from qanat.client import client as client_module
from qanat.client.client import Client
from qanat.config.client_settings import ClientSettings
from qanat.config.load import ConfigError, check_config, load_config
from qanat.config.options import Kind, Option, options_of
from qanat.config.server_settings import ServerSettings
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.key_pool import ClientKeyPool
from qanat.handshake.tokens import generate_token
from qanat.server.server import Server
from tests.support.applications import SECONDS, Target, echo, exchange, wait_until_echoes
from tests.support.config_rig import SERVER, ConfigDirectory, client_with, server_with
from tests.support.server.raw_peers import client_key

PUSHED = bytes(range(256)) * 1200
"""More than two windows of the smallest size, and more than one record."""

COMPANIONS = {
    ("keepalive", "interval"): {"timeout": 86_400},
    ("keepalive", "timeout"): {"interval": 1},
    ("flow", "initial_window"): {"max_window": 1 << 30},
    ("flow", "max_window"): {"initial_window": 16_384},
    ("reconnect", "min"): {"max": 86_400},
    ("reconnect", "max"): {"min": 0.1},
    ("monitor", "max_clients"): {"listen": "127.0.0.1:0"},
    ("audit", "max_bytes"): {"file": "audit.log"},
    ("audit", "keep"): {"file": "audit.log"},
}
"""What has to be beside a value, since the two must go together."""

Tree = dict[str, Any]


def numbers(settings: type) -> Iterator[tuple[str, Option]]:
    """Every number below, with the name of its section or ""."""
    for option in options_of(settings):
        if option.kind in (Kind.WHOLE, Kind.NUMBER):
            yield "", option
        for inner in options_of(option.settings) if option.settings else ():
            if inner.kind in (Kind.WHOLE, Kind.NUMBER):
                yield option.key, inner


def extremes(settings: type) -> Iterator[tuple[str, Tree]]:
    """The keys of a section with one number at a bound, and what to call it."""
    for section, option in numbers(settings):
        for bound in (option.declared.low, option.declared.high):
            values: Tree = {option.key: bound, **COMPANIONS.get((section, option.key), {})}
            yield f"{section}.{option.key}={bound}".lstrip("."), {section: values} if section else values


def pairs() -> Iterator[Any]:
    """One of a server beside one of a client, until all were there; they do not touch each other's."""
    nothing: tuple[str, Tree] = ("nothing", {})
    for (here, server), (there, client) in zip_longest(
        extremes(ServerSettings), extremes(ClientSettings), fillvalue=nothing
    ):
        yield pytest.param(server, client, id=f"{here}-{there}")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extremes")
    load_or_create_identity(path / "server.key")
    (path / "a.token").write_text(generate_token())
    (path / "a.token").chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key serves all clients; and the first try, which may be a minute away at random, is the earliest."""
    monkeypatch.setattr(client_module, "ClientKeyPool", partial(ClientKeyPool, generate=client_key))
    monkeypatch.setattr(backoff.Backoff.__init__, "__defaults__", (lambda low, high: low,))


@contextmanager
def tunnel(directory: Path, server: Tree, client: Tree) -> Iterator[int]:
    """A tunnel to an echo, with what these configurations say; its local port."""
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        account = {"name": "a", "token_file": "a.token", "allow_connect": "127.0.0.1:*"}
        account |= server.pop("account", {})
        server = {"clients": [account], "listen": "127.0.0.1:0", "drain": 0.2, **server}
        running = Server(load_config(write(directory, {"server": server}), want="server", environ={}))
        running.start()
        stack.callback(running.stop)
        client = {
            "name": account["name"],
            "url": f"ws://127.0.0.1:{running.addresses[0][1]}{server.get('path', '/tunnel')}",
            "token_file": "a.token",
            "server_fingerprint": running.identity.fingerprint,
            "drain": 0.2,
            "forwards": [{"local": "127.0.0.1:0", "to": f"127.0.0.1:{target.port}"}],
            **client,
        }
        if "failover_after" in client:  # only of several servers
            one = {key: client.pop(key) for key in ("url", "token_file", "server_fingerprint")}
            client["servers"] = [one, one | {"url": "ws://127.0.0.1:1/"}]
        dialing = Client(load_config(write(directory, {"client": client}), want="client", environ={}))
        dialing.start()
        stack.callback(dialing.stop)
        yield dialing.local_ports[0]


def write(directory: Path, tree: Tree) -> Path:
    file = directory / "qanat.yaml"
    file.write_text(yaml.safe_dump(tree))
    check_config(file, {})
    return file


def push(port: int) -> None:
    """Send more than a window to the echo and have it back, once there is a session."""
    wait_until_echoes(port)
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as sock:
        sock.settimeout(SECONDS)
        assert exchange(sock, PUSHED) == PUSHED


@pytest.mark.parametrize(("server", "client"), list(pairs()))
def test_a_tunnel_carries_bytes_at_every_bound(directory: Path, server: Tree, client: Tree) -> None:
    with tunnel(directory, server, client) as port:
        push(port)


@pytest.mark.parametrize("bound", ["low", "high"])
def test_they_do_with_all_bounds_at_once(directory: Path, bound: str) -> None:
    times = {"header_timeout", "handshake_timeout", "connect_timeout", "takeover_timeout"}

    def all_of(settings: type) -> Tree:
        tree: Tree = {}
        for section, option in numbers(settings):
            if (option.key in times and bound == "low") or option.key == "failover_after":
                continue  # a tenth of a second for each step at once is no promise on a busy machine
            tree.setdefault(section, {})[option.key] = getattr(option.declared, bound)
            if section in ("monitor", "audit"):
                tree[section] |= COMPANIONS[section, option.key]
        return {**tree.pop(""), **tree}

    with tunnel(directory, all_of(ServerSettings), all_of(ClientSettings)) as port:
        push(port)


@pytest.mark.parametrize("transport", ["websocket", "http2", "grpc", "websocket-h2"])
def test_the_longest_names_and_path_pass_with_the_smallest_head_over_every_transport(
    directory: Path, transport: str
) -> None:
    server: Tree = {
        "account": {"name": "N" * 64},
        "path": "/" + "p" * 511,
        "node": "n" * 64,
        "limits": {"header_bytes": 1024},
    }
    with tunnel(directory, server, {"transport": transport}) as port:
        push(port)


@pytest.mark.parametrize(
    "lines",
    ["path: /" + "p" * 512, "node: " + "n" * 65, "flow: {initial_window: 16777217}", "flow: {max_window: 1073741825}"],
)
def test_what_is_longer_or_larger_is_refused(tmp_path: Path, lines: str) -> None:
    rig = ConfigDirectory(tmp_path)
    rig.config(server_with(lines))
    with pytest.raises(ConfigError):
        check_config(rig.file, {})


@pytest.mark.parametrize("settings", [ServerSettings, ClientSettings])
def test_every_number_is_refused_beyond_its_bounds(tmp_path: Path, settings: type) -> None:
    rig = ConfigDirectory(tmp_path)
    with_lines = server_with if settings is ServerSettings else client_with
    assert rig.server(SERVER)
    for section, option in numbers(settings):
        assert option.declared.low is not None
        assert option.declared.high is not None
        step = 1 if option.kind is Kind.WHOLE else 0.001
        for value in (option.declared.low - step, option.declared.high + step):
            line = f"{option.key}: {value:.15g}"
            faults = rig.faults(with_lines(f"{section}: {{{line}}}" if section else line))
            assert any(f"`{option.key}` {option.wanted}" in fault for fault in faults)
