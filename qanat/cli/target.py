"""Which running processes a command is for: all that are found here, or that of a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qanat.base.errors import UsageError
from qanat.cli.parser import add_config
from qanat.control.asking import ControlFault, NotRunning, ask
from qanat.control.running import NothingRuns, Running, find_running, running_of, running_on
from qanat.monitor.reading import read_snapshot
from qanat.monitor.snapshot import Snapshot

SAME_VERSION = "run the same version of Qanat as that process"

FINDING = """\
Without -c FILE every server and client is found that runs here as this user, or as any user for root: by the control
sockets in /var/lib/qanat, $STATE_DIRECTORY, ~/.local/state/qanat, /etc/qanat and the current directory, and through
/proc.  With -c FILE it is the one among them that runs on that file, with --socket FILE the one that listens there.

"""


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add -c FILE and --socket FILE, which say who is meant."""
    add_config(parser, required=False)
    parser.add_argument("--socket", type=Path, metavar="FILE", help="its control socket, for one without a file")


def several(found: list[tuple[Running, Snapshot]], whom: str = "several") -> UsageError:
    """Return the error for a command that one process is to do, where these were found."""
    files = ", ".join(sorted(said.config or str(one.path) for one, said in found))
    return UsageError(f"{whom} run here", hint=f"say which with -c FILE, or --socket FILE.sock: {files}")


def chosen(options: argparse.Namespace) -> list[Running]:
    """Return the processes that are meant, none of which need be alive.  Raises NothingRuns and ConfigError."""
    if options.socket is not None:
        return [Running(options.socket)]
    if options.config is None:
        return find_running()
    if running := running_on(options.config):
        return running
    from qanat.config.load import check_config  # which takes longer to load than all the rest

    found: list[Running] = []
    missing: NothingRuns | None = None
    for settings in check_config(options.config):
        if settings is not None:
            try:
                found.append(running_of(settings, options.config))
            except NothingRuns as error:
                missing = error
    if not found:
        assert missing is not None  # a configuration has one of the two sections
        raise missing
    return found


def alive(options: argparse.Namespace) -> list[tuple[Running, Snapshot]]:
    """Return those of them that answer, with who they are; at least one.  Blocks.  Raises QanatError."""
    found = []
    for one in chosen(options):
        try:
            found.append((one, read_snapshot(one.ask("status", brief=True).get("status"))))
        except NotRunning:
            continue
        except ValueError as error:
            raise ControlFault(f"what {one.path} answers is not understood", hint=SAME_VERSION) from error
    if not found:
        raise NothingRuns("nothing runs here that could be asked", hint="start it, or say which with -c FILE")
    return found


def ask_one(options: argparse.Namespace, command: str, *, role: str = "", **fields: Any) -> dict[str, Any]:
    """Ask the one process that is meant; return its answer.  Blocks.  Raises QanatError, as what it answers does.

    Of several that of this `role`, else raises UsageError, since a change is meant for one.
    """
    found = alive(options)
    if len(found) > 1:
        found = [each for each in found if each[1].role == role] or found
    if len(found) > 1:
        raise several(found)
    return ask(found[0][0].path, command, **fields)
