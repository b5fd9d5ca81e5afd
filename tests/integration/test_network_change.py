"""The network changes under a client, as between Wi-Fi and LTE: it moves to a fresh connection, and streams go on.

Nothing tells TCP: without looking at the network, the old connection would stand still for as long as keepalive
takes, 45 s.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.applications import Conversation, Target, connection, echo, receive_exactly, source
from tests.support.harness import SECONDS, Tunnel
from tests.support.machine.networks import SERVER, TwoCables, within
from tests.support.machine.ports import unused_port

MOVED = r"moved to a fresh connection to .*, since (the route to .* now starts at \S+, not at .*)"
SOON = 15.0
"""Seconds; keepalive would take 45."""


def another_cable(network: TwoCables) -> None:
    """The first is pulled out, so the kernel takes the second."""
    network.on_client("link", "set", "cable1", "down")


def another_address(network: TwoCables) -> None:
    """As a DHCP server may give one; on the same cable, and for a moment there is no way at all."""
    network.on_client("link", "set", "cable2", "down")
    network.on_client("address", "delete", "10.77.1.2/24", "dev", "cable1")
    network.on_client("address", "add", "10.77.1.3/24", "dev", "cable1")
    network.lead_over(1)


@dataclass(frozen=True, slots=True)
class Journey:
    """A client on one machine, a server on the other, and two streams through remote forwards."""

    network: TwoCables
    tunnel: Tunnel
    talk: Conversation
    bulk: socket.socket  # all that the client's end can send


@pytest.fixture(params=["websocket", "http2"])
def journey(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Journey]:
    with ExitStack() as stack:
        network = stack.enter_context(TwoCables())
        targets = [stack.enter_context(within(network.client, partial(Target, handler))) for handler in (echo, source)]
        ports = [unused_port() for _ in targets]
        forwards = [
            {"remote": f"127.0.0.1:{port}", "to": target.address} for port, target in zip(ports, targets, strict=True)
        ]
        tunnel = stack.enter_context(Tunnel(tmp_path, forwards, client={"transport": request.param}))
        tunnel.server_settings["listen"] = f"{SERVER}:{tunnel.port}"
        tunnel.client_settings["url"] = f"ws://{SERVER}:{tunnel.port}/tunnel"
        within(network.server, tunnel.start_server)
        within(network.client, tunnel.start_client)
        # A socket belongs to the machine on which it was made, whoever uses it.
        talking, bulk = (within(network.server, partial(stack.enter_context, connection(port))) for port in ports)
        talk = Conversation(talking)
        yield Journey(network, tunnel, talk, bulk)
        talking.shutdown(socket.SHUT_WR)
        talk.join(SECONDS)


@pytest.mark.parametrize("change", [another_cable, another_address])
def test_a_client_whose_network_changes_moves_to_a_fresh_connection_at_once(
    journey: Journey, change: Callable[[TwoCables], None]
) -> None:
    talk, client = journey.talk, journey.tunnel.client
    assert talk.flowing.wait(SECONDS), talk.ending
    receive_exactly(journey.bulk, 20_000_000)
    change(journey.network)
    changed = time.monotonic()
    why = client.wait_for(MOVED)[1]
    for _ in range(2):  # of which the first may have ended before
        talk.flowing.clear()
        assert talk.flowing.wait(SECONDS), talk.ending
    assert time.monotonic() - changed < SOON
    receive_exactly(journey.bulk, 40_000_000)  # more than was on its way
    assert re.search(r"not at 10\.77\.1\.2", why)
    assert client.count("connected to ") == 1
