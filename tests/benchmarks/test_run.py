"""Whole runs: what they write, what a failure looks like, and that nothing is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import CONTENDERS
from benchmarks.contenders import Contender, Running, Site
from benchmarks.report.results import SCHEMA
from benchmarks.report.tables import put_between
from benchmarks.rounds import Plan, Run

ROOT = Path(__file__).resolve().parents[2]


def check(value: Any, schema: dict[str, Any], at: str = "results") -> None:
    """Assert that `value` is what a JSON schema says, as far as ours go."""
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    known = {"$schema", "title", "type", "enum", "required", "properties", "additionalProperties", "items"}
    assert schema.keys() <= known, f"{at}: this check does not know {schema.keys() - known}"
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, kinds[one]) for one in types), f"{at}: {value!r} is no {types}"
    if "enum" in schema:
        assert value in schema["enum"], at
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= value.keys(), at
        more = schema.get("additionalProperties", True)
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, more)
            assert inner is not False, f"{at} has {key}"
            if inner is not True:
                check(item, inner, f"{at}.{key}")
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            check(item, schema["items"], f"{at}[{number}]")


def left_over(folder: Path) -> list[str]:
    """Processes that know of `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command.decode(errors="replace"))
    return found


def run(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    scratch = folder / "scratch"
    scratch.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_quick_run_measures_and_writes_what_the_schema_says(tmp_path: Path) -> None:
    file, plots = tmp_path / "found.json", tmp_path / "plots"
    arguments = "--quick", "--rounds", 1, "--only", "websocket", "--figures", "ping", "--json", file, "--plots", plots
    with run(tmp_path, *arguments) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Qanat, websocket" in output
    found = json.loads(file.read_text())
    check(found, json.loads(SCHEMA.read_text()))
    values = {entry["figure"]: entry["spread"]["median"] for entry in found["results"]}
    assert 10 < values["ping.p50"] <= values["ping.p99"] <= values["ping.p99.9"]
    assert values["cpu.ping"] > 0
    assert (plots / "ping.p50.svg").read_text().startswith("<svg")
    assert not list((tmp_path / "scratch").iterdir())
    assert not left_over(tmp_path)


def test_an_interrupted_run_stops_what_it_started(tmp_path: Path) -> None:
    with run(tmp_path, "--only", "websocket", "--figures", "ping,http", "--rounds", 1000) as process:
        assert process.stdout is not None
        assert "ping" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "The run was interrupted." in output
    assert not list((tmp_path / "scratch").iterdir())
    assert not left_over(tmp_path)


def broken(site: Site) -> Running:
    raise RuntimeError("it has no legs")


def test_a_contender_that_fails_is_a_row_and_not_the_end() -> None:
    direct = next(one for one in CONTENDERS if one.name == "direct")
    gone = Contender("gone", "gone", broken, programs=("no-such-program",), packages="gone-package")
    said: list[str] = []
    measuring = Run(Plan((Contender("broken", "broken", broken), gone, direct), ("ping",), 2, True), said.append)
    measuring.measure()
    results = measuring.results
    assert [(one.contender, one.round, one.why) for one in results.failures] == [
        ("broken", 0, "RuntimeError: it has no legs"),
        ("broken", 1, "RuntimeError: it has no legs"),
    ]
    assert results.skipped == {"gone": "not installed: apt-get install gone-package"}
    assert None not in results.of("direct", "ping.p50")
    # In another order each round.
    assert [line.split()[5] for line in said] == ["broken", "direct", "direct", "broken"]
    check(results.as_json(), json.loads(SCHEMA.read_text()))


def test_each_round_has_processes_of_its_own() -> None:
    direct = next(one for one in CONTENDERS if one.name == "direct")
    started: list[Site] = []

    def start(site: Site) -> Running:
        started.append(site)
        return direct.start(site)

    measuring = Run(Plan((replace(direct, start=start),), ("ping", "connections"), 3, True), lambda text: None)
    measuring.measure()
    assert len(started) == 3
    assert None not in measuring.results.of("direct", "ping.p50")


def test_tables_are_put_between_their_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- it: from here -->\nold\n<!-- it: to here -->\nafter\n")
    put_between(page, "it", ["new"])
    assert page.read_text() == "before\n<!-- it: from here -->\nnew\n<!-- it: to here -->\nafter\n"
    with pytest.raises(ValueError, match=r"page\.md has no lines <!-- other: from here -->"):
        put_between(page, "other", [])


@pytest.mark.parametrize(
    ("page", "markers"), [("README.md", ["performance"]), ("docs/PERFORMANCE.md", ["summary", "goals", "figures"])]
)
def test_the_pages_have_the_lines_that_write_looks_for(page: str, markers: list[str]) -> None:
    text = (ROOT / page).read_text()
    for marker in markers:
        assert f"<!-- {marker}: from here -->\n" in text
        assert f"<!-- {marker}: to here -->" in text
