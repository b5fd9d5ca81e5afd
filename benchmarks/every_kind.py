"""Streams of every kind that check every byte they carry: ssh, psql, curl, small exchanges over each way in, UDP.

`benchmarks.reloads` has them run while it changes what both ends are configured with.  Each stream is opened once and
kept to the end, but for curl's, which are downloads one after the other.  They do what people's do: ssh, psql and every
sixth of the small ones and of UDP's exchange something each tenth of a second, the others once a second, and downloads
are paced, so that each lasts.  All together take about half of two cores; a load that takes all of them would show how
the processor is shared, not what is asked here.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.applications import Target, connection, echo, exchange, unix_connection
from tests.support.background import Background
from tests.support.datagrams import UdpEcho, udp_client
from tests.support.flows import Flow
from tests.support.harness import SECONDS
from tests.support.machine.ports import unused_port
from tests.support.machine.postgres import Postgres
from tests.support.machine.programs import require_program
from tests.support.machine.web import Sshd, file_server

FILE_SIZE = 5_000_000
PACE = "250k"
"""Bytes a second of one download, as curl writes it."""
OFTEN = 0.1
"""Seconds between two exchanges of a stream on which somebody types."""
SELDOM = 1.0
"""The same for one that is only kept in use."""
JOIN = 120.0
"""Seconds that all streams have to finish."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many streams of each kind there are at once."""

    ssh: int = 6
    psql: int = 6
    curl: int = 8
    small: int = 140
    """Over TCP, a Unix socket and SOCKS at the client, and over a TCP port and SOCKS at the server, in turn."""
    udp: int = 40
    """At either end in turn."""

    @property
    def total(self) -> int:
        return self.ssh + self.psql + self.curl + self.small + self.udp


class Applications:
    """What the streams lead to, and the ports on which a client has to listen for them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.content = os.urandom(FILE_SIZE)
        self.echo = stack.enter_context(Target(echo))
        self.udp = stack.enter_context(UdpEcho())
        self.sshd = Sshd(directory / "sshd")
        stack.enter_context(self.sshd.start())
        self.postgres = stack.enter_context(Postgres(directory / "postgres"))
        web, self._web_port = file_server(directory / "web", {"file": self.content})
        stack.enter_context(web)
        names = ("tcp", "back", "dynamic", "back dynamic", "udp", "back udp", "ssh", "psql", "web")
        self.ports = {name: unused_port() for name in names}
        self.path = str(directory / "here")

    @property
    def forwards(self) -> list[dict[str, object]]:
        """The client's forwards, as in its file."""
        at = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        echoes = f"127.0.0.1:{self.echo.port}"
        return [
            {"local": at["tcp"], "to": echoes},
            {"local": self.path, "to": echoes},
            {"dynamic": at["dynamic"]},
            {"local": at["udp"], "to": self.udp.address, "udp": True},
            {"local": at["psql"], "to": f"127.0.0.1:{self.postgres.port}"},
            {"local": at["web"], "to": f"127.0.0.1:{self._web_port}"},
            {"remote": at["back"], "to": echoes},
            {"remote": at["back dynamic"], "to": "dynamic"},
            {"remote": at["back udp"], "to": self.udp.address, "udp": True},
            {"remote": at["ssh"], "to": f"127.0.0.1:{self.sshd.port}"},
        ]


class Load:
    """All streams, from `start` until `finish`, which raises what any of them has seen go wrong."""

    def __init__(self, applications: Applications, counts: Counts) -> None:
        self._to = applications
        self._counts = counts
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.done = Counter[str]()
        """Exchanges, downloads, statements and datagrams so far, by kind."""
        self._ready = threading.Semaphore(0)
        self._jobs: list[Background[None]] = []

    def start(self) -> None:
        """Open every stream; returns once each has carried something."""
        small = (self._tcp, self._unix, self._socks, self._back, self._back_socks)
        jobs: list[Callable[[int], None]] = [self._ssh] * self._counts.ssh + [self._psql] * self._counts.psql
        jobs += [self._curl] * self._counts.curl + [self._udp] * self._counts.udp
        jobs += [small[number % len(small)] for number in range(self._counts.small)]
        self._jobs = [Background(lambda job=job, n=n: job(n)) for n, job in enumerate(jobs)]  # type: ignore[misc]
        for _ in jobs:
            if not self._ready.acquire(timeout=SECONDS):
                self._over.set()
                for each in self._jobs:
                    each.result(JOIN)
                raise AssertionError("not every stream could be opened")

    def finish(self) -> None:
        """End every stream in order, and check that each was whole."""
        self._over.set()
        failures = []
        for number, job in enumerate(self._jobs):
            try:
                job.result(JOIN)
            except (Exception, AssertionError) as error:
                failures.append(f"stream {number}: {type(error).__name__}: {error}")
        if failures:
            raise AssertionError(f"{len(failures)} streams noticed something: " + "; ".join(failures[:5]))

    def _count(self, kind: str, *, first: bool = False) -> None:
        with self._lock:
            self.done[kind] += 1
        if first:
            self._ready.release()

    def _over_after(self, number: int) -> bool:
        """Block until the next exchange of that stream is due; return whether there is none."""
        return self._over.wait(SELDOM if number % 6 else OFTEN)

    # --- small exchanges --------------------------------------------------------------------------

    def _tcp(self, number: int) -> None:
        with connection(self._to.ports["tcp"]) as sock:
            self._exchange(sock, number, "tcp")

    def _unix(self, number: int) -> None:
        with unix_connection(self._to.path) as sock:
            self._exchange(sock, number, "unix")

    def _back(self, number: int) -> None:
        with connection(self._to.ports["back"]) as sock:
            self._exchange(sock, number, "remote")

    def _socks(self, number: int) -> None:
        self._over_socks("dynamic", number)

    def _back_socks(self, number: int) -> None:
        self._over_socks("back dynamic", number)

    def _over_socks(self, port: str, number: int) -> None:
        with connection(self._to.ports[port]) as sock:
            sock.sendall(b"\x04\x01" + self._to.echo.port.to_bytes(2, "big") + b"\x7f\0\0\x01\0")  # SOCKS4
            assert sock.recv(8)[1] == 90
            self._exchange(sock, number, port)

    def _exchange(self, sock: socket.socket, number: int, kind: str) -> None:
        flow, first, longest = Flow(f"{kind} {number}"), True, 9000 if number % 6 else 300
        while first or not self._over_after(number):
            flow.check(exchange(sock, flow.make(1 + 613 * (number + flow.sent) % longest)))
            self._count(kind, first=first)
            first = False
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b"", "more came than was sent"
        flow.check_end()

    # --- UDP ----------------------------------------------------------------------------------------

    def _udp(self, number: int) -> None:
        """Send numbered datagrams; those that come back come once, in order, and never late by a whole second."""
        with udp_client(self._to.ports["udp" if number % 2 else "back udp"], seconds=1.0) as sock:
            latest, sent, first = -1, 0, True
            while not sent or not self._over_after(number):
                payload = struct.pack("!II", number, sent).ljust(700, b"\xa5")
                sock.send(payload)
                while True:
                    try:
                        answer = sock.recv(2000)
                    except TimeoutError:
                        break  # lost, as datagrams may be
                    whose, came = struct.unpack_from("!II", answer)
                    assert whose == number, "a datagram of another flow"
                    assert latest < came <= sent, f"datagram {came} came after {latest}, and {sent} were sent"
                    latest = came
                    if came == sent:
                        self._count("udp", first=first)
                        first = False
                        break
                sent += 1

    # --- real programs ------------------------------------------------------------------------------

    def _ssh(self, number: int) -> None:
        """Have `cat` at the other end send back what it gets."""
        with self._lock:  # which writes a file
            options = self._to.sshd.options(self._to.ports["ssh"])
        command = [require_program("ssh"), "-T", *options, f"{getpass.getuser()}@127.0.0.1", "exec cat"]
        flow, first = Flow(f"ssh {number}"), True
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as ssh:
            assert ssh.stdin is not None
            assert ssh.stdout is not None
            try:
                while first or not self._over.wait(OFTEN):
                    count = 300
                    ssh.stdin.write(flow.make(count))
                    while count:
                        data = ssh.stdout.read(count)
                        assert data, f"ssh ended with {ssh.wait(SECONDS)}"
                        flow.check(data)
                        count -= len(data)
                    self._count("ssh", first=first)
                    first = False
                ssh.stdin.close()
                assert ssh.stdout.read() == b""
                assert ssh.wait(SECONDS) == 0
                flow.check_end()
            finally:
                ssh.kill()

    def _psql(self, number: int) -> None:
        """Insert rows in one transaction, see each of them, and find them all after COMMIT."""
        place = f"postgresql://postgres@127.0.0.1:{self._to.ports['psql']}/postgres"
        command = [require_program("psql"), "--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", place]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as psql:
            assert psql.stdin is not None
            assert psql.stdout is not None
            table, rows = f"rows_{number}", 0
            try:
                psql.stdin.write(f"CREATE TABLE {table} (n integer);\nBEGIN;\n")
                while not rows or not self._over.wait(OFTEN):
                    psql.stdin.write(f"INSERT INTO {table} VALUES ({rows}) RETURNING n;\n")
                    psql.stdin.flush()
                    answer = psql.stdout.readline()
                    assert answer == f"{rows}\n", f"psql answered {answer!r} for row {rows}"
                    self._count("psql", first=not rows)
                    rows += 1
                psql.stdin.write(f"COMMIT;\nSELECT count(*), sum(n) FROM {table};\n")
                psql.stdin.close()
                assert psql.stdout.read() == f"{rows}|{rows * (rows - 1) // 2}\n"
                assert psql.wait(SECONDS) == 0
            finally:
                psql.kill()

    def _curl(self, number: int) -> None:
        """Download a file again and again, each time whole."""
        del number
        right, first = hashlib.sha256(self._to.content).hexdigest(), True
        url = f"http://127.0.0.1:{self._to.ports['web']}/file"
        command = [require_program("curl"), "-sS", "--fail", "--noproxy", "*", "--limit-rate", PACE, url]
        while first or not self._over.is_set():
            got = subprocess.run(command, capture_output=True, timeout=JOIN, check=False)
            assert got.returncode == 0, got.stderr.decode()
            assert hashlib.sha256(got.stdout).hexdigest() == right, f"{len(got.stdout)} bytes came"
            self._count("curl", first=first)
            first = False
