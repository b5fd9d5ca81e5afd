"""Builds everything as `make` does, for the tests of this folder, and a Debian to install it in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.machine.programs import require_program

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 175.0
LONG = os.environ.get("QANAT_LONG") == "1"
"""Whether to take minutes: `make soak` does."""


def long_only() -> None:
    """Skip the calling test, visibly, unless this run may take minutes."""
    if not LONG:
        pytest.skip("it takes minutes: QANAT_LONG=1, or make soak")


def build(kinds: Sequence[str], wheels: Path, into: Path, *, umask: int = 0o022, zone: str = "UTC") -> set[str]:
    """Build `kinds` from `wheels` with an environment of one's own; return the names of what was made."""
    done = subprocess.run(
        [sys.executable, "-m", "packages", *kinds, "--wheels", wheels, "--into", into],
        cwd=ROOT,
        env={**os.environ, "TZ": zone},
        umask=umask,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name for path in into.iterdir()}


@contextmanager
def copy_of_this_machine(directory: Path) -> Iterator[Path]:
    """Mount a copy of this machine's files, writable and gone at the end, at the path that is yielded.

    Only root can, and only where there are overlays; otherwise the calling test is skipped.
    """
    mount = require_program("mount")
    if os.geteuid() != 0:
        pytest.skip("only root can install packages")
    root, layer = directory / "root", directory / "layer"
    root.mkdir()
    layer.mkdir()
    # On a file system of its own: an overlay cannot lie on another.
    subprocess.run([mount, "-t", "tmpfs", "tmpfs", layer], check=True)
    mounted = [layer]
    try:
        for name in ("upper", "work"):
            (layer / name).mkdir()
        options = f"lowerdir=/,upperdir={layer}/upper,workdir={layer}/work"
        done = subprocess.run([mount, "-t", "overlay", "-o", options, "overlay", root], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"this machine has no overlays: {done.stderr.strip()}")
        mounted.append(root)
        yield root
    finally:
        for path in reversed(mounted):
            subprocess.run([require_program("umount"), "--lazy", path], check=True)


def run_in(root: Path, script: str) -> str:
    """Run `script` by sh inside `root`, with processes of its own that end with it; return what it printed."""
    unshare = require_program("unshare")
    (root / "script").write_text(script)
    inside = (
        f'mount -t proc proc "{root}/proc" && mount -t tmpfs tmpfs "{root}/dev" && '
        f'for name in null zero random urandom; do touch "{root}/dev/$name" && '
        f'mount --bind "/dev/$name" "{root}/dev/$name" || exit; done && mount -t tmpfs tmpfs "{root}/run" && '
        f'ip link set lo up && exec chroot "{root}" /bin/sh -eu /script'
    )
    done = subprocess.run(
        # A network of its own, too, so that the ports are free.
        [unshare, "--mount", "--pid", "--net", "--fork", "--kill-child", "/bin/sh", "-c", inside],
        stdin=subprocess.DEVNULL,
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
