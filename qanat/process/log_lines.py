"""The log's last lines, kept for whoever looks: the page.

They are as the log has them, without anything that looks like a token, and at most LINES of at most LENGTH
characters, so that a flood of them takes no memory.  Nothing is kept before `start`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from qanat.process.log import FloodFilter, TextFormatter

LINES = 200
LENGTH = 1000
"""Characters of a line; what is longer is cut."""

Line = tuple[str, str]
"""Its level in lower case, and its text."""


class LogLines(logging.Handler):
    """Keeps what is logged from `start` to `close`.  Any thread may call it."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(FloodFilter())
        self.setFormatter(TextFormatter())
        self._guard = threading.Lock()  # guards the next two
        self._lines: deque[Line] = deque(maxlen=LINES)
        self._count = 0

    def start(self) -> None:
        """Keep lines from now on."""
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one.  Called by `logging`; does not block."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        level = "error" if record.levelno > logging.ERROR else record.levelname.lower()
        with self._guard:
            self._lines.append((level, text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…"))
            self._count += 1

    def since(self, count: int) -> tuple[int, list[Line]]:
        """Return how many lines there have been, and those kept that came after the first `count`."""
        with self._guard:
            new = min(self._count - count, len(self._lines))
            return self._count, list(self._lines)[len(self._lines) - new :] if new > 0 else []

    def close(self) -> None:
        """Keep no more.  Idempotent."""
        logging.getLogger().removeHandler(self)
        super().close()
