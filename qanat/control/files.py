"""The control sockets of what runs on a configuration file, for commands that change it.  Blocks on the disk.

The file need not be sound: a process that runs on it may have its variables in its environment alone, or wait to be
told of its faults.  Then the sockets where state is by default are asked on which file their processes run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from qanat.base.errors import QanatError
from qanat.config.faults import ConfigError
from qanat.config.load import check_config
from qanat.config.state import environment_state_dir
from qanat.control.asking import NotRunning, ask
from qanat.control.paths import ENDING, connect_to, control_path

SYSTEM_DIRECTORY = Path("/var/lib/qanat")
"""Where the units in deploy/ have state."""


def sockets_of(config: Path, role: Literal["server", "client", ""] = "") -> list[Path]:
    """Return the control sockets of what runs on `config`, at least one; with `role` exactly one.

    Raises NotRunning when nothing does, and ConfigError when the file is faulty besides.
    """
    fault: ConfigError | None = None
    try:
        server, client = check_config(config)
        paths = [
            control_path(settings)
            for settings in (server if role != "client" else None, client if role != "server" else None)
            if settings is not None
        ]
        found = [path for path in paths if path is not None and _answers(path)]
    except ConfigError as error:
        fault, found = error, []
    found = found or list(_running_on(config, role))
    if found:
        return found[:1] if role else found
    if fault is not None:
        raise fault
    raise NotRunning(
        f"nothing runs on {config}",
        hint="start it, or run this as its user and with its STATE_DIRECTORY",
    )


def _answers(path: Path) -> bool:
    try:
        sock = connect_to(path)
    except OSError:
        return True  # another user's: whoever asks is told so
    if sock is not None:
        sock.close()
    return sock is not None


def _running_on(config: Path, role: str) -> Iterator[Path]:
    """Yield the sockets whose processes say that they run on this file."""
    state = environment_state_dir(os.environ)
    directories = {config.absolute().parent, SYSTEM_DIRECTORY, *(() if state is None else (state,))}
    for directory in sorted(directories):
        for path in sorted(directory.glob(f"*-????????.{ENDING}")):
            with contextlib.suppress(QanatError):
                status = ask(path, "status")["status"]
                if status.get("config") == str(config.absolute()) and role in ("", status.get("role")):
                    yield path
