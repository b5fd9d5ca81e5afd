"""Promises about the time when there is no way between the two ends: memory stays bounded, and nothing is lost."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import scenarios
from tests.support.applications import RESET, Target, connection, echo, echoes, ending_of, exchange, stalled
from tests.support.harness import Relay, Tunnel
from tests.support.machine.ports import unused_port

both_kinds = pytest.mark.parametrize("kind", ["local", "remote"])


@both_kinds
def test_a_hundred_streams_that_push_meanwhile_take_bounded_memory_and_lose_nothing(directory: Path, kind: str) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(Target(stalled))
        port = unused_port()
        tunnel = stack.enter_context(Tunnel(directory, [{kind: f"127.0.0.1:{port}", "to": target.address}]))
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        scenarios.detached(tunnel, relay, port, target, streams=100, seconds=3)


@both_kinds
def test_after_resume_for_everything_is_reset_and_the_ports_are_free(directory: Path, kind: str) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        port = unused_port()
        tunnel = stack.enter_context(
            Tunnel(directory, [{kind: f"127.0.0.1:{port}", "to": target.address}], server={"resume_for": 1})
        )
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        with connection(port) as sock:
            assert exchange(sock, b"before") == b"before"
            relay.refusing = True
            lost = time.monotonic()
            relay.cut()
            assert ending_of(sock) == RESET
            assert 0.8 < time.monotonic() - lost < 15, "by default it would be minutes"
        target.wait_idle()
        assert target.endings[-1] == RESET
        if kind == "remote":
            tunnel.server.wait_for("the session of a is over: no connection to the other end for 1 s")
            with socket.create_server(("127.0.0.1", port)):
                pass
        relay.refusing = False
        tunnel.wait_connected(2)
        assert echoes(port)


def test_a_connection_that_is_made_meanwhile_waits_and_is_served(directory: Path) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        local, remote = unused_port(), unused_port()
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": target.address},
            {"remote": f"127.0.0.1:{remote}", "to": target.address},
        ]
        tunnel = stack.enter_context(Tunnel(directory, forwards))
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        relay.refusing = True
        relay.cut()
        tunnel.client.wait_for("was lost after")
        with connection(local) as near, connection(remote) as far:
            for sock in (near, far):
                sock.sendall(b"early")
            tunnel.client.wait_for("cannot connect", count=2)
            relay.refusing = False
            for sock in (near, far):
                assert sock.recv(5) == b"early"
