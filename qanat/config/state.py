"""Where a process keeps what it must remember: a key of the file, an environment variable, or a place of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qanat.base.errors import UsageError

if TYPE_CHECKING:
    from qanat.config.section import Section


def read_state_dir(s: Section) -> Path:
    """Return `state_dir`, else $STATE_DIRECTORY, else the configuration file's directory."""
    return s.path("state_dir") or environment_state_dir(s.document.environ) or s.document.base


def environment_state_dir(environ: Mapping[str, str]) -> Path | None:
    """Return the first directory of $STATE_DIRECTORY, which systemd sets to a list with colons."""
    first = environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(first) if first else None


def user_state_dir(environ: Mapping[str, str], *, needed: bool) -> Path | None:
    """Return the user's own directory for state; None where there is none and none is `needed`.

    Raises UsageError where there is none and one is needed.
    """
    base = environ.get("XDG_STATE_HOME") or environ.get("LOCALAPPDATA")
    if base:
        return Path(base) / "qanat"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".local" / "state" / "qanat"
    if needed:
        raise UsageError(
            "this user has no home directory to keep known hosts in",
            hint="give --fingerprint SHA256:…, or set STATE_DIRECTORY to a directory that this user may write",
        )
    return None
