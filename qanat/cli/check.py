"""`check`: every fault of a configuration file on stderr, or `ok`."""

from __future__ import annotations

import argparse

from qanat.cli.output import write_out
from qanat.cli.parser import add_config
from qanat.config.load import check_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_config(parser, required=True)


def run(options: argparse.Namespace) -> int:
    """Print `ok`.  Raises ConfigError, which has the faults."""
    check_config(options.config)
    write_out("ok\n")
    return 0
