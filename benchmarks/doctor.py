"""`python -m benchmarks.doctor`: every seeded fault and every sound path, examined; the table goes to docs/SEEDED.md.

Part of `make soak`.  Takes about eight minutes, most of which is waiting.  tests/doctor runs some of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report.sections import made_on
from qanat.doctor.report import Severity, Verdict
from tests.support.harness import ROOT, Tunnel
from tests.support.seeded_faults import FAULTS, SERVER, SOUND, Seeded, named

REPORT = ROOT / "docs" / "SEEDED.md"
LONGEST = 20.0
"""Seconds that an examination without silence may take."""


def main() -> int:
    """Examine all; exit code 1 when a cause was not named, a sound path was blamed, or one took too long."""
    parser = argparse.ArgumentParser(description="Every seeded fault; writes docs/SEEDED.md.")
    parser.add_argument("names", nargs="*", help="only those that have one of these in their names; writes nothing")
    options = parser.parse_args()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory(prefix="qanat-doctor-") as name, Tunnel(Path(name), server=SERVER) as tunnel:
        Path(name).chmod(0o755)
        tunnel.start_server()
        for number, one in enumerate([*SOUND, *FAULTS]):
            if options.names and not any(part in one.name for part in options.names):
                continue
            row, why = _examine(one, tunnel, Path(name) / str(number))
            print(row, why, flush=True)
            rows.append(row)
            wrong += [why] if why else []
    print(f"{len(rows) - len(wrong)} of {len(rows)} are as they should be")
    if not options.names:
        REPORT.write_text(_report(rows, len(wrong)))
    return 1 if wrong else 0


def _examine(one: Seeded, tunnel: Tunnel, directory: Path) -> tuple[str, str]:
    """Return a row of the table, and what is wrong."""
    began = time.monotonic()
    with one.report(tunnel, directory) as report:
        seconds = time.monotonic() - began
        if one.codes:
            why = named(report, one)
        else:
            blamed = [f.code for f in report.findings if f.severity in (Severity.FATAL, Severity.FLAW)]
            why = f"{one.name}: {blamed}" if report.verdict is not Verdict.SOUND else ""
    codes = ", ".join(f"`{finding.code}`" for finding in report.findings) or "nothing"
    settings = next((s.product for f in report.findings if f.code in one.codes for s in f.settings[:1]), "")
    return f"| {one.name} | {codes} | {settings if one.product else ''} | {report.verdict.value} | {seconds:.1f} |", why


def _report(rows: list[str], wrong: int) -> str:
    programs = {"nginx": "-v", "haproxy": "-v", "caddy": "version", "nghttpx": "--version"}
    lines = [
        "# Seeded faults",
        "",
        "Written by `make soak` (`python -m benchmarks.doctor`): paths that are sound, then paths with one fault each,",
        f"and what `tunnel.py doctor` said of them.  {len(rows) - wrong} of {len(rows)} are as they should be:",
        "the cause is among what is found, with the setting for the proxy that stands there, and no sound path is",
        "blamed.  Faults of silence are looked for with silences of 2 to 8 s and proxies that cut after 5 s.",
        "",
        f"{made_on(programs=programs)}.",
        "",
        "| path | found | setting for | verdict | seconds |",
        "|---|---|---|---|---:|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
