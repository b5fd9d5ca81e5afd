"""The files in deploy/ as a user would put them into place: only paths and users are changed, and every change is used.

Each file names at its top what a user puts in; `deployed` makes just those replacements.
"""

from __future__ import annotations

import getpass
import grp
import os
import shlex
import sys
from pathlib import Path

from tests.support.machine.processes import ROOT, TUNNEL

DEPLOY = ROOT / "deploy"


def deployed(name: str, replacements: dict[str, object]) -> str:
    """The text of deploy/NAME with `replacements` made; each of them must be there to be made."""
    text = (DEPLOY / name).read_text()
    for old, new in replacements.items():
        assert old in text, f"deploy/{name} has no {old!r} any more"
        text = text.replace(old, str(new))
    return text


def install_command(path: Path) -> Path:
    """Put this checkout's Qanat at `path`, as a command that runs from anywhere and with any environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(TUNNEL))} "$@"\n')
    path.chmod(0o755)
    return path


def user() -> str:
    return getpass.getuser()


def group() -> str:
    return grp.getgrgid(os.getgid()).gr_name
