"""Promises of `service`: it writes what fits one configuration, starts it, says so, and leaves nothing of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qanat.base.errors import QanatError
from qanat.cli.main import main
from qanat.config.load import check_config
from qanat.control.running import running_of
from qanat.process.daemon import holder_of
from qanat.service import choose, cron, systemd
from qanat.service.account import Account, hand_over, own_account
from qanat.service.cron import Cron
from qanat.service.plan import Plan, check_access, default_name, plans_of, prepare
from qanat.service.supervisor import Supervisor
from qanat.service.systemd import Systemd, unit_text
from tests.deploy.test_supervisor import SUPERVISORD
from tests.support.machine.deployed import install_command
from tests.support.machine.processes import SECONDS, Pair, wait_for
from tests.support.machine.programs import require_program

FAKE = """\
#!/bin/sh
# Stands for the program of this name, which this machine has no use for: it writes down what it was asked.
echo "$@" >>{log}
case "$*" in
*is-active*) cat {directory}/active 2>/dev/null || echo inactive ;;
*restart*) echo active >{directory}/active ;;
*disable*) rm -f {directory}/active ;;
*show*) printf 'ActiveState=active\\nSubState=running\\nMainPID=4711\\nStatusText=connected to wss://a\\n' ;;
esac
"""
CRONTAB = """\
#!/bin/sh
case "$1" in
-l) cat {table} 2>/dev/null || {{ echo "no crontab for $USER" >&2; exit 1; }} ;;
-r) rm -f {table} ;;
-) cat >{table} ;;
*) exit 2 ;;
esac
"""
NOBODY = Account("nobody", 65534, 65534)
ANOTHERS = """\
# qanat service qanat-client, client of {config}
* * * * * cd / && exec /bin/true client -c {config}
# qanat service qanat-client: to here
"""


def fake(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Files for both ends, with a key that takes a second to make."""
    return Pair(tmp_path_factory.mktemp("made"))


@pytest.fixture
def pair(made: Pair, tmp_path: Path) -> Pair:
    return made.copied_to(tmp_path)


def plan_of(pair: Pair, role: str, *, for_user: bool = True) -> Plan:
    program = install_command(pair.directory / "bin" / "qanat")
    config = pair.server_yaml if role == "server" else pair.client_yaml
    (plan,) = plans_of(config, program=[str(program)], account=own_account(), for_user=for_user)
    return replace(plan, state=pair.directory) if not for_user else plan


def test_a_service_is_called_after_its_file() -> None:
    assert default_name("server", Path("/etc/qanat/server.yaml")) == "qanat-server"
    assert default_name("client", Path("/etc/qanat/my office.yaml")) == "qanat-client-my-office"


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("for_user", [False, True])
def test_systemd_finds_no_fault_in_what_is_written(role: str, for_user: bool, pair: Pair) -> None:
    analyze = require_program("systemd-analyze")
    plan = plan_of(pair, role, for_user=for_user)
    unit = pair.directory / f"{plan.name}.service"
    unit.write_text(unit_text(plan))
    command = [analyze, "verify", "--man=no", *(["--user"] if for_user else []), unit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert [line for line in done.stderr.splitlines() if plan.name in line] == []
    text = unit.read_text()
    assert f"ExecStart={plan.program[0]} {role} -c {plan.config}\n" in text
    assert ("WantedBy=default.target" in text) is for_user
    assert ("User=" in text) is not for_user
    assert "Type=notify\n" in text


def test_the_unit_has_what_its_configuration_needs_and_no_more(pair: Pair) -> None:
    plan = plan_of(pair, "server", for_user=False)
    assert "CAP_NET_BIND_SERVICE" not in unit_text(plan)
    low = unit_text(replace(plan, low_ports=(443,)))
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in low
    writes = unit_text(replace(plan, writes=(Path("/srv/my logs"),)))
    assert 'ReadWritePaths=-"/srv/my logs"\n' in writes
    home = replace(plan, config=Path("/home/me/100%.yaml"), files=(Path("/home/me/100%.yaml"),))
    assert "ProtectHome=read-only\n" in unit_text(home)
    assert "-c /home/me/100%%.yaml\n" in unit_text(home)


def test_systemd_is_asked_for_what_was_said(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, units = pair.directory / "fakes", pair.directory / "units"
    programs.mkdir()
    log = pair.directory / "asked"
    fake(programs, "systemctl", FAKE.format(log=log, directory=programs))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    manager, plan = Systemd(for_user=False, units=units), plan_of(pair, "client", for_user=False)
    unit = units / f"{plan.name}.service"
    assert manager.install(plan) == [f"wrote {unit}", f"enabled and started {unit.name}"]
    assert log.read_text().splitlines() == ["daemon-reload", f"enable {unit.name}", f"restart {unit.name}"]
    assert manager.install(plan) == [f"{unit} is as it should be, and {unit.name} runs"]
    (service,) = manager.installed()
    assert (service.name, service.role, service.config) == (plan.name, "client", plan.config)
    assert service.program == plan.program[0]
    state = manager.state(service)
    assert (state.running, state.pid, state.text) == (True, 4711, "active (running): connected to wss://a")
    assert manager.uninstall(service) == [f"stopped and disabled {unit.name}", f"removed {unit}"]
    assert list(units.iterdir()) == []


def test_what_somebody_else_wrote_is_left_alone(pair: Pair) -> None:
    plan = plan_of(pair, "client", for_user=False)
    units = pair.directory / "units"
    units.mkdir()
    (units / f"{plan.name}.service").write_text("[Unit]\nDescription=mine\n")
    with pytest.raises(QanatError, match="did not write it"):
        Systemd(for_user=False, units=units).install(plan)
    assert Systemd(for_user=False, units=units).installed() == []


@pytest.fixture
def crontab(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A crontab of this test's own, in which somebody's line stands already."""
    programs = pair.directory / "fakes"
    programs.mkdir()
    table = pair.directory / "crontab"
    table.write_text("0 4 * * * backup\n")
    fake(programs, "crontab", CRONTAB.format(table=table))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(pair.directory))
    return table


def test_cron_has_a_line_and_the_program_runs_until_it_is_taken_out(pair: Pair, crontab: Path) -> None:
    manager, plan = Cron(for_user=True), plan_of(pair, "server")
    try:
        done = manager.install(plan)
        assert done[0].startswith("wrote the crontab of ")
        pid = holder_of(cron.pid_file(plan))
        assert pid is not None
        assert f"as process {pid}" in done[1]
        (service,) = manager.installed()
        assert service.program == plan.program[0]
        assert manager.state(service).pid == pid
        assert "is as it should be" in manager.install(plan)[0]
        assert holder_of(cron.pid_file(plan)) == pid
        manager.restart(service)
        assert holder_of(cron.pid_file(plan)) not in (None, pid)
    finally:
        for service in manager.installed():
            manager.uninstall(service)
    assert crontab.read_text() == "0 4 * * * backup\n"
    assert holder_of(cron.pid_file(plan)) is None
    assert not list(pair.directory.rglob(f"{plan.name}.*"))


def test_what_another_installation_runs_is_left_alone_by_all(
    pair: Pair, crontab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = ANOTHERS.format(config=pair.client_yaml)
    crontab.write_text(theirs)
    assert main(["service", "uninstall", "--user", "--all"]) == 0
    assert "left alone: qanat-client, which runs /bin/true" in capsys.readouterr().out
    assert crontab.read_text() == theirs
    for said in ("took qanat-client out", "nothing to do"):
        assert main(["service", "uninstall", "--user", "-c", str(pair.client_yaml)]) == 0
        assert said in capsys.readouterr().out
    assert not crontab.exists()


def test_a_program_that_ends_at_once_is_told_with_its_reason(pair: Pair, crontab: Path) -> None:
    plan = plan_of(pair, "server")
    pair.server_yaml.write_text("server: {}\n")
    with pytest.raises(QanatError, match=r"does not start: .*clients"):
        Cron(for_user=True).install(plan)


def test_what_does_not_start_says_where_it_stays(
    pair: Pair, crontab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(pair.directory, "broken", "#!/bin/sh\ntest $1 != server || { echo broken >&2; exit 1; }\n")
    monkeypatch.setattr("qanat.cli.service.lasting_command", lambda: [str(pair.directory / "broken")])
    assert main(["service", "install", "--user", "--manager", "cron", "-c", str(pair.server_yaml)]) == 1
    said = capsys.readouterr()
    assert "does not start: broken" in said.err
    assert "qanat-server: stays in the crontab of " in said.out
    assert str(pair.server_yaml) in crontab.read_text()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    daemon = require_program("supervisord")
    short = tmp_path / "supervisor"
    for name in ("conf.d", "log"):
        (short / name).mkdir(parents=True)
    configuration = short / "supervisord.conf"
    configuration.write_text(SUPERVISORD.format(directory=short, user="user=root" if os.geteuid() == 0 else ""))
    with subprocess.Popen([daemon, "-c", configuration], stdout=subprocess.DEVNULL, cwd="/") as process:
        running = Supervisor(configuration)
        wait_for(lambda: running.is_running, "supervisor")
        yield running
        process.terminate()
        process.wait(SECONDS)


def test_supervisor_runs_the_program_until_it_is_taken_out(supervisor: Supervisor, pair: Pair) -> None:
    plan = replace(plan_of(pair, "server"), state=pair.directory / "state")
    plan.state.mkdir()
    done = supervisor.install(plan)
    assert done[-1] == f"supervisor has started {plan.name}"
    (service,) = supervisor.installed()
    assert service.program == plan.program[0]
    state = supervisor.state(service)
    assert state.running
    assert state.pid is not None
    assert "is as it should be" in supervisor.install(plan)[0]
    # By its file alone, as `status -c FILE` does: we have not the service's STATE_DIRECTORY.
    settings, _ = check_config(pair.server_yaml)
    assert settings is not None
    wait_for(lambda: any(plan.state.glob("*.sock")), "the control socket")
    assert running_of(settings, pair.server_yaml).path.parent == plan.state
    assert supervisor.uninstall(service)[-1] == f"removed {service.where}"
    assert supervisor.installed() == []
    assert not supervisor.state(service).running


def test_a_low_port_is_refused_where_nobody_can_give_it(pair: Pair) -> None:
    plan = replace(plan_of(pair, "server"), low_ports=(443,), account=Account("somebody", 4711, 4711))
    for manager in (Supervisor(pair.directory / "none"), Cron(for_user=True)):
        with pytest.raises(QanatError, match="port 443"):
            manager.check(plan)


@pytest.mark.parametrize("kind", ["systemd", "supervisor"])
def test_a_manager_that_does_not_run_is_refused_before_anything_changes(
    kind: str, pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_early(*_: object) -> None:
        raise AssertionError("this is too early")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("qanat.service.systemd.is_running", lambda **_: False)
    monkeypatch.setattr("qanat.service.supervisor.CONFIGURATIONS", ())
    monkeypatch.setattr("qanat.cli.service.find_account", lambda _: None)
    monkeypatch.setattr("qanat.cli.service.installed_services", lambda **_: [])
    for what in ("make_account", "prepare"):
        monkeypatch.setattr(f"qanat.cli.service.{what}", too_early)
    assert main(["service", "install", "-c", str(pair.server_yaml), "--manager", kind]) == 1
    assert "--manager cron" in capsys.readouterr().err


def test_a_user_without_a_systemd_of_his_own_gets_no_unit(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(pair.directory / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(pair.directory / "none"))
    assert main(["service", "install", "-c", str(pair.client_yaml), "--user", "--manager", "systemd"]) == 1
    assert "no systemd of your own here\nhint: choose another: --manager cron" in capsys.readouterr().err
    assert not (pair.directory / "home").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_folder_that_the_account_cannot_enter_is_named_and_nothing_is_given(pair: Pair) -> None:
    pair.directory.chmod(0o700)
    plan = replace(plan_of(pair, "server", for_user=False), account=NOBODY, program=("/bin/true",))
    with pytest.raises(QanatError, match="nobody may not enter /"):
        check_access(plan)
    assert {path.stat().st_uid for path in pair.directory.iterdir()} == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give")
def test_what_was_given_is_taken_back_when_check_fails(pair: Pair) -> None:
    files = [pair.server_yaml, *pair.directory.glob("*.token")]
    for file in files:
        file.chmod(0o600)
    state = pair.directory / "state"
    plan = replace(plan_of(pair, "server", for_user=False), account=NOBODY, program=("/bin/false",), state=state)
    with pytest.raises(QanatError, match="nobody cannot use"):
        prepare(plan)
    assert {file.stat().st_uid for file in files} == {0}
    assert not state.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give")
def test_only_root_s_private_files_beside_the_configuration_are_given(tmp_path: Path) -> None:
    inside, outside, public = tmp_path / "etc" / "key", tmp_path / "web.key", tmp_path / "etc" / "public"
    inside.parent.mkdir()
    for path in (inside, outside, public):
        path.write_text("x")
        path.chmod(0o644 if path is public else 0o600)
    assert hand_over([inside, outside, public], NOBODY, below=inside.parent) == [inside]
    assert [path.stat().st_uid for path in (inside, outside, public)] == [65534, 0, 0]


def test_without_systemd_and_supervisor_it_is_cron(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "is_running", lambda **_: False)
    monkeypatch.setattr(Supervisor, "is_running", False)
    assert choose.right_manager(for_user=False).kind == "cron"
    assert shutil.which("sh")
