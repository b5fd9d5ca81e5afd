"""Files that are ours: open one without blocking, tell who else can read or change it, write one whole.

The server's key, tokens, passwords, known hosts and PID files all go through here.  A secret is taken when nobody
but its owner can read it, and also in the places where secret managers put secrets and a stricter mode cannot be had:

- what root owns and at most its group may read, where we are not root ourselves (Kubernetes' fsGroup, a systemd
  credential with an access list) or the file system is mounted read-only;
- anything below $CREDENTIALS_DIRECTORY, which systemd makes for one service alone;
- below /run/secrets, which only root can fill, whatever others cannot change (Docker, Podman and Compose mount
  secrets there, readable by everyone in a container that has nobody else in it);
- what root or we own on a file system without modes (vfat, NTFS, 9p, CIFS), where `chmod` has no effect.

Reading and writing block on the disk only.  The caller names the file in its messages; nothing here shows content.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

_READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_CHANGEABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MORE_THAN_GROUP_READ = _READABLE_BY_OTHERS & ~stat.S_IRGRP

_SECRETS = Path("/run/secrets")
_MOUNTS = Path("/proc/self/mountinfo")
_MODELESS = frozenset(
    {"9p", "cifs", "drvfs", "exfat", "fuse", "fuse.sshfs", "fuse.vmhgfs-fuse", "fuseblk", "hgfs", "msdos", "ntfs"}
    | {"ntfs3", "prl_fs", "sdcardfs", "smb3", "smbfs", "vboxsf", "vfat", "virtiofs", "vmhgfs"}
)
"""File systems that may have no modes of their own; whether one has is tried."""
_NO_LINKS = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK})
"""What `link` fails with where there are no hard links: vfat, exfat, and Android, which forbids them to programs."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """A file that is not ours alone: its permission bits, and what to do about it."""

    mode: int
    cure: str


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device is refused before it could block us.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | _flag("O_NONBLOCK") | _flag("O_CLOEXEC") | _flag("O_BINARY"))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def reading_hint(error: OSError, path: Path) -> str:
    """Return what to do about a file that `open_regular` could not open, or that could not be read.  Pure."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "correct the path, or make the file"
    if isinstance(error, PermissionError):
        who = f"the user that runs this (uid {os.geteuid()})" if hasattr(os, "geteuid") else "the user that runs this"
        return f"{who} must be able to read it, and to enter the directories above it: see `ls -ld {_quoted(path)}`"
    return f"name a file that can be read: see `ls -ld {_quoted(path)}`"


def read_exposure(file: BinaryIO, path: Path) -> Exposure | None:
    """Return who else can read the open `file`, or None when it is private by the rules above.

    What is judged is the open file, so that what is checked is what is read.  Does not block.
    """
    if os.name != "posix":
        return None
    status = os.fstat(file.fileno())
    mode = stat.S_IMODE(status.st_mode)
    if not mode & _READABLE_BY_OTHERS or _is_mounted_secret(path, status):
        return None
    if status.st_uid == 0 and not mode & _MORE_THAN_GROUP_READ and not _can_change_mode(file, status):
        return None
    if _has_no_modes(file, status):
        return None
    return Exposure(mode, _how_to_close(path, file, status))


def write_exposure(file: BinaryIO, path: Path) -> Exposure | None:
    """Return who else can change the open `file`, or None when only we or root can.  Does not block."""
    if os.name != "posix":
        return None
    status = os.fstat(file.fileno())
    owned, mode = status.st_uid in (0, os.geteuid()), stat.S_IMODE(status.st_mode)
    if owned and (not mode & _CHANGEABLE_BY_OTHERS or _has_no_modes(file, status)):
        return None
    return Exposure(mode, _how_to_close(path, file, status))


def _always(descriptor: int) -> bool:
    return True


class Draft:
    """A new file beside `path`, written whole before it takes that name; gone when it never did.

    Use it as a context manager: write, then `put_new` or `replace`.  `descriptor` stays open until the block ends;
    `keep_open` leaves it to the caller, who may hold a lock by it.
    """

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        """Create the file with `mode`, whatever the umask.  Raises OSError."""
        self.path = path
        self._draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        self._ours = True
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _flag("O_NOFOLLOW") | _flag("O_CLOEXEC") | _flag("O_BINARY")
        self.descriptor = os.open(self._draft, flags, 0o600)
        if mode != 0o600 and hasattr(os, "fchmod"):
            with contextlib.suppress(OSError):  # where there are no modes
                os.fchmod(self.descriptor, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ours:
            os.close(self.descriptor)
        with contextlib.suppress(OSError):
            os.unlink(self._draft)

    def write(self, content: bytes) -> None:
        """Write `content`, and wait until the disk has it."""
        view = memoryview(content)
        while view:
            view = view[os.write(self.descriptor, view) :]
        os.fsync(self.descriptor)

    def keep_open(self) -> int:
        """Return the open descriptor, which from now on the caller closes."""
        self._ours = False
        return self.descriptor

    def put_new(self, *, claim: Callable[[int], object] = _always) -> bool:
        """Give the file its name; False when something has that name already.  Raises OSError.

        Where there are no hard links an empty file takes the name first, for a moment: `claim` is asked with its
        descriptor, and may lock it and return whether it did.
        """
        try:
            # A hard link, since a rename would replace what another process has just made and uses.
            os.link(self._draft, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._put_new_without_links(claim)
        self._sync_directory()
        return True

    def replace(self) -> None:
        """Give the file its name, in place of whatever has it.  Raises OSError."""
        os.replace(self._draft, self.path)
        self._sync_directory()

    def _put_new_without_links(self, claim: Callable[[int], object]) -> bool:
        try:
            placeholder = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _flag("O_CLOEXEC"), 0o600)
        except FileExistsError:
            return False
        try:
            # Another process may have locked it before us, and put its own file over it.
            if not claim(placeholder) or not os.path.samestat(os.fstat(placeholder), os.stat(self.path)):
                return False
            self.replace()
        except FileNotFoundError:
            return False
        finally:
            os.close(placeholder)
        return True

    def _sync_directory(self) -> None:
        """Make the new name last through a crash, where a directory can be synced."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path.parent, os.O_RDONLY | _flag("O_DIRECTORY") | _flag("O_CLOEXEC"))
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_new(path: Path, content: bytes) -> bool:
    """Put `content` at `path` (mode 0600), whole or not at all; False when something is there.  Raises OSError."""
    with Draft(path) as draft:
        draft.write(content)
        return draft.put_new()


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` (mode 0600); a crash leaves the old file or the new one, whole.  Raises OSError."""
    with Draft(path) as draft:
        draft.write(content)
        draft.replace()


def _is_mounted_secret(path: Path, status: os.stat_result) -> bool:
    """Whether a manager of secrets has put the file where it is: see the module's docstring."""
    real = Path(os.path.realpath(path))
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if os.path.isabs(credentials) and real.is_relative_to(os.path.realpath(credentials)):
        return True
    return real.is_relative_to(os.path.realpath(_SECRETS)) and not status.st_mode & _CHANGEABLE_BY_OTHERS


def _can_change_mode(file: BinaryIO, status: os.stat_result) -> bool:
    return os.geteuid() in (0, status.st_uid) and not os.fstatvfs(file.fileno()).f_flag & os.ST_RDONLY


def _has_no_modes(file: BinaryIO, status: os.stat_result) -> bool:
    """Whether the file, which root or we own, is on a file system on which `chmod` has no effect.

    Several of these have modes with some mount options, so it is tried on the file itself, and undone.
    """
    if status.st_uid not in (0, os.geteuid()) or _file_system(status.st_dev) not in _MODELESS:
        return False
    mode = stat.S_IMODE(status.st_mode)
    try:
        os.fchmod(file.fileno(), mode & ~_READABLE_BY_OTHERS)
        if not os.fstat(file.fileno()).st_mode & _READABLE_BY_OTHERS:
            os.fchmod(file.fileno(), mode)
            return False
    except OSError:
        pass
    return True


def _file_system(device: int) -> str:
    """Return the type of the file system with this device number, or "" where that cannot be told."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in _MOUNTS.read_text("utf-8", "replace").splitlines():  # proc_pid_mountinfo(5)
            before, _, after = line.partition(" - ")
            if before.split()[2:3] == [number]:
                return after.split()[0]
    return ""


def _how_to_close(path: Path, file: BinaryIO, status: os.stat_result) -> str:
    if _can_change_mode(file, status) and status.st_uid in (0, os.geteuid()):
        return f"chmod 600 {_quoted(path)}"
    if status.st_uid == 0:
        return (
            f"as root: chmod 440 {_quoted(path)}, with a group of this user's; in Kubernetes: defaultMode: 0440 and "
            "fsGroup; in a container: mount it below /run/secrets"
        )
    return f"as root: chown {os.geteuid()} {_quoted(path)}; chmod 600 {_quoted(path)}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _flag(name: str) -> int:
    """Return a flag of open(2), or 0 where the system has none."""
    return int(getattr(os, name, 0))
