"""Promises of connections side by side: what happens to one of them, the streams on the others do not notice."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.applications import Target, connection, echo, exchange
from tests.support.harness import SECONDS, Relay, Tunnel
from tests.support.machine.ports import unused_port

LANES = 3
STREAMS = 9


@dataclass(frozen=True, slots=True)
class Lanes:
    tunnel: Tunnel
    relay: Relay
    port: int


@pytest.fixture
def lanes(directory: Path) -> Iterator[Lanes]:
    keepalive = {"keepalive": {"interval": 1, "timeout": 5}}
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        port = unused_port()
        forwards = [{"local": f"127.0.0.1:{port}", "to": target.address}]
        tunnel = stack.enter_context(
            Tunnel(directory, forwards, server=keepalive, client={**keepalive, "lanes": LANES})
        )
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        tunnel.client.wait_for("joined by", count=LANES - 1)
        yield Lanes(tunnel, relay, port)


def test_a_lane_that_stalls_holds_up_only_its_own_streams_and_only_until_it_is_noticed(lanes: Lanes) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(connection(lanes.port)) for _ in range(STREAMS)]
        for sock in socks:
            assert exchange(sock, b"before") == b"before"
        lanes.relay.fall_silent(only=1)
        stalled_at = time.monotonic()
        for sock in socks:
            sock.sendall(b"meanwhile")
        held_up = set(socks)
        while len(held_up) > STREAMS // LANES:  # the streams are spread, and those of one lane wait
            answered, _, _ = select.select(held_up, [], [], SECONDS)
            assert answered, f"{len(held_up)} streams are held up"
            for sock in answered:
                assert sock.recv(9) == b"meanwhile"
                assert exchange(sock, b"again") == b"again"
            held_up -= set(answered)
        assert lanes.tunnel.client.count("was lost after") == 0, "so nobody had to wait until the stall was noticed"
        for sock in held_up:
            assert sock.recv(9) == b"meanwhile"
        assert time.monotonic() - stalled_at < SECONDS, "noticed within its time, and gone on"
        lanes.tunnel.client.wait_for("was lost after")
        assert lanes.tunnel.client.count("was lost after") == 1


def test_each_lane_is_lost_and_resumed_by_itself_and_no_stream_notices(lanes: Lanes) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(connection(lanes.port)) for _ in range(STREAMS)]
        for turn in range(1, 4):
            for sock in socks:
                assert exchange(sock, b"x" * 1000) == b"x" * 1000
            lanes.relay.cut()
            lanes.tunnel.client.wait_for("resumed by", count=turn * LANES)
        for sock in socks:
            assert exchange(sock, b"after") == b"after"
        assert lanes.tunnel.client.count("connected to ") == 1
