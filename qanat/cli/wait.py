"""`wait`: block until the running client of a configuration is connected, for what needs the connection."""

from __future__ import annotations

import argparse
import math
import time

from qanat.base.deadline import Deadline
from qanat.base.errors import QanatError, UsageError
from qanat.cli.main import DONE
from qanat.cli.parser import add_config
from qanat.config.load import load_config

INTERVAL = 0.5
"""Seconds between looks at the client's status file."""

DETAILS = """\
The client says in its state directory whether it is connected.  Run this as the client's user, and with the same
STATE_DIRECTORY where systemd sets one for the client (/var/lib/qanat with the unit in deploy/).

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

    file, deadline = status_file(settings), Deadline(timeout)
    if file is None:
        raise UsageError("this client keeps no state, so nobody can wait for it", hint="set state_dir")
    while True:
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
