"""What metrics cost at full throughput: `python -m benchmarks.monitoring`.

    --rounds 15 --megabytes 200 --scrape-every 15

Three tunnels, of a server and a client process each: one with `monitor:` at both ends, scraped now and then, and two
without, whose difference is the noise.  They carry the same bulk in turns, so that what else the machine does falls on
all alike.  Prints the throughput, and the CPU time of both ends for a gigabyte, which is the steadier figure of a busy
machine.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from tests.support.applications import Target, discard
from tests.support.harness import Program, Tunnel
from tests.support.machine.ports import unused_port

MEGABYTE = 1_000_000
_CHUNK = bytes(1 << 18)
_TICKS = os.sysconf("SC_CLK_TCK")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


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


def cpu_seconds(program: Program) -> float:
    """User and system time of a process so far (proc(5))."""
    fields = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def main(arguments: list[str]) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=200, help="in each round")
    parser.add_argument("--scrape-every", type=float, default=15.0, help="seconds; Prometheus' own default is 60")
    options = parser.parse_args(arguments)
    size = options.megabytes * MEGABYTE
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        target = stack.enter_context(Target(discard))
        pairs = {
            name: Pair(directory / name, target.port, stack, monitored=name == "with")
            for name in ("without", "with", "again")
        }
        over = threading.Event()

        def scrape_loop() -> None:
            while not over.wait(options.scrape_every):
                for address in pairs["with"].pages:
                    with _OPENER.open(f"http://{address}/metrics", timeout=60) as answer:
                        answer.read()

        scraper = threading.Thread(target=scrape_loop, daemon=True)
        scraper.start()
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
        for number in range(options.rounds + 1):  # the first one warms up
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
            rounds = list(zip(results["without"], results[name], strict=True))
            faster = statistics.median(one[0] / other[0] for one, other in rounds)
            dearer = statistics.median(other[1] / one[1] for one, other in rounds)
            print(f"{name} / without, median of the rounds: throughput {faster:.3f}, CPU {dearer:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
