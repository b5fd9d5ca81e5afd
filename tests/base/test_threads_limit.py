"""How many more threads there may be is told from the user's limit and from the control groups'."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from qanat.base.threads_limit import spare_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of its limits in files")

NO_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two processes of ours with 30 threads, and another user's."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: NO_LIMIT)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    proc = tmp_path / "proc"
    for name, uid, threads in (("self", 1000, 10), ("10", 1000, 10), ("11", 1000, 20), ("12", 1001, 500)):
        (proc / name).mkdir(parents=True)
        status = f"Name:\tx\nUid:\t{uid}\t0\t0\t0\nThreads:\t{threads}\nCapEff:\t0000000000000000\n"
        (proc / name / "status").write_text(status)
    (proc / "self" / "cgroup").write_text("0::/\n")
    (proc / "version").write_text("not a process")
    return proc


def group(path: Path, most: str, now: int) -> None:
    path.mkdir(parents=True)
    (path / "pids.max").write_text(f"{most}\n")
    (path / "pids.current").write_text(f"{now}\n")


def test_without_limits_there_is_no_number(proc: Path, tmp_path: Path) -> None:
    assert spare_threads(proc, tmp_path / "cgroup") is None


def test_all_threads_of_the_user_count_against_its_limit(
    proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 100))
    assert spare_threads(proc, tmp_path / "cgroup") == 70


@pytest.mark.parametrize("capability", ["0000000000200000", "0000000001000000"])
def test_who_may_go_beyond_the_limit_has_none(
    proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 100))
    status = proc / "self" / "status"
    status.write_text(status.read_text().replace("0000000000000000", capability))
    assert spare_threads(proc, tmp_path / "cgroup") is None


@pytest.mark.parametrize(("line", "root"), [("0::", "."), ("7:cpu,pids:", "pids")])
def test_the_narrowest_group_counts(proc: Path, tmp_path: Path, line: str, root: str) -> None:
    (proc / "self" / "cgroup").write_text(f"3:memory:/elsewhere\n{line}/system.slice/qanat.service\n")
    cgroups = tmp_path / "cgroup"
    group(cgroups / root / "system.slice", "1000", 400)
    group(cgroups / root / "system.slice" / "qanat.service", "max", 40)
    assert spare_threads(proc, cgroups) == 600
    (cgroups / root / "system.slice" / "qanat.service" / "pids.max").write_text("100\n")
    assert spare_threads(proc, cgroups) == 60


def test_what_cannot_be_read_bounds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: NO_LIMIT)
    assert spare_threads(tmp_path / "nothing", tmp_path / "nothing") is None
