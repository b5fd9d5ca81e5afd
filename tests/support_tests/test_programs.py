"""Promises of what the run says about tests that it skipped."""

from __future__ import annotations

import pytest

from tests.support.machine import programs
from tests.support.machine.programs import describe_skips, require_program


def reason_without(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(programs, "find_program", lambda name: None)
    monkeypatch.setattr(programs, "programs_are_required", lambda: False)
    with pytest.raises(pytest.skip.Exception) as skipped:
        require_program(name)
    return str(skipped.value)


def test_one_line_says_what_was_skipped_and_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    microsocks, sshd = (reason_without(name, monkeypatch) for name in ("microsocks", "sshd"))
    assert describe_skips([microsocks, "only root can run cron", sshd, microsocks]) == (
        "skipped 4 of the tests: 2 because microsocks is not installed; 1 because only root can run cron; "
        "1 because sshd is not installed; for all that is missing: apt install microsocks openssh-server"
    )


def test_what_no_package_cures_names_none() -> None:
    assert describe_skips(["only root can run cron"]) == "skipped 1 of the tests: 1 because only root can run cron"
    assert describe_skips([]) == ""
