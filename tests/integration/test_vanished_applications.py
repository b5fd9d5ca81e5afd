"""A stream to a machine that vanished while something was on its way is reset; one to a program that pauses is not."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from qanat.endpoints.vanished import ASKS_THE_KERNEL
from tests.support.applications import RESET, Target, echo, ending_of, exchange, stalled
from tests.support.harness import SECONDS, Tunnel
from tests.support.machine.networks import SERVER, TwoCables, within
from tests.support.machine.ports import unused_port

pytestmark = pytest.mark.skipif(not ASKS_THE_KERNEL, reason="only Linux tells what was acknowledged")

TUNNEL = """
import runpy, sys
from qanat.base import watcher
watcher.TICK = 0.2
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), SECONDS)


def test_a_stream_whose_machine_vanished_is_reset_with_its_reason_and_one_that_pauses_stays(
    directory: Path,
) -> None:
    with TwoCables() as network, ExitStack() as stack:
        echoing = stack.enter_context(within(network.server, lambda: Target(echo, SERVER)))
        pausing = stack.enter_context(within(network.server, lambda: Target(stalled, SERVER)))
        ports = unused_port(), unused_port()
        tunnel = Tunnel(
            directory,
            [
                {"local": f"127.0.0.1:{port}", "to": f"{SERVER}:{target.port}"}
                for port, target in zip(ports, (echoing, pausing), strict=True)
            ],
            server={"application_keepalive": {"unacknowledged": 1}},
            account={"allow_connect": [f"{SERVER}:*"]},
            server_before=(sys.executable, "-c", TUNNEL),
        )
        stack.enter_context(tunnel)
        within(network.client, tunnel.start)
        used, paused = (stack.enter_context(within(network.client, partial(connected, port))) for port in ports)
        assert exchange(used, b"there") == b"there"
        paused.sendall(bytes(1 << 19))
        time.sleep(3)  # three times as long as a machine may be silent
        assert exchange(used, b"still there") == b"still there"
        assert tunnel.client.count("no longer answers") == 0
        for cable in ("cable1", "cable2"):
            network.on_client("link", "set", cable, "down")
        used.sendall(b"gone")
        assert ending_of(used) == RESET
        tunnel.client.wait_for("unreachable: the application's machine no longer answers: nothing was")
        assert tunnel.client.count("no longer answers") == 1
