"""Builds tunnel.pyz: Qanat and all it needs in one file, for the Python that runs this.  `make pyz` calls it.

    python deploy/pyz/build.py tunnel.pyz

shiv collects the packages; its `__main__.py` is then replaced by deploy/pyz/start.py.  Needs pip, and the
network or a warm pip cache; what it builds needs neither.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

START = Path(__file__).resolve().with_name("start.py")
ROOT = START.parents[2]


def build(target: Path) -> None:
    """Build `target`; it appears whole or not at all.  Takes half a minute."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        archive = Path(directory) / "shiv.pyz"
        _copy_source(source)
        python = f"/usr/bin/env python{sys.version_info.major}.{sys.version_info.minor}"
        shiv = [sys.executable, "-m", "shiv", "--console-script", "qanat", "--python", python]
        subprocess.run([*shiv, "--output-file", str(archive), "--quiet", str(source)], check=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            _put_start_in(archive, draft)
            draft.rename(target)
        finally:
            draft.unlink(missing_ok=True)


def _copy_source(to: Path) -> None:
    """Copy what a wheel is made of and no more: setuptools would take stale files from build/ along."""
    to.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to)
    shutil.copytree(ROOT / "qanat", to / "qanat", ignore=shutil.ignore_patterns("__pycache__", "pyz"))


def _put_start_in(archive: Path, target: Path) -> None:
    built_for: str = runpy.run_path(str(START))["this_python"]()
    start = START.read_text("utf-8").replace("@BUILT_FOR@", built_for)
    with archive.open("rb") as file:
        shebang = file.readline()
    with zipfile.ZipFile(archive) as old, target.open("wb") as file:
        file.write(shebang)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                new.writestr(entry, start if entry.filename == "__main__.py" else old.read(entry))
    target.chmod(0o755)


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute())
