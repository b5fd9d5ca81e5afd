"""`make bench`: what one stream carries through the whole tunnel over each transport, beside the bare loopback.

One of the columns keeps no frame for a resumption, which shows what keeping them costs.
The programs at either end, the server, and a client for each transport are processes of their own.  All figures of a
run are taken in turn, several rounds of each, and the medians are printed: compare them within one run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import programs
from .report import made_on
from .rig import TUNNELS, Rig


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="bytes in each transfer (default: 1000 MB)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default: 5)")
    options = parser.parse_args()
    size = options.megabytes * 1_000_000
    print(made_on(), flush=True)
    with tempfile.TemporaryDirectory(prefix="qanat-bench-") as folder, Rig(Path(folder)) as rig:
        rows: list[tuple[str, Callable[[int], float], str, str]] = [
            ("one stream, client to server", lambda port: programs.upload(port, size), "sink", "Gbit/s"),
            ("one stream, server to client", lambda port: programs.download(port, size), "source", "Gbit/s"),
            ("32-byte ping-pong, median", lambda port: programs.ping_pong(port, 2000), "echo", "µs"),
            ("new connections, in turn", lambda port: programs.connections(port, 400), "echo", "1/s"),
        ]
        table = Table("", "no tunnel", *TUNNELS, "unit", box=None, pad_edge=False)
        for title, measure, program, unit in rows:
            ports = [rig.direct[program], *(rig.tunnelled[name][program] for name in TUNNELS)]
            results: list[list[float]] = [[] for _ in ports]
            for _ in range(options.rounds):
                for port, found in zip(ports, results, strict=True):
                    found.append(measure(port))
            table.add_row(title, *(f"{statistics.median(found):.2f}" for found in results), unit)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
