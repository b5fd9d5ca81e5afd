"""Web services by name: who serves which name, and the two ways in which visitors come to it.

    a proxy in front -> DIRECTORY/app.example.com, a Unix socket that is there while a client publishes the name
    TLS on our port  -> the connection itself, as it came: the name was read from its ClientHello, and nothing decrypted

Several clients may publish one name; each connection goes to the least loaded of those that are connected, as with
shared ports.  Which client may publish what is `qanat.config.published_names`'s to say.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qanat.base.addresses import MAX_UNIX_PATH
from qanat.base.endpoint_addresses import PublishedName
from qanat.base.errors import EndpointError, UsageError
from qanat.base.sockets import describe_os_error
from qanat.base.watcher import Watcher
from qanat.endpoints.accepting import Accepting
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.mux.frames import Reason
from qanat.server.own_names import covers
from qanat.server.shared_ports import Accept, Acceptor, Membership, SharedPorts

log = logging.getLogger("qanat.server")

_BACKLOG = 512
_TEMPORARY = 3
"""Characters of a name that a socket has before it is in its place: no more than any name has, so that it fits too."""
VIA_PROXY = "the proxy"
"""What is known of a visitor who came through a proxy: the proxy tells the service the rest."""


class PublishedNames:
    """The names that are published at one server.  Safe to use from any thread."""

    def __init__(
        self,
        ports: SharedPorts,
        watcher: Watcher,
        directory: Path | None = None,
        *,
        mode: int = 0o660,
        group: str | None = None,
        by_tls: bool = False,
        own_names: Sequence[str] = (),
        may_be_published: Callable[[str], bool] = lambda _: False,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        """Publish in `directory`, and with `by_tls` on this server's own port; in neither, nothing can be published.

        A file there gets `mode` and `group`.  `own_names` are those of this server's certificate, which nobody may
        publish; `may_be_published` says whether any client may publish a name.  Raises UsageError for a directory or
        group that cannot be used.
        """
        self._ports = ports
        self._watcher = watcher
        self._directory = directory
        self._mode = mode
        self._group = None if group is None else _group_number(group)
        self._by_tls = by_tls
        self._own_names = tuple(own_names)
        self._may_be_published = may_be_published
        self._keepalive = keepalive
        if directory is not None:
            _clear(directory)

    def change(self, *, by_tls: bool, own_names: Sequence[str]) -> None:
        """Go by another certificate, or none, from now on; names that are published stay."""
        self._by_tls, self._own_names = by_tls, tuple(own_names)

    def join(self, name: str, acceptor: Acceptor, accept: Accept) -> Membership:
        """Publish `name`, which the rules allow, with all who do already.  As `SharedPorts.join`."""
        if self._directory is None and not self._by_tls:
            raise EndpointError(
                "this server publishes no names",
                code=Reason.NOT_ALLOWED,
                hint="set publish_dir on the server, behind a proxy, or tls, without one",
            )
        if name in self._own_names:
            raise EndpointError(f"{name} is this server's own name", code=Reason.NOT_ALLOWED)
        return self._ports.join_at(
            PublishedName(name), lambda on_connection: self._listen(name, on_connection), acceptor, accept
        )

    def is_published(self, name: str) -> bool:
        """Return whether a client publishes `name` now."""
        return PublishedName(name) in self._ports

    def is_away(self, name: str) -> bool:
        """Return whether a client may publish `name`, none does now, and our certificate is not for it either."""
        return self._may_be_published(name) and not self.is_published(name) and not covers(self._own_names, name)

    def hand_over(self, name: str, sock: socket.socket, peer: str) -> None:
        """Give a connection, of which nothing was read, to a client that publishes `name`, or close it.

        Does not block.
        """
        self._keepalive.configure(sock)
        if not self._ports.accepted(PublishedName(name), sock, peer):
            sock.close()  # which resets it: the last one has just left

    def _listen(self, name: str, on_connection: Callable[[socket.socket, str], None]) -> NameListener:
        path = None if self._directory is None else self._directory / name
        return NameListener(name, path, on_connection, self._watcher, self._mode, self._group)


class NameListener:
    """A published name's socket, as a `qanat.endpoints.tcp.Listener`; without a path, visitors come by TLS alone."""

    port = 0

    def __init__(
        self,
        name: str,
        path: Path | None,
        on_connection: Callable[[socket.socket, str], None],
        watcher: Watcher,
        mode: int,
        group: int | None,
    ) -> None:
        """Bind; does not accept before `start`.  Raises EndpointError."""
        self.address = name
        self._path = path
        self._accepting: Accepting | None = None
        if path is not None:

            def accepted(sock: socket.socket, _: Any) -> None:
                on_connection(sock, VIA_PROXY)

            sock = _bind(path, mode, group)
            self._inode = _inode(path)
            self._accepting = Accepting([sock], accepted, f"the published name {name}", watcher)

    def start(self) -> None:
        """Accept connections from now on.  Does not block.  Raises EndpointError; the file is gone then."""
        if self._accepting is not None:
            try:
                self._accepting.start()
            except EndpointError:
                self.close()
                raise

    def close(self) -> None:
        """Stop accepting, and remove the file.  Idempotent, from any thread; as `Listener.close`."""
        if self._accepting is None or self._path is None:
            return
        if _inode(self._path) == self._inode:  # not another's, which has replaced it
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._inode = None
        self._accepting.close()


def _bind(path: Path, mode: int, group: int | None) -> socket.socket:
    """Return a listening socket in place of what is at `path`, which nobody can connect to before it has its mode."""
    # Beside its place first, since between bind and chmod everybody could connect, or nobody.
    new = path.with_name(f".{path.name[:_TEMPORARY]}~")
    if (size := len(os.fsencode(path))) > MAX_UNIX_PATH:
        raise EndpointError(
            f"cannot publish {path.name}: the path of its socket would have {size} bytes, of {MAX_UNIX_PATH} at most",
            code=Reason.LIMIT,
            hint="choose a shorter publish_dir on the server, or a shorter name",
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        sock.bind(os.fspath(new))
        if group is not None:
            os.chown(new, -1, group)
        os.chmod(new, mode)
        sock.listen(_BACKLOG)
        os.replace(new, path)
    except OSError as error:
        sock.close()
        with contextlib.suppress(OSError):
            new.unlink()
        raise EndpointError(
            f"cannot publish {path.name}: {describe_os_error(error)}",
            code=Reason.NOT_ALLOWED if error.errno in (errno.EACCES, errno.EPERM) else Reason.LIMIT,
            hint="see publish_dir and publish_group on the server",
        ) from error
    return sock


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _clear(directory: Path) -> None:
    """Make the directory, and remove the sockets that an earlier process has left there, for whoever has it alone."""
    try:
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(0o755)  # whatever the umask: the sockets have a mode of their own
        for path in directory.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode) and not _is_live(path):
                path.unlink()
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(
            f"names cannot be published in {directory}: {describe_os_error(error)}",
            hint="make it this user's, and let the proxy's user enter it",
        ) from error


def _is_live(path: Path) -> bool:
    """Return whether somebody still listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _group_number(group: str) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {group} (publish_group)", hint="see `getent group`") from None
