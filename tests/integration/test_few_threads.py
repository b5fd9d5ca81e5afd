"""Promises of a server that may have few threads: strangers do not take them from those who are authenticated."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.applications import Target, connection, echo, exchange
from tests.support.harness import Relay, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program

THREADS = 250
USER = 54321
"""A user that nobody else is, so that the server's threads are all that count."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes a user of its own for it")


def limited() -> list[object]:
    """A command that runs the server as USER, who may have THREADS, and still reads what is ours."""
    power = "-all,+dac_override"
    return [
        require_program("prlimit"),
        f"--nproc={THREADS}:{THREADS}",
        require_program("setpriv"),
        f"--reuid={USER}",
        f"--regid={USER}",
        "--clear-groups",
        f"--inh-caps={power}",
        f"--ambient-caps={power}",
        f"--bounding-set={power}",
    ]


STRANGER = "127.0.0.2"
UPGRADE = (
    b"GET /tunnel HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize("transport", ["websocket", "http2"])
def test_hundreds_of_silent_strangers_leave_an_authenticated_client_its_threads(
    directory: Path, transport: str
) -> None:
    with Target(echo) as target, ExitStack() as stack:
        port = unused_port()
        forwards = [{"local": f"127.0.0.1:{port}", "to": target.address}]
        tunnel = Tunnel(directory, forwards, server_before=limited(), client={"transport": transport})
        relay = stack.enter_context(Relay(tunnel.port))
        scheme = "ws" if transport == "websocket" else "http"
        tunnel.client_settings["url"] = f"{scheme}://127.0.0.1:{relay.port}/tunnel"
        stack.enter_context(tunnel)
        tunnel.start()
        tunnel.server.wait_for(r"\d+ more threads are allowed, so there may be \d+ connections at once")
        old = [stack.enter_context(connection(port)) for _ in range(20)]
        for number in range(400):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", tunnel.port), 10, (STRANGER, 0)))
            if number % 2:
                stranger.sendall(UPGRADE)
        new = [stack.enter_context(connection(port)) for _ in range(20)]
        bulk = bytes(100_000)
        for sock in (*old, *new):
            assert exchange(sock, bulk) == bulk
        relay.cut()
        tunnel.wait_resumed()
        for sock in (*old, *new):
            assert exchange(sock, bulk) == bulk
        assert tunnel.client.count("connected to") == 1
        assert tunnel.server.count("no more threads|new thread could not") == 0
        assert tunnel.server.threads < THREADS
