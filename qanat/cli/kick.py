"""`kick`: end a session or a stream of a running server or client."""

from __future__ import annotations

import argparse

from qanat.base.text import format_count
from qanat.cli.output import write_out
from qanat.cli.target import FINDING, add_target, ask_one

DETAILS = (
    """\
The other end is told that an operator has ended it.  A client that is kicked connects anew at once, and its streams
are reset: to keep it out, take its account or its token out of the server's configuration, and reload.

"""
    + FINDING
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_target(parser)
    parser.add_argument(
        "target",
        metavar="NAME|STREAM",
        help="a client's name or a session's id; for a stream NAME/LANE/NUMBER, as `status` writes it, "
        "or 'NAME NUMBER', as the logs do",
    )


def run(options: argparse.Namespace) -> int:
    """End what is named, and say what that was.  Raises QanatError."""
    answer = ask_one(options, "kick", role="server", target=options.target)
    sessions, streams = answer.get("sessions", 0), answer.get("streams", 0)
    what = f"{format_count(sessions, 'session')} with " if sessions else ""
    write_out(f"ended {what}{format_count(streams, 'stream')}\n")
    return 0
