"""`reload`: have a running server or client read its configuration again, and say what changed."""

from __future__ import annotations

import argparse

from qanat.base.text import printable
from qanat.cli.output import write_out
from qanat.cli.parser import add_config
from qanat.control.asking import ask
from qanat.control.files import sockets_of

DETAILS = """\
What changed in the file takes effect, and all else goes on: no session, stream or listener is touched that the
change does not concern.  What is not allowed any more ends with that reason.  A faulty file changes nothing: every
fault is printed, and the exit code is 2.  What needs a restart is said.  Flags of the running process go on counting.
SIGHUP does the same, and so does a change of the file with `watch_config: true`.

Run this as the process's user, or as root.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_config(parser, required=True)


def run(options: argparse.Namespace) -> int:
    """Reload, and print what that did, one line for each change.  Blocks.  Raises QanatError."""
    for path in sockets_of(options.config):
        changes = ask(path, "reload").get("changes", [])
        for change in changes:
            write_out(f"{printable(str(change))}\n")
        if not changes:
            write_out("nothing has changed\n")
    return 0
