"""Reload: the configuration file is read again, and what changed in it takes effect while the process runs.

    SIGHUP ----------+
    control command -+-> Reloader.reload: load the whole file, every fault at once -> open the log -> apply
    watch_config ----+                       a fault anywhere: nothing has changed

One `Reloader` serves a process, a server or a client alike: the command line makes it with a function that loads the
file and puts the flags over it, so that flags go on counting; whoever runs gives it `apply` while it does
(`qanat.server.server`, `qanat.client.client`).  Reloads come one after the other.

Nothing waits in a thread: SIGHUP and a changed file have a pooled thread each time, and the file is looked at by a
timer of the watcher.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from qanat.base.errors import NoThread, QanatError, UsageError
from qanat.base.text import format_count
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.base.workers import WORKERS
from qanat.config.changes import changes_between
from qanat.config.settings import LogSettings
from qanat.process.daemon import notify
from qanat.process.file_watch import FileWatch
from qanat.process.log import open_log, use_log

log = logging.getLogger("qanat.reload")


class Reloadable(Protocol):
    """The settings of a server or a client, as far as a reload itself is concerned."""

    @property
    def log(self) -> LogSettings:
        """What is logged, and where."""

    @property
    def watch_config(self) -> bool:
        """Whether to reload when the file changes."""


S = TypeVar("S", bound=Reloadable)

Apply = Callable[[S], Sequence[str]]
"""Puts settings into effect, and returns what that did, one line for each change; none of it where nothing changed.

Raises QanatError, and has changed nothing then.  May block for as long as files and listeners take."""


class Reloader(Generic[S]):
    """What a running process is reloaded with.  Safe to use from any thread."""

    def __init__(self, path: Path | None, load: Callable[[], S] | None) -> None:
        """`load` reads `path` and puts the flags over it; without a file, on flags alone, there is neither."""
        self.told: Callable[[str, Sequence[str], QanatError | None], None] = _nobody
        """Hears of each reload: who asked, what it changed, and why it did not take place; None where it did."""
        self._path = path
        self._load = load
        self._reloading = threading.Lock()  # held for a whole reload
        self._lock = threading.Lock()  # guards the rest
        self._settings: S | None = None
        self._apply: Apply[S] | None = None
        self._watcher: Watcher | None = None
        self._file: FileWatch | None = None
        self._wanted = ""  # who asked for a reload that has not begun
        self._working = False  # a thread takes care of `_wanted`

    @property
    def path(self) -> Path | None:
        """The configuration file, absolute; None for what runs on flags alone."""
        return None if self._path is None else self._path.absolute()

    @property
    def settings(self) -> S | None:
        """What the process runs with now; None before `serving` and after."""
        return self._settings

    @contextmanager
    def serving(self, settings: S, apply: Apply[S], watcher: Watcher) -> Iterator[None]:
        """Reload what runs with `settings` by `apply`, for as long as the `with` block lasts.

        `watcher` must outlive the block.  Leaving blocks until a reload that has begun is over.
        """
        with self._lock:
            self._settings, self._apply, self._watcher = settings, apply, watcher
        self._watch(settings)
        try:
            yield
        finally:
            with self._lock:
                self._apply = None
                file, self._file = self._file, None
            if file is not None:
                file.stop()
            with self._reloading, self._lock:
                self._settings = self._watcher = None

    def reload(self, by: str) -> list[str]:
        """Load the file and put into effect what changed; return that in words, one line for each change.

        `by` says for the log who asked.  Blocks on the disk and on another reload.  Raises UsageError (ConfigError with
        every fault of the file, or that there is no file) and what `apply` raises: nothing has changed then.
        """
        with self._reloading:
            with self._lock:
                apply, old, file = self._apply, self._settings, self._file
            if apply is None or old is None:
                raise UsageError("it is starting or stopping", hint="ask again in a moment")
            if file is not None:
                file.note()
            _tell_systemd_of_reload()
            try:
                done = self._reload(apply, old)
            except QanatError as error:
                self._log_failure(error, by)
                self.told(by, (), error)
                raise
            finally:
                notify("READY=1")
        what = format_count(len(done), "change") if done else "nothing has changed"
        log.info("reloaded %s (%s): %s", self._path, by, what, extra={"event": "reloaded", "by": by})
        for line in done:
            log.info("reload: %s", line)
        self.told(by, done, None)
        return done

    def _reload(self, apply: Apply[S], old: S) -> list[str]:
        if self._load is None:
            raise UsageError(
                "it was started from flags alone, so there is no file to read again",
                hint="restart it, or start it with -c FILE",
            )
        new = self._load()
        handler = open_log(new.log) if new.log != old.log else None
        try:
            done = list(apply(new))
        except BaseException:
            if handler is not None:
                handler.close()
            raise
        with self._lock:
            self._settings = new
        if handler is not None:
            done += [str(change) for change in changes_between(old.log, new.log)]
            use_log(handler, new.log)
        self._watch(new)
        return done

    def _log_failure(self, error: QanatError, by: str) -> None:
        extra = {"event": "reload failed", "by": by}
        for fault in getattr(error, "faults", ()):
            log.error("reload: %s", fault, extra=extra)
        hint = f" ({error.hint})" if error.hint else ""
        log.error("reload (%s) failed, so nothing has changed: %s%s", by, error.message, hint, extra=extra)

    # --- asked for by a signal, or by the file itself ---------------------------------------------

    def hangup(self) -> None:
        """Reload in a thread of its own, since SIGHUP came; nothing where there is no file.  Does not block."""
        if self._load is not None:
            self._reload_soon("SIGHUP")

    def _reload_soon(self, by: str) -> None:
        """Reload once what is being done now is over; several wishes become one.  Does not block."""
        with self._lock:
            if self._apply is None:
                return
            self._wanted = by
            if self._working:
                return
            self._working = True
        try:
            WORKERS.start("reload", self._work)
        except NoThread as error:
            with self._lock:
                self._working, self._wanted = False, ""
            log.error("not reloaded: %s", error)

    def _work(self) -> None:
        while True:
            with self._lock:
                by, self._wanted = self._wanted, ""
                self._working = bool(by)
            if not by:
                return
            try:
                with suppress(QanatError):  # which is in the log
                    self.reload(by)
            except Exception:
                log_unexpected("a reload failed")

    # --- watch_config -----------------------------------------------------------------------------

    def _watch(self, settings: S) -> None:
        """Look at the file now and then if `settings` say so, else no more."""
        with self._lock:
            watcher = self._watcher if self._apply is not None else None
            if settings.watch_config and self._path is not None and watcher is not None:
                if self._file is None:
                    self._file = FileWatch(self._path, watcher, lambda: self._reload_soon("the file has changed"))
            elif self._file is not None:
                self._file.stop()
                self._file = None


def _nobody(by: str, lines: Sequence[str], error: QanatError | None) -> None:
    """Nobody hears of it but the log."""


def _tell_systemd_of_reload() -> None:
    """Say that a reload has begun: with the moment, as Type=notify-reload wants it (sd_notify(3))."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
