"""Applications that speak UDP: an echo, two ends of a numbered conversation, a name server, QUIC.

Callers: tests/integration and `benchmarks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.support.harness import SECONDS, Program
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program

LARGEST = 65_507
"""Bytes of payload in a datagram over IPv4 at most."""
WIREGUARD = 1420
"""Bytes of a full packet in a WireGuard tunnel with its usual MTU."""


class Datagrams(Protocol):
    """A UDP socket that is connected, or what looks like one."""

    def send(self, data: bytes, /) -> int: ...

    def recv(self, size: int, /) -> bytes: ...

    def settimeout(self, value: float | None, /) -> None: ...


class UdpEcho:
    """Sends back what comes, as `answer` has it, in a thread."""

    def __init__(self, answer: Callable[[bytes], list[bytes]] = lambda payload: [payload]) -> None:
        self._answer = answer
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sock.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._sock.getsockname())
        self._closed = False
        self._thread = threading.Thread(target=self._echo_loop, name="udp-echo", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._sock.getsockname())
        self._thread.join()
        self._sock.close()

    def _echo_loop(self) -> None:
        while True:
            payload, sender = self._sock.recvfrom(1 << 16)
            if self._closed:
                return
            for answer in self._answer(payload):
                self._sock.sendto(answer, sender)


def udp_client(port: int, *, seconds: float = SECONDS) -> socket.socket:
    """A socket that is connected to a forward here."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.settimeout(seconds)
    sock.connect(("127.0.0.1", port))
    return sock


def ask(sock: Datagrams, payload: bytes, *, seconds: float = SECONDS, again: float = 1.0) -> bytes:
    """Return `payload` once it has come back; it is sent again and again, as by whoever speaks UDP."""
    deadline = time.monotonic() + seconds
    sock.settimeout(again)
    while time.monotonic() < deadline:
        sock.send(payload)
        with contextlib.suppress(TimeoutError):
            while (answer := sock.recv(1 << 16)) != payload:
                pass
            return answer
    raise AssertionError(f"no answer to a datagram of {len(payload)} bytes in {seconds:g} s")


@dataclass
class Numbered:
    """Numbered datagrams of one size, sent at a steady pace over one socket, and what came back of them.

    Each has a mark, which `mark` changes: so it is known of each that comes when it was sent.
    """

    sock: Datagrams
    size: int = WIREGUARD
    burst: int = 4
    pause: float = 0.005
    sent: int = 0
    mark: int = 0
    came: list[tuple[int, int]] = field(default_factory=list)
    """Number and mark of each that came, in the order of coming."""

    def __enter__(self) -> Self:
        self.sock.settimeout(0.1)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=loop, name="numbered") for loop in (self._send_loop, self._receive_loop)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Block until `count` more have come."""
        wanted, deadline = len(self.came) + count, time.monotonic() + SECONDS
        while len(self.came) < wanted:
            assert time.monotonic() < deadline, "datagrams come no more"
            time.sleep(0.002)

    def wait_for_mark(self, mark: int) -> None:
        """Block until one has come that was sent with this mark, or a later one."""
        deadline = time.monotonic() + SECONDS
        while not self.came or self.came[-1][1] < mark:
            assert time.monotonic() < deadline, "datagrams come no more"
            time.sleep(0.002)

    def check(self) -> None:
        """None came twice, and none after one that was sent later."""
        numbers = [number for number, _ in self.came]
        assert numbers == sorted(set(numbers)), "a datagram came twice, or out of order"

    def _send_loop(self) -> None:
        while not self._over.wait(self.pause):
            for _ in range(self.burst):
                with contextlib.suppress(OSError):  # ICMP of an earlier one
                    self.sock.send(struct.pack("!QI", self.sent, self.mark).ljust(self.size, b"\xa5"))
                self.sent += 1

    def _receive_loop(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                payload = self.sock.recv(1 << 16)
                assert len(payload) == self.size
                self.came.append(struct.unpack_from("!QI", payload))


@contextlib.contextmanager
def name_server() -> Iterator[str]:
    """dnsmasq, which knows www.qanat.example and, for answers of 3,000 bytes, large.qanat.example; its address."""
    port = unused_port()
    with Program(
        require_program("dnsmasq"),
        *("--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"),
        *(f"--port={port}", "--listen-address=127.0.0.1", "--edns-packet-max=4096"),
        "--address=/www.qanat.example/192.0.2.80",
        "--txt-record=large.qanat.example," + ",".join("x" * 250 for _ in range(12)),
    ) as program:
        program.wait_for("started, version")
        yield f"127.0.0.1:{port}"


def dig(port: int, *question: str) -> str:
    """What dig prints for `question`, asked over UDP alone."""
    with Program(
        require_program("dig"), "@127.0.0.1", "-p", port, "+short", "+ignore", "+time=5", "+tries=5", *question
    ) as program:
        assert program.end() == 0, program.output
        return program.output


def quic_echo(target: str, port: int, directory: Path, size: int) -> None:
    """Run a QUIC server at `target` and a client that reaches it by `port`: `size` bytes go there and come back."""
    from aioquic.asyncio import connect, serve
    from aioquic.quic.configuration import QuicConfiguration

    directory.mkdir(exist_ok=True)
    authority = Authority(directory)
    certificate = authority.issue()
    content = os.urandom(size)

    def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def echo() -> None:
            writer.write(await reader.read())
            writer.write_eof()

        running.append(asyncio.ensure_future(echo()))

    running: list[asyncio.Future[None]] = []

    async def exchange() -> bytes:
        server_side = QuicConfiguration(is_client=False)
        server_side.load_cert_chain(certificate.certificate, certificate.key)
        client_side = QuicConfiguration(is_client=True, server_name="localhost")
        client_side.load_verify_locations(str(authority.ca_file))
        host, number = target.rsplit(":", 1)
        server = await serve(host, int(number), configuration=server_side, stream_handler=served)
        try:
            async with connect("127.0.0.1", port, configuration=client_side) as client:
                reader, writer = await client.create_stream()
                writer.write(content)
                writer.write_eof()
                return await asyncio.wait_for(reader.read(), SECONDS)
        finally:
            server.close()

    assert asyncio.run(exchange()) == content
