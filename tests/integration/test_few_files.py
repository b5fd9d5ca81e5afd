"""Promises of a server that may have few open files: strangers do not take them from those who are authenticated."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path

from tests.support.applications import Target, connection, echo, exchange
from tests.support.harness import SECONDS, Tunnel
from tests.support.machine.ports import unused_port


def test_hundreds_of_silent_connections_leave_an_authenticated_client_its_streams(directory: Path) -> None:
    with Target(echo) as target, contextlib.ExitStack() as stack:
        port = unused_port()
        forwards = [{"local": f"127.0.0.1:{port}", "to": target.address}]
        tunnel = stack.enter_context(Tunnel(directory, forwards, server_files=256))
        tunnel.start()
        tunnel.server.wait_for("there may be 64 connections at once")
        old = [stack.enter_context(connection(port)) for _ in range(20)]
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", tunnel.port), SECONDS))
        new = [stack.enter_context(connection(port)) for _ in range(20)]
        for sock in (*old, *new):
            assert exchange(sock, b"still there") == b"still there"
        assert "cannot accept" not in tunnel.server.output
        assert tunnel.client.count("connected to") == 1


def test_without_a_free_file_silent_connections_give_way_to_whoever_comes(directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel(directory))
        tunnel.start_server()
        used = len(list(Path(f"/proc/{tunnel.server.pid}/fd").iterdir()))
        resource.prlimit(tunnel.server.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", tunnel.port), SECONDS))
        tunnel.server.wait_for("cannot accept connections: Too many open files")
        with socket.create_connection(("127.0.0.1", tunnel.port), SECONDS) as late:
            late.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert late.recv(100).startswith(b"HTTP/1.1 200 ")
