"""Why a pipe is over: the first cause, kept whatever comes after it.

Used by every pipe of this room.  Closing sockets and waking threads is the pipe's own business.
"""

from __future__ import annotations

import threading

from qanat.base.errors import PipeEnded


class FirstCause:
    """The first of possibly many causes, from any thread.  Never blocks for long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.text: str | None = None
        """The first cause, or None; others only read it."""

    def set(self, text: str) -> bool:
        """Keep `text` unless there is a cause already; return whether it was the first."""
        with self._lock:
            if self.text is not None:
                return False
            self.text = text
            return True

    def error(self) -> PipeEnded:
        """Return the error for a caller who uses a pipe that is over."""
        return PipeEnded(self.text or "the pipe has ended")
