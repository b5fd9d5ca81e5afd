"""The command line: what `tunnel.py`, `qanat` and `python -m qanat` run.

`main` parses and turns errors into exit codes; each command is a module of its own, loaded when it runs.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  what follows could not even be read
    sys.exit(
        "qanat: error: this needs Python 3.11 or newer, and {} is {}.{}\n"
        "hint: run it with a newer one, such as python3.11 or .venv/bin/python".format(
            sys.executable, *sys.version_info[:2]
        )
    )

try:
    from qanat.cli.main import main
except KeyboardInterrupt:  # Ctrl-C, before `main` is there to see it
    sys.exit(130)

__all__ = ["main"]
