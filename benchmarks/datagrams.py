"""`python -m benchmarks.datagrams`: what a UDP datagram takes through a tunnel, alone and beside a bulk stream.

For each transport, on loopback: an echo of 64 bytes there and back, one after the other, while nothing else moves, then
beside a download and an upload of the same session; and how many datagrams of 1,200 bytes a second get through one way
when more are sent.  One that has not come back after a second counts as lost.  Prints the table of docs/PERFORMANCE.md.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.sections import made_on
from qanat.config.texts import AUTO, TRANSPORTS
from tests.support.harness import ROOT, Program, Tunnel
from tests.support.machine.ports import unused_port

CARRIERS = [name for name in TRANSPORTS if name != AUTO]
PING = 64
PACKET = 1200
"""Bytes of a QUIC packet on an ordinary path."""
LOST_AFTER = 1.0
FLOOD_SECONDS = 2.0
_CHUNK = bytes(1 << 18)


@dataclass(frozen=True, slots=True)
class Pings:
    """How long datagrams took there and back, in seconds, in rising order, and how many never came."""

    seconds: list[float]
    lost: int

    def part(self, part: float) -> str:
        return f"{self.seconds[int(len(self.seconds) * part)] * 1e6:,.0f}" if self.seconds else "-"

    @property
    def cells(self) -> tuple[str, ...]:
        return self.part(0.5), self.part(0.99), f"{self.lost / max(1, len(self.seconds) + self.lost):.2%}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure datagrams through a tunnel, alone and beside bulk.")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each kind of ping (default: 5)")
    parser.add_argument("--transport", action="append", choices=CARRIERS, help="may be repeated (default: all)")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)  # another process of this program
    options = parser.parse_args()
    if options.role:
        role, *numbers = options.role
        return _ROLES[role](*map(int, numbers))
    print(made_on(), end="\n\n")
    print(
        "| | alone p50, µs | p99 | lost | beside a download p50 | p99 | lost | beside an upload p50 | p99 | lost",
        end="",
    )
    print(" | datagrams of 1,200 bytes/s |\n|---|" + "---:|" * 10)
    for transport in options.transport or CARRIERS:
        print("| " + " | ".join((f"`{transport}`", *_measure(transport, options.seconds))) + " |", flush=True)
    return 0


def _measure(transport: str, seconds: float) -> tuple[str, ...]:
    with ExitStack() as stack:
        echo, sink, bulk = (unused_port() for _ in range(3))
        for role, port in (("echo", echo), ("sink", sink), ("bulk", bulk)):
            stack.enter_context(_process(role, port))
        ports = {name: unused_port() for name in ("echo", "sink", "bulk")}
        forwards: list[Mapping[str, Any]] = [
            {"local": f"127.0.0.1:{ports['echo']}", "to": f"127.0.0.1:{echo}", "udp": True},
            {"local": f"127.0.0.1:{ports['sink']}", "to": f"127.0.0.1:{sink}", "udp": True},
            {"local": f"127.0.0.1:{ports['bulk']}", "to": f"127.0.0.1:{bulk}"},
        ]
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        account = {"allow_connect": ["127.0.0.1:*", "127.0.0.1:*/udp"]}
        tunnel = stack.enter_context(Tunnel(directory, forwards, client={"transport": transport}, account=account))
        tunnel.start()
        cells = _ping(ports["echo"], seconds).cells
        for way in (0, 1):
            with _process("load", ports["bulk"], way):
                time.sleep(1.0)  # until windows are open
                cells += _ping(ports["echo"], seconds).cells
        return *cells, f"{_flood(ports['sink']):,.0f}"


def _ping(port: int, seconds: float) -> Pings:
    took: list[float] = []
    lost = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(LOST_AFTER)
        end = time.monotonic() + seconds
        number = 0
        while (began := time.monotonic()) < end:
            number += 1
            payload = number.to_bytes(8).ljust(PING, b".")
            sock.send(payload)
            try:
                while sock.recv(1 << 16) != payload:
                    pass  # one that was counted as lost
            except TimeoutError:
                lost += 1
            else:
                took.append(time.monotonic() - began)
    return Pings(sorted(took), lost)


def _flood(port: int) -> float:
    """Send more than gets through; return how many a second did."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(5.0)
        sock.send(b"count")
        before = int(sock.recv(100))
        began = time.monotonic()
        while time.monotonic() < began + FLOOD_SECONDS:
            for _ in range(20):
                sock.send(_CHUNK[:PACKET])
            time.sleep(0.0005)
        took = time.monotonic() - began
        time.sleep(0.5)
        while True:  # it counts what it still has first
            sock.send(b"count")
            with contextlib.suppress(TimeoutError):
                return (int(sock.recv(100)) - before) / took


# --- the other processes ------------------------------------------------------------------------------


@contextmanager
def _process(role: str, *numbers: int) -> Iterator[Program]:
    with Program(
        sys.executable, "-u", "-m", "benchmarks.datagrams", "--role", role, *numbers, cwd=ROOT, PYTHONPATH=ROOT
    ) as program:
        program.wait_for("ready")
        yield program


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.bind(("127.0.0.1", port))
    print("ready")
    return sock


def _echo(port: int) -> int:
    sock = _bound(port)
    while True:
        payload, sender = sock.recvfrom(1 << 16)
        sock.sendto(payload, sender)


def _sink(port: int) -> int:
    """Count packets, and answer `count` with how many there were."""
    sock = _bound(port)
    counted = 0
    while True:
        payload, sender = sock.recvfrom(1 << 16)
        if payload == b"count":
            sock.sendto(b"%d" % counted, sender)
        else:
            counted += 1


def _bulk(port: int) -> int:
    """Send to who says 0, and take from who says 1, without end; one connection at a time."""
    listener = socket.create_server(("127.0.0.1", port))
    print("ready")
    while True:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            down = sock.recv(1) == b"\0"
            _push_or_pull(sock, push=down)


def _load(port: int, way: int) -> int:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(bytes((way,)))
    print("ready")
    _push_or_pull(sock, push=bool(way))
    return 0


def _push_or_pull(sock: socket.socket, *, push: bool) -> None:
    buffer = bytearray(1 << 18)
    if push:
        while True:
            sock.sendall(_CHUNK)
    while sock.recv_into(buffer):
        pass


_ROLES: dict[str, Callable[..., int]] = {"echo": _echo, "sink": _sink, "bulk": _bulk, "load": _load}


if __name__ == "__main__":
    sys.exit(main())
