"""What a command prints: whole, or the exit code says that it is not.

A token that went to a full disk with exit code 0 would be missed when it is needed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from qanat.base.errors import QanatError

READER_GONE = 128 + 13
"""The exit code of what SIGPIPE ends."""


def write_out(text: str) -> None:
    """Print `text` on stdout.  Characters that it cannot carry, as in the C locale, are written as escapes.

    Raises QanatError when it cannot be written, and SystemExit, in silence, when whoever reads it has gone (`| head`).
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    except BrokenPipeError:
        _let_go(sys.stdout)
        raise SystemExit(READER_GONE) from None
    except OSError as error:
        _let_go(sys.stdout)
        raise QanatError(f"cannot write the output: {error.strerror}", hint="send it elsewhere") from error


def let_go_of_stderr() -> None:
    """Give up what could not be written there: it would fail once more at the end, and Python's exit code be 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):  # full, or closed
        with contextlib.suppress(OSError, ValueError):
            _let_go(sys.stderr)


def _let_go(stream: TextIO) -> None:
    """Leave the interpreter nothing to write at its end that would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
