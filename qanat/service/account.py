"""The account that a service runs as, and what it must be able to read."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from qanat.base.errors import QanatError, UsageError

DEFAULT = "qanat"
"""The account that the Debian package makes."""
NOT_MADE_YET = 65534
"""The number with which an account is tried before it is made: nobody's, who may do what everybody may."""

_FIRST_FAULT = 'while [ $# -gt 0 ]; do test "$1" "$2" || { printf "%s\\n" "$2"; exit 1; }; shift 2; done'


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine."""

    name: str
    uid: int
    gid: int

    @property
    def group(self) -> str:
        """The name of its own group."""
        try:
            return grp.getgrgid(self.gid).gr_name
        except KeyError:
            return str(self.gid)


def find_account(name: str) -> Account | None:
    """Return the account of this name, None when there is none."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def own_account() -> Account:
    """Return the account that runs this process."""
    found = pwd.getpwuid(os.geteuid())
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def make_account(name: str, home: Path) -> Account:
    """Make a system account without a password or a shell.  Blocks for a moment.  Raises QanatError."""
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    hint = "make it with this system's own tools, or name another: --run-as USER"
    if useradd is None:
        raise UsageError(f"there is no user {name}, and no useradd to make one", hint=hint)
    shell = "/usr/sbin/nologin" if os.path.exists("/usr/sbin/nologin") else "/bin/false"
    command = [useradd, "--system", "--user-group", "--home-dir", str(home), "--no-create-home", "--shell", shell, name]
    done = subprocess.run(command, capture_output=True, text=True)
    account = find_account(name)
    if account is None:
        raise QanatError(f"the user {name} could not be made: {done.stderr.strip() or done.returncode}", hint=hint)
    return account


def hand_over(files: Sequence[Path], account: Account, *, below: Path) -> list[Path]:
    """Give `account` the private ones of `files` that belong to root, and return them.  Only root can.  Raises OSError.

    Those are keys and tokens: nobody else can read them, so nobody else loses them.  What others can read, what
    belongs to another user already, and what is not `below` the configuration's directory is left alone: a web
    server's key, for example.
    """
    given = [path for path in files if _can_be_given(path, account, below)]
    for path in given:
        os.chown(path, account.uid, account.gid)
    return given


def _can_be_given(path: Path, account: Account, below: Path) -> bool:
    if not path.resolve().is_relative_to(below.resolve()):
        return False
    status = path.stat()
    private = not status.st_mode & (stat.S_IRWXO | stat.S_IRWXG)
    return stat.S_ISREG(status.st_mode) and status.st_uid == 0 and private and account.uid != 0


def out_of_reach(files: Sequence[Path], account: Account, *, below: Path) -> Path | None:
    """Return the first folder that `account` cannot enter, or file that it cannot read; None when there is none.

    `files` and `below` are as for `hand_over`; what that gives has to be in reach only.  A file that is missing may be
    made later, so only the folders above it count.
    """
    asked: dict[tuple[str, Path], None] = {}
    for path in files:
        asked |= {("-x", folder): None for folder in reversed(path.absolute().parents) if folder.exists()}
        if path.is_file() and not _can_be_given(path, account, below):
            asked["-r", path.absolute()] = None
    words = [word for test, path in asked for word in (test, str(path))]
    done = run_as(account, ["/bin/sh", "-c", _FIRST_FAULT, "sh", *words])
    return Path(done.stdout.removesuffix("\n")) if done.returncode else None


def run_as(account: Account | None, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `command` as `account`, or as ourselves, with a service's short environment, and return what came of it."""
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command,
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        **identity_of(account),
    )


class Identity(TypedDict, total=False):
    """The arguments of `subprocess` that have a process run as another user."""

    user: int
    group: int
    extra_groups: list[int]


def identity_of(account: Account | None) -> Identity:
    """Return what makes a process run as `account`; nothing where it does anyway, or where it is None."""
    if account is None or account.uid == os.geteuid():
        return {}
    groups = os.getgrouplist(account.name, account.gid)
    return {"user": account.uid, "group": account.gid, "extra_groups": groups}
