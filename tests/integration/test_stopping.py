"""Promises about SIGTERM: what can be finished in time is whole, what cannot is reset, and the exit code is 0."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.applications import (
    RESET,
    Target,
    connection,
    echo,
    echoes,
    ending_of,
    exchange,
    receive_all,
    reply_after_end,
    stalled,
)
from tests.support.harness import SECONDS, Program, Tunnel
from tests.support.machine.ports import unused_port

AT_ONCE = 30.0
"""Seconds; `drain` is twice as long where this is used."""
NOT_AT_ONCE = r"still (running|ending)"
"""What is logged of threads that did not end by themselves within their time."""

both_ends = pytest.mark.parametrize("which", ["server", "client"])
KINDS = ("local", "remote")


@dataclass(frozen=True, slots=True)
class Ends:
    """A tunnel with an echo and `reply` behind a local and behind a remote forward each."""

    tunnel: Tunnel
    ports: list[int]  # of the echo
    reply_ports: list[int]
    reply: Target

    def program(self, which: str) -> Program:
        return self.tunnel.server if which == "server" else self.tunnel.client


def wait_until_refused(port: int) -> None:
    """Connect until that fails; a connection that nobody has accepted yet when a listener goes is reset."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            echoes(port)
        except (ConnectionRefusedError, ConnectionResetError):
            return
    pytest.fail(f"port {port} still takes connections")


@pytest.fixture
def ends(directory: Path, request: pytest.FixtureRequest) -> Iterator[Ends]:
    """The seconds of `drain` may come as an indirect parameter."""
    with ExitStack() as stack:
        ports, reply_ports = ([unused_port() for _ in KINDS] for _ in range(2))
        target, reply = stack.enter_context(Target(echo)), stack.enter_context(Target(reply_after_end))
        forwards = [
            {kind: f"127.0.0.1:{port}", "to": to.address}
            for to, of in ((target, ports), (reply, reply_ports))
            for kind, port in zip(KINDS, of, strict=True)
        ]
        keys = {"drain": getattr(request, "param", 1)}
        tunnel = stack.enter_context(Tunnel(directory, forwards, server=keys, client=keys))
        yield Ends(tunnel.start(), ports, reply_ports, reply)


def open_streams(ends: Ends, stack: ExitStack) -> list[socket.socket]:
    """A stream of each kind to the echo."""
    socks = [stack.enter_context(connection(port)) for port in ends.ports]
    assert all(exchange(sock, b"open") == b"open" for sock in socks)
    return socks


@pytest.mark.parametrize("ends", [60], indirect=True)
@both_ends
def test_with_nothing_open_it_ends_at_once(ends: Ends, which: str) -> None:
    assert all(echoes(port) for port in ends.ports)
    began = time.monotonic()
    assert ends.program(which).stop() == 0
    assert time.monotonic() - began < AT_ONCE
    assert ends.program(which).count(NOT_AT_ONCE) == 0
    assert ends.program(which).output.endswith("stopped")


@pytest.mark.parametrize("ends", [60], indirect=True)
@both_ends
def test_streams_that_finish_within_drain_are_whole_and_end_the_wait(ends: Ends, which: str) -> None:
    program = ends.program(which)
    request = os.urandom(2_000_000)
    with ExitStack() as stack:
        socks = [stack.enter_context(connection(port)) for port in ends.reply_ports]
        for sock in socks:
            sock.sendall(request[:1000])
        ends.reply.wait_accepted(len(socks))
        program.process.send_signal(signal.SIGTERM)
        program.wait_for("stopping: open streams have 60 s")
        began = time.monotonic()
        for sock in socks:  # one after the other, so that the first to finish does not end the wait
            sock.sendall(request[1000:])
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == hashlib.sha256(request).digest() + bytes(1 << 20)
    assert program.end() == 0
    assert time.monotonic() - began < 30


@both_ends
def test_streams_that_do_not_finish_within_drain_are_reset(ends: Ends, which: str) -> None:
    program = ends.program(which)
    with ExitStack() as stack:
        socks = open_streams(ends, stack)
        began = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        assert [ending_of(sock) for sock in socks] == [RESET, RESET]
        assert time.monotonic() - began > 0.9
    assert program.end() == 0
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("ends", [60], indirect=True)
@both_ends
def test_no_new_connection_is_taken_while_it_drains(ends: Ends, which: str) -> None:
    program = ends.program(which)
    with ExitStack() as stack:
        socks = open_streams(ends, stack)
        program.process.send_signal(signal.SIGTERM)
        program.wait_for("stopping: open streams")
        for port in ends.ports:
            wait_until_refused(port)
        assert all(exchange(sock, b"goes on") == b"goes on" for sock in socks)
    assert program.end() == 0


@both_ends
def test_a_reader_that_never_reads_does_not_hold_up_the_end(directory: Path, which: str) -> None:
    with Target(stalled) as target:
        port = unused_port()
        with Tunnel(directory, [{"local": f"127.0.0.1:{port}", "to": target.address}]) as tunnel:
            tunnel.start()
            with connection(port) as sock:
                sock.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    sock.sendall(bytes(1 << 28))
                began = time.monotonic()
                assert (tunnel.server if which == "server" else tunnel.client).stop() == 0
                assert time.monotonic() - began < SECONDS


def test_a_client_that_cannot_connect_stops_at_once(directory: Path) -> None:
    with Tunnel(directory, client={"drain": 60}) as tunnel:
        tunnel.start_client(wait=False)
        tunnel.client.wait_for("cannot connect")
        began = time.monotonic()
        assert tunnel.client.stop() == 0
        assert time.monotonic() - began < AT_ONCE
        assert tunnel.client.count(NOT_AT_ONCE) == 0


def test_a_client_stops_at_once_though_the_server_refuses_a_forward(directory: Path) -> None:
    port = unused_port()
    forwards = [{"remote": f"127.0.0.1:{port}", "to": "127.0.0.1:9"}]
    with Tunnel(directory, forwards, account={"allow_listen": []}, client={"drain": 60}) as tunnel:
        tunnel.start_server()
        tunnel.start_client(wait=False)
        tunnel.client.wait_for("cannot listen")
        began = time.monotonic()
        assert tunnel.client.stop() == 0
        assert time.monotonic() - began < AT_ONCE
        assert tunnel.client.count(NOT_AT_ONCE) == 0


@both_ends
def test_the_other_end_says_why_and_resets_what_was_open(ends: Ends, which: str) -> None:
    with ExitStack() as stack:
        socks = open_streams(ends, stack)
        assert ends.program(which).stop() == 0
        assert [ending_of(sock) for sock in socks] == [RESET, RESET]
    if which == "server":
        ends.tunnel.client.wait_for("the-server is shutting down")
    else:
        ends.tunnel.server.wait_for(r"a from \S+ ended after \d+ s: the client is stopping")
