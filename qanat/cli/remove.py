"""`remove`: take forwards out of a running client."""

from __future__ import annotations

import argparse

from qanat.cli.add import add_forwards, change
from qanat.cli.target import FINDING, add_target

DETAILS = (
    """\
A forward is known by where it listens: write it as it was given, or that part alone (-L 8080), with the real port where
the system has chosen it.  Nobody new is let in, and the port is free; connections that are open go on to their end, as
with `ssh -O cancel`.  Those of a UDP port end with it.  No other forward is touched.  What the configuration has comes
back when the client reloads or restarts.

"""
    + FINDING
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_target(parser)
    add_forwards(parser)


def run(options: argparse.Namespace) -> int:
    """Ask for it, and print what came of it.  Blocks.  Raises QanatError."""
    return change(options, "remove")
