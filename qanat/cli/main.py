"""The command line's frame: run one command, and end with the exit code that says how it went.

What commands there are stands in `qanat.cli.parser`, what each does in a module of its name.  Installed, this is the
command `qanat`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from qanat.base.errors import QanatError, RefusedError, UsageError
from qanat.cli.output import let_go_of_stderr
from qanat.cli.parser import build_parser

DONE, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130
"""The exit codes; `qanat.cli.parser` explains them to users."""

_OURS = ("qanat",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code; raises SystemExit as argparse does.  Blocks as it does."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        let_go_of_stderr()


def _run(arguments: Sequence[str] | None) -> int:
    _open_standard_streams()
    try:
        options = build_parser().parse_args(arguments)
        code: int = options.run(options)
        return code
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        complain(_missing(error.name))
        return FAILED
    except QanatError as error:
        complain(error)
        return exit_code(error)


def exit_code(error: QanatError) -> int:
    """Return the exit code that says what kind of failure ended the process."""
    if isinstance(error, UsageError):
        return USAGE
    return REFUSED if isinstance(error, RefusedError) else FAILED


def complain(error: QanatError) -> None:
    """Say on stderr what happened, each fault of a configuration in a line of its own, and what to do next."""
    lines = [*getattr(error, "faults", ()), f"qanat: error: {error.message}"]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    with contextlib.suppress(OSError):  # the exit code says it too
        for line in lines:
            print(line, file=sys.stderr)


def _open_standard_streams() -> None:
    """Put /dev/null where the caller has closed one: the next socket would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _missing(package: str) -> QanatError:
    return QanatError(
        f"the Python package {package!r} is not installed for {sys.executable}",
        hint="run it with the Python of its virtual environment (.venv/bin/python, which `make demo` makes), "
        "build one file with all inside (make pyz), or install: python -m pip install .",
    )
