"""The audit log: who connected, from where, with which token, what was opened and refused, how many bytes it carried.

One JSON object a line, in a file of its own (docs/AUDIT.md has the events and their fields).  It holds no secret: a
token is known by its fingerprint, and what streams carry never comes here.

Nobody who carries bytes waits for it: facts are queued, MAX_WAITING at most, and a pooled thread writes them while
there are any.  What does not fit, or cannot be written, is counted, and the next line that can be written says how many
are missing.  The file is bounded: at `max_bytes` it becomes FILE.1, that FILE.2, and so on up to `keep`.  Whoever moves
it away, as logrotate does, needs no signal: before it is written to, its name is looked at.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qanat.base.errors import NoThread, UsageError
from qanat.base.workers import WORKERS, Task
from qanat.config.server_settings import AuditSettings
from qanat.process.log_throttle import LogThrottle

log = logging.getLogger("qanat.audit")

MAX_WAITING = 20_000
"""Lines that may wait to be written."""
_BATCH = 500


class AuditFile:
    """One file with the former ones beside it.  For one thread at a time; blocks on the disk."""

    def __init__(self, settings: AuditSettings) -> None:
        """Open it for appending (0600).  Raises UsageError."""
        self._settings = settings
        self._path = settings.file
        try:
            self._descriptor = _open(self._path)
        except OSError as error:
            raise UsageError(
                f"cannot open the audit log {self._path}: {error.strerror}",
                hint="create its directory, and let this user write there; it must be a file, and no link",
            ) from error

    def write(self, content: bytes) -> None:
        """Append whole lines, first making room for them where the file is full.  Raises OSError."""
        if not self._is_in_place():
            self._open_again()
        size = os.fstat(self._descriptor).st_size
        if size and size + len(content) > self._settings.max_bytes:
            self._rotate()
        view = memoryview(content)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self._path))
        except OSError:
            return False

    def _open_again(self) -> None:
        descriptor = _open(self._path)
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _rotate(self) -> None:
        keep = self._settings.keep
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{number}") for number in range(1, keep + 1))]
        for older, newer in reversed(list(zip(names[1:], names, strict=False))):
            if os.path.lexists(newer):
                os.replace(newer, older)
        if not keep:
            os.unlink(self._path)
        self._open_again()


class AuditLog:
    """Where a server tells what happened.  Safe to use from any thread; only `flush`, `use` and `close` block."""

    def __init__(self) -> None:
        """Begin without a file: what is recorded is forgotten, at the cost of one look."""
        self._file: AuditFile | None = None
        self._lock = threading.Lock()  # guards the queue, and who writes
        self._writing = threading.Lock()  # held while the file is written to or replaced
        self._waiting: deque[tuple[float, str, Mapping[str, Any]]] = deque()
        self._lost = 0
        self._writer: Task | None = None
        self._throttle = LogThrottle()

    @property
    def enabled(self) -> bool:
        """Whether anything that is recorded is kept."""
        return self._file is not None

    def use(self, file: AuditFile | None) -> None:
        """Write to `file` from now on, or nothing; blocks until what waits is written to the former one."""
        self.flush()
        with self._writing:
            former, self._file = self._file, file
            if former is not None:
                former.close()

    def record(self, event: str, **facts: Any) -> None:
        """Note that something happened; facts that are None are left out.  Does not block."""
        if self._file is None:
            return
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self._lost += 1
                return
            self._waiting.append((time.time(), event, facts))
            if self._writer is not None:
                return
            try:
                self._writer = WORKERS.start("audit", self._write_all)
            except NoThread:
                return  # whoever comes next tries again

    def flush(self) -> None:
        """Block until what was recorded is written, or cannot be."""
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.join()
        self._write_all()

    def close(self) -> None:
        """Write what waits, and close the file.  Idempotent."""
        self.use(None)

    def _write_all(self) -> None:
        while True:
            with self._writing:
                with self._lock:
                    batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                    lost = self._lost
                    if not batch:
                        self._writer = None
                        return
                if self._file is not None:
                    self._write(self._file, batch, lost)

    def _write(self, file: AuditFile, batch: list[tuple[float, str, Mapping[str, Any]]], lost: int) -> None:
        lines = [_line(*one) for one in batch]
        if lost:
            lines.insert(0, _line(batch[0][0], "lost", {"lines": lost}))
        try:
            file.write(b"".join(lines))
        except OSError as error:
            with self._lock:
                self._lost += len(batch)
            if self._throttle.due("audit"):
                log.error("cannot write the audit log: %s; lines are lost until it can be (make room there)", error)
        else:
            with self._lock:
                self._lost -= lost


def _line(at: float, event: str, facts: Mapping[str, Any]) -> bytes:
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry = {"ts": moment, "event": event, **{key: value for key, value in facts.items() if value is not None}}
    return json.dumps(entry, default=str).encode() + b"\n"


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a file")
    return descriptor
