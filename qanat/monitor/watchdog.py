"""Whether this process does its work: for systemd's watchdog (sd_notify(3), WatchdogSec), and for `status`.

Looked at is what no peer and no network can bring about, however slow or hostile: nobody makes a server restart.

    the watcher's thread    is in no round for longer than PATIENCE, and does not sleep past a timer
    each lane's lock        is to be had: nothing that blocks is done while it is held
    each attached lane      sends its PING when that is due, unless its writer is in the middle of sending
                            is read: a pipe on which nothing came for longer than it may is ended

A lane whose peer does not answer is no trouble of ours: `keepalive.timeout` ends its pipe, and it gets another.

Threads: `ServiceReporter` has one, but only where a service manager listens.  It is none of the watcher's, since it has
to find that one stuck.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping

from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import NAME, Watcher
from qanat.mux.lane import Lane
from qanat.process.daemon import notify

log = logging.getLogger("qanat.watchdog")

PATIENCE = 15.0
"""Seconds that something which never takes long may take, on a machine that is overloaded."""
LOCK_SECONDS = 1.0
"""How long a lane's lock may be held by others in turn."""
MOST_TROUBLES = 5
"""After so many the rest is not looked at."""
STATUS_INTERVAL = 10.0
"""Seconds between two lines for the service manager."""


class Watchdog:
    """Looks at one process's watcher and lanes.  Safe to use from any thread."""

    def __init__(self, watcher: Watcher, lanes: Callable[[], Iterable[Lane]], *, patience: float = PATIENCE) -> None:
        self._watcher = watcher
        self._lanes = lanes
        self._patience = patience

    def look(self, lock_seconds: float = LOCK_SECONDS) -> tuple[str, ...]:
        """Return what does not move, a phrase each; empty while all is well.

        Blocks only where a lane's lock is held, for `lock_seconds` each and a few of them.
        """
        found = []
        stuck = self._watcher.stuck(time.monotonic(), self._patience)
        if stuck:
            found.append(stuck)
        for lane in self._lanes():
            trouble = lane.trouble(self._patience, lock_seconds)
            if trouble:
                found.append(trouble)
            if len(found) >= MOST_TROUBLES:
                break
        return tuple(found)


class ServiceReporter:
    """Tells the service manager how the process is, and feeds its watchdog, from `start` to `stop`.

    Does nothing where none listens.
    """

    def __init__(
        self,
        look: Callable[[], tuple[str, ...]],
        line: Callable[[], str],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`look` says what does not move, `line` how the process is, in a few words; both may block for a while."""
        self._look = look
        self._line = line
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._listened = bool(environ.get("NOTIFY_SOCKET"))
        self.feeds = watchdog_seconds(environ)
        """Seconds within which the service manager wants to hear of us; None where it has no watchdog."""
        self._said = ""
        self._complained: tuple[str, ...] = ()
        self._quiet_until = 0.0

    def start(self) -> None:
        """Begin to report.  Does not block.  Raises NoThread."""
        if self._listened:
            self._thread = start_thread("service-reporter", self._report_loop)

    def stop(self) -> None:
        """Report no more; blocks until a report that has begun is over.  Idempotent."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _report_loop(self) -> None:
        interval = STATUS_INTERVAL if self.feeds is None else min(STATUS_INTERVAL, self.feeds / 3)
        while True:
            try:
                self.report()
            except Exception:
                log_unexpected("telling the service manager failed")
            if self._over.wait(interval):
                return

    def report(self) -> None:
        """Look once: feed the watchdog if all is well, else say what is not; then say how the process is."""
        troubles = self._look()
        if troubles:
            self._complain(troubles)
        elif self.feeds is not None:
            notify("WATCHDOG=1")
        self._complained = troubles
        began = time.monotonic()
        if not troubles and began < self._quiet_until:
            return
        said = "; ".join(troubles) or self._line()
        # With a thousand sessions a line costs something: a hundredth of the time is enough for it.
        self._quiet_until = time.monotonic() + 100 * (time.monotonic() - began)
        if said != self._said and not self._over.is_set():
            self._said = said
            notify(f"STATUS={said}")

    def _complain(self, troubles: tuple[str, ...]) -> None:
        if troubles == self._complained:
            return
        then = "" if self.feeds is None else f"; without a change the service manager restarts us in {self.feeds:g} s"
        log.error("watchdog: %s%s", "; ".join(troubles), then, extra={"event": "stuck"})
        frames = sys._current_frames()
        for thread in threading.enumerate():
            if thread.name == NAME and thread.ident in frames:
                stack = "".join(traceback.format_stack(frames[thread.ident]))
                log.error("watchdog: the watcher is here:\n%s", stack)


def watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return the service manager's WATCHDOG_USEC in seconds; None where there is none, or it is another process's."""
    text, owner = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit()) or not int(text) or (owner and owner != str(os.getpid())):
        return None
    return int(text) / 1e6
