"""What a run has found, in memory and as JSON (`results.schema.json` beside this file says how)."""

from __future__ import annotations

import json
import os
import platform
import shlex
import ssl
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import DIRECT, SSH, Contender
from benchmarks.figures import Figure, Values
from benchmarks.report.sections import processor
from benchmarks.report.summary import Spread, ratios

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("results.schema.json")


@dataclass(frozen=True, slots=True)
class Failure:
    """One measurement that gave nothing."""

    contender: str
    group: str
    round: int
    why: str


@dataclass(slots=True)
class Results:
    """Every value of every round."""

    contenders: list[Contender]
    figures: list[Figure]
    rounds: int
    quick: bool
    skipped: dict[str, str] = field(default_factory=dict)
    """Contenders, and groups as "paths", that were not measured, and why."""
    failures: list[Failure] = field(default_factory=list)
    load_cores: dict[str, float] = field(default_factory=dict)
    """What load and target used themselves, at most, by group."""
    interrupted: bool = False
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    _values: dict[tuple[str, str], list[float | None]] = field(default_factory=dict)

    def add(self, contender: str, number: int, values: Values) -> None:
        """Keep what one measurement in round `number` gave."""
        for figure, value in values.items():
            self._values.setdefault((contender, figure), [None] * self.rounds)[number] = value

    def of(self, contender: str, figure: str) -> list[float | None]:
        """Return a value for each round; None where there is none."""
        return self._values.get((contender, figure), [None] * self.rounds)

    def spread(self, contender: str, figure: str) -> Spread | None:
        """Return median, least and greatest."""
        return Spread.of(self.of(contender, figure))

    def ratio(self, contender: str, figure: str, to: str = SSH) -> Spread | None:
        """Return the ratio to another contender, taken in each round."""
        return Spread.of(ratios(self.of(contender, figure), self.of(to, figure)))

    def why_not(self, contender: str, figure: Figure) -> str:
        """Return why there is no value: what failed, or what it lacks; empty when it was just not asked for."""
        if contender in self.skipped:
            return self.skipped[contender]
        group = figure.name.partition(".")[0]
        for failure in self.failures:
            if failure.contender == contender and group in failure.group:
                return f"failed: {failure.why}"
        return ""

    def as_json(self) -> dict[str, Any]:
        """Return what is written with --json."""

        def spread(found: Spread | None) -> dict[str, float] | None:
            return None if found is None else {key: _rounded(value) for key, value in asdict(found).items()}

        return {
            "schema": SCHEMA_VERSION,
            "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
            "date": self.date,
            "rounds": self.rounds,
            "quick": self.quick,
            "interrupted": self.interrupted,
            "machine": machine(),
            "contenders": [
                {
                    "name": one.name,
                    "title": one.title,
                    "version": "" if one.missing else one.version(),
                    "not_measured": self.skipped.get(one.name),
                }
                for one in self.contenders
            ],
            "figures": [asdict(figure) for figure in self.figures],
            "skipped": {name: why for name, why in self.skipped.items() if name not in self._names},
            "failures": [asdict(failure) for failure in self.failures],
            "load_cores": self.load_cores,
            "results": [
                {
                    "contender": contender,
                    "figure": figure,
                    "values": [None if value is None else _rounded(value) for value in values],
                    "spread": spread(Spread.of(values)),
                    "ratio_to_ssh": spread(self.ratio(contender, figure)),
                    "ratio_to_direct": spread(self.ratio(contender, figure, DIRECT)),
                }
                for (contender, figure), values in self._values.items()
            ],
        }

    def write(self, path: Path) -> None:
        """Write JSON to `path`."""
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n")

    @property
    def _names(self) -> set[str]:
        return {one.name for one in self.contenders}


def machine() -> dict[str, Any]:
    """Return what ran it."""
    memory = next(
        (line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")), "0"
    )
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "congestion_control": control.read_text().strip() if control.exists() else "",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _rounded(value: float) -> float:
    """Six digits are more than any of this means."""
    return float(f"{value:.6g}")
