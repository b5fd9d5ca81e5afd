"""Where a running client or server keeps what is its own in `state_dir`, and how its control socket there is reached.

A path through the directory's descriptor is short however long its own is: sun_path ends at 107 bytes (unix(7)).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qanat.base.sockets import describe_os_error

if TYPE_CHECKING:
    from qanat.config.client_settings import ClientSettings
    from qanat.config.server_settings import ServerSettings

if sys.platform != "win32":
    import fcntl
    import pwd

log = logging.getLogger("qanat.control")

ENDING = "sock"
STOPPING = "stopping"
"""In the name of the socket of a process that stops; it sorts behind that of a successor."""


def state_file(settings: ClientSettings, ending: str) -> Path | None:
    """Return the file that a client of this name for these servers has for one purpose; None when it keeps nothing.

    Pure.
    """
    if settings.state_dir is None:
        return None
    which = (settings.name, [server.urls for server in settings.servers])
    return settings.state_dir / f"{settings.name}-{_short_hash(which)}.{ending}"


def control_path(settings: ClientSettings | ServerSettings) -> Path | None:
    """Return where a process with these settings has its control socket; None where it has none.  Pure."""
    if not (hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")):
        return None
    from qanat.config.client_settings import ClientSettings

    if isinstance(settings, ClientSettings):
        return state_file(settings, ENDING)
    return settings.state_dir / f"server-{_short_hash(('server', str(settings.identity)))}.{ENDING}"


def _short_hash(which: object) -> str:
    return hashlib.sha256(repr(which).encode()).hexdigest()[:8]


def connect_to(path: Path) -> socket.socket | None:
    """Return a blocking socket that is connected to the process whose control socket this is; None when there is none.

    Raises PermissionError when it is another user's.
    """
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except OSError:
        return None
    try:
        return connect_in(path, directory)
    finally:
        os.close(directory)


def connect_in(path: Path, directory: int) -> socket.socket | None:
    """Do the same with `path`'s directory open already."""
    try:
        if not stat.S_ISSOCK(os.stat(path.name, dir_fd=directory, follow_symlinks=False).st_mode):
            return None
    except PermissionError:
        raise
    except OSError:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    except PermissionError:
        sock.close()
        raise
    except OSError as error:
        log.debug("no control socket at %s: %s", path, describe_os_error(error))
        sock.close()
        return None
    return sock


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Hold a lock among those who put sockets into `directory`; yields its descriptor.  Blocks for a moment."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # where there are no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield descriptor
        finally:
            if sys.platform != "win32":
                with contextlib.suppress(OSError):  # or it would last as long as a copy of the descriptor does
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def describe_peer(sock: socket.socket) -> str:
    """Return who is at the other end of a Unix socket, for logs: its user and process, where the system says so."""
    option = getattr(socket, "SO_PEERCRED", None)
    if sys.platform == "win32" or option is None:
        return "somebody"
    try:
        process, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    except OSError:
        return "somebody"
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    return f"user {name} (process {process})"
