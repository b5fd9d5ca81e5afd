"""`make soak`: what a tunnel must stand, at full counts; the figures go to docs/SOAK.md.

The scenarios are those of the test suite (tests.support.scenarios and tests.support.shared_proxy), which runs them with
smaller counts.  Takes about ten minutes on two cores.  `--quick` runs the suite's counts and prints, writing nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.sections import made_on, number, table, write_section
from tests.support import scenarios
from tests.support.applications import Target, echo, stalled
from tests.support.harness import ROOT, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.proxies import SHARING, TunnelProxy
from tests.support.machine.web import file_server
from tests.support.shared_proxy.bench import LONG, SHORT, Bench, Enough, Outcome, margins

_SHARED = "Behind proxies that many clients share"
REPORT = ROOT / "docs" / "SOAK.md"
LIBRARIES = ("cryptography", "websocket-client", "simple-websocket", "h2")


@dataclass(frozen=True, slots=True)
class Counts:
    bulk: int = 1_000_000_000
    download: int = 1_000_000_000
    downloads: int = 200
    at_once: int = 1000
    in_turn: int = 5000
    pushers: int = 100
    stopped: float = 60.0
    kills: int = 50


QUICK = Counts(bulk=100_000_000, download=200_000_000, downloads=60, at_once=200, in_turn=500, stopped=5.0, kills=2)


class Soak:
    """One tunnel behind nginx with TLS, and every application behind it."""

    def __init__(self, directory: Path, counts: Counts, stack: ExitStack) -> None:
        self.counts = counts
        self.directory = directory
        self.bulk = scenarios.Bulk(counts.bulk)
        self.files = {"large": os.urandom(2_000_000)}
        self.page = {f"resource-{number}": os.urandom(2_000 + 997 * number) for number in range(100)}
        self.bulk_target = stack.enter_context(Target(self.bulk.handler))
        self.near, self.far = stack.enter_context(Target(echo)), stack.enter_context(Target(echo))
        self.stalled = {kind: stack.enter_context(Target(stalled)) for kind in ("local", "remote")}
        web, web_port = file_server(directory, self.files | self.page)
        stack.enter_context(web)
        self.ports: dict[str, int] = {}
        tunnel = Tunnel(
            directory / "tunnel",
            [
                self._forward("bulk", "local", self.bulk_target.address),
                self._forward("web", "local", f"127.0.0.1:{web_port}"),
                self._forward("local echo", "local", self.near.address),
                self._forward("remote echo", "remote", self.far.address),
                self._forward("local stalled", "local", self.stalled["local"].address),
                self._forward("remote stalled", "remote", self.stalled["remote"].address),
            ],
            server={"trusted_proxies": ["127.0.0.1/32"]},
        )
        front = TunnelProxy(directory / "front", tunnel.port)
        tunnel.client_settings |= {"url": front.url, "tls": {"ca_file": str(front.ca_file)}}
        stack.enter_context(front.start())
        self.tunnel = stack.enter_context(tunnel).start()

    def scenarios(self) -> Iterator[tuple[str, Callable[[], scenarios.Figures]]]:
        """Title and action of each, in the order in which they should run."""
        counts, ports, tunnel = self.counts, self.ports, self.tunnel
        yield (
            "The same bytes each way at once through one stream, SHA-256 equal",
            lambda: self.bulk.run(ports["bulk"], self.bulk_target),
        )
        yield (
            "Concurrent downloads by curl, SHA-256 equal",
            lambda: scenarios.downloads(
                self.directory, ports["web"], self.files, count=counts.downloads, parallel=counts.downloads
            ),
        )
        yield (
            "A page of 100 resources, six connections at once",
            lambda: scenarios.downloads(self.directory, ports["web"], self.page, count=100, parallel=6),
        )
        yield (
            "A download by curl whose connection is cut again and again, SHA-256 equal, no retry",
            lambda: scenarios.download_through_cuts(self.directory / "cuts", counts.download),
        )
        for kind in ("local", "remote"):
            yield (
                f"Streams open at once through a {kind} forward, all echo correctly",
                lambda kind=kind: scenarios.streams_at_once(ports[f"{kind} echo"], counts.at_once),
            )
            yield (
                f"Streams opened and closed in turn through a {kind} forward: threads, sockets and memory come back",
                lambda kind=kind: scenarios.streams_in_turn(tunnel, ports[f"{kind} echo"], counts.in_turn),
            )
            yield (
                f"Readers that stop, behind a {kind} forward, while streams push at them",
                lambda kind=kind: scenarios.stopped_readers(
                    tunnel,
                    ports[f"{kind} stalled"],
                    self.stalled[kind],
                    ports["local echo"],
                    streams=counts.pushers,
                    seconds=counts.stopped,
                ),
            )
        for which in ("server", "client"):
            yield (
                f"kill -9 of the {which} in the middle, again and again",
                lambda which=which: scenarios.kills(
                    tunnel, which, ports["local echo"], ports["remote echo"], (self.near, self.far), counts.kills
                ),
            )

    def _forward(self, name: str, kind: str, to: str) -> dict[str, str]:
        self.ports[name] = unused_port()
        return {kind: f"127.0.0.1:{self.ports[name]}", "to": to}


def main() -> int:
    """Run every scenario; exit code 1 when one failed."""
    parser = argparse.ArgumentParser(description="Long tests of a whole tunnel; writes docs/SOAK.md.")
    parser.add_argument("--quick", action="store_true", help="small counts, and write nothing")
    parser.add_argument("--shared", action="store_true", help="only the proxies that many clients share")
    options = parser.parse_args()
    results = [] if options.shared else _run_scenarios(QUICK if options.quick else Counts())
    shared = _run_shared(SHORT if options.quick else LONG)
    if not options.quick:
        if results:
            REPORT.write_text(_report(results))
        write_section(REPORT, REPORT.read_text().partition("\n## ")[0].splitlines(), _SHARED, shared)
        print(f"written to {REPORT.relative_to(ROOT)}")
    return 0


def _run_scenarios(counts: Counts) -> list[tuple[str, scenarios.Figures]]:
    results: list[tuple[str, scenarios.Figures]] = []
    with _soak(counts) as soak:
        for title, run in soak.scenarios():
            print(title, flush=True)
            figures = run()
            results.append((title, figures))
            for name, value in figures.items():
                print(f"  {name}: {number(value)}", flush=True)
    return results


def _run_shared(enough: Enough) -> list[str]:
    """Run each proxy that many clients share; the lines of the section about them."""
    outcomes: dict[str, Outcome] = {}
    for proxy, start in SHARING.items():
        print(f"{_SHARED}: {proxy}", flush=True)
        with tempfile.TemporaryDirectory(prefix="qanat-shared-") as directory, ExitStack() as stack:
            outcomes[proxy] = Bench(Path(directory), start, stack).run(enough)
    lines = margins(outcomes)
    print(lines, flush=True)
    return [
        "Talkative, silent and flapping clients, and strangers of ten kinds beside them, one in an office of four",
        "honest clients, who have one address.  Limits are the defaults.  No honest client was cut.",
        "",
        f"{made_on(programs={'nginx': '-v', 'haproxy': '-v', 'caddy': 'version', 'nghttpx': '--version'})}.",
        "",
        lines,
    ]


@contextmanager
def _soak(counts: Counts) -> Iterator[Soak]:
    with tempfile.TemporaryDirectory(prefix="qanat-soak-") as directory, ExitStack() as stack:
        yield Soak(Path(directory), counts, stack)


def _report(results: list[tuple[str, scenarios.Figures]]) -> str:
    lines = [
        "# Soak",
        "",
        "Written by `make soak`: one tunnel behind nginx with TLS, configured as deploy/nginx.conf has it,",
        "all on one machine.  Each scenario asserts what must be true, so a figure here means that it held.",
        "",
        f"{made_on(libraries=LIBRARIES, programs={'nginx': '-v', 'curl': '--version'})}.",
        "",
    ]
    for title, figures in results:
        lines += [f"## {title}", "", *table(figures)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
