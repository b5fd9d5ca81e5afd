"""What the program has set itself to reach, each as a bound on figures of the same round."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.contenders import DIRECT, SSH
from benchmarks.qanat_contenders import FRONTS, QANAT
from benchmarks.report.results import Results
from benchmarks.report.summary import Spread, differences, ratios

Value = tuple[str, str]
"""A contender and a figure."""


@dataclass(frozen=True, slots=True)
class Goal:
    """`value` alone, over `to`, or less `less`, has a bound."""

    title: str
    value: Value
    bound: float
    at_least: bool
    to: Value | None = None
    less: Value | None = None
    scale: float = 1.0  # of `less`, where its unit is another
    unit: str = ""

    def judge(self, results: Results) -> tuple[Spread, bool] | None:
        """Return what was found and whether it keeps the bound; None when it was not measured."""
        found = results.of(*self.value)
        if self.to is not None:
            found = ratios(found, results.of(*self.to))
        if self.less is not None:
            found = differences(found, [None if v is None else v * self.scale for v in results.of(*self.less)])
        spread = Spread.of(found)
        if spread is None:
            return None
        return spread, spread.median >= self.bound if self.at_least else spread.median <= self.bound


def _goals() -> list[Goal]:
    ours = "websocket"
    goals = []
    for way in ("up", "down"):
        one = f"throughput.{way}.1"
        goals += [
            Goal(f"one stream {way}, to OpenSSH", (ours, one), 1.0, True, (SSH, one), unit="x"),
            Goal(f"64 streams {way}, to one", (ours, f"throughput.{way}.64"), 1.0, True, (ours, one), unit="x"),
            Goal(f"1,000 streams {way}, to one", (ours, f"throughput.{way}.1000"), 0.8, True, (ours, one), unit="x"),
            Goal(f"1,000 streams {way}: longest wait", (ours, f"wait.{way}.1000"), 1.0, False, unit="s"),
            *(Goal(f"{name} {way}, to websocket", (name, one), 0.75, True, (ours, one), unit="x") for name in _plain()),
            Goal(f"with TLS {way}, to plain", (f"{ours}-wss", one), 0.8, True, (ours, one), unit="x"),
            Goal(f"CPU a GB {way}, to OpenSSH", (ours, f"cpu.{way}"), 1.2, False, (SSH, f"cpu.{way}"), unit="x"),
        ]
    goals += [
        Goal("ping p50, to OpenSSH", (ours, "ping.p50"), 1.5, False, (SSH, "ping.p50"), unit="x"),
        Goal("ping p99, to OpenSSH", (ours, "ping.p99"), 2.0, False, (SSH, "ping.p99"), unit="x"),
    ]
    for contender in QANAT:
        behind = contender.name.rpartition("-")[2] in FRONTS
        goals.append(
            Goal(
                f"ping beside bulk, above idle: {contender.name}",
                (contender.name, "ping-bulk.p50"),
                5.0 if behind else 2.0,
                False,
                less=(contender.name, "ping.p50"),
                scale=1e-3,
                unit="ms",
            )
        )
    goals += [
        Goal("new connections in turn", (ours, "connections.turn"), 1200, True, unit="1/s"),
        Goal("50 at once, to in turn", (ours, "connections.50"), 1.0, True, (ours, "connections.turn"), unit="x"),
        Goal("HTTP requests", (ours, "http.rate"), 15000, True, unit="1/s"),
        Goal("100 ms, 1 Gbit/s up, to raw TCP", (ours, "long.up"), 0.8, True, (DIRECT, "long.up"), unit="x"),
        Goal("100 ms, 1 Gbit/s down, to raw TCP", (ours, "long.down"), 0.8, True, (DIRECT, "long.down"), unit="x"),
        Goal(
            "20 Mbit/s: ping p99 above idle",
            (ours, "narrow.p99"),
            40.0,
            False,
            less=(ours, "narrow.idle.p99"),
            unit="ms",
        ),
        Goal("20 Mbit/s: share of the line, up", (ours, "narrow.up"), 90.0, True, unit="%"),
        Goal("20 Mbit/s: share of the line, down", (ours, "narrow.down"), 90.0, True, unit="%"),
        Goal("5,000 idle streams: memory of each, both ends", (ours, "memory.stream.5000"), 25.0, False, unit="KiB"),
        Goal("5,000 idle streams: memory that returns", (ours, "memory.returned.5000"), 50.0, True, unit="%"),
        Goal("5,000 idle streams: threads at either end", (ours, "threads.5000"), 40.0, False, unit=""),
        Goal("1,000 idle clients: server's memory of each", (ours, "clients.memory.1000"), 150.0, False, unit="KiB"),
        Goal("1,000 idle clients: server's threads", (ours, "clients.threads.1000"), 40.0, False, unit=""),
        Goal("1,000 idle clients: server's CPU", (ours, "clients.cpu.1000"), 3.0, False, unit="% of a core"),
    ]
    return goals


def _plain() -> list[str]:
    return [one.name for one in QANAT if "-" not in one.name and one.name != "websocket"]


GOALS = tuple(_goals())
