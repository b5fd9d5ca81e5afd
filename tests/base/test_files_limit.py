"""The open-files limit, raised in processes of their own so that this one keeps its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qanat.base.files_limit import raise_open_files_limit

ROOT = Path(__file__).resolve().parent.parent.parent

_SCRIPT = """
import resource
from qanat.base.files_limit import raise_open_files_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(raise_open_files_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize(("soft", "hard"), [(64, 512), (512, 512)])
def test_the_soft_limit_becomes_the_hard_one(soft: int, hard: int) -> None:
    script = _SCRIPT.format(soft=soft, hard=hard)
    output = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True, timeout=30)
    assert output.split() == [str(hard)] * 3


def test_raising_twice_changes_nothing() -> None:
    assert raise_open_files_limit() == raise_open_files_limit() > 0
