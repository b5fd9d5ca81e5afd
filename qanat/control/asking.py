"""The asking side of a control socket: `ask`, for one answer.  Blocks.

`qanat.control.connecting` asks for a stream.  This loads next to nothing: `status` is called often, and by machines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qanat.base.errors import QanatError, UsageError
from qanat.control.paths import connect_to

VERSION = 1
MAX_LINE = 4096
"""Bytes of a request, and of what is said about a stream."""
MAX_ANSWER = 256 * 1024 * 1024
"""Bytes of an answer: a process with a million streams says that much of itself."""
_BUFFER = 256 * 1024
"""As many bytes as a Unix socket holds: with less the answer of a large server comes in hundreds of turns."""
ANSWER_TIMEOUT = 60.0
"""Seconds that an answer may take, by default."""


class NotRunning(QanatError):
    """Nobody listens on that socket."""


class ControlFault(QanatError):
    """The running process said no, or something that is not understood."""

    faults: tuple[str, ...] = ()


class ControlUsage(UsageError):
    """The running process calls it bad usage; `faults` has those of a configuration, one each."""

    faults: tuple[str, ...] = ()


def ask(path: Path, command: str, *, timeout: float = ANSWER_TIMEOUT, **fields: Any) -> dict[str, Any]:
    """Ask the process whose control socket this is; return its answer.  Blocks for `timeout` seconds at most.

    Raises NotRunning, ControlFault and, for what the process calls bad usage, UsageError; each with what it said.
    """
    try:
        sock = connect_to(path)
    except PermissionError as error:
        raise ControlFault(f"{path} is another user's", hint="run this as that user, or as root") from error
    if sock is None:
        raise NotRunning(f"nobody listens on {path}", hint="start it, or look where it keeps its state_dir")
    with sock:
        sock.settimeout(timeout)
        try:
            sock.sendall(json.dumps({"version": VERSION, "command": command, **fields}).encode() + b"\n")
            with sock.makefile("rb", buffering=_BUFFER) as lines:
                line = lines.readline(MAX_ANSWER)
        except TimeoutError as error:
            raise ControlFault(
                f"the process at {path} has not answered within {timeout:g} s", hint="look into its log"
            ) from error
        except OSError as error:
            raise NotRunning(f"the process at {path} has ended", hint="look into its log") from error
    return _checked(path, line)


def _checked(path: Path, line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise NotRunning(f"the process at {path} ended before it answered", hint="look into its log")
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("version") != VERSION:
        raise ControlFault(f"what answers at {path} is of another version", hint="run the same version for both")
    if answer.get("ok") is not True:
        text, hint = str(answer.get("error", "it gave no reason")), str(answer.get("hint", ""))
        error = ControlUsage(text, hint=hint) if answer.get("usage") else ControlFault(text, hint=hint)
        faults = answer.get("faults", [])
        if isinstance(faults, list) and faults:
            error.faults = tuple(map(str, faults))
        raise error
    return answer
