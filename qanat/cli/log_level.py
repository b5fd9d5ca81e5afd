"""`log-level`: show or change how much a running server or client logs."""

from __future__ import annotations

import argparse

from qanat.base.text import printable
from qanat.cli.output import write_out
from qanat.cli.target import FINDING, add_target, alive, several
from qanat.monitor.summary import name_of

DETAILS = (
    """\
A level holds until it is changed again or the process ends; a reload keeps it unless `log` itself has changed.
`log-level debug` writes a line for each frame; `log-level debug mux` only what concerns that part.  `log-level default`
takes back all that was set, so that the level of the configuration counts; `log-level default mux` for that part alone.

"""
    + FINDING
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_target(parser)
    parser.add_argument("level", nargs="?", default="", metavar="LEVEL", help="error, warning, info, debug or default")
    parser.add_argument(
        "logger",
        nargs="?",
        default="",
        metavar="LOGGER",
        help="one part alone, as the log names it: client, session, mux … (default: all)",
    )


def run(options: argparse.Namespace) -> int:
    """Set the level, where one is given, and print what holds now.  Raises QanatError."""
    found = alive(options)
    if len(found) > 1 and options.level and options.config is None:
        raise several(found)
    for one, said in found:
        levels = one.ask("log-level", level=options.level, logger=options.logger).get("levels", {})
        for name, level in sorted(levels.items()):
            write_out(f"{name_of(said)}: {printable(str(name))} {printable(str(level))}\n")
    return 0
