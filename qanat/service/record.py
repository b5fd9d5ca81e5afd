"""What the service managers have in common: the mark by which a file of ours is known, and how a program is called."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qanat.base.errors import QanatError
from qanat.service.plan import Plan

_MARK = re.compile(r"^[#;] qanat service (?P<name>[A-Za-z0-9_.-]+), (?P<role>server|client) of (?P<config>.+)$", re.M)
_COMMAND = re.compile(r"^(?:ExecStart=|command=|[^#;].* exec )(?P<program>[^\s\"']+) ", re.M)
_TIMEOUT = 180.0
"""Seconds that a service manager's own program may take; a unit's start may take 120."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A service that `install` has written down somewhere."""

    name: str
    role: str
    config: Path
    manager: str
    """systemd, supervisor or cron."""
    where: str
    """The file that it is written in, for people."""
    program: str = ""
    """The program that it runs; "" where its name has to be quoted."""


@dataclass(frozen=True, slots=True)
class State:
    """Whether a service runs, and what its manager says about that."""

    running: bool
    text: str
    pid: int | None = None


class ServiceManager(Protocol):
    """What keeps programs running.  Every call blocks until it is done; lists are lines about what was done."""

    kind: str

    def check(self, plan: Plan) -> None:
        """Raise QanatError where `install` could not work; change nothing."""

    def install(self, plan: Plan) -> list[str]:
        """Write the service down and start it; do nothing where it is written and runs.  Raises QanatError."""

    def uninstall(self, service: Installed) -> list[str]:
        """Stop the service, and leave nothing of what `install` wrote.  Raises QanatError."""

    def restart(self, service: Installed) -> list[str]:
        """Stop the service and start it again.  Raises QanatError."""

    def state(self, service: Installed) -> State:
        """Return whether it runs."""

    def installed(self) -> list[Installed]:
        """Return the services that `install` has written here."""


def mark(plan: Plan, comment: str = "#") -> str:
    """Return the line by which `find_marks` knows a file of ours."""
    return f"{comment} qanat service {plan.name}, {plan.role} of {plan.config}"


def find_marks(text: str, *, manager: str, where: str) -> list[Installed]:
    """Return the services whose marks are in `text`."""
    services = []
    for found in _MARK.finditer(text):
        command = _COMMAND.search(text, found.end())
        program = command["program"] if command is not None else ""
        services.append(Installed(found["name"], found["role"], Path(found["config"]), manager, where, program))
    return services


def marked_files(directory: Path, pattern: str, *, manager: str) -> list[Installed]:
    """Return the services whose marks are in files of `directory` that match `pattern`."""
    found: list[Installed] = []
    for path in sorted(directory.glob(pattern)) if directory.is_dir() else []:
        try:
            text = path.read_text("utf-8", "replace")
        except OSError:
            continue
        found += find_marks(text, manager=manager, where=str(path))
    return found


def put(path: Path, text: str, *, owner: str) -> bool:
    """Write `text` to `path`; False when it stands there already.  Raises QanatError where another's file is.

    `owner` is the name of the service; a file without its mark was written by somebody else.
    """
    if read_own(path, owner=owner) == text:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(text, "utf-8")
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise QanatError(f"cannot write {path}: {error.strerror}", hint="run this as root, or with --user") from error
    return True


def read_own(path: Path, *, owner: str) -> str | None:
    """Return what `put` has written to `path`, None when nothing is there.  Raises QanatError as `put` does."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise QanatError(f"cannot read {path}: {error.strerror}", hint="run this as root, or with --user") from error
    if all(found.name != owner for found in find_marks(text, manager="", where="")):
        raise QanatError(
            f"{path} is there already, and `service install` did not write it",
            hint="move it away, or choose another name: --name NAME",
        )
    return text


def call(command: Sequence[str], *, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a service manager's program.  Blocks.  Raises QanatError where it is missing, or fails with `check`."""
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/sbin:/usr/local/sbin")
    if program is None:
        raise QanatError(f"there is no {command[0]}", hint="install it, or choose another manager: --manager NAME")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise QanatError(f"{' '.join(command)} has not ended after {_TIMEOUT:g} s", hint="look at its log") from error
    if check and done.returncode != 0:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise QanatError(f"{' '.join(command)} failed: {said or done.returncode}", hint="its own log has the reason")
    return done
