"""Builds everything as `make` does, for the tests of this folder, and a Debian to install it in."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from packages.wheels import fetch
from tests.support.machine.programs import require_program

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 175.0


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


class Shared:
    """What tests of all modules look at, made once in a run, by whichever process of it comes first."""

    def __init__(self, temporary: pytest.TempPathFactory) -> None:
        base = temporary.getbasetemp()
        self._place = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def wheels(self) -> Path:
        """Return a directory with the wheels of what Qanat depends on."""
        return self._made("wheels", fetch)

    def built(self, kind: str) -> Path:
        """Return a directory with what `make KIND` makes, and nothing else."""
        wheels = self.wheels()
        return self._made(kind, lambda into: build([kind], wheels, into))

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return a directory that `make` has filled; other processes wait meanwhile."""
        whole, draft = self._place / f"shared-{name}", self._place / f"shared-{name}.draft"
        with (self._place / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir()
                make(draft)
                draft.rename(whole)
        return whole


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


BOOT = """\
hostname fresh-debian && ip link set lo up && mount --bind "{root}" "{root}" && cd "{root}" &&
mount -t proc proc proc && mount -t sysfs -o ro sysfs sys && mount -t cgroup2 cgroup2 sys/fs/cgroup &&
mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs dev && mkdir run/lock dev/pts dev/shm &&
for name in null zero full random urandom tty; do
    touch "dev/$name" && mount --bind "/dev/$name" "dev/$name" || exit
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts && ln -s pts/ptmx dev/ptmx &&
mount -t tmpfs tmpfs dev/shm &&
mkdir -p old && pivot_root . old && umount -l /old &&
exec env -i container=tests PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd </dev/null >/dev/null 2>&1
"""
UNIT = """\
[Unit]
Description=What the test does
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/sh -eux /script
Environment=HOME=/root DEBIAN_FRONTEND=noninteractive
StandardOutput=file:/said
StandardError=file:/said
TimeoutStartSec=160
"""


def boot_in(root: Path, script: str) -> str:
    """Boot `root` with systemd as process 1 of its own namespaces, run `script` by sh, and return what it printed.

    `script` runs as a unit of that systemd, with -eux; when it has ended, so has everything in there.  Only root can.
    The calling test is skipped where systemd finds no place to put its groups of processes.
    """
    unshare = require_program("unshare")
    second = Path("/sys/fs/cgroup/unified")  # where the first version of control groups is mounted as well
    group = (second if second.exists() else second.parent) / f"qanat-tests-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    (root / "script").write_text(script)
    units = root / "etc" / "systemd" / "system"
    (units / "multi-user.target.wants").mkdir(parents=True, exist_ok=True)
    (units / "test.service").write_text(UNIT)
    (units / "multi-user.target.wants" / "test.service").symlink_to("/etc/systemd/system/test.service")
    kinds = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--kill-child"]
    enter = f'echo $$ >"{group}/cgroup.procs" && exec "$@"'
    inside: list[str | Path] = [unshare, *kinds, "/bin/sh", "-c", BOOT.format(root=root)]
    try:
        subprocess.run(["/bin/sh", "-c", enter, "sh", *inside], stdin=subprocess.DEVNULL, timeout=SECONDS)
    finally:
        for path in sorted([group, *group.rglob("*")], reverse=True):
            if path.is_dir():
                with suppress(OSError):
                    path.rmdir()
    return (root / "said").read_text() if (root / "said").exists() else ""
