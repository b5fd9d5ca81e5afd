"""`add`: give a running client more forwards, and say where they listen."""

from __future__ import annotations

import argparse
from typing import Any

from qanat.base.text import printable
from qanat.cli.main import DONE
from qanat.cli.output import write_out
from qanat.cli.target import FINDING, add_target, alive, several
from qanat.control.running import NothingRuns, Running

FORWARDS = (
    ("-L", "local", "[ADDRESS:]PORT:HOST:HOSTPORT", "as `client -L`: listen here, connect from the server"),
    ("-R", "remote", "[ADDRESS:]PORT:HOST:HOSTPORT", "as `client -R`: listen on the server, connect from here"),
    ("-D", "dynamic", "[ADDRESS:]PORT", "as `client -D`: a SOCKS and HTTP proxy"),
    ("--udp", "udp", "[ADDRESS:]PORT:HOST:HOSTPORT", "as `client --udp`"),
    ("--publish", "publish", "NAME:PORT", "as `client --publish`"),
)
DETAILS = (
    """\
Forwards are written as for `client`, in all their forms, and may be given several times: all of them are had, or none,
and the exit code is 1.  Port 0 lets the system choose; the answer has the real one.  No other forward is touched.
What was added lasts until the client reloads or restarts: write it into the configuration to keep it.

"""
    + FINDING
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_target(parser)
    add_forwards(parser)


def add_forwards(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each kind of forward."""
    for flag, dest, metavar, text in FORWARDS:
        parser.add_argument(flag, dest=dest, action="append", default=[], metavar=metavar, help=text)


def run(options: argparse.Namespace) -> int:
    """Ask for the forwards, and print where they listen.  Blocks.  Raises QanatError."""
    return change(options, "add")


def change(options: argparse.Namespace, command: str) -> int:
    """Ask the client to `add` or `remove` what the flags say, and print what came of each.  Raises QanatError."""
    fields: dict[str, Any] = {dest: getattr(options, dest) for _, dest, _, _ in FORWARDS}
    answer = _the_client(options).ask(command, **fields)
    for each in answer.get("changes", []):
        write_out(f"{printable(str(each.get('text', '')), 1000)}\n")
    write_out(f"this lasts {printable(str(answer.get('lasts', '')))}\n")
    return DONE


def _the_client(options: argparse.Namespace) -> Running:
    """Return the one client that is meant.  Blocks.  Raises QanatError."""
    found = [each for each in alive(options) if each[1].role == "client"]
    if not found:
        raise NothingRuns("no client runs here that could be asked", hint="start it, or say which with -c FILE")
    if len(found) > 1:
        raise several(found, "several clients")
    return found[0][0]
