"""Promises of how the program names itself and starts itself again, however it was called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qanat.cli import called
from tests.support.machine.processes import ROOT, TUNNEL


def test_a_script_is_started_again_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(TUNNEL.parent)
    monkeypatch.setattr(sys, "argv", ["tunnel.py", "demo"])
    again = [*called.command(), "--version"]
    monkeypatch.chdir(tmp_path)
    assert subprocess.run(again, capture_output=True, text=True, check=True).stdout.startswith("qanat ")


def test_the_package_is_started_again_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "qanat" / "__main__.py"), "demo"])
    again = [*called.command(), "--version"]
    assert subprocess.run(again, capture_output=True, text=True, check=True, cwd=ROOT).stdout.startswith("qanat ")
    assert called.shown_command().endswith(" -m qanat")


def test_what_is_shown_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/srv/my programs/tunnel.py", "init"])
    assert called.shown_command().endswith(" '/srv/my programs/tunnel.py'")


def test_without_a_current_directory_it_still_has_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "argv", [str(TUNNEL), "init"])
    assert called.shown_command().endswith(f" {TUNNEL}")


def test_the_package_calls_itself_by_what_a_user_types() -> None:
    usage = subprocess.run([sys.executable, "-m", "qanat", "check"], capture_output=True, text=True, cwd=ROOT)
    assert "usage: python -m qanat check" in usage.stderr
