"""What everything is built from: the checkout, with the time, the modes and the names that it has for everybody.

Two builds give the same bytes only when nothing of the builder's machine gets in: not the time of day, the umask, the
order of a directory, nor what else lies in the checkout.  All that is decided here.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""

_WHEEL = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def epoch() -> int:
    """Return the time that everything built has: $SOURCE_DATE_EPOCH, else that of the last commit.  Unix seconds.

    See https://reproducible-builds.org/specs/source-date-epoch/.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(git, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit("This is no clone, so nobody knows how old it is.  Set SOURCE_DATE_EPOCH to Unix seconds.")
    return int(done.stdout)


def epoch_text() -> str:
    """Return `epoch` as 2026-11-29T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch()))


def build_environment() -> dict[str, str]:
    """Return the environment in which a builder runs: the caller's, with nothing in it that shows in the result."""
    return {**os.environ, "SOURCE_DATE_EPOCH": str(epoch()), "TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def version() -> str:
    """Return Qanat's version."""
    text = (ROOT / "qanat" / "base" / "version.py").read_text("utf-8")
    return text.rpartition("__version__ = ")[2].strip().strip("\"'")


def requirements() -> list[str]:
    """Return what setup.cfg asks for at run time: "h11>=0.14,<1" and so on."""
    return [line for line in _setup()["options"]["install_requires"].splitlines() if line]


def summary() -> str:
    """Return the one line that says what Qanat is."""
    return _setup()["metadata"]["description"]


def _setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    return setup


def copy_source(to: Path) -> None:
    """Copy what a wheel is made of and no more: setuptools would take stale files from build/ along."""
    to.mkdir(parents=True)
    for name in _WHEEL:
        shutil.copy(ROOT / name, to)
    shutil.copytree(ROOT / "qanat", to / "qanat", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    settle(to)


def settle(tree: Path) -> None:
    """Give everything below `tree` the modes that a clone with umask 022 has, and the time of `epoch`."""
    moment = epoch()
    for folder, names, files in os.walk(tree, topdown=False):
        for name in (*names, *files):
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.utime(path, (moment, moment), follow_symlinks=False)
    tree.chmod(0o755)
    os.utime(tree, (moment, moment))
