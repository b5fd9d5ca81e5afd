"""Promises of the JSON object: its keys are those of docs/OPERATIONS.md, and null is what was not measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qanat.measure.figures import Mark, Ping, Step
from qanat.measure.report import DOWNLOAD, IDLE, UPLOAD, VERSION, Report

PAGE = Path(__file__).parents[2] / "docs" / "OPERATIONS.md"
PINGS = (Ping(0.0, 0.001), Ping(0.2, 0.0025))
MARKS = (Mark(0.0, 0), Mark(0.1, 125_000), Mark(0.2, 250_000))


def report(complete: bool, **steps: Step) -> Report:
    return Report("office", "wss://x.example/tunnel", "grpc", "node-1", "qanat/1", 5.0, steps, complete)


def parsed(made: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.to_json())
    return found


def test_a_whole_measurement_has_every_key() -> None:
    found = parsed(report(True, idle=Step(PINGS), download=Step(PINGS, MARKS), upload=Step(PINGS, MARKS)))
    latency = {
        "count": 2,
        "min_ms": 1.0,
        "median_ms": 1.75,
        "p90_ms": 2.5,
        "p99_ms": 2.5,
        "max_ms": 2.5,
        "jitter_ms": 1.5,
        "max_ms_over_time": [1.0, None, 2.5],
    }
    throughput = {
        "bytes": 250_000,
        "seconds": 0.2,
        "median_bit_s": 10_000_000,
        "p10_bit_s": 10_000_000,
        "p90_bit_s": 10_000_000,
        "bit_s_over_time": [10_000_000, 10_000_000],
    }
    assert found == {
        "version": VERSION,
        "complete": True,
        "client": "office",
        "url": "wss://x.example/tunnel",
        "transport": "grpc",
        "server": {"node": "node-1", "agent": "qanat/1"},
        "seconds": 5.0,
        "interval_ms": 100,
        IDLE: latency,
        DOWNLOAD: {"throughput": throughput, "latency": latency},
        UPLOAD: {"throughput": throughput, "latency": latency},
    }


def test_what_was_not_measured_is_null() -> None:
    found = parsed(report(False, idle=Step(PINGS), download=Step((), MARKS[:1])))
    assert found["complete"] is False
    assert found[DOWNLOAD] == {"throughput": None, "latency": None}
    assert found[UPLOAD] is None


def test_only_a_report_with_figures_is_worth_printing() -> None:
    assert report(False, idle=Step(PINGS)).has_figures
    assert not report(False, idle=Step(())).has_figures
    assert not report(False).has_figures


def test_the_page_explains_every_key() -> None:
    found = parsed(report(True, idle=Step(PINGS), download=Step(PINGS, MARKS), upload=Step(PINGS, MARKS)))

    def keys(value: Any) -> set[str]:
        return (
            set(value) | {key for below in value.values() for key in keys(below)} if isinstance(value, dict) else set()
        )

    section = PAGE.read_text("utf-8").split("## Measure a tunnel")[1].split("\n## ")[0]
    assert keys(found) <= set(re.findall(r"`(\w+)`", section))
    assert f"`version` {VERSION}" in section
