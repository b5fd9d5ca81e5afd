"""`make bench`: what one stream carries through the whole tunnel, beside the bare loopback.

Five processes: a program at each end, the server, the client, and this one.  All figures of a run are taken
in turn, several rounds of each, and the medians are printed: compare them within one run.
"""

from __future__ import annotations

import argparse
import os
import platform
import ssl
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cryptography
from rich.console import Console
from rich.table import Table

from base.version import __version__

from . import programs
from .rig import Rig


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="bytes in each transfer (default: 1000 MB)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default: 5)")
    options = parser.parse_args()
    size = options.megabytes * 1_000_000
    print(_machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="qanat-bench-") as folder, Rig(Path(folder)) as rig:
        rows: list[tuple[str, Callable[[int], float], str, str]] = [
            ("one stream, client to server", lambda port: programs.upload(port, size), "sink", "Gbit/s"),
            ("one stream, server to client", lambda port: programs.download(port, size), "source", "Gbit/s"),
            ("32-byte ping-pong, median", lambda port: programs.ping_pong(port, 2000), "echo", "µs"),
            ("new connections, in turn", lambda port: programs.connections(port, 400), "echo", "1/s"),
        ]
        table = Table("", "no tunnel", "websocket", "ratio", "unit", box=None, pad_edge=False)
        for title, measure, program, unit in rows:
            bare, tunnelled = [], []
            for _ in range(options.rounds):
                bare.append(measure(rig.direct[program]))
                tunnelled.append(measure(rig.tunnelled[program]))
            a, b = statistics.median(bare), statistics.median(tunnelled)
            table.add_row(title, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}", unit)
    Console().print(table)
    return 0


def _machine() -> str:
    model = next(_lines("/proc/cpuinfo", "model name"), platform.processor())
    return (
        f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}, "
        f"{ssl.OPENSSL_VERSION}, cryptography {cryptography.__version__}, qanat {__version__}"
    )


def _lines(path: str, key: str) -> Iterator[str]:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                yield line.partition(":")[2].strip()
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
