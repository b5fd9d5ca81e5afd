"""`make bench`: Qanat over each of its transports side by side with OpenSSH, stunnel, v2ray and socat.

Everything runs on this machine and on loopback.  Each round measures every contender once, in another order, and ratios
are taken within a round; docs/PERFORMANCE.md says how, and what it has found.  Ctrl-C ends it with what it has by then.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import OTHERS
from benchmarks.qanat_contenders import QANAT
from benchmarks.report.plots import bars, write_plots
from benchmarks.report.results import Results
from benchmarks.report.tables import full_tables, goal_table, made_with, notes, plain, put_between, short_table
from benchmarks.rig.processes import ROOT
from benchmarks.rounds import ALL_GROUPS, Plan, Run
from qanat.base.files_limit import raise_open_files_limit

CONTENDERS = (*OTHERS, *QANAT)
QUICK_CONTENDERS = ("direct", "ssh", "stunnel", "websocket", "http2", "websocket-nginx")
QUICK_GROUPS = ("throughput", "ping", "ping-bulk", "connections", "http")
PAGE, README = ROOT / "docs" / "PERFORMANCE.md", ROOT / "README.md"
PLOTS = {
    "throughput.down.1": "performance-throughput.svg",
    "ping.p50": "performance-ping.svg",
    "connections.turn": "performance-connections.svg",
}
"""Figures that --write draws for the page, and the files in docs/."""


def parse(arguments: Sequence[str] | None = None) -> tuple[Plan, argparse.Namespace]:
    """Return what the command line asks for.  Raises SystemExit for --help and for mistakes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"contenders: {', '.join(one.name for one in CONTENDERS)}\nfigures: {', '.join(ALL_GROUPS)}",
    )
    parser.add_argument("--quick", action="store_true", help="about two minutes: fewer contenders, figures and seconds")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 5, with --quick 1")
    parser.add_argument("--only", metavar="NAMES", help="contenders, with commas between them")
    parser.add_argument("--figures", metavar="NAMES", help="groups of figures, with commas between them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw every figure as SVG")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/PERFORMANCE.md and README.md")
    parser.add_argument("--full", action="store_true", help="print every figure of every contender")
    options = parser.parse_args(arguments)
    known = {one.name: one for one in CONTENDERS}
    default = QUICK_CONTENDERS if options.quick else tuple(known)
    names = _chosen(parser, options.only, tuple(known), default, "contender")
    groups = _chosen(parser, options.figures, ALL_GROUPS, QUICK_GROUPS if options.quick else ALL_GROUPS, "figure")
    rounds = options.rounds if options.rounds is not None else 1 if options.quick else 5
    if rounds < 1:
        parser.error("--rounds must be at least 1")
    return Plan(tuple(known[name] for name in names), groups, rounds, options.quick), options


def main() -> int:
    """Measure and report; exit code 0, 1 when something failed, 130 when it was interrupted."""
    plan, options = parse()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    raise_open_files_limit()
    run = Run(plan, lambda text: print(text, flush=True))
    try:
        run.measure()
    except KeyboardInterrupt:
        run.results.interrupted = True
        print("interrupted: everything is stopped; what there is by now:", flush=True)
    _report(run.results, options)
    return 130 if run.results.interrupted else 1 if run.results.failures else 0


def _report(results: Results, options: argparse.Namespace) -> None:
    print("\n" + made_with(results) + "\n")
    print("\n".join(plain(short_table(results))))
    if options.full:
        print("\n" + "\n".join(full_tables(results)))
    goals = goal_table(results)
    if goals:
        print("\n" + "\n".join(plain(goals)))
    print("\n" + "\n".join(notes(results)))
    if options.json is not None:
        results.write(options.json)
        print(f"written: {options.json}")
    if options.plots is not None:
        print(f"written: {len(write_plots(results, options.plots))} plots in {options.plots}")
    if options.write and not results.interrupted:
        _write(results)


def _write(results: Results) -> None:
    about = [made_with(results), ""]
    put_between(README, "performance", [*about, *short_table(results, _for_readme())])
    put_between(PAGE, "summary", [*about, *short_table(results), "", *notes(results)])
    put_between(PAGE, "goals", goal_table(results))
    put_between(PAGE, "figures", full_tables(results))
    for figure in results.figures:
        picture = bars(results, figure) if figure.name in PLOTS else None
        if picture is not None:
            (PAGE.parent / PLOTS[figure.name]).write_text(picture)
    print(f"written: {PAGE.relative_to(ROOT)}, {README.relative_to(ROOT)}")


def _for_readme() -> set[str]:
    """What the front page compares: each transport, one proxy, and the others."""
    return {one.name for one in (*OTHERS, *QANAT) if "-" not in one.name} | {"websocket-wss", "websocket-nginx"}


def _chosen(
    parser: argparse.ArgumentParser, text: str | None, known: tuple[str, ...], default: tuple[str, ...], what: str
) -> tuple[str, ...]:
    """The names in `text`, in the order of `known`."""
    if text is None:
        return default
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            parser.error(f"there is no {what} {name!r}; there are {', '.join(known)}")
    if not wanted:
        parser.error(f"no {what} is named; there are {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


if __name__ == "__main__":
    sys.exit(main())
