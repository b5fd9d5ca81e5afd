"""A stranger who takes all the connections of a published port that he can get, and the others, who wait beside him.

Used by tests/integration with a small number of connections, and by `benchmarks.kinds` with 3,000.  As a program
(`python -m tests.support.strangers`) it is what `EchoProcess` runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from tests.support.applications import exchange
from tests.support.harness import ROOT, SECONDS, Program

STRANGER = "127.0.0.9"
VISITOR = "127.0.0.10"
ROUNDS = 30


class EchoProcess(Program):
    """An echo in a process of its own, without a thread for each connection.

    Where thousands are held, an echo of the test's own would cost a new visitor more than all of the tunnel does.
    """

    def __init__(self) -> None:
        super().__init__(sys.executable, "-m", "tests.support.strangers", cwd=ROOT)
        self.address = f"127.0.0.1:{self.wait_for('echoes at ([0-9]+)')[1]}"


@contextmanager
def stranger(port: int, count: int) -> Iterator[int]:
    """Hold as many of `count` idle connections as the other end leaves open; how many these are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        held = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(SECONDS)
            sock.bind((STRANGER, 0))
            with contextlib.suppress(ConnectionResetError):
                sock.connect(("127.0.0.1", port))
                sock.setblocking(False)
                held.append(sock)
        yield _still_open(held)


def _still_open(sockets: list[socket.socket]) -> int:
    """How many have not been reset, once no more of them are."""
    before, deadline = -1, time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        now = sum(map(_is_open, sockets))
        if now == before:
            break
        before = now
        time.sleep(0.3)
    return before


def _is_open(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


class Others:
    """Those who have a connection each to the ports named, and count how long an answer takes them."""

    def __init__(self, ports: Mapping[str, int], stack: ExitStack) -> None:
        self._ports = ports
        self._sockets = {name: stack.enter_context(visitor(port)) for name, port in ports.items()}

    def round_trips(self) -> dict[str, float]:
        """The median of an exchange on the open connection, and of one on a new connection, in seconds, by name."""
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, sock in self._sockets.items():
                began = time.monotonic()
                assert exchange(sock, b"question") == b"question"
                found.setdefault(name, []).append(time.monotonic() - began)
                began = time.monotonic()
                with visitor(self._ports[name]) as new:
                    assert exchange(new, b"question") == b"question"
                found.setdefault(f"{name}, anew", []).append(time.monotonic() - began)
        return {name: statistics.median(times) for name, times in found.items()}


@contextmanager
def visitor(port: int) -> Iterator[socket.socket]:
    """A connection from an address that is not the stranger's."""
    with socket.create_connection(("127.0.0.1", port), SECONDS, source_address=(VISITOR, 0)) as sock:
        yield sock


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _serve() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = await asyncio.start_server(_echo, "127.0.0.1", 0, backlog=1024)
    print(f"echoes at {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
