"""What a service runs: a command, an account, a name and a state directory, from one configuration file.

Nothing is changed here; `prepare` alone makes what is missing, and says so.  `check_access` comes before it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qanat.base.endpoint_addresses import TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import QanatError, UsageError
from qanat.config.client_settings import ClientSettings
from qanat.config.load import check_config, named_files
from qanat.config.server_settings import ServerSettings
from qanat.handshake.identity import load_or_create_identity
from qanat.service.account import Account, hand_over, out_of_reach, run_as

SYSTEM_STATE = Path("/var/lib")
"""Where the state of the machine's services is, each in a directory of its own."""
FIRST_FREE_PORT = 1024
"""The first port that anybody may listen on."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Plan:
    """One service: `role`, "server" or "client", of the configuration file `config`."""

    name: str
    role: str
    config: Path
    program: tuple[str, ...]
    account: Account
    for_user: bool
    """Whether it is the user's own, not the machine's."""
    state: Path
    low_ports: tuple[int, ...]
    """The ports below 1024 that it listens on."""
    writes: tuple[Path, ...]
    """Directories beside `state` where the configuration has it write."""
    files: tuple[Path, ...]
    """What it reads: the configuration, keys, tokens."""
    log_file: Path | None
    pid_file: Path | None
    drain: float
    """Seconds that streams get when it is stopped."""

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments that start it."""
        return (*self.program, self.role, "-c", str(self.config))

    @property
    def state_name(self) -> str | None:
        """The name of `state` below /var/lib, for systemd's StateDirectory=; None where it is elsewhere."""
        return self.state.name if self.state.parent == SYSTEM_STATE else None

    @property
    def stop_seconds(self) -> int:
        """How long a manager has to wait for a graceful end."""
        return max(30, int(self.drain) + 10)

    def lies_below(self, *directories: str) -> bool:
        """Return whether the program or a file of it is below one of `directories`."""
        paths = [Path(word) for word in self.program if word.startswith("/")] + list(self.files)
        return any(path.is_relative_to(directory) for path in paths for directory in directories)


def plans_of(
    config: Path, *, program: Sequence[str], account: Account, for_user: bool, name: str | None = None
) -> tuple[Plan, ...]:
    """Return a plan for each section of `config`.  Raises ConfigError with its faults, and UsageError."""
    config = Path(os.path.abspath(config))
    state = SYSTEM_STATE / ("qanat" if account.name == "qanat" else f"qanat-{account.name}")
    environ: Mapping[str, str] = os.environ if for_user else {**os.environ, "STATE_DIRECTORY": str(state)}
    server, client = check_config(config, environ)
    found: dict[str, ServerSettings | ClientSettings] = {}
    if server is not None:
        found["server"] = server
    if client is not None:
        found["client"] = client
    if name is not None and (len(found) > 1 or not _NAME.fullmatch(name)):
        hint = "1 to 64 of A-Z a-z 0-9 . _ -" if len(found) == 1 else f"{config} has two sections, so leave --name out"
        raise UsageError(f"--name {name} cannot be the name of this service", hint=hint)
    files = (config, *named_files(config, environ))
    return tuple(
        Plan(
            name=name or default_name(role, config),
            role=role,
            config=config,
            program=tuple(program),
            account=account,
            for_user=for_user,
            state=Path(os.path.abspath(settings.state_dir or config.parent)),
            low_ports=tuple(sorted({port for port in _ports(settings) if 0 < port < FIRST_FREE_PORT})),
            writes=tuple(sorted({Path(os.path.abspath(path)) for path in _written(settings)})),
            files=files,
            log_file=settings.log.file,
            pid_file=settings.pid_file,
            drain=float(getattr(settings, "drain", 0.0)),
        )
        for role, settings in found.items()
    )


def default_name(role: str, config: Path) -> str:
    """Return qanat-server for server.yaml, and qanat-client-office for the client of office.yaml."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", config.stem)
    return f"qanat-{role}" if stem == role else f"qanat-{role}-{stem}"[:64]


def check_access(plan: Plan) -> None:
    """Raise QanatError when the account cannot run the program, or is kept from the files.  Changes nothing."""
    account = None if plan.for_user else plan.account
    version = _try(account, [*plan.program, "--version"])
    if version is not None:
        raise QanatError(
            f"{plan.account.name} cannot run {shlex.join(plan.program)}: {version}",
            hint="install Qanat for everybody (the Debian package, or pipx install --global), or use --user",
        )
    if account is not None:
        place = out_of_reach(_files_of(plan, _server_of(plan)), account, below=plan.config.parent)
        if place is not None:
            raise QanatError(
                f"{account.name} may not {'enter' if place.is_dir() else 'read'} {place}", hint=_hint(plan)
            )


def prepare(plan: Plan) -> list[str]:
    """Make what `plan` needs and is missing, as root, and return what was done; then try it as its account.

    The server's key is made, keys and tokens of root's are given to the account, and the state directory is made.
    Raises QanatError, and leaves all as it was, when the account cannot use the configuration.
    """
    account = None if plan.for_user else plan.account
    with contextlib.ExitStack() as undo:
        done = [] if plan.for_user else _make_for_account(plan, undo)
        faults = _try(account, [*plan.program, "check", "-c", str(plan.config)])
        if faults is not None:
            raise QanatError(f"{plan.account.name} cannot use {plan.config}: {faults}", hint=_hint(plan))
        undo.pop_all()
    return done


def _hint(plan: Plan) -> str:
    return f"put the files where {plan.account.name} can read them, such as /etc/qanat, or use --run-as USER"


def _server_of(plan: Plan) -> ServerSettings | None:
    server, _ = check_config(plan.config, {**os.environ, "STATE_DIRECTORY": str(plan.state)})
    return server


def _files_of(plan: Plan, server: ServerSettings | None) -> tuple[Path, ...]:
    return (*plan.files, server.identity) if server is not None else plan.files


def _make_for_account(plan: Plan, undo: contextlib.ExitStack) -> list[str]:
    done = []
    server = _server_of(plan)
    if plan.role == "server" and server is not None and not server.identity.exists():
        fingerprint = load_or_create_identity(server.identity).fingerprint
        undo.callback(server.identity.unlink)
        done.append(f"made the server's key {server.identity}, fingerprint {fingerprint}")
    present = sorted({path for path in _files_of(plan, server) if path.is_file()})
    groups = {path: path.stat().st_gid for path in present}
    given = hand_over(present, plan.account, below=plan.config.parent)
    for path in given:
        undo.callback(os.chown, path, 0, groups[path])
    if given:
        done.append(f"gave {plan.account.name} what it alone may read: {', '.join(map(str, given))}")
    if not plan.state.exists():
        plan.state.mkdir(mode=0o700, parents=True)
        undo.callback(plan.state.rmdir)
        done.append(f"made {plan.state} for its state")
    if plan.state_name is not None and plan.state.stat().st_uid == 0:
        os.chown(plan.state, plan.account.uid, plan.account.gid)
    return done


def _try(account: Account | None, command: Sequence[str]) -> str | None:
    """Return why `command` fails as `account`, None when it does not."""
    try:
        done = run_as(account, command)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = [line for line in done.stderr.strip().splitlines() if line]
    return " ".join(said[-6:]) or f"exit code {done.returncode}"


def _ports(settings: ServerSettings | ClientSettings) -> Iterator[int]:
    if isinstance(settings, ServerSettings):
        yield from (port for _, port in settings.listen)
        for account in settings.clients:
            for rule in (*account.allow_listen, *account.shared_listen):
                # ADDRESS:PORTS, where PORTS is a number, a range or *.
                first = re.match(r"\d+", rule.removesuffix("/udp").rpartition(":")[2])
                yield int(first[0]) if first else FIRST_FREE_PORT
        return
    for forward in settings.forwards:
        if forward.kind == "local" and isinstance(forward.listen, TcpAddress | UdpAddress):
            yield forward.listen.port


def _written(settings: ServerSettings | ClientSettings) -> Iterator[Path]:
    """Yield the directories in which files are made, but for the state directory."""
    audit: Any = getattr(settings, "audit", None)
    for file in (settings.log.file, settings.pid_file, getattr(audit, "file", None)):
        if file is not None:
            yield file.parent
    publish = getattr(settings, "publish_dir", None)
    if publish is not None:
        yield publish if publish.exists() else publish.parent
    for forward in getattr(settings, "forwards", ()):
        if forward.kind == "local" and isinstance(forward.listen, UnixAddress) and not forward.listen.is_abstract:
            yield Path(forward.listen.path).parent
    if settings.state_dir is not None:
        yield settings.state_dir
