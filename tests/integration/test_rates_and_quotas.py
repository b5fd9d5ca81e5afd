"""Promises about rates and quotas, of whole tunnels: what they bound, and that nobody takes a port whole."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from qanat.handshake.tokens import generate_token
from tests.support.applications import Target, connection, echo, exchange
from tests.support.background import wait_until
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port
from tests.support.sockets import read_to_end
from tests.support.strangers import Others, stranger

RATE = 400_000
STREAMS = 400
both_kinds = pytest.mark.parametrize("kind", ["local", "remote"])

LIMITED: dict[str, dict[str, Any]] = {
    "down": {"rate_down": RATE},
    "up": {"rate_up": RATE},
    "idle": {"idle_timeout": 1},
    "five": {"max_streams": 5},
    "two each": {"max_streams_per_address": 2},
    "seldom": {"streams_per_second": 3},
    "seldom each": {"streams_per_second_per_address": 0.01},
    "plain": {},
}


@dataclass(frozen=True, slots=True)
class Place:
    """A tunnel whose client has an echo behind each of LIMITED, both ways, and another client beside it."""

    tunnel: Tunnel
    ports: dict[tuple[str, str], int]
    other: int


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    keys = [(kind, name) for kind in ("local", "remote") for name in LIMITED]
    directory = tmp_path_factory.mktemp("limits")
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        ports = {key: unused_port() for key in keys}
        forwards: list[dict[str, Any]] = [
            {kind: f"127.0.0.1:{ports[kind, name]}", "to": target.address, **LIMITED[name]} for kind, name in keys
        ]
        tunnel = stack.enter_context(Tunnel(directory / "a", forwards, server={"limits": {"streams": STREAMS}}))
        (directory / "a" / "b.token").touch(mode=0o600)
        (directory / "a" / "b.token").write_text(token := generate_token())
        (account,) = tunnel.server_settings["clients"]
        other = {**account, "name": "b", "token_file": "b.token", "rate_down": RATE, "rate_up": RATE}
        tunnel.server_settings["clients"] += [other]
        tunnel.start()
        beside = unused_port()
        second = Tunnel(
            directory / "b",
            [{"remote": f"127.0.0.1:{beside}", "to": target.address}],
            url=f"ws://127.0.0.1:{tunnel.port}/tunnel",
            client={"name": "b", "server_fingerprint": tunnel.fingerprint},
        )
        second.token = token
        (directory / "b" / "a.token").write_text(token)
        stack.enter_context(second).start_client()
        yield Place(tunnel, ports, beside)


@pytest.mark.parametrize("direction", ["up", "down"])
@both_kinds
def test_a_forwards_rate_bounds_its_own_direction(place: Place, kind: str, direction: str) -> None:
    """An echo goes both ways, so the slower one is seen in both cases."""
    data = bytes(RATE)
    with connection(place.ports[kind, direction]) as sock:
        began = time.monotonic()
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == (data, "end")
        assert len(data) <= RATE * (0.25 + time.monotonic() - began) + 16_384
    with connection(place.ports[kind, "plain"]) as sock:
        assert exchange(sock, b"beside") == b"beside"


def test_a_clients_rate_bounds_all_its_streams(place: Place) -> None:
    began = time.monotonic()
    with connection(place.other) as one, connection(place.other) as two:
        for sock in (one, two):
            sock.sendall(bytes(RATE // 2))
            sock.shutdown(socket.SHUT_WR)
        for sock in (one, two):
            assert read_to_end(sock) == (bytes(RATE // 2), "end")
    assert RATE * (0.25 + time.monotonic() - began) + 16_384 >= RATE


@both_kinds
def test_a_stream_that_rests_is_reset_and_the_reason_logged(place: Place, kind: str) -> None:
    with connection(place.ports[kind, "idle"]) as resting, connection(place.ports[kind, "plain"]) as other:
        assert exchange(resting, b"at first") == b"at first"
        assert exchange(other, b"at first") == b"at first"
        assert read_to_end(resting) == (b"", "reset")
        assert exchange(other, b"still here") == b"still here"
    listens = place.tunnel.client if kind == "local" else place.tunnel.server
    listens.wait_for(f"{place.ports[kind, 'idle'] if kind == 'remote' else 'local'}.*nothing came or went for 1 s")


def let_in(port: int, tries: int) -> int:
    """How many of so many connections at once get an echo."""
    with ExitStack() as stack:
        found = 0
        for _ in range(tries):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                found += exchange(stack.enter_context(connection(port)), b"x") == b"x"
        return found


@pytest.mark.parametrize(("name", "most"), [("five", 5), ("two each", 2), ("seldom", 3), ("seldom each", 1)])
@both_kinds
def test_a_forward_has_no_more_streams_than_it_may(place: Place, kind: str, name: str, most: int) -> None:
    found = let_in(place.ports[kind, name], 12)
    assert most <= found <= most + (3 if name == "seldom" else 0)
    listens = place.tunnel.client if kind == "local" else place.tunnel.server
    listens.wait_for(f":{place.ports[kind, name]}.* closed the connection from 127.0.0.1:")


def test_who_has_left_makes_room_for_the_next(place: Place) -> None:
    def all_five() -> bool:
        return let_in(place.ports["remote", "five"], 5) == 5

    for _ in range(3):
        wait_until(all_five, "the streams before are over")


def test_a_stranger_gets_half_of_the_room_and_the_others_notice_little(place: Place) -> None:
    """With 3,000 connections in docs/SOAK.md; here the bound is generous, for a machine that does other things too."""
    tunnel, ports = place.tunnel, place.ports
    names = {
        "the same forward": ports["remote", "plain"],
        "another forward": ports["remote", "up"],
        "a local forward": ports["local", "plain"],
        "another client": place.other,
    }
    with ExitStack() as stack:
        others = Others(names, stack)
        before, threads = others.round_trips(), (tunnel.server.threads, tunnel.client.threads)
        memory = tunnel.server.memory, tunnel.client.memory
        with stranger(ports["remote", "plain"], STREAMS + 100) as held:
            assert STREAMS // 2 - 20 <= held <= STREAMS // 2
            tunnel.server.wait_for("kept for others")
            during = others.round_trips()
            assert tunnel.server.threads <= threads[0] + 10
            assert tunnel.client.threads <= threads[1] + 10
            assert tunnel.server.memory - memory[0] < held * 64 * 1024 + (8 << 20)
            assert tunnel.client.memory - memory[1] < held * 64 * 1024 + (8 << 20)
    slow = {name: (before[name], during[name]) for name in before if during[name] > 2 * before[name] + 0.05}
    assert not slow
