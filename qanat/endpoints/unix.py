"""Unix stream sockets as ends of a forward: files that are ours alone by default, and Linux's abstract names.

    bind      nobody can connect before `listen`, the last step, so its file has its owner and mode before that
    stale     a socket file of our own user on which nobody listens is replaced; a live one is refused, as a busy port
    the end   the file is removed, unless another one has its name by then

An abstract name has no file and no permissions: whoever connects must be our own user or root (SO_PEERCRED).  A Unix
socket knows no reset: where a stream was reset, its application sees the end of the file, or ECONNRESET if it had sent
something that nobody read.

Which paths may be used is decided elsewhere (`qanat.session.unix_rules`); what arrives here has been checked.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import MORE_FILES, Canceled, EndpointError
from qanat.base.listen import EXHAUSTED
from qanat.base.sockets import describe_os_error
from qanat.base.watcher import Watcher
from qanat.endpoints.accepting import Accepting
from qanat.endpoints.tcp import REASONS
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason

if sys.platform != "win32":
    import fcntl
    import grp
    import pwd

log = logging.getLogger("qanat.endpoint")

DEFAULT_MODE = 0o600
BUSY_PAUSE = 0.05
"""Seconds until a target whose queue of connections is full is tried again: no event says when it has room."""
_BACKLOG = 512
_LOCK_TRIES = 20
_LOCK_PAUSE = 0.005
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7)
_PEER_CREDENTIALS: int | None = getattr(socket, "SO_PEERCRED", None)
_O_PATH: int | None = getattr(os, "O_PATH", None)
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ECONNREFUSED})


@dataclass(frozen=True, slots=True)
class Permissions:
    """What the file of a listening socket gets.  Owner and group are names or numbers, "" for our own."""

    mode: int = DEFAULT_MODE
    owner: str = ""
    group: str = ""

    def ids(self) -> tuple[int, int]:
        """Return both as numbers, -1 for our own.  May block on the system's databases.  Raises EndpointError."""
        return _user_id(self.owner), _group_id(self.group)


OURS_ALONE = Permissions()


class UnixListener:
    """A listening Unix socket, with the face of `qanat.endpoints.tcp.Listener`; its port is 0.

    `on_connection(socket, peer)` is called in the watcher's thread for each connection and must not block; `peer` names
    the user and process that connected.
    """

    def __init__(
        self,
        path: str,
        on_connection: Callable[[socket.socket, str], None],
        name: str,
        watcher: Watcher,
        *,
        permissions: Permissions = OURS_ALONE,
    ) -> None:
        """Bind and listen; does not accept before `start`.  Does not block, but for names in `permissions`.

        `path` is absolute, or @NAME.  Raises EndpointError (LIMIT when in use).
        """
        self.address = path
        self.port = 0
        self._on_connection = on_connection
        self._name = name
        self._told = False
        self._file: tuple[int, int] | None = None  # which we made: its device and inode
        try:
            listener = self._bind(path, permissions)
        except OSError as error:
            raise _cannot_listen(path, error) from error
        self._accepting = Accepting([listener], self._accepted, f"{name} on {path}", watcher)

    def start(self) -> None:
        """Accept connections from now on.  Does not block.  Raises EndpointError as TCP's does."""
        try:
            self._accepting.start()
        except EndpointError:
            self.close()
            raise

    def set_permissions(self, permissions: Permissions) -> None:
        """Give the file another owner and mode.  Does not block, but for names.  Raises EndpointError."""
        if self._file is None:
            return  # an abstract name
        user, group = permissions.ids()
        try:
            _change_permissions(self.address, self._file, permissions.mode, user, group)
        except OSError as error:
            raise _cannot_listen(self.address, error) from error

    def close(self) -> None:
        """Stop accepting, and remove the file.  Idempotent, from any thread; blocks as TCP's does."""
        made, self._file = self._file, None
        if made is not None:
            with contextlib.suppress(OSError):
                found = os.lstat(self.address)
                if (found.st_dev, found.st_ino) == made:
                    os.unlink(self.address)
        self._accepting.close()

    def _bind(self, path: str, permissions: Permissions) -> socket.socket:
        if sys.platform == "win32":
            raise OSError(errno.EAFNOSUPPORT, "this system has no Unix sockets")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if path.startswith("@"):
                sock.bind(address_of(path))
                sock.listen(_BACKLOG)
                return sock
            user, group = permissions.ids()
            with _alone_in(os.path.dirname(path)):
                _remove_stale(path, {os.geteuid(), user})
                sock.bind(path)
                self._file = _set_permissions(path, permissions.mode, user, group)
                sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock

    def _accepted(self, sock: socket.socket, _: object) -> None:
        credentials = peer_credentials(sock)
        if self.address.startswith("@") and not _is_ours(credentials):
            sock.close()
            if not self._told:
                self._told = True
                log.warning(
                    "%s: closed the connection of %s: an abstract socket is for our own user and root alone; a path "
                    "with a `mode` may be for others",
                    self._name,
                    describe_peer(credentials),
                )
            return
        self._on_connection(sock, describe_peer(credentials))


class UnixTarget:
    """A Unix socket that a stream leads to, with the face of `qanat.endpoints.target.Target`.  One thread at a time."""

    def __init__(self, path: Callable[[], str], name: str, *, timeout: float, cancel: Cancel | None = None) -> None:
        """`path` returns where to connect to, or raises EndpointError; it does not block.

        `name` is for people.  `timeout` is in seconds, from now on; `cancel` ends `connect`.
        """
        self.name = name
        self._path = path
        self._deadline = Deadline(timeout)
        self._cancel = cancel or Cancel()

    def connect_now(self) -> WakeableSocket | None:
        """Return the connected socket; None when its queue is full.  Does not block.  Raises EndpointError."""
        path = self._path()
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                sock.connect(address_of(path))
            except BaseException:
                sock.close()
                raise
        except BlockingIOError:
            return None
        except OSError as error:
            raise _cannot_connect(error) from error
        return WakeableSocket(sock, self.name)

    def connect(self) -> WakeableSocket:
        """Go on, and block until it has room, until the deadline or until `cancel`.  Raises EndpointError."""
        while not self._cancel.canceled:
            sock = self.connect_now()
            if sock is not None:
                return sock
            if self._deadline.passed:
                raise EndpointError("its queue of connections is full", code=Reason.UNREACHABLE)
            time.sleep(BUSY_PAUSE)
        raise EndpointError(Canceled().message, code=Reason.CANCELED)

    def give_up(self) -> None:
        """Do nothing: `connect_now` leaves nothing behind."""


def address_of(path: str) -> str:
    """Return the address that sockets are given for a path, or for @NAME.  Pure."""
    return "\0" + path[1:] if path.startswith("@") else path


def peer_credentials(sock: socket.socket) -> tuple[int, int] | None:
    """Return the user and the process that have connected; None where the system does not tell."""
    if _PEER_CREDENTIALS is None:
        return None
    try:
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, _PEER_CREDENTIALS, _CREDENTIALS.size))
    except OSError:
        return None
    return uid, pid


def describe_peer(credentials: tuple[int, int] | None) -> str:
    """Return who has connected, as a stream's origin names it."""
    return "an unknown process" if credentials is None else "uid {} pid {}".format(*credentials)


def _is_ours(credentials: tuple[int, int] | None) -> bool:
    return credentials is not None and credentials[0] in (0, os.geteuid())


# --- the file


@contextlib.contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Keep others of this program out of `directory`: of two that find a stale file, both would remove the other's.

    Somebody else who holds the lock must not keep us out, so it is not waited for for long.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it cannot be read, or is not there, which `bind` reports
        yield
        return
    try:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: str, owners: set[int]) -> None:
    """Remove a socket file of ours that nobody listens on.

    Raises OSError (EADDRINUSE) when somebody does, and EndpointError when it is no socket of ours.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise _in_the_way(path, "there is a file of that name that is no socket", "move it away")
    if found.st_uid not in owners:
        raise _in_the_way(
            path, "there is a socket of another user of that name", "have that user end its program and remove it"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) not in _NOTHING_THERE:  # also when its queue is full, or it is for datagrams
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _set_permissions(path: str, mode: int, user: int, group: int) -> tuple[int, int]:
    """Give the socket file that was just bound its owner and mode; return its device and inode.

    By a descriptor of the file itself: another one, that somebody put in its place, must not get them.  Raises OSError,
    and removes the file then.
    """
    if _O_PATH is None:
        os.chmod(path, mode)
        os.chown(path, user, group, follow_symlinks=False)
        made = os.lstat(path)
        return made.st_dev, made.st_ino
    descriptor = os.open(path, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        made = os.fstat(descriptor)
        if not stat.S_ISSOCK(made.st_mode) or made.st_uid != os.geteuid():
            raise OSError(errno.EADDRINUSE, "another file took its place")
        try:
            _change_file(descriptor, mode, user, group)
        except OSError:
            os.unlink(path)
            raise
    finally:
        os.close(descriptor)
    return made.st_dev, made.st_ino


def _change_permissions(path: str, made: tuple[int, int], mode: int, user: int, group: int) -> None:
    """Give the file that we have made another owner and mode, likewise by a descriptor.  Raises OSError."""
    if _O_PATH is None:
        os.chmod(path, mode)
        os.chown(path, user, group, follow_symlinks=False)
        return
    descriptor = os.open(path, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino) != made:
            raise OSError(errno.EADDRINUSE, "another file took its place")
        _change_file(descriptor, mode, user, group)
    finally:
        os.close(descriptor)


def _change_file(descriptor: int, mode: int, user: int, group: int) -> None:
    itself = f"/proc/self/fd/{descriptor}"
    if (user, group) != (-1, -1):
        os.chown(itself, user, group)
    os.chmod(itself, mode)


def _user_id(name: str) -> int:
    if not name or name.isdecimal():
        return int(name or -1)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise EndpointError(f"there is no user {name} on this machine", code=Reason.NOT_ALLOWED) from None


def _group_id(name: str) -> int:
    if not name or name.isdecimal():
        return int(name or -1)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise EndpointError(f"there is no group {name} on this machine", code=Reason.NOT_ALLOWED) from None


# --- what went wrong


def _cannot_listen(path: str, error: OSError) -> EndpointError:
    number = error.errno or 0
    hint = ""
    if number == errno.EADDRINUSE:
        hint = f"choose another path, or stop the program that `ss -xlp src {path}` shows"
    elif number in (errno.ENOENT, errno.ENOTDIR):
        hint = f"make the directory {os.path.dirname(path)} first, for the user that runs this alone"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = (
            "the user that runs this must be able to write to the directory, and to give the file to `owner` and "
            "`group` where they are set"
        )
    elif number in EXHAUSTED:
        hint = MORE_FILES
    text = f"cannot listen on {path}: {describe_os_error(error)}"
    return EndpointError(text, code=REASONS.get(number, Reason.LIMIT), hint=hint)


def _in_the_way(path: str, what: str, cure: str) -> EndpointError:
    return EndpointError(
        f"cannot listen on {path}: {what}", code=Reason.LIMIT, hint=f"{cure}, or choose another path: `ls -ld {path}`"
    )


def _cannot_connect(error: OSError) -> EndpointError:
    return EndpointError(describe_os_error(error), code=REASONS.get(error.errno or 0, Reason.UNREACHABLE))
