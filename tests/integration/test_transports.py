"""The same promises over every transport: a whole tunnel, its faults and its end."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from qanat.handshake.tokens import generate_token
from tests.support import scenarios
from tests.support.applications import (
    RESET,
    Target,
    connection,
    echo,
    echoes,
    ending_of,
    exchange,
    reply_after_end,
    wait_until_echoes,
)
from tests.support.background import Background
from tests.support.harness import Relay, Tunnel, qanat
from tests.support.machine.ports import unused_port

over_each = pytest.mark.parametrize("transport", ["http2", "grpc", "websocket-h2"])


@over_each
def test_streams_in_both_directions_bulk_and_half_closes(directory: Path, transport: str) -> None:
    with Target(echo) as target, Target(reply_after_end) as reply:
        local, remote, half = unused_port(), unused_port(), unused_port()
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": target.address},
            {"remote": f"127.0.0.1:{remote}", "to": target.address},
            {"local": f"127.0.0.1:{half}", "to": reply.address},
        ]
        with Tunnel(directory, forwards, client={"transport": transport}) as tunnel:
            tunnel.start()
            tunnel.client.wait_for(f"connected to .* over {transport}")
            tunnel.server.wait_for(f"a connected from .* over {transport}")
            scenarios.streams_at_once(local, 200)
            scenarios.streams_at_once(remote, 200)
            data = os.urandom(20_000_000)

            def bulk(port: int) -> bytes:
                with connection(port) as sock:
                    return exchange(sock, data)

            for one in [Background(lambda port=port: bulk(port)) for port in (local, remote)]:
                assert one.result(60) == data
            with connection(half) as sock:
                sock.sendall(b"the question")
                sock.shutdown(1)
                assert sock.recv(100)


@over_each
def test_a_cut_is_noticed_and_what_was_open_goes_on(directory: Path, transport: str) -> None:
    with Target(echo) as target:
        local, remote = unused_port(), unused_port()
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": target.address},
            {"remote": f"127.0.0.1:{remote}", "to": target.address},
        ]
        with Tunnel(directory, forwards, client={"transport": transport}) as tunnel, Relay(tunnel.port) as relay:
            tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
            tunnel.start()
            with connection(local) as one, connection(remote) as other:
                for sock in (one, other):
                    assert exchange(sock, b"before") == b"before"
                relay.cut()
                for sock in (one, other):
                    assert exchange(sock, b"after") == b"after"
            tunnel.wait_resumed()
            assert echoes(local)
            assert echoes(remote)
            assert tunnel.client.count("connected to ") == 1


@over_each
def test_where_nothing_is_resumed_a_cut_is_a_reset_and_the_client_comes_back(directory: Path, transport: str) -> None:
    with Target(echo) as target:
        local, remote = unused_port(), unused_port()
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": target.address},
            {"remote": f"127.0.0.1:{remote}", "to": target.address},
        ]
        with (
            Tunnel(directory, forwards, client={"transport": transport}, server={"resume_for": 0}) as tunnel,
            Relay(tunnel.port) as relay,
        ):
            tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
            tunnel.start()
            with connection(local) as sock:
                assert exchange(sock, b"before") == b"before"
                relay.cut()
                assert ending_of(sock) == RESET
            tunnel.wait_connected(2)
            assert echoes(local)
            wait_until_echoes(remote)


@over_each
@pytest.mark.parametrize("which", ["server", "client"])
def test_either_end_stops_at_a_word_and_lets_open_streams_finish(directory: Path, transport: str, which: str) -> None:
    with Target(echo) as target:
        local = unused_port()
        forwards = [{"local": f"127.0.0.1:{local}", "to": target.address}]
        with Tunnel(directory, forwards, client={"transport": transport}, server={"drain": 60}) as tunnel:
            tunnel.client_settings["drain"] = 60
            tunnel.start()
            with connection(local) as sock:
                assert exchange(sock, b"before") == b"before"
                program = tunnel.server if which == "server" else tunnel.client
                program.process.send_signal(signal.SIGTERM)
                assert exchange(sock, b"after") == b"after"
            assert program.end() == 0


def test_all_transports_serve_at_once_on_one_server(directory: Path) -> None:
    names = ("websocket", "http2", "grpc", "websocket-h2")
    with Target(echo) as target:
        ports = {name: unused_port() for name in names}
        first = Tunnel(directory / "first", [{"local": f"127.0.0.1:{ports['websocket']}", "to": target.address}])
        with first:
            accounts = first.server_settings["clients"]
            for name in names[1:]:
                (first.directory / f"{name}.token").touch(mode=0o600)
                (first.directory / f"{name}.token").write_text(generate_token())
                accounts.append({**accounts[0], "name": name, "token_file": f"{name}.token"})
            first.start()
            others = []
            try:
                for name in names[1:]:
                    first.client_settings.update(
                        name=name,
                        transport=name,
                        token_file=f"{name}.token",
                        state_dir=f"state-{name}",
                        forwards=[{"local": f"127.0.0.1:{ports[name]}", "to": target.address}],
                    )
                    first._write(f"{name}.yaml", {"client": first.client_settings})
                    others.append(qanat("client", "-c", first.directory / f"{name}.yaml"))
                    others[-1].wait_for(f"connected to .* over {name}")
                workers = [
                    threading.Thread(target=scenarios.streams_at_once, args=(port, 50)) for port in ports.values()
                ]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
                assert all(echoes(port) for port in ports.values())
            finally:
                for other in others:
                    other.close()
