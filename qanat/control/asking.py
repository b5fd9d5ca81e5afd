"""The asking side of a control socket: `ask` for one answer, `ControlConnection` for a stream.  Both block."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import QanatError, UsageError
from qanat.control.paths import connect_to
from qanat.control.shared_stream import Ended, Failed, Reached, Word
from qanat.mux.frames import reason_name

VERSION = 1
MAX_LINE = 4096
"""Bytes of a request, and of what is said about a stream."""
MAX_ANSWER = 256 * 1024 * 1024
"""Bytes of an answer: a process with a million streams says that much of itself."""
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
            with sock.makefile("rb") as lines:
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


class ControlConnection:
    """What asks a running client for a stream.  One thread at a time; close it, by `with`."""

    def __init__(self, control: socket.socket) -> None:
        """Own `control`, which is connected."""
        self._control = control
        self._lines = control.makefile("rb")
        self.sock, self._theirs = socket.socketpair()
        """Our end of what leads to the target."""

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Connect to the client whose control socket this is; None when there is none.  Does not block."""
        try:
            control = connect_to(path)
        except OSError:
            return None
        return None if control is None else cls(control)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sock in (self._lines, self._control, self.sock, self._theirs):
            sock.close()

    def connect(self, to: TcpAddress) -> bool:
        """Ask for a stream to `to`; False when the client is gone already.  `words` has what becomes of it."""
        asked = json.dumps({"version": VERSION, "command": "connect", "to": str(to)}).encode() + b"\n"
        try:
            socket.send_fds(self._control, [asked], [self._theirs.fileno()])
        except OSError:
            return False
        self._theirs.close()
        return True

    def words(self) -> Iterator[Word]:
        """Yield what becomes of the stream, the last word included, unless the client ends before that.  Blocks."""
        while line := self._lines.readline(MAX_LINE):
            word = _read_word(line)
            yield word
            if not isinstance(word, Reached):
                return


def _read_word(line: bytes) -> Word:
    try:
        answer = json.loads(line)
        reason, error = answer.get("reason"), str(answer.get("error", ""))
        if answer.get("event") == "ended":
            return Ended(reason, error)
        if answer["ok"]:
            return Reached(str(answer.get("address", "")))
    except (ValueError, AttributeError, KeyError):
        return Failed(0, "the running client answers in words that are not known here: it may be of another version")
    return Failed(reason if isinstance(reason, int) else 0, error or reason_name(0))
