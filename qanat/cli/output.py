"""What a command prints: whole, or the exit code says that it is not.

A token that went to a full disk with exit code 0 would be missed when it is needed.
"""

from __future__ import annotations

import os
import sys

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
        _forget_stdout()
        raise SystemExit(READER_GONE) from None
    except OSError as error:
        _forget_stdout()
        raise QanatError(f"cannot write the output: {error.strerror}", hint="send it elsewhere") from error


def _forget_stdout() -> None:
    """Leave the interpreter nothing to write at its end, which would fail again, with a traceback."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
