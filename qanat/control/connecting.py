"""The asking side of a control socket that wants a stream through a running client: `ControlConnection`.  Blocks."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from qanat.base.endpoint_addresses import TcpAddress
from qanat.control.asking import MAX_LINE, VERSION
from qanat.control.paths import connect_to
from qanat.control.shared_stream import Ended, Failed, Reached, Word
from qanat.mux.frames import reason_name


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
