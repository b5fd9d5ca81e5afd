"""Strangers at the HTTP/2 side of a server's port: garbage, half-open connections, streams that never authenticate.

Memory and threads stay bounded and come back, and who is a client notices nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from tests.support.applications import Target, connection, echo, exchange
from tests.support.harness import SECONDS, Program, Tunnel
from tests.support.machine.ports import unused_port

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
MEBI = 1 << 20
CONNECTIONS, HANDSHAKES = 128, 32
LIMITS = {
    "connections": CONNECTIONS,
    "handshakes": HANDSHAKES,
    "header_timeout": 2,
    "handshake_timeout": 2,
    "per_address_burst": 10_000,
    "per_address_rate": 10_000,
}
PER_CONNECTION = MEBI
"""Bytes that a stranger's connection may make the server hold, its threads and what allocators keep included."""
THREADS = CONNECTIONS + CONNECTIONS + 2 * CONNECTIONS + HANDSHAKES + 8
"""Readers, writers, streams (see FrontDoorContext.has_room), handshake deadlines, and a few that are always there."""


def a_preface_and_silence(_: random.Random) -> bytes:
    return PREFACE + SETTINGS


def half_a_preface(_: random.Random) -> bytes:
    return PREFACE[:10]


def a_preface_and_noise(rng: random.Random) -> bytes:
    return PREFACE + rng.randbytes(4096)


def frames_of_every_kind(rng: random.Random) -> bytes:
    """Well-formed lengths, random types, flags, streams and content."""
    frames = []
    for _ in range(20):
        payload = rng.randbytes(rng.randrange(64))
        head = struct.pack("!I", len(payload))[1:] + bytes([rng.randrange(12), rng.randrange(256)])
        frames.append(head + struct.pack("!I", rng.randrange(8)) + payload)
    return PREFACE + SETTINGS + b"".join(frames)


def a_header_block_without_end(rng: random.Random) -> bytes:
    """HEADERS, then CONTINUATION after CONTINUATION, none of them the last (CVE-2024-27316)."""
    block = b"\x00\x40\x00\x01\x00\x00\x00\x00\x01" + bytes(16384)
    more = b"\x00\x40\x00\x09\x00\x00\x00\x00\x01" + bytes(16384)
    return PREFACE + SETTINGS + block + more * 20


def tunnels_that_never_authenticate(_: random.Random) -> bytes:
    """Twenty open tunnel requests on one connection, each with as much as fits into its first window."""
    h2 = H2Connection(H2Configuration(client_side=True))
    h2.initiate_connection()
    for stream in range(1, 41, 2):
        head = {":method": "POST", ":scheme": "http", ":path": "/tunnel", ":authority": "x"}
        h2.send_headers(stream, [*head.items(), ("content-type", "application/octet-stream")])
        if stream < 8:
            h2.send_data(stream, b"\x00\x03\x00\x00" + bytes(15_000))
    return h2.data_to_send()


class Peak(threading.Thread):
    """Watches how many threads and how much memory a program has, and keeps the highest of each."""

    def __init__(self, program: Program) -> None:
        super().__init__(name="peak", daemon=True)
        self._program = program
        self._over = threading.Event()
        self.threads = self.memory = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.01):
            self.threads = max(self.threads, self._program.threads)
            self.memory = max(self.memory, self._program.memory)


@pytest.mark.parametrize(
    "storm",
    [
        a_preface_and_silence,
        half_a_preface,
        a_preface_and_noise,
        frames_of_every_kind,
        a_header_block_without_end,
        tunnels_that_never_authenticate,
    ],
)
def test_strangers_cost_bounded_memory_and_threads(directory: Path, storm: Callable[[random.Random], bytes]) -> None:
    rng = random.Random(storm.__name__)
    port = unused_port()
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        tunnel = stack.enter_context(
            Tunnel(
                directory,
                [{"local": f"127.0.0.1:{port}", "to": target.address}],
                server={"limits": LIMITS},
                client={"transport": "http2"},
            )
        ).start()
        honest = stack.enter_context(connection(port))
        assert exchange(honest, b"before") == b"before"
        threads, memory = tunnel.server.threads, tunnel.server.memory
        peak = stack.enter_context(Peak(tunnel.server))
        for _ in range(2):
            with ExitStack() as strangers:
                socks = []
                for _ in range(CONNECTIONS):
                    sock = strangers.enter_context(socket.create_connection(("127.0.0.1", tunnel.port), SECONDS))
                    sock.setblocking(False)
                    with contextlib.suppress(OSError):  # as much as it takes
                        sock.send(storm(rng))
                    socks.append(sock)
                assert exchange(honest, b"meanwhile") == b"meanwhile"
                for sock in socks:
                    readable, _, _ = select.select([sock], [], [], SECONDS)
                    assert readable, "the server neither said anything nor cut the connection"
        most_threads, most_memory = peak.threads - threads, peak.memory - memory
        print(f"{storm.__name__}: {most_threads} threads, {most_memory / MEBI:.1f} MiB")
        assert most_threads <= THREADS
        assert most_memory <= CONNECTIONS * PER_CONNECTION
        deadline = time.monotonic() + SECONDS
        while tunnel.server.threads > threads:
            assert time.monotonic() < deadline, f"{tunnel.server.threads} threads stay, {threads} were there before"
            time.sleep(0.02)  # another process's threads end when they end
        assert exchange(honest, os.urandom(1000))
        assert tunnel.client.count("connected to") == 1
