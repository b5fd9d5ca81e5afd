"""The audit log is bounded, loses nothing in silence, and keeps nobody waiting."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from qanat.base.errors import UsageError
from qanat.config.server_settings import AuditSettings
from qanat.server import audit as audit_module
from qanat.server.audit import AuditFile, AuditLog
from tests.support.background import DEADLINE


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_log(path: Path, **settings: int) -> AuditLog:
    log = AuditLog()
    log.use(AuditFile(AuditSettings(path, **settings)))
    return log


def test_each_event_is_an_object_in_a_line_of_a_file_that_is_ours_alone(tmp_path: Path) -> None:
    log = open_log(tmp_path / "audit.log")
    log.record("one", client="a", nothing=None)
    log.record("two", text='a "b"\nc')
    log.close()
    one, two = lines_of(tmp_path / "audit.log")
    assert one["event"] == "one"
    assert one["client"] == "a"
    assert "nothing" not in one
    assert one["ts"].endswith("Z")
    assert two["text"] == 'a "b"\nc'
    assert stat.S_IMODE((tmp_path / "audit.log").stat().st_mode) == 0o600


def test_without_a_file_what_is_recorded_is_forgotten() -> None:
    log = AuditLog()
    log.record("one")
    assert not log.enabled
    log.close()


def test_its_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = open_log(path, max_bytes=65_536, keep=2)
    for number in range(3_000):
        log.record("event", number=number, text="x" * 100)
        if number % 100 == 0:
            log.flush()
    log.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["audit.log", "audit.log.1", "audit.log.2"]
    numbers = [
        line["number"] for name in ("audit.log.2", "audit.log.1", "audit.log") for line in lines_of(tmp_path / name)
    ]
    assert numbers == list(range(numbers[0], 3_000))
    assert all(each.stat().st_size <= 65_536 + 100 * 250 for each in tmp_path.iterdir())


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = open_log(path)
    log.record("one")
    log.flush()
    os.rename(path, tmp_path / "moved")
    log.record("two")
    log.flush()
    os.unlink(path)
    log.record("three")
    log.close()
    assert [line["event"] for line in lines_of(tmp_path / "moved")] == ["one"]
    assert [line["event"] for line in lines_of(path)] == ["three"]


def test_what_does_not_fit_is_counted_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MAX_WAITING", 100)
    stuck, go_on = threading.Event(), threading.Event()
    real = AuditFile.write

    def write(self: AuditFile, content: bytes) -> None:
        stuck.set()
        assert go_on.wait(DEADLINE)
        real(self, content)

    monkeypatch.setattr(AuditFile, "write", write)
    log = open_log(tmp_path / "audit.log")
    log.record("first")
    assert stuck.wait(DEADLINE)
    for _ in range(150):  # none of these blocks, though the disk does
        log.record("more")
    go_on.set()
    log.flush()
    log.record("last")
    log.close()
    lines = lines_of(tmp_path / "audit.log")
    assert [line["lines"] for line in lines if line["event"] == "lost"] == [50]
    assert len([line for line in lines if line["event"] == "more"]) == 100


def test_a_full_disk_costs_lines_and_they_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = True
    real = AuditFile.write

    def write(self: AuditFile, content: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        real(self, content)

    monkeypatch.setattr(AuditFile, "write", write)
    log = open_log(tmp_path / "audit.log")
    log.record("one")
    log.flush()
    full = False
    log.record("two")
    log.close()
    assert [(line["event"], line.get("lines")) for line in lines_of(tmp_path / "audit.log")] == [
        ("lost", 1),
        ("two", None),
    ]


@pytest.mark.parametrize("what", ["a link", "a directory", "a pipe", "nowhere"])
def test_what_is_no_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "audit.log"
    if what == "a link":
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "a directory":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        path = tmp_path / "missing" / "audit.log"
    with pytest.raises(UsageError, match="cannot open the audit log"):
        AuditFile(AuditSettings(path))
