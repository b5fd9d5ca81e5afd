"""deploy/supervisor.conf under the real supervisor: it starts both programs, and again what was killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine.deployed import deployed, install_command, user
from tests.support.machine.processes import SECONDS, NotifySocket, Pair
from tests.support.machine.programs import require_program

# What Debian's /etc/supervisor/supervisord.conf says, in a directory of the test's own.
SUPERVISORD = """
[unix_http_server]
file={directory}/control
[supervisord]
nodaemon=true
logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid
childlogdir={directory}/log
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{directory}/control
[include]
files = {directory}/conf.d/*.conf
"""


class Supervisor:
    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.directory = directory = pair.directory
        self._daemon, self._control = require_program("supervisord"), require_program("supervisorctl")
        for name in ("conf.d", "log", "state"):
            (directory / name).mkdir()
        text = deployed(
            "supervisor.conf",
            {
                "/usr/local/bin/qanat": install_command(directory / "bin" / "qanat"),
                "/etc/qanat/": f"{pair.server_yaml.parent}/",
                "/var/lib/qanat": directory / "state",
                "/var/log/supervisor": directory / "log",
                "user=qanat": f"user={user()}",
            },
        )
        (directory / "conf.d" / "qanat.conf").write_text(text)
        self.configuration = directory / "supervisord.conf"
        run_as = "user=root" if os.geteuid() == 0 else ""
        self.configuration.write_text(SUPERVISORD.format(directory=directory, user=run_as))
        self.notifications = NotifySocket(directory / "notify")
        environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "NOTIFY_SOCKET": str(self.notifications.path)}
        self.process = subprocess.Popen(
            [self._daemon, "-c", self.configuration], env=environment, stdout=subprocess.DEVNULL, cwd="/"
        )

    def control(self, *command: str) -> str:
        done = subprocess.run(
            [self._control, "-c", self.configuration, *command], capture_output=True, text=True, timeout=SECONDS
        )
        return done.stdout

    def wait_until_ready(self) -> None:
        """Wait until one more of the two is ready."""
        assert self.notifications.wait(self.process.pid) == "READY=1", self.log("supervisord.log")

    def log(self, name: str) -> str:
        return (self.directory / name).read_text()

    def close(self) -> None:
        self.process.terminate()  # it ends its programs first, and kills those that stay
        self.process.wait(SECONDS)
        self.notifications.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    running = Supervisor(Pair(tmp_path))
    yield running
    running.close()


def test_supervisor_starts_both_and_starts_again_what_was_killed(supervisor: Supervisor) -> None:
    supervisor.wait_until_ready()
    supervisor.wait_until_ready()
    assert b"ok" in supervisor.pair.fetch()
    for program in ("qanat-client", "qanat-server"):
        killed = int(supervisor.control("pid", program))
        os.kill(killed, signal.SIGKILL)
        supervisor.wait_until_ready()
        assert int(supervisor.control("pid", program)) != killed
    assert "fingerprint" in supervisor.log("log/qanat-server.log")


def test_supervisor_stops_both_in_good_order(supervisor: Supervisor) -> None:
    supervisor.wait_until_ready()
    supervisor.wait_until_ready()
    supervisor.control("stop", "all")
    events = supervisor.log("supervisord.log")
    assert "stopped: qanat-client (exit status 0)" in events
    assert "stopped: qanat-server (exit status 0)" in events
    assert "SIGKILL" not in events
