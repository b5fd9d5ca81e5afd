"""`token`: print a new token."""

from __future__ import annotations

import argparse

from qanat.cli.output import write_out
from qanat.handshake.tokens import generate_token


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: this command takes no arguments."""


def run(options: argparse.Namespace) -> int:
    """Print the token."""
    write_out(f"{generate_token()}\n")
    return 0
