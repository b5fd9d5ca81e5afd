"""Ranges of ports: each leads to its own, busy ones do not end the others, and none costs a thread."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.applications import Target, echo, echoes
from tests.support.harness import Relay, Tunnel

COUNT = 200


def free_range(count: int) -> int:
    """The first of `count` ports in turn that are free now, where `unused_port` never looks."""
    while True:
        low = random.randrange(10_000, 19_000)
        with ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(low, low + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return low


@pytest.mark.parametrize("side", ["local", "remote"])
def test_a_range_has_each_port_that_is_free_and_one_message_for_those_that_are_not(side: str, tmp_path: Path) -> None:
    low = free_range(2 * COUNT)
    to = low + COUNT
    where, target = f"127.0.0.1:{low}-{low + COUNT - 1}", f"127.0.0.1:{to}-{to + COUNT - 1}"
    with ExitStack() as stack:
        application = stack.enter_context(Target(echo))
        for n in (0, 7, COUNT - 1):
            stack.enter_context(Relay(application.port, at=to + n))
        for n in (3, 5, 6):
            stack.enter_context(socket.create_server(("127.0.0.1", low + n)))
        tunnel = stack.enter_context(Tunnel(tmp_path, [{side: where, "to": target}]))
        tunnel.start()
        free = f"127.0.0.1:{low}-{low + 2}, {low + 4}, {low + 7}-{low + COUNT - 1} for {target}"
        tunnel.client.wait_for(free)
        failed = tunnel.client.wait_for(rf"(?m)^.*3 of {COUNT} ports failed: {low + 3}, {low + 5}-{low + 6}: .*$")[0]
        assert f"{side} {where} to {target}" in failed
        assert "Address already in use" in failed
        assert tunnel.client.output.count("Address already in use") == 1
        assert all(echoes(low + n) for n in (0, 7, COUNT - 1))
        listening = tunnel.client if side == "local" else tunnel.server
        assert len(os.listdir(f"/proc/{listening.pid}/task")) < COUNT / 4


def test_a_client_that_must_have_a_range_ends_with_one_message(tmp_path: Path) -> None:
    low = free_range(10)
    forward = {"local": f"127.0.0.1:{low}-{low + 9}", "to": "127.0.0.1:1-10"}
    with ExitStack() as stack:
        for n in (3, 5):
            stack.enter_context(socket.create_server(("127.0.0.1", low + n)))
        tunnel = stack.enter_context(Tunnel(tmp_path, [forward], client={"exit_on_forward_failure": True}))
        program = tunnel.start_client(wait=False)
        assert program.end() == 1  # and all that it said has been read
        assert f"2 of 10 ports failed: {low + 3}, {low + 5}: cannot listen on 127.0.0.1" in program.output
