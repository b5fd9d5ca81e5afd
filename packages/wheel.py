"""The wheel, for pip, pipx and uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packages.source import build_environment, copy_source


def build_wheel(into: Path) -> Path:
    """Build the wheel into the directory `into`, and return its path.  Needs setuptools; asks no network."""
    with tempfile.TemporaryDirectory() as directory:
        source, made = Path(directory, "source"), Path(directory, "made")
        copy_source(source)
        made.mkdir()
        backend = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", backend, str(made)],
            cwd=source,
            env=build_environment(),
            stdout=subprocess.DEVNULL,
            check=True,
            # What setuptools writes itself gets the umask's modes, and the archive keeps them.
            umask=0o022,
        )
        (wheel,) = made.glob("*.whl")
        into.mkdir(parents=True, exist_ok=True)
        return put(wheel, into / wheel.name)


def put(made: Path, target: Path) -> Path:
    """Move `made` to `target`, which appears whole or not at all; return `target`."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.move(made, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target
