"""What the operating system expects of a process that stays: signals, a PID file, a lock, sd_notify.

Not here: what the process does (qanat.server.server, qanat.client.client), and going to the background,
which systemd, supervisor and cron do themselves.  Called by tunnel.py through `run_daemon`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from qanat.base.errors import UsageError
from qanat.base.threads import start_thread
from qanat.process.allocator import limit_arenas
from qanat.process.log import reopen

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("qanat.daemon")

Run = Callable[[threading.Event, Callable[[], None]], None]

REPEATED = 0.2
"""Seconds within which the same signal again is the same wish: timeout(1) sends one to its child and to the group."""


def run_daemon(run: Run, *, pid_file: Path | None = None, hangup_stops: bool = False) -> None:
    """Call `run(stop, ready)` in this thread, the main one, and return when it returns; blocks.

    SIGTERM and SIGINT set `stop`; a second one, later than REPEATED, ends the process at once.  SIGHUP opens the log
    file again, or, with `hangup_stops`, sets `stop` too.  `ready` tells systemd that the service
    is up.  Raises UsageError when the PID file is held by a live process, and what `run` raises.
    """
    limit_arenas()
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        if pid_file is not None:
            stack.enter_context(PidFile(pid_file))
        stack.enter_context(Signals(stop, hangup_stops=hangup_stops))
        run(stop, lambda: notify("READY=1"))


class Signals:
    """FairLock signals into `stop` and `reopen` for as long as the `with` block lasts.  Main thread only.

    Python runs signal handlers in the main thread, between two bytecodes.  That thread may be holding
    the very lock that `Event.set` or a log line needs; and when the kernel gave the signal to another
    thread, it sleeps on, and the handler runs when it wakes, which may be never.  So the handlers do
    nothing: the interpreter writes each signal's number into a socket at once, in whatever thread
    (signal.set_wakeup_fd), and the thread `signals` reads it there and acts.
    """

    def __init__(self, stop: threading.Event, *, hangup_stops: bool = False) -> None:
        self._stop = stop
        self._stopping = [signal.SIGTERM, signal.SIGINT]
        self._reopening: list[signal.Signals] = []
        if hasattr(signal, "SIGHUP"):
            # nohup starts us with SIGHUP ignored, and means it: a closed terminal is to end nothing.
            hangup_stops = hangup_stops and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
            (self._stopping if hangup_stops else self._reopening).append(signal.SIGHUP)
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._read_end, self._write_end = socket.socketpair()
        self._write_end.setblocking(False)  # as set_wakeup_fd demands
        self._wakeup_before = signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)
        for number in (*self._stopping, *self._reopening):
            self._before[number] = signal.signal(number, _do_nothing)
        self._thread = start_thread("signals", self._signals_loop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._write_end.close()
        self._thread.join()
        self._read_end.close()

    def _signals_loop(self) -> None:
        first, first_at = 0, 0.0  # the signal that stopped us, and when
        while received := self._read_end.recv(1):
            number = received[0]
            if number in self._reopening:
                done = "log file opened again" if reopen() else "no log file to open again"
                log.info("SIGHUP: %s", done, extra={"event": "hangup"})
            elif number in self._stopping:
                if first:
                    if number == first and time.monotonic() - first_at < REPEATED:
                        continue
                    os._exit(128 + number)
                first, first_at = number, time.monotonic()
                self._stop.set()
                notify("STOPPING=1")
                name = signal.Signals(number).name
                log.info("%s: stopping; the same again ends at once", name, extra={"event": "stopping", "signal": name})


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A handler that is there so that the interpreter reports the signal."""


class PidFile:
    """A file with this process's number, for as long as the `with` block lasts.

    The file is locked while its process lives, so that a number which the system has given to some
    other process since is not taken for ours.  It appears whole, by a rename, and goes at the end;
    one left by a killed process is replaced.  Entering raises UsageError when another process holds
    it, or when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        _require_locks("a PID file")
        try:
            self._write()
        except OSError as error:
            raise UsageError(
                f"cannot write the PID file {self.path}: {error.strerror}",
                hint="create its directory, and let this user write there",
            ) from error
        return self

    def _write(self) -> None:
        descriptor, draft = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            os.fchmod(descriptor, 0o644)
            os.write(descriptor, b"%d\n" % os.getpid())
            _try_lock(descriptor)
            while not (self._put_new(draft) or self._put_over_stale(draft)):
                pass  # another process changed what stands there between the two: look again
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
        self._descriptor = descriptor

    def _put_new(self, draft: str) -> bool:
        try:
            os.link(draft, self.path)
        except FileExistsError:
            return False
        return True

    def _put_over_stale(self, draft: str) -> bool:
        try:
            old = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            if not _try_lock(old):
                owner = os.read(old, 32).decode("ascii", "replace").strip()
                raise UsageError(
                    f"already running as process {owner}, says {self.path}",
                    hint="stop that process first, or name another PID file",
                )
            # Holding its lock, we are the only one who may replace it, if it still is what stands there.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(old), os.stat(self.path)):
                    os.rename(draft, self.path)
                    return True
            return False
        finally:
            os.close(old)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Someone may have removed it, and a second process may have put its own there.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                os.unlink(self.path)
        os.close(self._descriptor)
        self._descriptor = -1


def take_lock(path: Path) -> int | None:
    """Lock `path` for the life of this process; None when another process has it.  Does not block.

    The lock is the kernel's (flock), so it ends with its process, however that ends; the file
    itself means nothing and stays.  Returns the open descriptor, which holds the lock.  Raises
    UsageError when the file cannot be opened.
    """
    _require_locks("a lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if _try_lock(descriptor):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        raise UsageError(
            f"cannot lock the file {path}: {error.strerror}",
            hint="create its directory, and let this user write there",
        ) from error
    return None


def notify(state: str) -> None:
    """Tell systemd `state` ("READY=1", "STOPPING=1"), when it asked for that; see sd_notify(3).

    Never fails: a service manager that is not listening is no reason to stop.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux's abstract names
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)
    except OSError as error:
        log.warning("cannot tell the service manager %s: %s", state, error)


def _require_locks(what: str) -> None:
    if sys.platform == "win32":
        raise UsageError(f"{what} is not to be had on Windows", hint="leave it out, and run Qanat as a service")


def _try_lock(descriptor: int) -> bool:
    """Take the kernel's lock on an open file; False when another open file holds it.  Raises OSError."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
