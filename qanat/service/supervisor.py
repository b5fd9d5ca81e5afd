"""Programs for supervisor: those in deploy/supervisor.conf, fitted to one configuration."""

from __future__ import annotations

import configparser
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.errors import QanatError
from qanat.base.share import share
from qanat.service.plan import Plan
from qanat.service.record import Installed, State, call, mark, marked_files, put, read_own

CONFIGURATIONS = (Path("/etc/supervisor/supervisord.conf"), Path("/etc/supervisord.conf"))
"""Where Debian, and where others, have supervisor's own configuration."""
_START = 30.0
"""Seconds until a program has to run."""


class Supervisor:
    """The supervisor of a machine, by its configuration file."""

    kind = "supervisor"

    def __init__(self, configuration: Path | None = None) -> None:
        self._configuration = configuration or next((path for path in CONFIGURATIONS if path.exists()), None)
        self._control = ["supervisorctl"] + (["-c", str(self._configuration)] if self._configuration else [])

    @property
    def is_running(self) -> bool:
        """Whether it answers."""
        try:
            return self._configuration is not None and call([*self._control, "pid"], check=False).returncode == 0
        except QanatError:
            return False

    def check(self, plan: Plan) -> None:
        """Refuse where supervisor is missing, does not answer, or cannot run this; see `ServiceManager`."""
        if plan.low_ports:
            raise QanatError(
                f"{plan.name} listens on port {plan.low_ports[0]}, and under supervisor {plan.account.name} may not",
                hint="listen on 1024 or above, behind a proxy; or run it under systemd, which can give it the right",
            )
        read_own(self._path(plan), owner=plan.name)
        if not self.is_running:
            raise QanatError("supervisor does not run here", hint="start it, or choose another: --manager cron")

    def install(self, plan: Plan) -> list[str]:
        """Write the program down, and have supervisor start it; see `ServiceManager`."""
        path = self._path(plan)
        changed = put(path, program_text(plan), owner=plan.name)
        if not changed and self._status(plan.name).running:
            return [f"{path} is as it should be, and {plan.name} runs"]
        self._call("reread")
        self._call("update", plan.name)
        if not self._status(plan.name).running:
            call([*self._control, "start", plan.name], check=False)
        self._wait(plan.name, lambda state: state.running, "start")
        return [*([f"wrote {path}"] if changed else []), f"supervisor has started {plan.name}"]

    def uninstall(self, service: Installed) -> list[str]:
        """Stop the program, and have supervisor forget it; see `ServiceManager`."""
        path = Path(service.where)
        call([*self._control, "stop", service.name], check=False)
        path.unlink(missing_ok=True)
        if self.is_running:
            self._call("reread")
            self._call("update", service.name)
        return [f"stopped {service.name}", f"removed {path}"]

    def restart(self, service: Installed) -> list[str]:
        """Restart the program; see `ServiceManager`."""
        self._call("restart", service.name)
        self._wait(service.name, lambda state: state.running, "start")
        return [f"restarted {service.name}"]

    def state(self, service: Installed) -> State:
        """Ask supervisor; see `ServiceManager`."""
        return self._status(service.name)

    def installed(self) -> list[Installed]:
        """Return the programs that bear our mark."""
        try:
            directory, suffix = self._included()
        except QanatError:
            return []
        return marked_files(directory, f"*{suffix}", manager=self.kind)

    def _path(self, plan: Plan) -> Path:
        directory, suffix = self._included()
        return directory / f"{plan.name}{suffix}"

    def _included(self) -> tuple[Path, str]:
        """Return where programs are written down, and how these files' names end: `[include] files`."""
        if self._configuration is None:
            raise QanatError("supervisor is not installed here", hint="apt install supervisor, or --manager cron")
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
        parser.read(self._configuration)
        pattern = (parser.get("include", "files", fallback="").split() or [""])[0]
        path = self._configuration.parent / pattern
        suffix = path.name.removeprefix("*")
        if not path.name.startswith("*") or "*" in suffix + str(path.parent):
            raise QanatError(
                f"{self._configuration} includes no directory of programs",
                hint="add to it: [include] files = conf.d/*.conf",
            )
        return path.parent, suffix

    def _status(self, name: str) -> State:
        said = call([*self._control, "status", name], check=False).stdout.strip()
        found = re.match(rf"{re.escape(name)}\s+(?P<state>[A-Z]+)\s*(?P<rest>.*)", said)
        if found is None:
            return State(False, said.splitlines()[0] if said else "supervisor does not answer")
        pid = re.search(r"pid (\d+)", found["rest"])
        text = f"{found['state'].lower()} {found['rest']}".strip()
        return State(found["state"] == "RUNNING", text, int(pid[1]) if pid else None)

    def _wait(self, name: str, done: Callable[[State], bool], what: str) -> None:
        deadline = Deadline(_START)
        while not done(state := self._status(name)):
            if deadline.passed or state.text.startswith("fatal"):
                tail = call([*self._control, "tail", name], check=False).stdout.strip().splitlines()[-3:]
                raise QanatError(
                    f"{name} does not {what}: {state.text}; {' '.join(tail)}", hint=f"see: supervisorctl tail {name}"
                )
            time.sleep(0.2)

    def _call(self, *arguments: str) -> None:
        call([*self._control, *arguments])


def program_text(plan: Plan) -> str:
    """Return the program for `plan`: the server's in deploy/supervisor.conf, with what this configuration needs."""
    whole = share("deploy", "supervisor.conf").read_text("utf-8")
    program = whole[whole.index("[program:qanat-server]") :].partition("\n\n")[0]
    home = _escaped(str(plan.state))
    for key, value in (
        ("command", _escaped(shlex.join(plan.command))),
        ("user", plan.account.name),
        ("environment", f'HOME="{home}",STATE_DIRECTORY="{home}"'),
        ("stopwaitsecs", str(plan.stop_seconds)),
        ("stdout_logfile", f"/var/log/supervisor/{plan.name}.log"),
    ):
        program = _set(program, key, value)
    program = program.replace("[program:qanat-server]", f"[program:{plan.name}]")
    if not Path("/var/log/supervisor").is_dir():
        program = re.sub(r"^stdout_logfile=.*$", "stdout_logfile=AUTO", program, flags=re.M)
    return (
        f"{mark(plan, ';')}\n; Written by `qanat service install`; `qanat service uninstall` removes it.\n\n{program}\n"
    )


def _set(program: str, key: str, value: str) -> str:
    changed, count = re.subn(rf"^{key}=.*$", lambda _: f"{key}={value}", program, flags=re.M)
    assert count == 1, f"deploy/supervisor.conf has {key}= {count} times"
    return changed


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
