"""Promises about many streams at once: they are apart from each other, bounded, and leave nothing behind."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.integration.conftest import Shared
from tests.support import scenarios
from tests.support.applications import Target, connection, echo, exchange, receive_exactly, source, stalled
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port

both_kinds = pytest.mark.parametrize("kind", ["local", "remote"])


@both_kinds
def test_a_thousand_streams_at_once_all_echo_correctly(shared: Shared, kind: str) -> None:
    scenarios.streams_at_once(shared.ports[kind, "echo"], 1000)


@both_kinds
def test_streams_that_are_over_leave_no_thread_no_socket_and_no_memory(shared: Shared, kind: str) -> None:
    scenarios.streams_in_turn(shared.tunnel, shared.ports[kind, "echo"], 1000)


@pytest.mark.slow
@both_kinds
def test_a_slow_reader_stops_only_its_own_stream_and_memory_stays_bounded(directory: Path, kind: str) -> None:
    with Target(stalled) as target, Target(echo) as other:
        port, echo_port = unused_port(), unused_port()
        forwards = [
            {kind: f"127.0.0.1:{port}", "to": target.address},
            {kind: f"127.0.0.1:{echo_port}", "to": other.address},
        ]
        with Tunnel(directory, forwards) as tunnel:
            tunnel.start()
            scenarios.stopped_readers(tunnel, port, target, echo_port, streams=100, seconds=3)


def test_streams_above_the_limit_are_refused_and_those_within_go_on(directory: Path) -> None:
    with Target(echo) as target:
        port = unused_port()
        forwards = [{"local": f"127.0.0.1:{port}", "to": target.address}]
        with Tunnel(directory, forwards, server={"limits": {"streams": 3}}) as tunnel:
            tunnel.start()
            with connection(port) as one, connection(port) as two, connection(port) as three:
                for sock in (one, two, three):
                    assert exchange(sock, b"within") == b"within"
                # As early as while it connects.
                with pytest.raises(ConnectionResetError), connection(port) as above:
                    exchange(above, b"above")
                tunnel.client.wait_for("allows 3 streams at once")
                for sock in (one, two, three):
                    assert exchange(sock, b"still there") == b"still there"
                    sock.shutdown(socket.SHUT_WR)
                    assert sock.recv(1) == b""
            with connection(port) as later:
                assert exchange(later, b"room again") == b"room again"


def test_typing_is_not_held_up_by_bulk_on_other_streams(directory: Path) -> None:
    """Sources send as fast as they can through streams that are read as fast; a keystroke passes between."""
    with Target(source) as bulk, Target(echo) as target:
        bulk_port, port = unused_port(), unused_port()
        forwards = [
            {"local": f"127.0.0.1:{bulk_port}", "to": bulk.address},
            {"local": f"127.0.0.1:{port}", "to": target.address},
        ]
        with Tunnel(directory, forwards) as tunnel:
            tunnel.start()
            with connection(bulk_port) as first, connection(bulk_port) as second, connection(port) as typing:
                waits = []
                for _ in range(40):
                    for sock in (first, second):
                        receive_exactly(sock, 200_000)
                    waits.append(scenarios.seconds_of(lambda: exchange(typing, b"k")))
                assert sorted(waits)[20] < 0.75
