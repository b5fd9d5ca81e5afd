"""Other people's programs that tests run: where they are, and what happens when one is missing.

A developer without HAProxy still gets a green run, with a visible skip.  A run that is meant to
prove everything (`QANAT_REQUIRE_PROGRAMS=1`, or `CI=true` as build services set it) fails instead,
because a test that is silently skipped everywhere proves nothing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

# Daemons live in sbin, which is not on an ordinary user's PATH on Debian.
_EXTRA_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/local/sbin")
# Debian keeps the server's programs of each PostgreSQL apart.
_POSTGRESQL = Path("/usr/lib/postgresql")

# Debian's package, where its name is not the program's.
_DEBIAN_PACKAGES = {
    "ssh": "openssh-client",
    "scp": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "supervisord": "supervisor",
    "supervisorctl": "supervisor",
    "systemd-analyze": "systemd",
    "nghttpx": "nghttp2-proxy",
    "nghttp": "nghttp2-client",
    "h2load": "nghttp2-client",
    "psql": "postgresql-client",
    "initdb": "postgresql",
    "postgres": "postgresql",
    "setpriv": "util-linux",
    "ps": "procps",
    "fuser": "psmisc",
    "ip": "iproute2",
}


def programs_are_required() -> bool:
    """Whether a missing program is a failure rather than a skip."""
    return os.environ.get("QANAT_REQUIRE_PROGRAMS") == "1" or os.environ.get("CI", "").lower() == "true"


def find_program(name: str) -> Path | None:
    """The path of `name` on PATH or in the directories of daemons; None when it is not installed."""
    newest_first = sorted((str(path) for path in _POSTGRESQL.glob("*/bin")), reverse=True)
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_EXTRA_DIRECTORIES, *newest_first])
    found = shutil.which(name, path=search)
    return None if found is None else Path(found)


def require_program(name: str) -> Path:
    """The path of `name`; otherwise skips the calling test, or fails it where programs are required."""
    found = find_program(name)
    if found is None:
        unavailable(f"{name} is not installed (apt-get install {_DEBIAN_PACKAGES.get(name, name)})")
    return found


def unavailable(reason: str) -> NoReturn:
    """Skip the calling test for `reason`, or fail it where programs are required."""
    if programs_are_required():
        pytest.fail(f"{reason}, and this run must not skip what needs it", pytrace=False)
    pytest.skip(reason)
