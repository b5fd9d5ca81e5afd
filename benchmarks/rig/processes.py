"""Processes that a benchmark starts, and what the kernel says that they used: processor time, memory, threads.

A `Started` may have children of its own (nginx's workers, sshd's sessions, socat's one a connection); all figures are
of the whole family, those that have ended and were waited for included in its processor time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
_TICK = os.sysconf("SC_CLK_TCK")


class Started:
    """A program in a process group of its own, its output kept in a file, for when it fails."""

    def __init__(self, *command: object, cwd: Path = ROOT, inherit: Collection[int] = ()) -> None:
        """Start it; it keeps the descriptors in `inherit` open."""
        self.name = Path(str(command[0])).name
        # A proxy that this machine has to use is none for loopback.
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("QANAT_", "NOTIFY_")) and not key.lower().endswith("_proxy")
        }
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=inherit,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it
        )
        self.pid = self.process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def last_words(self) -> str:
        """Return the end of its output, on one line."""
        with contextlib.suppress(ValueError, OSError):
            size = self._output.seek(0, os.SEEK_END)
            text = os.pread(self._output.fileno(), 600, max(0, size - 600)).decode(errors="replace")
            return " ".join(text.split())[-300:]
        return ""

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Block until `ready`; raises RuntimeError with its last words when it ends before that, or takes long."""
        end = time.monotonic() + seconds
        while not ready():
            if not self.running:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {self.last_words}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name}: not {what} within {seconds:g} s: {self.last_words}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM to the family, then SIGKILL to what is left of it.  Blocks for at most a few seconds.  Idempotent."""
        if self._output.closed:
            return
        family_pids = {pid for pid, _ in family(self.pid)} if self.running else set()
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        self._signal(signal.SIGKILL)
        self.process.wait()
        for pid in family_pids - {self.pid}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._output.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def python(*arguments: object) -> tuple[object, ...]:
    """Return the command that runs this interpreter with `arguments`."""
    return (sys.executable, *arguments)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of several processes together."""

    pss: int  # bytes; what they share counts once
    rss: int  # bytes
    threads: int


def family(pid: int) -> list[tuple[int, list[str]]]:
    """`pid` and all its living descendants, each with the fields of /proc/PID/stat from the state on."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry)] = _stat(int(entry))
    wanted, members = {pid}, []
    grew = True
    while grew:
        grew = False
        for number, fields in list(found.items()):
            if number in wanted or int(fields[1]) in wanted:
                wanted.add(number)
                members.append((number, found.pop(number)))
                grew = True
    return members


def processor_time(pids: Iterable[int]) -> float:
    """Return the seconds, in user and in system mode, that these families have used so far."""
    total = 0.0
    for pid in pids:
        for number, fields in family(pid):
            reaped = (int(fields[13]) + int(fields[14])) / _TICK
            with contextlib.suppress(OSError):
                # The kernel's clock of another process: nanoseconds, where /proc has ticks (clock_getcpuclockid(3)).
                total += time.clock_gettime(~number << 3 | 2) + reaped
    return total


def memory(pids: Iterable[int]) -> Memory:
    """Return what these families hold now."""
    pss = rss = threads = 0
    for pid in pids:
        for number, fields in family(pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
                    key, _, rest = line.partition(":")
                    if key == "Pss":
                        pss += int(rest.split()[0]) * 1024
                    elif key == "Rss":
                        rss += int(rest.split()[0]) * 1024
                threads += int(fields[17])
    return Memory(pss, rss, threads)


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may have blanks and brackets of its own."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
