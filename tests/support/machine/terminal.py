"""A program at a terminal, and the person before it: what is typed, and what is shown.

For programs that behave otherwise when they speak to a pipe: shells, ssh, psql.
"""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from types import TracebackType
from typing import Self

from tests.support.harness import SECONDS


class Terminal:
    """A process on a pseudo-terminal of its own.  Killed and reaped at the end of the `with` block."""

    def __init__(self, *command: object) -> None:
        self._descriptor, inside = pty.openpty()
        self._shown = b""
        try:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=inside, stdout=inside, stderr=inside, start_new_session=True
            )
        except BaseException:
            os.close(self._descriptor)
            raise
        finally:
            os.close(inside)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._descriptor)

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, text: str) -> str:
        """Block until `text` is shown; what was shown before it.  Both are forgotten."""
        sought = text.encode()
        deadline = time.monotonic() + SECONDS
        while sought not in self._shown:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not shown, but {self._shown!r}"
            try:
                self._shown += os.read(self._descriptor, 65536)
            except OSError:  # EIO: the program has ended
                raise AssertionError(f"the end without {text!r}: {self._shown!r}") from None
        before, _, self._shown = self._shown.partition(sought)
        return before.decode()
