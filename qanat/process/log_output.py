"""Lines for whoever reads the log through a pipe, a socket or a terminal, and may have stopped reading.

A container's log driver that hangs, a pager, or Ctrl-S in a terminal leaves a pipe full, and whoever writes into it
waits for ever.  Nothing that carries a connection may wait there: lines are queued, and one thread writes them.  What
does not fit into the queue is left out.  `qanat.process.log` calls this, and tells how much was.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable

from qanat.base.threads import start_thread

MAX_WAITING = 1 << 20
"""Bytes that may wait to be written."""


class LineWriter:
    """Writes to a descriptor that belongs to its caller.  Any thread may call it.

    Threads: *log* writes, from the first line to `close`.
    """

    def __init__(self, descriptor: int, failed: Callable[[OSError], None]) -> None:
        """`failed` is called by the writing thread when lines were lost since they could not be written."""
        self._descriptor = descriptor
        self._failed = failed
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._waiting = 0  # bytes of those that are not written yet
        self._closed = False
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> bool:
        """Queue `line` and return True, or False when it must be left out.  Does not block.  Raises NoThread."""
        with self._changed:
            if self._closed or self._waiting + len(line) > MAX_WAITING:
                return False
            if self._thread is None:
                self._thread = start_thread("log", self._write_loop)
            self._lines.append(line)
            self._waiting += len(line)
            self._changed.notify_all()
            return True

    def flush(self, timeout: float) -> bool:
        """Block until all is written, `timeout` seconds at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout)

    def close(self, timeout: float) -> None:
        """Take no more lines, and block until the others are written, `timeout` seconds at most.  Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _write_loop(self) -> None:
        while content := self._next():
            try:
                _write_all(self._descriptor, content)
            except OSError as error:
                self._failed(error)
            with self._changed:
                self._waiting -= len(content)
                self._changed.notify_all()

    def _next(self) -> bytes:
        """Block for lines; return all that wait, or nothing once closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            content = b"".join(self._lines)
            self._lines.clear()
            return content


def may_block(descriptor: int) -> bool:
    """Return whether a write may have to wait for a reader: for a pipe, a socket, a terminal."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    # Not through sys.stderr: the interpreter takes that one's lock when it ends, and aborts where a thread holds it.
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
