"""The first code that runs in tunnel.pyz: is this the right Python, and where may it be unpacked?

Native modules cannot be loaded from inside an archive, so shiv's bootstrap unpacks the archive once
and runs from there.  By itself it does so in ~/.shiv, which cron jobs and hardened services may
not have.  This looks for a place that works and hands over.
packages/pyz.py puts it into the archive as `__main__.py`; nothing else calls it.

SHIV_ROOT names the place and overrides all this.  What was unpacked may be deleted at any time when
Qanat does not run; an upgrade leaves the directory of the old build behind.
"""

from __future__ import annotations

import sys

try:
    import json
    import os
    import zipfile
except KeyboardInterrupt:  # Ctrl-C this early
    sys.exit(130)

BUILT_FOR = "@BUILT_FOR@"


def this_python() -> str:
    """Return what native modules depend on: the interpreter's version and the platform."""
    return "{} {}".format(sys.implementation.cache_tag, getattr(sys.implementation, "_multiarch", sys.platform))


def choose_root() -> str:
    """Return a directory to unpack into that is this user's alone; ends the process when there is none."""
    for path in _candidates():
        if path and _is_private(path):
            return path
    sys.exit(
        f"qanat: error: no place to unpack {sys.argv[0]}: the home directory cannot be written, nor /var/tmp\n"
        "hint: set SHIV_ROOT to a directory that belongs to this user"
    )


def _candidates() -> list[str | None]:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [
        os.environ.get("CACHE_DIRECTORY", "").split(":")[0],  # systemd's, for units with CacheDirectory=
        os.path.join(cache, "qanat") if os.path.isabs(cache) else None,
        _shared_fallback(),
    ]


def _shared_fallback() -> str:
    # Not /tmp, which many systems empty at each start.
    return "/var/tmp/qanat-{}".format(os.getuid() if hasattr(os, "getuid") else "user")


def _is_private(path: str) -> bool:
    """Whether `path` can be made, written by us, and by nobody else: what lies there will be run."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError:
        return False
    ours = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
    return ours and os.path.isdir(path) and not os.path.islink(path) and os.access(path, os.W_OK)


def keep_whole(root: str) -> None:
    """In a directory for temporary files: no cleaner shall take away what we run from.

    systemd-tmpfiles passes over a directory that someone holds a lock on.  What a cleaner took while
    nobody held it is unpacked anew.
    """
    import fcntl

    # Never closed: the lock is to last as long as the process.
    fcntl.flock(os.open(root, os.O_RDONLY), fcntl.LOCK_SH)
    with zipfile.ZipFile(sys.argv[0]) as archive:
        build = json.loads(archive.read("environment.json").decode())["build_id"]
        unpacked = os.path.join(root, f"{os.path.basename(os.path.realpath(sys.argv[0]))}_{build}")
        names = [name for name in archive.namelist() if name.startswith("site-packages/")]
    if os.path.isdir(unpacked) and not all(os.path.exists(os.path.join(unpacked, name)) for name in names):
        os.environ["SHIV_FORCE_EXTRACT"] = "1"


def start() -> None:
    """Unpack what is missing, and run Qanat; ends the process."""
    if this_python() != BUILT_FOR:
        sys.exit(
            f"qanat: error: {sys.argv[0]} was built for {BUILT_FOR}, and this Python is {this_python()}\n"
            "hint: run it with that Python, or build it here: make pyz"
        )
    if "SHIV_ROOT" not in os.environ:
        os.environ["SHIV_ROOT"] = choose_root()
        if os.environ["SHIV_ROOT"] == _shared_fallback():
            keep_whole(os.environ["SHIV_ROOT"])

    import _bootstrap  # type: ignore[import-not-found]

    _bootstrap.bootstrap()


if __name__ == "__main__":
    try:
        start()
    except KeyboardInterrupt:
        sys.exit(130)
