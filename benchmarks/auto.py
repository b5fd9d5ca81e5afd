"""`python -m benchmarks.auto`: what `transport: auto` finds on each troubled path, and how long a first byte takes.

For each path of `tests.support.troubles` a client is started anew several times: with nothing remembered, and with what
the time before has found and with the transport fixed that was found, in turns.  Measured is the time from the
client's start until an application's first byte has come back.  Server, relay and client are one process.  A client
with nothing remembered makes a key of its own; the others have one, since that takes 20 to 200 ms, by chance.
Writes docs/AUTO.md, and ends with 1 when a path was slower than is promised.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.report.sections import made_on
from qanat.base.endpoint_addresses import TcpAddress
from qanat.client.client import Client
from qanat.config.client_settings import ClientTls
from qanat.config.forward_settings import Forward
from qanat.handshake.key_pool import ClientKeyPool
from qanat.server import server as server_module
from tests.support.applications import Target, connection, echo, exchange
from tests.support.harness import ROOT
from tests.support.server.raw_peers import client_key
from tests.support.server.raw_sessions import client_to, real_server
from tests.support.troubles import TROUBLES, Trouble, TroubledPath

REPORT = ROOT / "docs" / "AUTO.md"
PATIENCE = 10.0
"""Seconds until a path counts as one on which nothing gets through."""


SOON, SOON_AFTER_SILENCE = 1.0, 5.0
"""Seconds until the first byte at p95 with nothing remembered: where something answers, and behind a black hole."""
RATIO, JITTER = 1.2, 0.02
"""How much longer it may take from memory than with the transport fixed, beside so many seconds of noise."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one path; times are in seconds, and empty where nothing got through."""

    trouble: Trouble
    found: str
    fresh: list[float]
    remembered: list[float]
    fixed: list[float]
    most_handshakes: int

    @property
    def wrong(self) -> str:
        """What is slower than promised."""
        if not self.fresh:
            return ""
        bound = SOON_AFTER_SILENCE if self.trouble.name == "black-hole" else SOON
        if _p95(self.fresh) > bound:
            return f"{self.trouble.name}: {_p95(self.fresh):.2f} s at p95 with nothing remembered"
        remembered, fixed = statistics.median(self.remembered), statistics.median(self.fixed)
        if remembered > RATIO * fixed + JITTER:
            return f"{self.trouble.name}: {remembered:.3f} s from memory, {fixed:.3f} s with the transport fixed"
        return ""

    @property
    def row(self) -> tuple[str, ...]:
        ratio = "-"
        if self.remembered and self.fixed:
            ratio = f"{statistics.median(self.remembered) / statistics.median(self.fixed):.2f}"
        return (
            self.trouble.name,
            self.trouble.what,
            self.found or "nothing",
            _milliseconds(self.fresh),
            _milliseconds(self.remembered),
            _milliseconds(self.fixed),
            ratio,
            str(self.most_handshakes),
        )


class Handshakes:
    """How many connections a server has begun to shake hands with."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._shake = server_module.server_handshake

    def __call__(self, *arguments: Any) -> Any:
        with self._lock:
            self.count += 1
        return self._shake(*arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what auto finds on each troubled path; writes docs/AUTO.md.")
    parser.add_argument("--times", type=int, default=10, help="starts of a client for each figure (default: 10)")
    parser.add_argument("--trouble", action="append", help="a path by its name; may be repeated (default: all)")
    parser.add_argument("--print", action="store_true", help="print the table, and write nothing")
    options = parser.parse_args()
    chosen = [one for one in TROUBLES if not options.trouble or one.name in options.trouble]
    handshakes = Handshakes()
    with mock.patch.object(server_module, "server_handshake", handshakes):
        results = []
        for trouble in chosen:
            results.append(_measure(trouble, options.times, handshakes))
            print(" | ".join(results[-1].row), flush=True)
    if not options.print:
        REPORT.write_text(_report(results, options.times))
        print(f"written to {REPORT.relative_to(ROOT)}")
    wrong = [result.wrong for result in results if result.wrong]
    print("\n".join(wrong))
    return 1 if wrong else 0


def _measure(trouble: Trouble, times: int, handshakes: Handshakes) -> Result:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(real_server(folder))
        target = stack.enter_context(Target(echo))
        path = stack.enter_context(trouble.start(server.addresses[0][1], folder / "path"))
        found, most = "", 0

        def first_byte(directory: Path, transport: str = "auto") -> float | None:
            nonlocal found, most
            before = handshakes.count
            with _client(path, server.identity.fingerprint, target, directory, transport) as client:
                began = time.monotonic()
                try:
                    with connection(client.local_ports[0]) as sock:
                        exchange(sock, b"x")
                except (OSError, AssertionError):
                    return None
                seconds = time.monotonic() - began
                ways = client.servers[0].connector.ways
                if ways is not None and ways.current is not None:
                    found = ways.current.transport
            most = max(most, handshakes.count - before)
            return seconds

        fresh = _several(times, lambda number: first_byte(folder / f"state-{number}"))
        remembered, fixed = [], []
        with mock.patch.object(ClientKeyPool, "take", return_value=client_key()):
            for _ in range(times if fresh and found else 0):  # in turns, so that the machine's moods do not count
                remembered.append(first_byte(folder / "state-0") or PATIENCE)
                fixed.append(first_byte(folder / "state-0", found) or PATIENCE)
    return Result(trouble, found, fresh, remembered, fixed, most)


def _several(times: int, measure: Any) -> list[float]:
    """Return what was measured; nothing more is tried where the first time gave nothing."""
    seconds = []
    for number in range(times):
        one = measure(number)
        if one is None and not seconds:
            return []
        if one is not None:
            seconds.append(one)
    return seconds


@contextmanager
def _client(path: TroubledPath, fingerprint: str, target: Target, directory: Path, transport: str) -> Iterator[Client]:
    forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", target.port))
    settings = {"transports": (transport,), "tls": ClientTls(ca_file=path.ca_file), "connect_timeout": PATIENCE}
    with client_to((path.url,), fingerprint, directory, forward, **settings) as client:
        yield client


def _milliseconds(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    return f"{statistics.median(seconds) * 1000:,.0f} / {_p95(seconds) * 1000:,.0f}"


def _p95(seconds: list[float]) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]


def _report(results: list[Result], times: int) -> str:
    rows = "\n".join(f"| {' | '.join(result.row)} |" for result in results)
    return f"""# What `auto` finds

Written by `python -m benchmarks.auto`: for each path of `tests/support/troubles` a client is started {times} times with
nothing remembered, and as often in turns with what was found before and with that transport fixed. The time is from the
client's start until an application's first byte has come back, in ms: median / p95; the second and third have an RSA
key from before, since making one takes from 20 to 200 ms, by chance. "Handshakes" are the most that
the server began for one such start. The program fails where a first byte takes more than 1.0 s at p95 with nothing
remembered (5 s behind a black hole), or more than 1.2 times as long from memory as with the transport fixed (and 20 ms,
which is the noise). `tests/client/test_auto.py` holds the promises, in a smaller form.

{made_on()}

| path | what it does | found | nothing remembered | remembered | fixed | remembered : fixed | handshakes |
|---|---|---|---:|---:|---:|---:|---:|
{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
