"""`schema`: print the JSON Schema of configuration files, for editors and other programs."""

from __future__ import annotations

import argparse

from qanat.cli.output import write_out
from qanat.config.schema import schema_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: this command takes no arguments."""


def run(options: argparse.Namespace) -> int:
    """Print the schema."""
    write_out(schema_text())
    return 0
