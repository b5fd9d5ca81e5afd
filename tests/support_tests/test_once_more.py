"""What fails beside others runs once more, alone: `python -m tests`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.__main__ import FEW
from tests.support.machine.processes import ROOT

STARVED = """
import os
def test_alone_only(): assert "PYTEST_XDIST_WORKER" not in os.environ
"""
WRONG = """
def test_wrong(): assert False
"""
MANY = f"""
import os, pytest
@pytest.mark.parametrize("number", range({FEW + 1}))
def test_alone_only(number): assert "PYTEST_XDIST_WORKER" not in os.environ
"""


@pytest.mark.parametrize(
    ("tests", "code", "said"),
    [(STARVED, 0, "These passed alone"), (WRONG, 1, "Once more, alone: 1"), (MANY, 1, f"{FEW + 1} failed")],
    ids=["starved", "wrong", "many"],
)
def test_what_fails_beside_others_runs_once_more_alone(tmp_path: Path, tests: str, code: int, said: str) -> None:
    (tmp_path / "test_it.py").write_text(tests)
    command = [sys.executable, "-m", "tests", "--numprocesses=1", "test_it.py"]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout
    assert said in done.stdout
    assert ("Once more" in done.stdout) == (tests is not MANY)
