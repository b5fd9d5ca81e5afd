"""What the operating system expects of a process that stays: signals, a PID file, a lock, sd_notify.

Not here: what the process does (qanat.server.server, qanat.client.client), and going to the background,
which systemd, supervisor and cron do themselves.  The command line calls `run_daemon`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from qanat.base.errors import UsageError
from qanat.base.private_files import Draft, open_regular
from qanat.base.threads import start_thread
from qanat.process.allocator import limit_arenas, use_large_pages
from qanat.process.log import flush_log, reopen

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("qanat.daemon")

Run = Callable[[threading.Event, Callable[[], None]], None]

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EPERM})
"""What `flock` fails with where there are no locks."""

REPEATED = 0.2
"""Seconds within which the same signal again is the same wish: timeout(1) sends one to its child and to the group."""


def run_daemon(
    run: Run,
    *,
    pid_file: Path | None = None,
    hangup_stops: bool = False,
    on_hangup: Callable[[], None] | None = None,
) -> None:
    """Call `run(stop, ready)` in this thread, the main one, and return when it returns; blocks.

    SIGTERM and SIGINT set `stop`; a second one, later than REPEATED, ends the process at once.  SIGHUP opens the log
    file again and calls `on_hangup`, which must not block, or, with `hangup_stops`, sets `stop` too.  `ready` tells
    systemd that the service is up.  Raises UsageError when the PID file is held by a live process, and what `run`
    raises.
    """
    limit_arenas()
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        if pid_file is not None:
            stack.enter_context(PidFile(pid_file))
        stack.enter_context(Signals(stop, hangup_stops=hangup_stops, on_hangup=on_hangup))
        run(stop, _is_up)


def _is_up() -> None:
    use_large_pages()
    notify("READY=1")


class Signals:
    """Turn signals into `stop` and `reopen` for as long as the `with` block lasts.  Main thread only.

    Python runs signal handlers in the main thread, between two bytecodes.  That thread may be holding
    the very lock that `Event.set` or a log line needs; and when the kernel gave the signal to another
    thread, it sleeps on, and the handler runs when it wakes, which may be never.  So the handlers do
    nothing: the interpreter writes each signal's number into a socket at once, in whatever thread
    (signal.set_wakeup_fd), and the thread `signals` reads it there and acts.
    """

    def __init__(
        self, stop: threading.Event, *, hangup_stops: bool = False, on_hangup: Callable[[], None] | None = None
    ) -> None:
        self._stop = stop
        self._on_hangup = on_hangup
        self._stopping = [signal.SIGTERM, signal.SIGINT]
        self._reopening: list[signal.Signals] = []
        if hasattr(signal, "SIGHUP"):
            # nohup starts us with SIGHUP ignored, and means it: a closed terminal ends nothing.
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
                if self._on_hangup is not None:
                    self._on_hangup()
            elif number in self._stopping:
                if first:
                    if number == first and time.monotonic() - first_at < REPEATED:
                        continue
                    flush_log(REPEATED)
                    os._exit(128 + number)
                first, first_at = number, time.monotonic()
                self._stop.set()
                notify("STOPPING=1")
                name = signal.Signals(number).name
                log.info("%s: stopping; the same again ends at once", name, extra={"event": "stopping", "signal": name})


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing: the handler is there so that the interpreter reports the signal."""


class AlreadyRunning(UsageError):
    """Another process holds the PID file."""


class PidFile:
    """A file with this process's number, for as long as the `with` block lasts.

    The file is locked while its process lives, so that a number which the system has given to some other process since
    is not taken for ours.  It appears whole, and goes at the end; one left by a killed process is replaced.  On a file
    system without locks (NFS without a lock manager, some of Android's) the number alone decides: whether a process
    of that number runs the program that we are.  Entering raises AlreadyRunning when another process holds the file,
    and UsageError when it cannot be written.  Does not block.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        _require_locks("a PID file")
        try:
            self.hold()
        except OSError as error:
            raise UsageError(
                f"cannot write the PID file {self.path}: {error.strerror}",
                hint="create its directory, and let this user write there",
            ) from error
        return self

    def hold(self) -> int:
        """Write the file and return its descriptor, which holds the lock; for `take_lock`.  Raises OSError."""
        with Draft(self.path, mode=0o644) as draft:
            draft.write(b"%d\n" % os.getpid())
            _try_lock(draft.descriptor)
            while not (draft.put_new(claim=_may_claim) or self._put_over_stale(draft)):
                pass  # another process changed what stands there between the two: look again
            self._descriptor = draft.keep_open()
        return self._descriptor

    def _put_over_stale(self, draft: Draft) -> bool:
        try:
            old = open_regular(self.path)
        except FileNotFoundError:
            return False
        with old:
            locked = _try_lock(old.fileno())
            owner = old.read(32).decode("ascii", "replace").strip()
            if locked is Lock.TAKEN or (locked is Lock.NONE and _runs_this_program(owner)):
                raise AlreadyRunning(
                    f"already running as process {owner}, says {self.path}",
                    hint="stop that process first, or name another PID file",
                )
            # Holding its lock, we are the only one who may replace it, if it still is what stands there.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(old.fileno()), os.stat(self.path)):
                    draft.replace()
                    return True
            return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Someone may have removed it, and a second process may have put its own there.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                os.unlink(self.path)
        os.close(self._descriptor)
        self._descriptor = -1


def holder_of(path: Path) -> int | None:
    """Return the number of the process that holds the PID file at `path`; None when none does.  Does not block."""
    try:
        with open_regular(path) as file:
            locked = _try_lock(file.fileno())
            owner = file.read(32).decode("ascii", "replace").strip()
    except OSError:
        return None
    held = locked is Lock.TAKEN or (locked is Lock.NONE and _runs_this_program(owner))
    return int(owner) if held and owner.isascii() and owner.isdigit() else None


def take_lock(path: Path) -> int | None:
    """Lock `path` for the life of this process; None when another process has it.  Does not block.

    The lock is the kernel's (flock), so it ends with its process, however that ends; the file itself means nothing and
    stays.  Where the file system has no locks it is a PID file that stays instead.  Returns the open descriptor, which
    holds the lock.  Raises UsageError when the file cannot be opened.
    """
    _require_locks("a lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        lock = _try_lock(descriptor)
        if lock is Lock.OURS:
            return descriptor
        os.close(descriptor)
        return None if lock is Lock.TAKEN else PidFile(path).hold()
    except AlreadyRunning:
        return None
    except OSError as error:
        raise UsageError(
            f"cannot lock the file {path}: {error.strerror}",
            hint="create its directory, and let this user write there; or name a file on a local disk",
        ) from error


def notify(state: str) -> None:
    """Tell systemd `state` ("READY=1", "STOPPING=1"), when it asked for that; see sd_notify(3).

    Never fails: a service manager that is not listening is no reason to stop.  A STATUS is dropped rather than waited
    with.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux's abstract names
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(not state.startswith("STATUS="))
            sock.sendto(state.encode(), address)
    except BlockingIOError:
        log.debug("the service manager is busy, and not told %s", state)
    except OSError as error:
        log.warning("cannot tell the service manager %s: %s", state, error)


def _require_locks(what: str) -> None:
    if sys.platform == "win32":
        raise UsageError(f"{what} is not available on Windows", hint="leave it out, and run Qanat as a service")


class Lock(Enum):
    """What came of asking for the kernel's lock on an open file."""

    OURS = auto()
    TAKEN = auto()
    NONE = auto()
    """The file system has no locks."""


def _try_lock(descriptor: int) -> Lock:
    """Take the kernel's lock on an open file, without blocking.  Raises OSError."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Lock.TAKEN
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return Lock.NONE
    return Lock.OURS


def _may_claim(descriptor: int) -> bool:
    return _try_lock(descriptor) is not Lock.TAKEN


def _runs_this_program(number: str) -> bool:
    """Whether a process of this number is alive, other than we, and, where that can be told, runs our executable."""
    if not number.isascii() or not number.isdigit() or int(number) in (0, os.getpid()):
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        return os.path.samefile(f"/proc/{number}/exe", "/proc/self/exe")
    except OSError:
        return True
