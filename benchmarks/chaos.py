"""`python -m benchmarks.chaos`: a thousand connections cut in every way under fifty applications that must not notice.

The same as tests/integration/test_chaos.py, for longer; the figures go to docs/CHAOS.md.  The network is seeded:
`--seed` repeats a run.  `--paths` has split pipes through real proxies and the worst path, in both forms where the path
lets answers go on.  With `--leaks` there are ten rounds of a tenth of the cuts each, with nothing open in
between: threads and sockets must be back each time, and memory must stop growing after the first rounds.  About
four cuts a second over one transport and two between several, so 10,000 take from forty minutes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report.sections import made_on, number, table, write_section
from qanat.cli.demo import TRANSPORTS
from tests.support.chaos import SILENT, deck
from tests.support.harness import ROOT
from tests.support.scenarios import MEBI, Figures
from tests.support.storm import Storm

REPORT = ROOT / "docs" / "CHAOS.md"
HEAD = [
    "# Chaos",
    "",
    "Written by `python -m benchmarks.chaos`: fifty applications of every kind talk through a tunnel, half of them",
    "through a local and half through a remote forward, while a network in between ends each connection after a",
    "moment: cut, reset, truncated, half-open, stalled, dead in one direction.  Every byte is checked at both ends.",
    "Each run asserts that no application noticed and that the client never had to begin a new session.",
]
ROUNDS = 10
PATHS = {
    f"{name}, {'packets' if packets else 'streamed'}": (name, packets)
    for name in ("nginx", "apache", "h2o", "varnish", "squid", "worst")
    for packets in (False, True)
    if packets or name != "worst"  # which holds each answer until its end
}
GROWTH = 8 * MEBI
"""Bytes by which two idle moments may differ, for what the allocators keep."""


def main() -> int:
    """One run; exit code 1 with the reason when anything was noticed."""
    parser = argparse.ArgumentParser(description="Cut connections under a running workload; writes docs/CHAOS.md.")
    parser.add_argument("--cuts", type=int, default=1000, help="connections that meet their end (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="what happens to which connection (default: 1)")
    parser.add_argument(
        "--transport",
        action="append",
        choices=TRANSPORTS,
        help="may be repeated; the session then moves from one to the other (default: all of them)",
    )
    parser.add_argument("--lanes", type=int, default=1, help="connections side by side (default: 1)")
    parser.add_argument("--leaks", action="store_true", help="check memory, threads and sockets after it too")
    parser.add_argument("--paths", action="store_true", help="split through real proxies and the worst path instead")
    parser.add_argument("--print", action="store_true", help="print the figures, and write nothing")
    options = parser.parse_args()
    if options.paths:
        return _paths(options.cuts, options.seed, to_file=not options.print)
    transports = options.transport or list(TRANSPORTS)
    title = f"{number(options.cuts)} cuts, {' and '.join(transports)}"
    title += f", {options.lanes} lanes" if options.lanes > 1 else ""
    title += ", and nothing left behind" if options.leaks else ""
    print(f"{title}, seed {options.seed}", flush=True)
    # One in thirty-six takes the time that keepalive needs.
    with (
        tempfile.TemporaryDirectory(prefix="qanat-chaos-") as directory,
        Storm(
            Path(directory),
            seed=options.seed,
            transports=transports,
            lanes=options.lanes,
            faults=deck(35, *SILENT),
            workloads=ROUNDS if options.leaks else 1,
        ) as storm,
    ):
        figures = _leaks(storm, options.cuts) if options.leaks else storm.run(options.cuts, progress=_progress())
        kinds: Figures = {f"connections: {name}": count for name, count in storm.relay.counts.items()}
    for name, value in {**figures, **kinds}.items():
        print(f"  {name}: {number(value)}", flush=True)
    if not options.print:
        about = (
            f"{made_on(libraries=('cryptography', 'websocket-client', 'simple-websocket', 'h2'))}; seed {options.seed}."
        )
        write_section(REPORT, HEAD, title, [about, "", *table({**figures, **kinds})])
        print(f"written to {REPORT.relative_to(ROOT)}")
    return 0


def _paths(cuts: int, seed: int, *, to_file: bool) -> int:
    """Run over each of PATHS; exit code 1 when one of them noticed anything."""
    rows, failed = [], []
    for title, (path, packets) in PATHS.items():
        print(f"{number(cuts)} cuts over split, {title}, seed {seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="qanat-chaos-") as directory:
            Path(directory).chmod(0o755)  # some proxies give root up
            try:
                with Storm(
                    Path(directory),
                    seed=seed,
                    transports=["split"],
                    faults=deck(35, *SILENT),
                    path=path,
                    packets=packets,
                ) as storm:
                    figures = storm.run(cuts, patient=False, progress=_progress())
            except AssertionError as error:
                print(f"  FAILED: {error}", flush=True)
                failed.append(title)
                continue
        for name, value in figures.items():
            print(f"  {name}: {number(value)}", flush=True)
        rows.append(f"| {title} | " + " | ".join(number(figures[name]) for name in _OF_PATHS) + " |")
    if failed:
        print(f"noticed over: {'; '.join(failed)}")
        return 1
    if to_file:
        about = f"{made_on()}; seed {seed}.  Proxies as Debian installs them, and the worst path of the tests."
        head = [f"| path | {' | '.join(_OF_PATHS)} |", f"|---|{'---:|' * len(_OF_PATHS)}"]
        title = f"{number(cuts)} cuts each, split through what people have in front"
        write_section(REPORT, HEAD, title, [about, "", *head, *rows])
    return 0


_OF_PATHS = (
    "connections that met their end",
    "seconds",
    "streams, none of which noticed",
    "MB up",
    "MB down",
    "requests answered",
    "slowest answer, s",
)


def _leaks(storm: Storm, cuts: int) -> Figures:
    """All in rounds.  What a process keeps reaches its height in the first of them: how much of its buffers and
    threads' memory the allocators hand back is chance.  A leak goes on growing."""
    total: Figures = {}
    idle: dict[str, list[int]] = {"server": [], "client": []}
    for _ in range(ROUNDS):
        figures = storm.run(cuts // ROUNDS, progress=_progress())
        for name, value in figures.items():
            merge = max if name.startswith(("slowest", "server", "client")) else float.__add__
            total[name] = merge(float(total.get(name, 0.0)), float(value))
        for name, memory in storm.memory.items():
            idle[name].append(memory)
        print(
            "  idle again; " + ", ".join(f"{name}: {seen[-1] / MEBI:.1f} MiB" for name, seen in idle.items()),
            flush=True,
        )
    total["a second"] = total["connections that met their end"] / total["seconds"]
    for name, seen in idle.items():
        # What the allocator keeps comes in steps, in the first half of the rounds; a leak would go on in the second.
        middle, last = min(seen[ROUNDS // 2 : ROUNDS // 2 + 2]), min(seen[-2:])
        for turn, memory in enumerate(seen, 1):
            total[f"{name}: idle after round {turn}, MiB"] = memory / MEBI
        assert last - middle < GROWTH, f"the {name} goes on growing: {[round(m / MEBI, 1) for m in seen]} MiB"
    return total


def _progress() -> Callable[[int], None]:
    """Prints now and then how far it is."""
    began = last = time.monotonic()

    def progress(faults: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10:
            last = now
            print(f"  {faults} after {now - began:.0f} s", flush=True)

    return progress


if __name__ == "__main__":
    sys.exit(main())
