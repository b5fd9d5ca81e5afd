"""`python -m benchmarks.doctor`: every seeded fault and every sound path, examined, and every broken proxy cured.

Part of `make soak`; the tables go to docs/SEEDED.md.  Takes about twelve minutes, most of which is waiting.
tests/doctor runs some of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report.sections import made_on, write_section
from qanat.doctor.report import Severity, Verdict
from tests.support.broken_proxies import BROKEN
from tests.support.harness import ROOT, Tunnel
from tests.support.seeded_faults import FAULTS, SERVER, SOUND, Seeded, named

REPORT = ROOT / "docs" / "SEEDED.md"
LONGEST = 20.0
"""Seconds that an examination without silence may take."""


def main() -> int:
    """Examine all; exit code 1 when a cause was not named, a sound path was blamed, or one took too long."""
    parser = argparse.ArgumentParser(description="Every seeded fault; writes docs/SEEDED.md.")
    parser.add_argument("names", nargs="*", help="only those that have one of these in their names; writes nothing")
    parser.add_argument("--cures", action="store_true", help="cure the broken proxies only")
    options = parser.parse_args()
    if options.cures:
        return _cure_all()
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
        return max(1 if wrong else 0, _cure_all())
    return 1 if wrong else 0


def _cure_all() -> int:
    """Have each broken proxy examined, patched, reloaded and used; exit code 1 when one was not cured."""
    rows, failed = [], []
    with tempfile.TemporaryDirectory(prefix="qanat-cures-") as name, Tunnel(Path(name), server=SERVER) as tunnel:
        Path(name).chmod(0o755)
        tunnel.start_server()
        for number, one in enumerate(BROKEN):
            began = time.monotonic()
            try:
                one.cure(tunnel, Path(name) / str(number))
            except AssertionError as error:
                print(f"{one.name}: {error}", flush=True)
                failed.append(one.name)
                continue
            rows.append(f"| {one.name} | {one.transport} | {time.monotonic() - began:.0f} |")
            print(rows[-1], flush=True)
    if failed:
        print(f"not cured: {'; '.join(failed)}")
        return 1
    head = REPORT.read_text().partition("\n## ")[0].splitlines()
    about = (
        "Written by the same program, or by itself with `--cures`: running proxies with files that people write for a "
        "web site, none of them made from ours.  `doctor URL` named a cause, `patch` took what `doctor --proxy-config "
        "FILE` printed, the proxy was reloaded, `doctor URL` found the path sound, and a client connected and moved "
        "bytes over the transport that the file had kept out."
    )
    programs = {"nginx": "-v", "haproxy": "-v", "apache2": "-v", "caddy": "version", "nghttpx": "--version"}
    lines = [about, "", f"{made_on(programs=programs)}.", "", "| file | transport | seconds |", "|---|---|---:|", *rows]
    write_section(REPORT, head, "Cures", lines)
    return 0


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
