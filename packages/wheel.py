"""The wheel, for pip, pipx and uv, with the manuals and the completion that pipx puts where they are found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packages.completion import write_bash, write_zsh
from packages.man import write_manuals
from packages.source import build_environment, copy_source, settle


def build_wheel(into: Path) -> Path:
    """Build the wheel into the directory `into`, and return its path.  Needs setuptools; asks no network."""
    with tempfile.TemporaryDirectory() as directory:
        source, made = Path(directory, "source"), Path(directory, "made")
        copy_source(source)
        _add_shared(source)
        settle(source)
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


def _add_shared(source: Path) -> None:
    """Write what goes below PREFIX/share, and have setuptools take it along as data files."""
    share = source / "share"
    write_manuals(share / "man")
    write_bash(share / "bash-completion" / "completions" / "qanat")
    write_zsh(share / "zsh" / "site-functions" / "_qanat")
    folders = sorted({path.parent.relative_to(source) for path in share.rglob("*") if path.is_file()})
    with (source / "setup.cfg").open("a", encoding="utf-8") as setup:
        setup.write("\n[options.data_files]\n" + "".join(f"{folder} = {folder}/*\n" for folder in folders))


def put(made: Path, target: Path) -> Path:
    """Move `made` to `target`, which appears whole or not at all; return `target`."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.move(made, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target
