"""`reload`: have a running server or client read its configuration again, and say what changed."""

from __future__ import annotations

import argparse

from qanat.base.text import printable
from qanat.cli.output import write_out
from qanat.cli.target import FINDING, add_target, alive, several
from qanat.config.faults import ConfigError
from qanat.control.running import NothingRuns, Running
from qanat.monitor.snapshot import Snapshot

DETAILS = (
    """\
What changed in the file takes effect, and all else goes on: no session, stream or listener is touched that the
change does not concern.  What is not allowed any more ends with that reason.  A faulty file changes nothing: every
fault is printed, and the exit code is 2.  What needs a restart is said.  Flags of the running process go on counting.
SIGHUP does the same, and so does a change of the file with `watch_config: true`.

"""
    + FINDING
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_target(parser)


def run(options: argparse.Namespace) -> int:
    """Reload, and print what that did, one line for each change.  Blocks.  Raises QanatError."""
    for one in _meant(options):
        changes = one.ask("reload").get("changes", [])
        for change in changes:
            write_out(f"{printable(str(change))}\n")
        if not changes:
            write_out("nothing has changed\n")
    return 0


def _meant(options: argparse.Namespace) -> list[Running]:
    """Return who should reload: all that run on a file, or the one process that runs here."""
    try:
        found = alive(options)
    except ConfigError as error:
        found = _running_on(options, error)
    if options.config is None and len(found) > 1:
        raise several(found)
    return [one for one, _ in found]


def _running_on(options: argparse.Namespace, error: ConfigError) -> list[tuple[Running, Snapshot]]:
    """Return who runs on a file that we find faulty: its process may have variables that we do not.

    Raises `error`, which has the faults, when nobody does.
    """
    config = str(options.config.absolute())
    try:
        everybody = alive(argparse.Namespace(config=None, socket=None))
    except NothingRuns:
        raise error from None
    found = [each for each in everybody if each[1].config == config]
    if not found:
        raise error
    return found
