"""Other people's programs that tests run: where they are, and what happens when one is missing.

A developer without HAProxy still gets a green run, whose end says in one line what was skipped and how
to get it (`describe_skips`).  A run that is meant to prove everything (`QANAT_REQUIRE_PROGRAMS=1`, or
`CI=true` as build services set it) fails instead, because a test that is silently skipped everywhere
proves nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
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
    "apt-get": "apt",
    "ps": "procps",
    "fuser": "psmisc",
    "ip": "iproute2",
    "varnishd": "varnish",
    "dnsmasq": "dnsmasq-base",
    "wireguard-go": "wireguard-go",
    "wg": "wireguard-tools",
    "tcpdump": "tcpdump",
    "dig": "bind9-dnsutils",
    "dpkg-deb": "dpkg",
    "mount": "mount",
    "umount": "mount",
    "unshare": "util-linux",
    "promtool": "prometheus",
}

_INSTALL = " (apt install {})"
"""Ends the reason of a skip that a Debian package cures."""
_INSTALLED_BY = re.compile(re.escape(_INSTALL).replace(r"\{\}", "(?P<package>[^)]+)") + "$")


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
        unavailable(f"{name} is not installed{_INSTALL.format(_DEBIAN_PACKAGES.get(name, name))}")
    return found


def require_nginx_stream() -> str:
    """The line that loads nginx's stream module; otherwise as `require_program`."""
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    if not module.exists():
        unavailable(f"nginx's stream module is not installed{_INSTALL.format('libnginx-mod-stream')}")
    return f"load_module {module};"


def unavailable(reason: str) -> NoReturn:
    """Skip the calling test for `reason`, or fail it where programs are required."""
    if programs_are_required():
        pytest.fail(f"{reason}, and this run must not skip what needs it", pytrace=False)
    pytest.skip(reason)


def describe_skips(reasons: Sequence[str]) -> str:
    """Return one line for all tests that were skipped, each for one of `reasons`; "" when there are none.

    It has each reason once, the most frequent first, and the one command that brings all missing programs.
    """
    if not reasons:
        return ""
    causes = Counter(_INSTALLED_BY.sub("", reason) for reason in reasons)
    why = "; ".join(f"{count} because {cause}" for cause, count in causes.most_common())
    packages = {found["package"] for reason in reasons if (found := _INSTALLED_BY.search(reason))}
    cure = f"; for all that is missing: apt install {' '.join(sorted(packages))}" if packages else ""
    return f"skipped {len(reasons)} of the tests: {why}{cure}"
