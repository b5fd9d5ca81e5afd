"""Promises about a path that fails: the client comes back by itself, soon, and what was open goes on."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.applications import (
    END,
    RESET,
    Target,
    connection,
    echo,
    echoes,
    ending_of,
    exchange,
    receive_exactly,
    source,
    wait_until_echoes,
)
from tests.support.harness import SECONDS, Program, Relay, Tunnel
from tests.support.machine.ports import unused_port

LOST = r"the connection to \S+ was lost after"
OVER = r"the connection to \S+ ended after .*; its streams were reset"
NOT_RESUMED = pytest.mark.parametrize("path", [{"resume_for": 0}], indirect=True)
"""For servers with which a session ends with its connection."""
SOON = 15.0
"""Seconds; keepalive would take 45."""


@dataclass(frozen=True, slots=True)
class Line:
    """A tunnel through a relay, with an echo behind a local and a remote forward."""

    tunnel: Tunnel
    relay: Relay
    local: int
    remote: int


@pytest.fixture
def path(directory: Path, request: pytest.FixtureRequest) -> Iterator[Line]:
    """The test may set `keepalive` of both ends, the server's `resume_for`, and `reconnect`, by indirect parameters."""
    local, remote = unused_port(), unused_port()
    keys = getattr(request, "param", {})
    server = {key: value for key, value in keys.items() if key != "reconnect"}
    client = {key: value for key, value in keys.items() if key != "resume_for"}
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": target.address},
            {"remote": f"127.0.0.1:{remote}", "to": target.address},
        ]
        tunnel = stack.enter_context(Tunnel(directory, forwards, server=server, client=client))
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        yield Line(tunnel.start(), relay, local, remote)


def test_a_client_that_is_started_before_the_server_connects_when_it_comes(directory: Path) -> None:
    with Target(echo) as target:
        port = unused_port()
        forwards = [{"local": f"127.0.0.1:{port}", "to": target.address}]
        with Tunnel(directory, forwards, client={"connect_timeout": SECONDS}) as tunnel:
            tunnel.start_client(wait=False)
            tunnel.client.wait_for("cannot connect to .*connection refused")
            # A connection of an application waits for the session, rather than fail.
            with connection(port) as early:
                early.sendall(b"early")
                tunnel.start_server()
                tunnel.wait_connected()
                assert early.recv(5) == b"early"


@pytest.mark.parametrize("path", [{"reconnect": {"min": 60, "max": 60}}], indirect=True)
def test_the_first_try_after_a_cut_comes_within_a_tenth_of_a_second(path: Line) -> None:
    assert echoes(path.local)
    path.relay.cut()
    cut = time.monotonic()
    assert path.relay.wait_accepted(2) - cut < 0.1 + 2.0  # and what a busy machine adds
    path.tunnel.wait_resumed()
    assert echoes(path.local)
    assert echoes(path.remote)


def test_a_cut_is_nothing_to_any_application(path: Line) -> None:
    with connection(path.local) as one, connection(path.remote) as other:
        for sock in (one, other):
            assert exchange(sock, b"before") == b"before"
        for cuts in (1, 2, 3):
            path.relay.cut()
            for sock in (one, other):
                assert exchange(sock, b"after") == b"after"
            path.tunnel.wait_resumed(cuts)
        for sock in (one, other):
            sock.shutdown(socket.SHUT_WR)
            assert ending_of(sock) == END
    assert path.tunnel.client.count("connected to ") == 1
    path.tunnel.client.wait_for(LOST + r".*2 streams wait for the next one", count=3)
    path.tunnel.server.wait_for(r"a from \S+ was lost after .*its streams wait 300 s for it", count=3)


@NOT_RESUMED
def test_where_nothing_is_resumed_a_cut_is_a_reset_for_every_application(path: Line) -> None:
    with connection(path.local) as one, connection(path.remote) as other:
        for sock in (one, other):
            assert exchange(sock, b"before") == b"before"
        path.relay.cut()
        for sock in (one, other):
            assert ending_of(sock) == RESET
    path.tunnel.client.wait_for(OVER)
    path.tunnel.wait_connected(2)
    assert echoes(path.local)
    assert echoes(path.remote)


def test_a_client_takes_over_from_its_own_stale_connection_at_once(path: Line) -> None:
    """The server still believes in the old connection, and would for 45 s."""
    with connection(path.remote) as sock:
        assert exchange(sock, b"before") == b"before"
        path.relay.cut_client_side()
        cut = time.monotonic()
        assert exchange(sock, b"after") == b"after"
        assert echoes(path.remote)
        assert time.monotonic() - cut < SOON
    path.tunnel.server.wait_for(r"a left \S+ after \d+ s: a newer connection takes over")


@NOT_RESUMED
def test_where_nothing_is_resumed_a_client_takes_over_its_own_stale_remote_port_at_once(path: Line) -> None:
    path.relay.cut_client_side()
    cut = time.monotonic()
    path.tunnel.wait_connected(2)
    assert echoes(path.remote)
    assert time.monotonic() - cut < SOON
    path.tunnel.server.wait_for("its client connected anew")


SILENT = {"keepalive": {"interval": 1, "timeout": 3}}
QUIET = {"keepalive": {"interval": 1, "timeout": 5}}


@pytest.mark.parametrize("path", [SILENT], indirect=True)
def test_a_link_that_fell_silent_is_noticed_within_its_time_and_replaced(path: Line) -> None:
    with connection(path.local) as sock:
        assert exchange(sock, b"before") == b"before"
        silent = time.monotonic()
        path.relay.fall_silent()
        path.tunnel.client.wait_for(LOST + r".*nothing received for 3 s")
        assert 1.5 < time.monotonic() - silent < SOON
        assert exchange(sock, b"after") == b"after"
    wait_until_echoes(path.remote)
    path.tunnel.server.wait_for(r"a (left \S+|from \S+ was lost) after \d+ s: ")


@pytest.mark.parametrize("path", [SILENT | {"resume_for": 0}], indirect=True)
def test_keepalive_ends_a_link_that_fell_silent_at_both_ends_within_its_time(path: Line) -> None:
    with connection(path.local) as sock:
        assert exchange(sock, b"before") == b"before"
        silent = time.monotonic()
        path.relay.fall_silent()
        path.tunnel.client.wait_for(r"ended after.*nothing received for 3 s")
        assert 1.5 < time.monotonic() - silent < SOON
        assert ending_of(sock) == RESET
    path.tunnel.wait_connected(2)
    wait_until_echoes(path.remote)
    path.tunnel.server.wait_for(r"a from \S+ ended after \d+ s: ")


@pytest.mark.parametrize("path", [QUIET], indirect=True)
def test_keepalive_keeps_a_quiet_link_up(path: Line) -> None:
    with connection(path.local) as sock:
        assert exchange(sock, b"before") == b"before"
        sock.settimeout(6.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)  # though 5 s of silence are the end
        sock.settimeout(30)
        assert exchange(sock, b"after") == b"after"
    assert path.tunnel.client.count(LOST) == 0
    assert path.tunnel.client.count("connected to ") == 1


def test_a_server_that_restarts_brings_remote_forwards_back(path: Line) -> None:
    assert path.tunnel.server.stop() == 0
    path.tunnel.client.wait_for("ended after .*the-server is shutting down")
    path.tunnel.start_server()
    path.tunnel.wait_connected(2)
    assert echoes(path.remote)
    assert echoes(path.local)


def test_a_remote_port_that_was_in_use_is_taken_when_the_client_asks_again(directory: Path) -> None:
    remote = unused_port()
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        tunnel = stack.enter_context(Tunnel(directory, [{"remote": f"127.0.0.1:{remote}", "to": target.address}]))
        with socket.create_server(("127.0.0.1", remote)):
            tunnel.start_server()
            tunnel.start_client(wait=False)
            tunnel.client.wait_for("the server cannot listen for remote .*Address already in use.*asking again in 10 s")
        tunnel.client.wait_for("the server listens on", seconds=60)
        assert echoes(remote)


def test_a_stream_that_only_comes_towards_the_client_counts_as_progress_too(directory: Path) -> None:
    """Or a download over a path that cuts soon would wait ever longer to be resumed."""
    local, cuts = unused_port(), 8
    with ExitStack() as stack:
        target = stack.enter_context(Target(source))
        forward = {"local": f"127.0.0.1:{local}", "to": target.address}
        tunnel = stack.enter_context(Tunnel(directory, [forward], client={"reconnect": {"min": 30, "max": 60}}))
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        sock = stack.enter_context(connection(local))
        began = time.monotonic()
        for number in range(cuts):
            receive_exactly(sock, 50_000_000)  # more than is on its way
            relay.cut()
            tunnel.client.wait_for("resumed by", count=number + 1)
        assert time.monotonic() - began < 60


# --- the same name twice ----------------------------------------------------------------------------


def second_client(tunnel: Tunnel, stack: ExitStack) -> Program:
    """Another process with the same configuration."""
    first = tunnel.client
    second = tunnel.start_client(wait=False)
    assert second is not first
    return second


def test_a_name_that_a_live_process_holds_is_refused_with_its_holder(directory: Path) -> None:
    remote = unused_port()
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        tunnel = stack.enter_context(Tunnel(directory, [{"remote": f"127.0.0.1:{remote}", "to": target.address}]))
        first = tunnel.start().client
        second = second_client(tunnel, stack)
        second.wait_for(r"refuses this client's name: a is connected from 127\.0\.0\.1:\d+ .*stop the other process")
        assert echoes(remote)
        # When the first one leaves, the second gets the name by itself.
        assert first.stop() == 0
        second.wait_for("the server listens on")
        assert echoes(remote)
        assert second.stop() == 0


def test_a_process_that_no_longer_answers_loses_its_name(directory: Path) -> None:
    remote = unused_port()
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        forwards = [{"remote": f"127.0.0.1:{remote}", "to": target.address}]
        tunnel = stack.enter_context(Tunnel(directory, forwards, server={"takeover_timeout": 2}))
        first = tunnel.start().client
        first.process.send_signal(signal.SIGSTOP)
        second = second_client(tunnel, stack)
        second.wait_for("the server listens on")
        assert echoes(remote)
        first.process.send_signal(signal.SIGCONT)
        first.wait_for(OVER)
        first.wait_for("refuses this client's name")
        assert echoes(remote)
