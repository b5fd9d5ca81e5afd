"""How many more threads the system lets this process have.

Called once at start-up by the running server, who caps what strangers may hold to a part of that.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_EXEMPT = 1 << 21 | 1 << 24
"""CAP_SYS_ADMIN and CAP_SYS_RESOURCE: who has one is not held to RLIMIT_NPROC (setrlimit(2))."""


def spare_threads(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many more threads may be started; None where nothing bounds them, or that cannot be asked.

    What counts is the user's limit (RLIMIT_NPROC, raised to the hard one), of which all processes of the user use up
    something, and each control group's (pids.max, which systemd calls TasksMax).  Never raises.  Does not block.
    """
    if sys.platform != "linux":
        return None
    bounds = [*_left_to_user(proc), *_left_to_groups(proc, cgroups)]
    return max(0, min(bounds)) if bounds else None


def _left_to_user(proc: Path) -> Iterator[int]:
    limit = _raised_limit()
    if limit is None or os.getuid() == 0:
        return
    with contextlib.suppress(OSError, ValueError):
        if int(_field(proc / "self", "CapEff"), 16) & _EXEMPT:
            return
    used = 0
    for process in proc.iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                if int(_field(process, "Uid").split()[0]) == os.getuid():
                    used += int(_field(process, "Threads"))
    yield limit - used


def _raised_limit() -> int | None:
    """Raise the soft limit to the hard one; return what holds now, None without one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def _field(process: Path, name: str) -> str:
    """Return a field of /proc/PID/status.  Raises ValueError without one."""
    for line in (process / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise ValueError(name)


def _left_to_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Return what is left of pids.max in the group of this process and those around it (cgroups(7))."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "pids" not in controllers.split(","):
            continue
        root = cgroups / "pids" if controllers else cgroups
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            with contextlib.suppress(OSError, ValueError):  # "max", or a group that we do not see from in here
                yield int((group / "pids.max").read_text()) - int((group / "pids.current").read_text())
            group = group.parent
