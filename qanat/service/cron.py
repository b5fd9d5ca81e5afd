"""Entries for cron: a line that starts the program every minute, and does nothing while it runs.

The machine's entries are files in /etc/cron.d, a user's stand in the user's crontab.  cron starts nothing when it reads
them, so the program is started here once, as cron would; it is stopped by the number in its PID file.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.errors import QanatError
from qanat.process.daemon import holder_of
from qanat.service.account import find_account, identity_of, own_account
from qanat.service.plan import Plan
from qanat.service.record import Installed, State, call, find_marks, mark, marked_files, put, read_own

SYSTEM_TABLES = Path("/etc/cron.d")

_START, _STOP = 60.0, 60.0
"""Seconds within which it has to run, and within which it has to be gone before it is killed."""
_CRONTAB = "the crontab of {}"
_PIDS = (Path("/run/crond.pid"), Path("/var/run/crond.pid"), Path("/run/cron.pid"))


class Cron:
    """The machine's cron, or the crontab of the user who runs this (`for_user`)."""

    kind = "cron"

    def __init__(self, *, for_user: bool, tables: Path = SYSTEM_TABLES) -> None:
        self._for_user = for_user
        self._tables = tables

    def check(self, plan: Plan) -> None:
        """Refuse what cannot run under cron, and another's file; see `ServiceManager`."""
        if plan.low_ports and plan.account.uid != 0:
            raise QanatError(
                f"{plan.name} listens on port {plan.low_ports[0]}, and under cron {plan.account.name} may not",
                hint="listen on 1024 or above, behind a proxy; or run it under systemd, which can give it the right",
            )
        if self._for_user:
            _read_crontab("")
        else:
            read_own(self._tables / plan.name, owner=plan.name)

    def install(self, plan: Plan) -> list[str]:
        """Write the entry, and start the program; see `ServiceManager`."""
        where = _CRONTAB.format(plan.account.name) if self._for_user else str(self._tables / plan.name)
        changed = self._put_in_crontab(plan) if self._for_user else put(Path(where), table_text(plan), owner=plan.name)
        running = holder_of(pid_file(plan))
        if running is not None and not changed:
            return [f"{where} is as it should be, and {plan.name} runs"]
        done = [f"wrote {where}"] if changed else []
        if running is not None:
            _stop(pid_file(plan))
        pid = _start(plan)
        done.append(f"started {plan.name} as process {pid}; cron starts it again within a minute when it is gone")
        if not _is_running():
            done.append("but no cron runs here: start it, or nobody starts this again after a crash or a reboot")
        return done

    def uninstall(self, service: Installed) -> list[str]:
        """Take the entry out, stop the program, and remove its lock; see `ServiceManager`."""
        entry = self._entry(service)
        files = _files_of(entry)
        done = []
        if service.where.startswith("/"):
            Path(service.where).unlink(missing_ok=True)
            done.append(f"removed {service.where}")
        else:
            user = service.where.removeprefix(_CRONTAB.format(""))
            _write_crontab(_without(_read_crontab(user), service.name), user)
            done.append(f"took {service.name} out of {service.where}")
        pid = files.get("--pid-file")
        if pid is not None and _stop(pid):
            done.append(f"stopped {service.name}")
        for flag in ("--lock", "--log-file", "--pid-file"):  # a killed process leaves the last one, too
            if flag in files and files[flag].name.startswith(f"{service.name}."):
                files[flag].unlink(missing_ok=True)
        return done

    def restart(self, service: Installed) -> list[str]:
        """Stop the program, and start it again as cron would; see `ServiceManager`."""
        entry = self._entry(service)
        pid = _files_of(entry).get("--pid-file")
        if pid is not None:
            _stop(pid)
        line = next(line for line in entry.splitlines() if line.startswith("* "))
        words = line.split(maxsplit=5)[5]
        user = None
        if service.where.startswith("/"):
            user, words = words.split(maxsplit=1)
        _start_line(words, user, _variables(entry), pid, service.name)
        return [f"restarted {service.name}"]

    def state(self, service: Installed) -> State:
        """Look who holds the PID file; see `ServiceManager`."""
        file = _files_of(self._entry(service)).get("--pid-file")
        pid = None if file is None else holder_of(file)
        if pid is None:
            again = "cron tries again within a minute" if _is_running() else "no cron runs here to start it"
            return State(False, f"not running; {again}")
        return State(True, f"running as process {pid}", pid)

    def installed(self) -> list[Installed]:
        """Return the entries that bear our mark; for root, those in everybody's crontab as well."""
        if self._for_user:
            return self._in_crontab("")
        found = marked_files(self._tables, "*", manager=self.kind)
        crontabs = Path("/var/spool/cron/crontabs")
        for path in sorted(crontabs.glob("*")) if os.access(crontabs, os.R_OK) else []:
            found += self._in_crontab(path.name)
        return found

    def _in_crontab(self, user: str) -> list[Installed]:
        who = user or _login()
        try:
            text = _read_crontab(user)
        except QanatError:
            return []
        return find_marks(text, manager=self.kind, where=_CRONTAB.format(who))

    def _entry(self, service: Installed) -> str:
        if service.where.startswith("/"):
            return Path(service.where).read_text("utf-8")
        text = _read_crontab(service.where.removeprefix(_CRONTAB.format("")))
        found = re.search(_block(service.name), text, re.S | re.M)
        return found[0] if found else ""

    def _put_in_crontab(self, plan: Plan) -> bool:
        old = _read_crontab("")
        block = f"{mark(plan)}\n* * * * * {command_text(plan)}\n# qanat service {plan.name}: to here\n"
        kept = _without(old, plan.name)
        new = f"{kept}{'' if not kept or kept.endswith(chr(10)) else chr(10)}{block}"
        if new == old or block in old:
            return False
        _write_crontab(new, "")
        return True


def table_text(plan: Plan) -> str:
    """Return the file for /etc/cron.d."""
    return (
        f"{mark(plan)}\n# Written by `qanat service install`; `qanat service uninstall` removes it.\n\n"
        f"SHELL=/bin/sh\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        f"STATE_DIRECTORY={plan.state}\nHOME={plan.state}\n"
        f"* * * * * {plan.account.name} {command_text(plan)}\n"
    )


def command_text(plan: Plan) -> str:
    """Return the command of an entry; cron takes % for a line's end, so each is escaped."""
    words = [*plan.command, "--lock", str(plan.state / f"{plan.name}.lock"), "--pid-file", str(pid_file(plan))]
    if plan.log_file is None:
        words += ["--log-file", str(plan.state / f"{plan.name}.log")]
    return f"cd / && exec {shlex.join(words)}".replace("%", "\\%")


def pid_file(plan: Plan) -> Path:
    """Return the PID file: the configuration's, or one in the state directory."""
    return plan.pid_file or plan.state / f"{plan.name}.pid"


def _start(plan: Plan) -> int:
    variables = {} if plan.for_user else {"STATE_DIRECTORY": str(plan.state), "HOME": str(plan.state)}
    user = None if plan.for_user else plan.account.name
    pid = _start_line(command_text(plan), user, variables, pid_file(plan), plan.name)
    assert pid is not None
    return pid


def _start_line(
    line: str, user: str | None, variables: Mapping[str, str], pid_file: Path | None, name: str
) -> int | None:
    """Start the command of an entry as cron does; return its process's number when it has its PID file."""
    account = find_account(user) if user is not None else None
    environment = {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "HOME": os.path.expanduser("~"), **variables}
    # One that a killed process has left: the new one has to find nobody looking at it.
    if pid_file is not None and holder_of(pid_file) is None:
        pid_file.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", line.replace("\\%", "%")],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **identity_of(account),
        )
        deadline = Deadline(_START)
        while True:
            pid = None if pid_file is None else holder_of(pid_file)
            if pid is not None:
                return pid
            ended = process.poll() is not None
            if ended or deadline.passed:
                output.seek(0)
                said = " ".join(output.read().decode("utf-8", "replace").split("\n")[-4:]).strip()
                raise QanatError(
                    f"{name} does not start: {said or f'exit code {process.returncode}'}",
                    hint=f"try it by hand: {line.partition('exec ')[2]}",
                )
            time.sleep(0.1)


def _stop(file: Path) -> bool:
    """Ask the process that holds the PID file to end, and wait until it has; kill it when it does not."""
    pid = holder_of(file)
    if pid is None:
        return False
    for number, patience in ((signal.SIGTERM, _STOP), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            break
        except PermissionError as error:
            raise QanatError(f"process {pid} is another user's", hint="run this as that user, or as root") from error
        deadline = Deadline(patience)
        while holder_of(file) == pid and not deadline.passed:
            time.sleep(0.1)
        if holder_of(file) != pid:
            break
    file.unlink(missing_ok=True)
    return True


def _files_of(entry: str) -> dict[str, Path]:
    """Return what the entry's command has after --lock, --pid-file and --log-file."""
    line = next((line for line in entry.splitlines() if line.startswith("* ")), "")
    words = shlex.split(line.replace("\\%", "%"))
    return {flag: Path(value) for flag, value in itertools.pairwise(words) if flag.startswith("--")}


def _variables(entry: str) -> dict[str, str]:
    found = (re.fullmatch(r"([A-Z_]+)=(.*)", line) for line in entry.splitlines())
    return {match[1]: match[2] for match in found if match}


def _is_running() -> bool:
    for path in _PIDS:
        try:
            os.kill(int(path.read_text()), 0)
            return True
        except PermissionError:
            return True
        except (OSError, ValueError):
            continue
    return False


def _block(name: str) -> str:
    return rf"^# qanat service {re.escape(name)}, .*?^# qanat service {re.escape(name)}: to here\n"


def _without(text: str, name: str) -> str:
    return re.sub(_block(name), "", text, flags=re.S | re.M)


def _read_crontab(user: str) -> str:
    done = call(["crontab", *_of(user), "-l"], check=False)
    return done.stdout if done.returncode == 0 else ""


def _write_crontab(text: str, user: str) -> None:
    if text.strip():
        call(["crontab", *_of(user), "-"], stdin=text)
    else:
        call(["crontab", *_of(user), "-r"], check=False)


def _of(user: str) -> list[str]:
    return ["-u", user] if user and user != _login() else []


def _login() -> str:
    return own_account().name
