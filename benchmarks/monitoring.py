"""What metrics cost at full throughput: `python -m benchmarks.monitoring`.

    --megabytes 400 --scrape-every 15 --rounds 0

Counts it, since no figure of throughput shows a hundredth on a machine that does anything else: how often a record of
bulk, and a small one, comes by a line that counts for metrics, what such a line takes, and how many records a second a
tunnel carries; then what a scrape takes, and a look of the page.  The tunnel is a real one, a server and a client
process with `monitor:` at both ends.

With --rounds three tunnels carry the same bulk in turns, one with `monitor:`, scraped now and then, and two without,
whose difference is the noise.  Prints their throughput, and the CPU time of both ends for a gigabyte.
"""

from __future__ import annotations

import argparse
import linecache
import math
import os
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks.status import idle_server
from qanat.monitor.findings import Findings
from qanat.monitor.history import INTERVAL as LOOK_INTERVAL
from qanat.monitor.history import History
from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.stream import Stream
from tests.support.applications import Target
from tests.support.harness import Program, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.mux.rig import Pair as Lanes
from tests.support.mux.rig import read, write_all

MEGABYTE = 1_000_000
COUNTS = re.compile(
    r"\.(payload_(sent|received)|datagram_bytes_(sent|received)|replayed_bytes|opened|_recoveries) \+= |observer\.\w+\("
)
"""The lines that run for metrics alone; what credit and acknowledgment need too is none of them."""
_CHUNK = bytes(1 << 18)
_TICKS = os.sysconf("SC_CLK_TCK")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Passed:
    """What came by lines that count, at both ends together."""

    frames: int
    """Frames of DATA."""
    updates: int


class Tracer:
    """Counts the lines of COUNTS that run, in all threads that begin while it is on.  One for a process: pooled threads
    keep it."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._lines: dict[CodeType, frozenset[int]] = {}

    def count(self, push: Callable[[], None]) -> Passed:
        """Call `push`, and return what passed meanwhile.  Blocks."""
        self.seen.clear()
        threading.settrace(self._called)
        sys.settrace(self._called)
        try:
            push()
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
        return Passed(self.seen["frames"], self.seen["updates"])

    def _called(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if "/qanat/" not in code.co_filename:
            return None
        if code.co_name == "_receive_data":
            self.seen["frames"] += 1
        if code not in self._lines:
            numbers = {number for _, _, number in code.co_lines() if number is not None}
            self._lines[code] = frozenset(n for n in numbers if COUNTS.search(linecache.getline(code.co_filename, n)))
        return self._passed if self._lines[code] else None

    def _passed(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "line" and frame.f_lineno in self._lines[frame.f_code]:
            self.seen["updates"] += 1
        return self._passed


TRACER = Tracer()


class Pair:
    """A tunnel to what discards all, with or without metrics."""

    def __init__(self, directory: Path, target: int, stack: ExitStack, *, monitored: bool) -> None:
        """Start both ends; blocks until they are connected."""
        self.port = unused_port()
        self.pages = [f"127.0.0.1:{unused_port()}" for _ in range(2)] if monitored else []
        monitors = [{"monitor": {"listen": address}} for address in self.pages] or [{}, {}]
        forwards = [{"local": f"127.0.0.1:{self.port}", "to": f"127.0.0.1:{target}"}]
        self._tunnel = stack.enter_context(Tunnel(directory, forwards, server=monitors[0], client=monitors[1]))
        self._tunnel.start()

    def push(self, size: int) -> tuple[float, float]:
        """Send so many bytes, and wait until they have come; the seconds, and the CPU seconds of both ends."""
        programs = self._tunnel.server, self._tunnel.client
        before, began = sum(map(cpu_seconds, programs)), time.perf_counter()
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            left = size
            while left > 0:
                left -= sock.send(_CHUNK[: min(left, len(_CHUNK))])
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
        return time.perf_counter() - began, sum(map(cpu_seconds, programs)) - before

    def turns(self, seconds: float) -> tuple[int, float]:
        """Let a byte go to and fro for so long; how often it did, and the CPU seconds of both ends.  Blocks."""
        programs = self._tunnel.server, self._tunnel.client
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            before, over, number = sum(map(cpu_seconds, programs)), time.monotonic() + seconds, 0
            while time.monotonic() < over:
                sock.sendall(b"x")
                sock.recv(1)
                number += 1
            return number, sum(map(cpu_seconds, programs)) - before

    def scrape_seconds(self, times: int = 50) -> list[float]:
        """Return the CPU seconds that a scrape costs each end.  Blocks."""
        found = []
        for program, address in zip((self._tunnel.server, self._tunnel.client), self.pages, strict=True):
            before = cpu_seconds(program)
            for _ in range(times):
                with _OPENER.open(f"http://{address}/metrics", timeout=60) as answer:
                    answer.read()
            found.append((cpu_seconds(program) - before) / times)
        return found


def serve(sock: socket.socket, target: Target) -> str:
    """Answer what is sent in a ping-pong, and read the rest to its end."""
    while data := sock.recv(1 << 18):
        if len(data) == 1:
            sock.sendall(data)
    return "end"


def cpu_seconds(program: Program) -> float:
    """User and system time of a process so far (proc(5))."""
    fields = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def bulk() -> None:
    """Send 64 full buffers from one lane to another."""
    with Lanes() as lanes:
        ours, theirs = lanes.open()
        sender = threading.Thread(target=write_all, args=(ours, bytes(64 * BUFFER_PAYLOAD)))
        sender.start()
        read(theirs, 64 * BUFFER_PAYLOAD)
        sender.join()
        _close(ours, theirs)


def ping_pong() -> None:
    """Send 500 small payloads, each once the one before has come."""
    with Lanes() as lanes:
        ours, theirs = lanes.open()
        for _ in range(250):
            for writer, reader in ((ours, theirs), (theirs, ours)):
                writer.write(b"x")
                read(reader, 1)
        _close(ours, theirs)


def _close(ours: Stream, theirs: Stream) -> None:
    for stream in (ours, theirs):
        stream.finish()
        stream.release()


def seconds_of(do: Callable[[], object], times: int = 1, rounds: int = 50) -> float:
    """Return the CPU seconds that one of `times` takes, in the best of some rounds.  Blocks."""
    best = math.inf
    for _ in range(rounds):
        began = time.thread_time()
        do()
        best = min(best, time.thread_time() - began)
    return best / times


class _Sums:
    total = 0

    def add(self, size: int, times: int) -> None:
        """Add so often, as the data path does."""
        for _ in range(times):
            self.total += size

    def nothing(self, size: int, times: int) -> None:
        """Do the same without adding."""
        for _ in range(times):
            pass


def update_seconds() -> float:
    """Return what one addition to a count takes."""
    sums, times = _Sums(), 10_000
    return seconds_of(lambda: sums.add(1, times), times) - seconds_of(lambda: sums.nothing(1, times), times)


def look_seconds() -> float:
    """Return what a look of the page takes that nobody watches, at an end with one session of five streams."""
    with tempfile.TemporaryDirectory(prefix="q-") as directory, idle_server(Path(directory), 1, 5) as server:
        findings, history = Findings(), History()

        def look() -> None:
            snapshot = server.snapshot()
            findings.look(snapshot)
            history.add(snapshot)

        return seconds_of(look)


def report(pair: Pair, large: Passed, small: Passed, megabytes: int, every: float) -> None:
    """Print what metrics cost, at full throughput and per turn of a ping-pong.  Blocks."""
    each = update_seconds()
    seconds, cpu = pair.push(megabytes * MEGABYTE)
    records = megabytes * MEGABYTE / BUFFER_PAYLOAD
    turns, turn_cpu = pair.turns(2.0)
    scrapes = sum(pair.scrape_seconds())
    look = 2 * look_seconds()
    for what, passed, frames, spent in (
        ("bulk", large, records, cpu),
        ("ping-pong", small, 2 * turns, turn_cpu),
    ):
        updates = passed.updates / passed.frames
        cost = frames * updates * each
        print(
            f"{what}: {frames:.0f} records, {updates:.2f} updates each at both ends together, of {each * 1e9:.0f} ns: "
            f"{cost * 1e3:.2f} ms of {spent:.2f} CPU s, {100 * cost / spent:.3f} %"
        )
    busy, scraping, looking = cpu / seconds, scrapes / every, look / LOOK_INTERVAL
    print(f"scrapes of both ends: {scrapes * 1e3:.1f} ms of CPU; every {every:g} s {100 * scraping:.3f} % of a core")
    print(f"looks of both pages: {look * 1e3:.2f} ms; every {LOOK_INTERVAL:g} s {100 * looking:.3f} % of a core")
    share = large.updates / large.frames * each * records / cpu + (scraping + looking) / busy
    speed = 8e-9 * megabytes * MEGABYTE / seconds
    print(f"all together at {speed:.2f} Gbit/s, which takes {busy:.2f} cores: {100 * share:.3f} % of that")


def main(arguments: list[str]) -> None:
    """Count, and print; then measure, if that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0, help="measure throughput in so many rounds, too")
    parser.add_argument("--megabytes", type=int, default=400, help="that are sent, in each round")
    parser.add_argument("--scrape-every", type=float, default=15.0, help="seconds; Prometheus' own default is 60")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        target = stack.enter_context(Target(serve))
        large, small = TRACER.count(bulk), TRACER.count(ping_pong)  # before any other thread is
        pairs = {"with": Pair(directory / "with", target.port, stack, monitored=True)}
        report(pairs["with"], large, small, options.megabytes, options.scrape_every)
        if options.rounds:
            for name in ("without", "again"):
                pairs[name] = Pair(directory / name, target.port, stack, monitored=False)
            compare(pairs, options.rounds, options.megabytes * MEGABYTE, options.scrape_every)


def compare(pairs: dict[str, Pair], rounds: int, size: int, every: float) -> None:
    """Measure throughput in turns, and print it.  Blocks."""
    over = threading.Event()

    def scrape_loop() -> None:
        while not over.wait(every):
            for address in pairs["with"].pages:
                with _OPENER.open(f"http://{address}/metrics", timeout=60) as answer:
                    answer.read()

    scraper = threading.Thread(target=scrape_loop, daemon=True)
    scraper.start()
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    for number in range(rounds + 1):  # the first one warms up
        for name, pair in list(pairs.items())[:: 1 if number % 2 else -1]:
            taken = pair.push(size)
            if number:
                results[name].append(taken)
    over.set()
    scraper.join()
    for name, found in results.items():
        speed = statistics.median(8 * size / seconds / 1e9 for seconds, _ in found)
        cpu = statistics.median(cpu / size * 1e9 for _, cpu in found)
        print(f"{name:7} metrics: {speed:.2f} Gbit/s, {cpu:.3f} CPU s for a GB (medians of {len(found)})")
    for name in ("with", "again"):
        both = list(zip(results["without"], results[name], strict=True))
        faster = statistics.median(one[0] / other[0] for one, other in both)
        dearer = statistics.median(other[1] / one[1] for one, other in both)
        print(f"{name} / without, median of the rounds: throughput {faster:.3f}, CPU {dearer:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
