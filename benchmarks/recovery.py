"""`python -m benchmarks.recovery`: how long a stream stands still when its connection is reset, 200 cuts a transport.

Once on loopback, and once with a round trip of 100 ms between client and relay: by the kernel (netem on loopback in a
network namespace of its own; needs root), or by the relay where that is not to be had; the report says which.  Writes
docs/RECOVERY.md and docs/recovery.svg, for which it needs matplotlib (the extra `bench`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report.sections import made_on
from qanat.cli.demo import TRANSPORTS
from tests.support.chaos import ChaosRelay
from tests.support.harness import ROOT, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.recovery import Heartbeat, recovery_times

REPORT, PLOT = ROOT / "docs" / "RECOVERY.md", ROOT / "docs" / "recovery.svg"
ONE_WAY = 50
"""Milliseconds each way on the slow path."""

LOOPBACK = "loopback"
BY_KERNEL = "100 ms round trip, by netem"
BY_RELAY = "100 ms round trip, by the relay"


@dataclass(frozen=True, slots=True)
class Result:
    path: str
    transport: str
    seconds: list[float]

    @property
    def row(self) -> tuple[str, ...]:
        ordered = sorted(self.seconds)
        figures = (statistics.median(ordered), ordered[int(len(ordered) * 0.9)], ordered[-1])
        return self.path, self.transport, str(len(ordered)), *(f"{value * 1000:,.0f}" for value in figures)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure recovery after cuts; writes docs/RECOVERY.md and its plot.")
    parser.add_argument("--cuts", type=int, default=200, help="cuts for each transport and path (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="when they come (default: 1)")
    parser.add_argument("--transport", action="append", choices=TRANSPORTS, help="may be repeated (default: all)")
    parser.add_argument("--print", action="store_true", help="print the figures, and write nothing")
    parser.add_argument("--in-namespace", type=Path, help=argparse.SUPPRESS)  # measure there, results to this file
    options = parser.parse_args()
    transports = options.transport or list(TRANSPORTS)
    if options.in_namespace:
        _tell("ip", "link", "set", "lo", "up")
        found = [_measure(BY_KERNEL, name, options, prepare=_delay_port) for name in transports]
        options.in_namespace.write_text(json.dumps([asdict(result) for result in found]))
        return 0
    results = [_measure(LOOPBACK, name, options) for name in transports]
    if _kernel_can_delay():
        results += _measure_in_namespace()
    else:
        print("no netem here (root and sch_netem are needed): the relay delays instead", flush=True)
        results += [_measure(BY_RELAY, name, options, delay=ONE_WAY / 1000) for name in transports]
    if not options.print:
        _plot(results)
        REPORT.write_text(_report(results, options.seed))
        print(f"written to {REPORT.relative_to(ROOT)} and {PLOT.relative_to(ROOT)}")
    return 0


def _measure(
    path: str,
    transport: str,
    options: argparse.Namespace,
    *,
    delay: float = 0.0,
    prepare: Callable[[int], None] = lambda port: None,
) -> Result:
    """One tunnel and one stream; `prepare` gets the relay's port before anybody connects to it."""
    port = unused_port()
    with tempfile.TemporaryDirectory(prefix="qanat-recovery-") as directory, Heartbeat() as beat:
        forwards = [{"local": f"127.0.0.1:{port}", "to": beat.address}]
        # Nothing but the transport differs from the defaults: what is measured is what users get.
        with (
            Tunnel(Path(directory), forwards, client={"transport": transport, "reconnect": {}}) as tunnel,
            ChaosRelay(tunnel.port, calm=True, delay=delay) as relay,
        ):
            prepare(relay.port)
            tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
            tunnel.start()
            beat.connect(port)
            result = Result(path, transport, recovery_times(relay, beat, options.cuts, seed=options.seed))
            beat.close()
    _, _, cuts, median, most, longest = result.row
    print(f"{path}, {transport}: {cuts} cuts, median {median} ms, p90 {most} ms, max {longest} ms", flush=True)
    return result


# --- the kernel's delay -----------------------------------------------------------------------------


def _kernel_can_delay() -> bool:
    command = f"ip link set lo up && tc qdisc add dev lo root netem delay {ONE_WAY}ms"
    try:
        return subprocess.run(["unshare", "-n", "sh", "-c", command], capture_output=True).returncode == 0
    except OSError:
        return False


def _measure_in_namespace() -> list[Result]:
    """The same program in a network namespace of its own, where loopback may be slowed down."""
    with tempfile.TemporaryDirectory(prefix="qanat-recovery-") as directory:
        file = Path(directory) / "results.json"
        _tell("unshare", "-n", sys.executable, "-m", "benchmarks.recovery", *sys.argv[1:], "--in-namespace", str(file))
        return [Result(**result) for result in json.loads(file.read_text())]


def _delay_port(port: int) -> None:
    """Every packet on loopback to or from this port comes `ONE_WAY` later; nothing else does."""
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True)  # the last transport's
    _tell("tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "1")
    for number in ("1:1", "1:2"):
        _tell("tc", "class", "add", "dev", "lo", "parent", "1:", "classid", number, "htb", "rate", "10gbit")
    _tell("tc", "qdisc", "add", "dev", "lo", "parent", "1:2", "netem", "delay", f"{ONE_WAY}ms", "limit", "100000")
    for end in ("sport", "dport"):
        _tell(
            "tc",
            "filter",
            "add",
            "dev",
            "lo",
            "parent",
            "1:",
            "protocol",
            "ip",
            "u32",
            "match",
            "ip",
            end,
            str(port),
            "0xffff",
            "flowid",
            "1:2",
        )


def _tell(*command: str) -> None:
    subprocess.run(command, check=True)


# --- the report ---------------------------------------------------------------------------------------


def _report(results: Sequence[Result], seed: int) -> str:
    lines = [
        "# Recovery",
        "",
        "Written by `python -m benchmarks.recovery`: both ends of one stream send a numbered byte every millisecond.",
        "A relay between client and server resets the connection.  Measured is the time until a byte that was sent",
        "after the reset has arrived, in the slower of the two directions.  The round trip lies between client and",
        "relay, and delays TCP's own handshake and the news of the reset too.  All settings are the defaults.",
        "",
        f"{made_on(libraries=('cryptography', 'websocket-client', 'simple-websocket', 'h2'))}; seed {seed}.",
        "",
        "| path | transport | cuts | median, ms | p90, ms | max, ms |",
        "|---|---|---:|---:|---:|---:|",
        *(f"| {' | '.join(result.row)} |" for result in results),
        "",
        "![The share of cuts that were recovered from within each time](recovery.svg)",
        "",
    ]
    return "\n".join(lines)


def _plot(results: Sequence[Result]) -> None:
    """The share of cuts that were healed within each time, a panel for each path and a line for each transport."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures make the same file, and a small one.
    matplotlib.rcParams |= {"svg.hashsalt": "qanat", "svg.fonttype": "none"}
    from matplotlib import pyplot

    paths = list(dict.fromkeys(result.path for result in results))
    figure, panels = pyplot.subplots(1, len(paths), figsize=(5 * len(paths), 3.5), squeeze=False, sharey=True)
    for path, axes in zip(paths, panels[0], strict=True):
        for result in results:
            if result.path == path:
                ordered = sorted(result.seconds)
                shares = [(number + 1) / len(ordered) * 100 for number in range(len(ordered))]
                axes.step([seconds * 1000 for seconds in ordered], shares, where="post", label=result.transport)
        axes.set_title(path)
        axes.set_xlabel("ms from the cut to the first new byte")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("% of cuts")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
