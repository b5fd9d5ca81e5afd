"""`wait`: block until the running client of a configuration is connected, for what needs the connection."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.errors import QanatError, UsageError
from qanat.cli.main import DONE
from qanat.cli.parser import add_config
from qanat.config.client_settings import ClientSettings
from qanat.config.load import load_config
from qanat.control.running import NothingRuns, running_of

INTERVAL = 0.5
"""Seconds between looks at the client's status file."""

DETAILS = """\
The client says in its state directory whether it is connected.  Run this as the client's user, or as root.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_config(parser, required=True)
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="exit with 1 after so many seconds (default: wait for ever)"
    )


def run(options: argparse.Namespace) -> int:
    """Block until the client is connected.  Raises QanatError when the time is over before."""
    timeout: float | None = options.timeout
    if timeout is not None and not (math.isfinite(timeout) and timeout >= 0):
        raise UsageError("--timeout must be a number of seconds from 0")
    settings = load_config(options.config, want="client")
    from qanat.client.status import is_connected, status_file

    here, deadline = status_file(settings), Deadline(timeout)
    if here is None:
        raise UsageError("this client keeps no state, so nobody can wait for it", hint="set state_dir")
    while True:
        file = here if here.exists() else _file_elsewhere(settings, options.config) or here
        try:
            if is_connected(file):
                return DONE
        except OSError as error:
            hint = "run this as the client's user, or as root"
            raise QanatError(f"cannot read {file}: {error.strerror}", hint=hint) from error
        if deadline.passed:
            raise QanatError(
                f"the client {settings.name} was not connected within {timeout:g} s",
                hint=f"its log says why; if it is connected, it keeps its state elsewhere than in {file.parent}",
            )
        remaining = deadline.remaining()
        time.sleep(INTERVAL if remaining is None else min(INTERVAL, max(remaining, 0.01)))


def _file_elsewhere(settings: ClientSettings, config: Path) -> Path | None:
    """Return the status file of the client that runs on `config` with another state directory, as a service does."""
    from qanat.client.status import status_file

    try:
        running = running_of(settings, config)
    except NothingRuns:
        return None
    return status_file(replace(settings, state_dir=running.path.parent))
