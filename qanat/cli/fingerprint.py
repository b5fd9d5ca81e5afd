"""`fingerprint`: print the fingerprint of the key that a server's configuration names; makes no key."""

from __future__ import annotations

import argparse

from qanat.cli.output import write_out
from qanat.cli.parser import add_config
from qanat.config.load import load_config
from qanat.handshake.identity import load_or_create_identity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_config(parser, required=True)


def run(options: argparse.Namespace) -> int:
    """Print the fingerprint.  Raises UsageError when there is no key."""
    # A key made here might belong to the wrong user, and the server could not read it.
    settings = load_config(options.config, want="server")
    write_out(f"{load_or_create_identity(settings.identity, create=False).fingerprint}\n")
    return 0
