"""What a running client says about its connection: to systemd, and in a file for who waits for it (`qanat wait`).

The file is locked, and so read, for as long as its client lives: what a killed client, or one from before a reboot,
has left in it counts for nothing.  It stands in `state_dir` under a name of its configuration's own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from qanat.config.client_settings import ClientSettings
from qanat.control.paths import state_file
from qanat.process.daemon import notify

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("qanat.client")

_CONNECTED, _CONNECTING = b"connected \n", b"connecting\n"
"""What the file holds: one length, so that a single write replaces one by the other."""
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def status_file(settings: ClientSettings) -> Path | None:
    """Return where a client with these settings says whether it is connected; None when it keeps nothing.  Pure."""
    return state_file(settings, "status")


def is_connected(file: Path) -> bool:
    """Return whether a client that runs now holds `file` and is connected.  Does not block.

    Raises OSError when the file is there and cannot be read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return False
    try:
        return os.read(descriptor, len(_CONNECTED)) == _CONNECTED and not _lock_alone(descriptor)
    finally:
        os.close(descriptor)


class Status:
    """Tells about one client, from the first `update` to `close`.  Any thread may call it."""

    def __init__(self, file: Path | None) -> None:
        """Hold `file`, where that can be written; nothing depends on it but who waits."""
        self._file = file
        self._lock = threading.Lock()
        self._said: tuple[bool, str] | None = None  # guarded by the lock, as the next
        self._descriptor = -1

    def update(self, look: Callable[[], tuple[bool, str]]) -> None:
        """Tell others whether the client is connected, and systemd the text, when what `look` returns is new.

        `look` must not block; of several threads the last to look is the last to tell.
        """
        with self._lock:
            now, before = look(), self._said
            if now == before:
                return
            self._said = now
            if before is None:
                self._open()
            if before is None or before[0] != now[0]:
                self._write(_CONNECTED if now[0] else _CONNECTING)
            notify(f"STATUS={now[1]}")

    def close(self) -> None:
        """Remove the file, unless another client with the same configuration holds it.  Idempotent."""
        with self._lock:
            file, self._file = self._file, None
            if self._descriptor < 0:
                return
            self._write(_CONNECTING)
            if file is not None and _lock_alone(self._descriptor):
                with contextlib.suppress(OSError):
                    os.unlink(file)
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        if self._file is None:
            return
        try:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        except OSError as error:
            log.debug("no status file for those who wait for this client: %s", error)
            return
        self._write(_CONNECTING)  # before the lock makes it count: a killed client may have left another word
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # where there are no locks
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)  # which a reader may have for a moment

    def _write(self, content: bytes) -> None:
        if self._descriptor >= 0:
            try:
                os.lseek(self._descriptor, 0, os.SEEK_SET)
                os.write(self._descriptor, content)
            except OSError as error:
                log.debug("cannot write the status file: %s", error)


def _lock_alone(descriptor: int) -> bool:
    """Lock an open file when nobody else holds a lock on it; return whether it is, False where there are no locks."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
