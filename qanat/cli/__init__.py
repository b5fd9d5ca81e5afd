"""The command line: what `tunnel.py`, `qanat` and `python -m qanat` run.

`main` parses and turns errors into exit codes; each command is a module of its own, loaded when it runs.
"""

from qanat.cli.main import main

__all__ = ["main"]
