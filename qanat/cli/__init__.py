"""The command line: what `tunnel.py`, `qanat` and `python -m qanat` run."""

from qanat.cli.main import main

__all__ = ["main"]
