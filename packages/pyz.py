"""tunnel.pyz: Qanat and all it needs in one file, for the Python that builds it.

shiv collects the packages; its `__main__.py` is then replaced by packages/pyz_start.py.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packages.source import build_environment, epoch, settle
from packages.wheel import put
from packages.wheels import Wheel, unpack

_START = Path(__file__).resolve().with_name("pyz_start.py")


def build_pyz(wheels: Sequence[Wheel], target: Path) -> Path:
    """Build `target` out of `wheels`, Qanat's own among them; it appears whole or not at all."""
    with tempfile.TemporaryDirectory() as directory:
        tree, archive, whole = Path(directory, "tree"), Path(directory, "shiv.pyz"), Path(directory, target.name)
        unpack(wheels, tree)
        settle(tree)
        python = f"/usr/bin/env python{sys.version_info.major}.{sys.version_info.minor}"
        shiv = [
            sys.executable,
            "-m",
            "shiv",
            "--console-script",
            "qanat",
            "--python",
            python,
            "--reproducible",
            "--uncompressed",
        ]
        subprocess.run(
            [*shiv, "--site-packages", str(tree), "--output-file", str(archive)],
            check=True,
            env=build_environment(),
            umask=0o022,
        )
        _put_start_in(archive, whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        return put(whole, target)


def _put_start_in(archive: Path, target: Path) -> None:
    """Write the archive anew: with our start, sorted, and with nothing of this machine in its entries."""
    built_for: str = runpy.run_path(str(_START))["this_python"]()
    start = _START.read_text("utf-8").replace("@BUILT_FOR@", built_for)
    with archive.open("rb") as file:
        shebang = file.readline()
    # A zip file's times begin in 1980 and have no zone.
    moment = time.gmtime(max(epoch(), 315532800))[:6]
    with zipfile.ZipFile(archive) as old, target.open("wb") as file:
        file.write(shebang)
        with zipfile.ZipFile(file, "w") as new:
            for name in sorted(name for name in old.namelist() if not name.endswith("/")):
                entry = zipfile.ZipInfo(name, moment)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o100644 << 16
                new.writestr(entry, start if name == "__main__.py" else old.read(name))
    target.chmod(0o755)
