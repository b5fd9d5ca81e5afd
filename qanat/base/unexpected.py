"""Logs errors that nobody expected, where one connection or one turn of a loop fails and everything else goes on.

A fault of this program may be in reach of an unauthenticated peer who meets it a thousand times a second, so the same
fault is logged with its traceback once a minute, and as one short line otherwise.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType

log = logging.getLogger("qanat.unexpected")

FAILED = "this program failed; please report its log"
"""What is said of whatever ended by such an error."""
INTERVAL = 60.0
"""Seconds during which the traceback of the same fault is not logged again."""

_lock = threading.Lock()
_logged: dict[tuple[str, str, int], float] = {}  # by type and the line that raised: as many as the program has lines


def log_unexpected(what: str) -> None:
    """Log the exception that is being handled, at ERROR, with its traceback unless that was logged within INTERVAL.

    `what` says what failed because of it.  Does not block.  Call it from an `except` clause, and only where the
    exception ends: nothing may be logged twice.
    """
    kind, error, traceback = sys.exc_info()
    if kind is None:
        return
    place = kind.__name__, *_raised_at(traceback)
    now = time.monotonic()
    with _lock:
        last = _logged.get(place)
        repeated = last is not None and now - last < INTERVAL
        if not repeated:
            _logged[place] = now
    if repeated:
        log.error("%s by an unexpected error again: %s", what, kind.__name__, extra={"event": "bug"})
    else:
        log.error("%s by an unexpected error; please report it", what, exc_info=error, extra={"event": "bug"})


def _raised_at(traceback: TracebackType | None) -> tuple[str, int]:
    """Return the file and line that raised."""
    place = "", 0
    while traceback is not None:
        place = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
    return place
