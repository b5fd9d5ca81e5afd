"""How the user called this program, to start it again and for commands to be typed next."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path


def command() -> list[str]:
    """Return the arguments that start this very program in another process."""
    return [sys.executable, *_program(os.path.abspath(sys.argv[0]))]


def lasting_command() -> list[str]:
    """Return the arguments that start this program in a service: the installed command by itself, where it is one."""
    called = os.path.abspath(shutil.which(sys.argv[0]) or sys.argv[0])
    if not called.endswith((".py", ".pyz")) and os.access(called, os.X_OK):
        return [called]
    return command()


def shown_command() -> str:
    """Return what the user typed, or would type, in front of a command's name, quoted for a shell."""
    called = sys.argv[0]
    if not called.endswith((".py", ".pyz")):
        return shlex.quote(os.path.basename(called))
    python = sys.executable
    if shutil.which("python3") == python:
        python = "python3"
    else:
        with contextlib.suppress(OSError):  # the current directory was removed, or we may not look into it
            if python.startswith(os.getcwd() + os.sep):
                python = os.path.relpath(python)
    return shlex.join([python, *_program(called)])


def _program(called: str) -> list[str]:
    path = Path(called)
    return ["-m", path.parent.name] if path.name == "__main__.py" else [called]
