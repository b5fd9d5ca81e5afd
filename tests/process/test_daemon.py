"""Promises of qanat.process.daemon, each kept by a real process that gets real signals."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qanat.base.errors import UsageError
from qanat.process.daemon import AlreadyRunning, PidFile, notify, take_lock
from tests.support.machine.processes import wait_for

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20.0

Start = Callable[..., "Child"]


class Child:
    """A Python process that runs `code` and is told apart by the lines that it prints."""

    def __init__(self, code: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        deadline = threading.Timer(SECONDS, self.process.kill)
        deadline.start()
        try:
            return self.process.stdout.readline().strip()
        finally:
            deadline.cancel()
            deadline.join()

    def errors_until(self, text: str) -> None:
        """Read the log on stderr up to a line with `text`; nothing else reads it meanwhile."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return
        pytest.fail(f"the process never logged {text!r}")

    def end(self) -> int:
        return self.process.wait(SECONDS)


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[Child] = []

    def start_child(code: str, **environment: str) -> Child:
        children.append(Child(code, environment))
        return children[-1]

    yield start_child
    for child in children:
        child.process.kill()
        child.process.communicate()


DAEMON = """
    from pathlib import Path
    import os, signal, threading
    from qanat.process.daemon import run_daemon
    from qanat.process.log import setup_logging
    from qanat.config.settings import LogSettings

    file = os.environ.get("LOG")
    setup_logging(LogSettings(file=Path(file) if file else None))

    def run(stop, ready):
        print("running", flush=True)
        ready()
        if os.environ.get("SIGNALED_THREAD"):
            # The kernel chooses which thread gets a signal; this one is chosen here, while the main one sleeps.
            timer = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM))
            timer.start()
        stop.wait()
        print("stopped", flush=True)
        if os.environ.get("STUCK"):
            while True:
                pass

    pid_file = os.environ.get("PID_FILE")
    run_daemon(run, pid_file=Path(pid_file) if pid_file else None, hangup_stops=bool(os.environ.get("HANGUP_STOPS")))
    print("returned", flush=True)
"""


def test_a_signal_that_another_thread_got_stops_too(start: Start) -> None:
    child = start(DAEMON, SIGNALED_THREAD="1")
    assert [child.line(), child.line(), child.line()] == ["running", "stopped", "returned"]
    assert child.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_good_order(start: Start, number: signal.Signals) -> None:
    child = start(DAEMON)
    assert child.line() == "running"
    child.process.send_signal(number)
    assert [child.line(), child.line()] == ["stopped", "returned"]
    assert child.end() == 0


def test_a_second_signal_ends_at_once_even_when_stopping_is_stuck(start: Start) -> None:
    child = start(DAEMON, STUCK="1")
    assert child.line() == "running"
    child.process.send_signal(signal.SIGTERM)
    assert child.line() == "stopped"
    child.process.send_signal(signal.SIGINT)
    assert child.end() == 128 + signal.SIGINT


def test_a_hangup_opens_a_renamed_log_file_again(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "log"
    child = start(DAEMON, LOG=str(path))
    assert child.line() == "running"
    path.rename(tmp_path / "log.1")
    child.process.send_signal(signal.SIGHUP)
    wait_for(lambda: path.exists() and "log file opened again" in path.read_text(), "a new log file")
    child.process.send_signal(signal.SIGTERM)
    assert child.end() == 0
    assert (tmp_path / "log.1").read_text() == ""


def test_a_hangup_stops_what_belongs_to_a_terminal(start: Start) -> None:
    child = start(DAEMON, HANGUP_STOPS="1")
    assert child.line() == "running"
    child.process.send_signal(signal.SIGHUP)
    assert child.line() == "stopped"
    assert child.end() == 0


def test_nohup_is_respected(start: Start) -> None:
    child = start(
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + textwrap.dedent(DAEMON), HANGUP_STOPS="1"
    )
    assert child.line() == "running"
    child.process.send_signal(signal.SIGHUP)
    child.errors_until("SIGHUP: no log file to open again")
    child.process.send_signal(signal.SIGTERM)
    assert child.line() == "stopped"
    assert child.end() == 0


def test_the_pid_file_lives_as_long_as_its_process(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "qanat.pid"
    child = start(DAEMON, PID_FILE=str(path))
    assert child.line() == "running"
    assert path.read_text() == f"{child.process.pid}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    child.process.terminate()
    assert child.end() == 0
    assert os.listdir(tmp_path) == []


def test_the_pid_file_of_a_live_process_is_refused(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "qanat.pid"
    child = start(DAEMON, PID_FILE=str(path))
    assert child.line() == "running"
    with pytest.raises(UsageError, match=f"already running as process {child.process.pid}"), PidFile(path):
        pass
    assert os.listdir(tmp_path) == ["qanat.pid"]
    child.process.terminate()
    assert child.end() == 0


def test_the_pid_file_of_a_killed_process_is_replaced(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "qanat.pid"
    child = start(DAEMON, PID_FILE=str(path))
    assert child.line() == "running"
    child.process.kill()
    child.end()
    assert path.exists()
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_a_stale_number_that_another_process_bears_now_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "qanat.pid"
    path.write_text("1\n")
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_pid_file_that_is_no_longer_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "qanat.pid"
    with PidFile(path):
        path.unlink()
        path.write_text("another\n")
    assert path.read_text() == "another\n"


def test_of_many_starting_at_once_exactly_one_gets_the_pid_file(tmp_path: Path) -> None:
    path = tmp_path / "qanat.pid"
    everyone_tried = threading.Barrier(8, timeout=SECONDS)
    won: list[int] = []

    def contend(number: int) -> None:
        try:
            with PidFile(path):
                won.append(number)
                everyone_tried.wait()
        except UsageError:
            everyone_tried.wait()

    path.write_text("stale\n")
    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(won) == 1
    assert os.listdir(tmp_path) == []


def test_a_pid_file_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write the PID file"), PidFile(tmp_path / "missing" / "qanat.pid"):
        pass


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)


def test_without_hard_links_one_of_many_gets_the_pid_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: object, target: object) -> None:
        if os.path.lexists(str(target)):
            raise FileExistsError(errno.EEXIST, "File exists")
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    test_of_many_starting_at_once_exactly_one_gets_the_pid_file(tmp_path)
    with PidFile(tmp_path / "new.pid"):
        assert (tmp_path / "new.pid").read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == []


def test_without_locks_the_number_in_the_file_decides(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "qanat.pid"
    child = start(DAEMON, PID_FILE=str(path))
    assert child.line() == "running"
    without_locks(monkeypatch)
    with pytest.raises(AlreadyRunning, match=f"already running as process {child.process.pid}"), PidFile(path):
        pass
    assert take_lock(path) is None
    child.process.kill()
    child.end()
    with subprocess.Popen(["sleep", "60"]) as other:
        for stale in (path.read_text(), f"{other.pid}\n", "", "not a number\n", f"{os.getpid()}\n", "9" * 30):
            path.write_text(stale)
            with PidFile(path):
                assert path.read_text() == f"{os.getpid()}\n"
        other.kill()
    descriptor = take_lock(path)
    assert descriptor is not None
    os.close(descriptor)


def test_a_pipe_in_the_place_of_a_pid_file_or_lock_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="it is not a file"), PidFile(tmp_path / "pipe"):
        pass


TAKE_LOCK = """
    import os, signal
    from pathlib import Path
    from qanat.process.daemon import take_lock

    held = take_lock(Path(os.environ["LOCK"]))
    print("held" if held is not None else "busy", flush=True)
    signal.pause()
"""


def test_a_lock_ends_with_its_process_however_that_ends(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("left behind by something else")
    child = start(TAKE_LOCK, LOCK=str(path))
    assert child.line() == "held"
    assert take_lock(path) is None
    child.process.kill()
    child.end()
    descriptor = take_lock(path)
    assert descriptor is not None
    os.close(descriptor)


def test_a_lock_that_cannot_be_opened_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot lock the file"):
        take_lock(tmp_path / "missing" / "lock")


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_ready_and_stopping(start: Start, tmp_path: Path, abstract: bool) -> None:
    name = f"qanat-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name if abstract else name)
        listener.settimeout(SECONDS)
        child = start(DAEMON, NOTIFY_SOCKET="@" + name if abstract else name)
        assert listener.recv(1024) == b"READY=1"
        child.process.terminate()
        assert listener.recv(1024) == b"STOPPING=1"
        assert child.end() == 0


def test_a_service_manager_that_is_gone_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    assert "cannot tell the service manager" in caplog.text
