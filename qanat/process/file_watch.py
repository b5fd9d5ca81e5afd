"""Notices that a file has changed, whoever wrote it and however: by looking now and then, with no thread.

A look is one `stat`, which follows links, so that a file is noticed that is replaced whole (an editor, a deployment, a
Kubernetes ConfigMap) or on a network file system, where the kernel reports nothing.  `qanat.process.reloading` has one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from qanat.base.errors import NoThread
from qanat.base.watcher import Watcher

LOOK_EVERY = 1.0
"""Seconds between looks.  A change counts once two looks in a row have found the same: it is perhaps still written."""

_State = tuple[int, int, int] | None


class FileWatch:
    """Calls `changed` when the file at `path` is another one than when it was last noted, and stands still.

    Safe to use from any thread; nothing blocks but on the disk.
    """

    def __init__(self, path: Path, watcher: Watcher, changed: Callable[[], None]) -> None:
        """Begin to look.  `changed` is called by the watcher, and must not block."""
        self._path = path
        self._changed = changed
        self._lock = threading.Lock()  # guards the next three
        self._seen = self._look()
        self._before: _State = self._seen  # at the last look
        self._stopped = False
        self._timer = watcher.timer(self.look)
        self._set()

    def note(self) -> None:
        """Take the file as it is now for known.  Call it before it is read: a change meanwhile is noticed then."""
        with self._lock:
            self._seen = self._before = self._look()

    def stop(self) -> None:
        """Look no more.  Idempotent; does not block."""
        with self._lock:
            self._stopped = True
        self._timer.cancel()

    def look(self) -> None:
        """Look once.  By the timer."""
        with self._lock:
            found = self._look()
            due = found not in (None, self._seen) and found == self._before and not self._stopped
            if due:
                self._seen = found
            self._before = found
        if due:
            self._changed()
        self._set()

    def _set(self) -> None:
        if not self._stopped:
            with contextlib.suppress(NoThread, OSError):  # then SIGHUP and the command still reload
                self._timer.set(time.monotonic() + LOOK_EVERY)

    def _look(self) -> _State:
        try:
            state = os.stat(self._path)
        except OSError:
            return None  # between removal and replacement
        return state.st_mtime_ns, state.st_size, state.st_ino
