"""Which servers and clients run here: their control sockets, found without a word from their user.

    -c FILE     the sockets beside it, or where state is by default, whose processes say that they run on this file;
                else the socket of this configuration's process, by its name; else, since a reload may have changed what
                the name is made from, one in the same directory whose process says that it runs on this file; else,
                since a service may have another STATE_DIRECTORY than we, any such one that is found as below
    otherwise   every socket in the directories where state is by default, and, on Linux, in those that a process of
                this program holds open (proc(5)): a control socket's owner keeps its directory open for that

A socket is asked only when its file and its process are of one user, ours or, for root, any; and nothing that it says
is believed to be harmless on a terminal.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qanat.base.errors import QanatError, UsageError
from qanat.config.state import environment_state_dir, user_state_dir
from qanat.control.asking import ANSWER_TIMEOUT, ask
from qanat.control.paths import ENDING, connect_to, control_path

if TYPE_CHECKING:
    from qanat.config.client_settings import ClientSettings
    from qanat.config.server_settings import ServerSettings

SYSTEM_DIRECTORIES = (Path("/var/lib/qanat"), Path("/var/lib/private/qanat"), Path("/etc/qanat"))
"""Where the units in deploy/ and the packages keep state, and where a configuration lies whose state_dir is its own."""
_SOON = 1.0
"""Seconds that one which may be the right one has to say so; the configuration finds it too, if later."""
_PROC = Path("/proc")
_SECTION = re.compile(rb"^(server|client)[ \t]*:", re.MULTILINE)
_PROGRAMS = (b"qanat", b"tunnel.py")


@dataclass(frozen=True, slots=True)
class Running:
    """One process that can be asked."""

    path: Path
    """Its control socket."""

    def ask(self, command: str, *, timeout: float = ANSWER_TIMEOUT, **fields: Any) -> dict[str, Any]:
        """Do as `qanat.control.asking.ask`."""
        return ask(self.path, command, timeout=timeout, **fields)

    def role_on(self, config: Path, timeout: float) -> str | None:
        """Return "server" or "client" where it says that it runs on `config`, None elsewhere or without an answer."""
        try:
            said = self.ask("status", timeout=timeout, brief=True)["status"]
        except QanatError:
            return None
        return said.get("role") if said.get("config") == str(config.absolute()) else None


class NothingRuns(QanatError):
    """There is nobody to ask."""


def running_of(settings: ServerSettings | ClientSettings, config: Path) -> Running:
    """Return the process that runs on a configuration.  Blocks for the answers of others that share its directory.

    Raises NothingRuns, and UsageError for a client that keeps no state.
    """
    path = control_path(settings)
    if path is None:
        raise UsageError("this configuration has no control socket", hint="set state_dir; on Windows there is none")
    if _is_socket(path) and _takes_connections(path):
        return Running(path)
    from qanat.config.server_settings import ServerSettings

    role = "server" if isinstance(settings, ServerSettings) else "client"
    near = [Running(other) for other in _sockets_in(path.parent)]
    for running in (*near, *(one for one in find_running() if one not in near)):
        if running.role_on(config, 5.0) == role:
            return running
    raise NothingRuns(
        f"nothing runs on {config}",
        hint=f"start it, or run this as its user or as root: its control socket would be {path}, or one that is found",
    )


def running_on(config: Path, environ: Mapping[str, str] = os.environ) -> list[Running]:
    """Return the processes that say that they run on this file, found without reading its settings.

    That is what takes the time where a server has a thousand clients.  Empty unless there is one for each section of
    the file, in its own directory or where state is by default.  Blocks for the answers of all that keep state there.
    """
    try:
        text = config.read_bytes() if config.is_file() else b""  # a pipe can be read once, and blocks
        sections = {match[1].decode() for match in _SECTION.finditer(text)}
    except OSError:
        return []
    if not sections:
        return []
    found: dict[str, Running] = {}
    known = (config.absolute().parent, environment_state_dir(environ), user_state_dir(environ, needed=False))
    for directory in dict.fromkeys((*(path for path in known if path is not None), *SYSTEM_DIRECTORIES)):
        for running in map(Running, _sockets_in(directory)):
            role = running.role_on(config, _SOON)
            if role is not None:
                found.setdefault(role, running)
        if found.keys() >= sections:
            return list(found.values())
    return []


def find_running(environ: Mapping[str, str] = os.environ) -> list[Running]:
    """Return all that can be found, in the order of their sockets' paths; perhaps some that are gone already."""
    found: dict[tuple[int, int], Path] = {}
    for directory in _directories(environ):
        for path in _sockets_in(directory):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.setdefault((status.st_dev, status.st_ino), path)
    return [Running(path) for path in sorted(found.values())]


def _directories(environ: Mapping[str, str]) -> Iterator[Path]:
    known = (environment_state_dir(environ), user_state_dir(environ, needed=False), Path("."))
    yield from (path for path in known if path is not None)
    yield from SYSTEM_DIRECTORIES
    yield from _held_open()


def _held_open() -> Iterator[Path]:
    """Yield the directories that processes of this program, which we may look at, hold open."""
    try:
        processes = [each for each in _PROC.iterdir() if each.name.isdigit()]
    except OSError:
        return
    for process in processes:
        try:
            if not _runs_this_program((process / "cmdline").read_bytes()):
                continue
            descriptors = list((process / "fd").iterdir())
        except OSError:  # gone, or another user's
            continue
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(descriptor.stat().st_mode):
                    yield Path(os.readlink(descriptor))


def _runs_this_program(command: bytes) -> bool:
    return any(os.path.basename(part).startswith(_PROGRAMS) for part in command.split(b"\0")[:4])


def _sockets_in(directory: Path) -> list[Path]:
    try:
        return [path.absolute() for path in sorted(directory.glob(f"*-????????*.{ENDING}")) if _is_socket(path)]
    except OSError:
        return []


def _takes_connections(path: Path) -> bool:
    """Whether anybody listens on it: a killed process leaves its socket, and a service may have another one."""
    try:
        sock = connect_to(path)
    except PermissionError:
        return True  # and who asks is told so
    if sock is None:
        return False
    sock.close()
    return True


def _is_socket(path: Path) -> bool:
    """Whether it is a socket whose owner we are, or may speak for."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISSOCK(status.st_mode) and os.geteuid() in (0, status.st_uid)
