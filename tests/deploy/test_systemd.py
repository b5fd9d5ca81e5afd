"""deploy/qanat-*.service: systemd accepts them, finds them tight, and hears what Type=notify promises it."""

from __future__ import annotations

import configparser
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qanat.base import files_limit
from tests.support.machine.deployed import deployed, install_command, user
from tests.support.machine.processes import SECONDS, NotifySocket, Pair, wait_for
from tests.support.machine.programs import require_program

UNITS = ("qanat-server.service", "qanat-client.service")


class Installed:
    """Both units, with the commands and paths of this test."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.directory = pair.directory
        self.command = install_command(self.directory / "bin" / "qanat")
        self.output = self.directory / "output"
        for name in UNITS:
            yaml = pair.server_yaml if "server" in name else pair.client_yaml
            replacements = {
                "/usr/local/bin/qanat": self.command,
                f"/etc/qanat/{yaml.name}": yaml,
                "User=qanat": f"User={user()}",
                "Group=qanat": "Group=0",
            }
            (self.directory / name).write_text(deployed(name, replacements))

    def service(self, name: str) -> configparser.SectionProxy:
        unit = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes="#")
        unit.read(self.directory / name)
        return unit["Service"]

    @contextmanager
    def started(self, name: str) -> Iterator[tuple[subprocess.Popen[bytes], NotifySocket]]:
        """The unit's ExecStart, with the few variables that systemd gives to a service."""
        notifications = NotifySocket(self.directory / f"notify-{name}")
        state, cache = self.directory / "state", self.directory / "cache"
        for path in (state, cache):
            path.mkdir(exist_ok=True)
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "NOTIFY_SOCKET": str(notifications.path),
            "STATE_DIRECTORY": str(state),
            "CACHE_DIRECTORY": str(cache),
        }
        command = shlex.split(self.service(name)["ExecStart"])
        with self.output.open("ab") as output:
            process = subprocess.Popen(command, env=environment, cwd="/", stdout=output, stderr=output)
        try:
            yield process, notifications
        finally:
            process.kill()
            process.wait()
            notifications.close()


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(Pair(tmp_path))


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault_in_the_unit(name: str, installed: Installed) -> None:
    program = require_program("systemd-analyze")
    done = subprocess.run(
        [str(program), "verify", "--man=no", str(installed.directory / name)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "qanat" in line]) == (0, [])


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_the_unit_tight(name: str, installed: Installed) -> None:
    program = require_program("systemd-analyze")
    command = [
        str(program),
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=25",
        str(installed.directory / name),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if "--offline" in done.stderr:
        pytest.skip("this systemd is older than 250 and cannot judge a unit that it does not run")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_sets_no_limit_below_the_program_s_own(name: str, installed: Installed) -> None:
    service = installed.service(name)
    assert int(service["LimitNOFILE"]) == files_limit.UNLIMITED
    assert service["TasksMax"] == "infinity"  # two threads a stream


@pytest.mark.parametrize("name", UNITS)
def test_no_core_file_is_left_that_holds_keys(name: str, installed: Installed) -> None:
    assert installed.service(name)["LimitCORE"] == "0"


def test_units_are_ready_when_others_can_use_them(installed: Installed) -> None:
    with installed.started("qanat-client.service") as (client, from_client):
        wait_for(lambda: "cannot connect" in installed.output.read_text(), "the client's first failure")
        assert from_client.wait(client.pid) == "READY=1"
        assert from_client.wait_for_status(client.pid, "trying again in ")
        with installed.started("qanat-server.service") as (server, from_server):
            assert from_server.wait(server.pid) == "READY=1"
            assert from_client.wait_for_status(client.pid, "connected to ")
            assert b"ok" in installed.pair.fetch()
            for process, notifications in ((client, from_client), (server, from_server)):
                process.send_signal(signal.SIGTERM)  # systemd's KillSignal
                assert notifications.wait(process.pid) == "STOPPING=1"
                assert process.wait(SECONDS) == 0


def test_reload_is_a_signal_that_the_process_survives(installed: Installed) -> None:
    assert installed.service("qanat-server.service")["ExecReload"] == "/bin/kill -HUP $MAINPID"
    with installed.started("qanat-server.service") as (server, from_server):
        assert from_server.wait(server.pid) == "READY=1"
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: "SIGHUP" in installed.output.read_text(), "the answer to the reload")
        assert server.poll() is None


@pytest.mark.parametrize(("name", "codes"), [(UNITS[0], {2}), (UNITS[1], {2, 3})])
def test_systemd_does_not_start_again_what_cannot_work(name: str, codes: set[int], installed: Installed) -> None:
    assert set(map(int, installed.service(name)["RestartPreventExitStatus"].split())) == codes
    yaml = installed.pair.server_yaml if "server" in name else installed.pair.client_yaml
    yaml.write_text("nonsense: true\n")
    with installed.started(name) as (process, _):
        assert process.wait(SECONDS) == 2
