"""What a measurement has found, whole or as far as it came, and the same as JSON (docs/OPERATIONS.md).  Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qanat.measure.figures import INTERVAL, Latency, Step, Throughput

VERSION = 1
"""Of the JSON object: a higher one may have other keys, or mean something else by them."""
IDLE, DOWNLOAD, UPLOAD = "idle", "download", "upload"
"""The steps, in their order."""


@dataclass(frozen=True, slots=True)
class Report:
    """The steps that were begun, by name; `complete` when none of them was cut short."""

    client: str
    url: str
    transport: str
    node: str
    agent: str
    seconds: float
    steps: Mapping[str, Step]
    complete: bool

    @property
    def has_figures(self) -> bool:
        """Whether anything was measured."""
        return any(step.pings or len(step.marks) > 1 for step in self.steps.values())

    def to_json(self) -> str:
        """Return one JSON object, with a line end.  Milliseconds and bits a second; null is what was not measured."""
        idle = self.steps.get(IDLE)
        content = {
            "version": VERSION,
            "complete": self.complete,
            "client": self.client,
            "url": self.url,
            "transport": self.transport,
            "server": {"node": self.node, "agent": self.agent},
            "seconds": self.seconds,
            "interval_ms": round(INTERVAL * 1000),
            IDLE: None if idle is None else _latency(idle),
            DOWNLOAD: _loaded(self.steps.get(DOWNLOAD)),
            UPLOAD: _loaded(self.steps.get(UPLOAD)),
        }
        return json.dumps(content, indent=2) + "\n"


def _loaded(step: Step | None) -> dict[str, Any] | None:
    return None if step is None else {"throughput": _throughput(step), "latency": _latency(step)}


def _latency(step: Step) -> dict[str, Any] | None:
    found: Latency | None = step.latency
    if found is None:
        return None
    return {
        "count": found.count,
        "min_ms": _ms(found.least),
        "median_ms": _ms(found.median),
        "p90_ms": _ms(found.p90),
        "p99_ms": _ms(found.p99),
        "max_ms": _ms(found.most),
        "jitter_ms": _ms(found.jitter),
        "max_ms_over_time": [None if value is None else _ms(value) for value in step.latency_over_time()],
    }


def _throughput(step: Step) -> dict[str, Any] | None:
    found: Throughput | None = step.throughput
    if found is None:
        return None
    return {
        "bytes": found.received,
        "seconds": round(found.seconds, 6),
        "median_bit_s": round(found.median),
        "p10_bit_s": round(found.p10),
        "p90_bit_s": round(found.p90),
        "bit_s_over_time": [round(value) for value in step.throughput_over_time()],
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
