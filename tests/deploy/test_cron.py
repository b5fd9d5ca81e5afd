"""deploy/crontab: its line, run as cron runs it, keeps exactly one client going."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine.deployed import DEPLOY, install_command
from tests.support.machine.processes import SECONDS, NotifySocket, Pair, process_handle, wait_for
from tests.support.machine.programs import require_program

TO_THE_NEXT_MINUTE = 75.0


class Home:
    """A user's home with ~/qanat as deploy/crontab wants it, and the server for it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.path = pair.directory / "home"
        self.qanat = self.path / "qanat"
        self.qanat.mkdir(parents=True)
        install_command(self.qanat / "tunnel.pyz")
        shutil.copy(pair.client_yaml, self.qanat)
        shutil.copy(pair.written.token_file, self.qanat)
        self.notifications = NotifySocket(pair.directory / "notify-cron")

    @property
    def client_pid(self) -> int:
        return int((self.qanat / "client.pid").read_text())

    def end_client(self) -> None:
        """Stop the client that cron started, when there is one."""
        if (self.qanat / "client.pid").exists():
            pid = self.client_pid
            with process_handle(pid):
                os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not (self.qanat / "client.pid").exists(), "the end of the client")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(Pair(tmp_path))
    with home.pair.server() as server:
        server.wait_until_ready()
        yield home
        home.end_client()
        home.notifications.close()


def crontab_line() -> str:
    """The one line of deploy/crontab that is no comment."""
    (line,) = [line for line in (DEPLOY / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    return line


def start_as_cron_does(home: Home) -> subprocess.Popen[str]:
    """The line's command by /bin/sh, in the home directory, with cron's short environment (crontab(5))."""
    return subprocess.Popen(
        ["/bin/sh", "-c", crontab_line().split(maxsplit=5)[5]],
        cwd=home.path,
        env={
            "HOME": str(home.path),
            "PATH": "/usr/bin:/bin",
            "SHELL": "/bin/sh",
            "NOTIFY_SOCKET": str(home.notifications.path),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_line_run_twice_runs_once_and_sends_no_mail(home: Home) -> None:
    with start_as_cron_does(home) as first:
        assert home.notifications.wait(first.pid) == "READY=1"
        with start_as_cron_does(home) as second:
            output, _ = second.communicate(timeout=SECONDS)
            assert (second.returncode, output) == (0, "")
        assert first.poll() is None
        assert b"ok" in home.pair.fetch()
        first.kill()
    with start_as_cron_does(home) as third:
        assert home.notifications.wait(third.pid) == "READY=1"
        assert home.client_pid == third.pid
        os.kill(home.client_pid, signal.SIGTERM)  # as the file says it is stopped
        output, _ = third.communicate(timeout=SECONDS)
        assert (third.returncode, output) == (0, "")
    assert "connected" in (home.qanat / "client.log").read_text()


@pytest.fixture
def cron() -> Iterator[int]:
    """The process number of a cron daemon: the one that runs already, or one for this test."""
    program = require_program("cron")
    if os.geteuid() != 0:
        pytest.skip("only root can run cron")
    running = subprocess.run([require_program("pgrep"), "-x", "cron"], capture_output=True, text=True).stdout.split()
    if running:
        yield int(running[0])
        return
    with subprocess.Popen([program, "-f"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.slow
def test_the_cron_daemon_starts_the_client_within_its_minute(home: Home, cron: int) -> None:
    minute, command = crontab_line().split(" cd ")
    table = Path(f"/etc/cron.d/qanat-test-{os.getpid()}")
    try:
        table.write_text(
            f'HOME={home.path}\nNOTIFY_SOCKET={home.notifications.path}\nMAILTO=""\n{minute} root cd {command}\n'
        )
        assert home.notifications.wait(cron, TO_THE_NEXT_MINUTE) == "READY=1"
    finally:
        table.unlink()
    assert b"ok" in home.pair.fetch()
