"""Unix sockets that are listened on and connected to: whose file it is, which one is replaced, and who may come."""

from __future__ import annotations

import errno
import os
import queue
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qanat.base.cancel import Cancel
from qanat.base.errors import EndpointError
from qanat.base.watcher import Watcher
from qanat.endpoints import unix
from qanat.endpoints.unix import Permissions, UnixListener, UnixTarget
from qanat.mux.frames import Reason
from tests.support.sockets import SECONDS

OUR_USER = os.geteuid()


class Place:
    """A directory with a short name, and listeners in it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-")))
        self.path = str(self.directory / "socket")
        self.connections: queue.Queue[tuple[socket.socket, str]] = queue.Queue()
        stack.callback(self._drain)
        self._watcher = Watcher()
        stack.callback(self._watcher.close)

    def listen(self, path: str = "", permissions: Permissions = unix.OURS_ALONE) -> UnixListener:
        accept: Callable[[socket.socket, str], None] = lambda sock, peer: self.connections.put((sock, peer))  # noqa: E731
        listener = UnixListener(path or self.path, accept, "a forward", self._watcher, permissions=permissions)
        self._stack.callback(listener.close)
        listener.start()
        return listener

    def fails(self, path: str = "", permissions: Permissions = unix.OURS_ALONE) -> EndpointError:
        with pytest.raises(EndpointError) as caught:
            self.listen(path, permissions)
        return caught.value

    def _drain(self) -> None:
        """Close what nobody has taken: who looks whether a socket is live connects to it."""
        while not self.connections.empty():
            self.connections.get()[0].close()

    def arrived(self) -> None:
        """Wait for a connection."""
        self.connections.get(timeout=SECONDS)[0].close()

    def connect(self, path: str = "") -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(SECONDS)
        sock.connect(unix.address_of(path or self.path))
        return sock

    def stale(self) -> None:
        """A socket file that somebody has left behind."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(self.path)


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(stack)


def test_a_connection_arrives_with_the_user_and_process_that_made_it(place: Place) -> None:
    listener = place.listen()
    assert (listener.address, listener.port) == (place.path, 0)
    place.connect().sendall(b"x")
    sock, peer = place.connections.get(timeout=SECONDS)
    with sock:
        assert peer == f"uid {OUR_USER} pid {os.getpid()}"
        assert sock.recv(1) == b"x"


def test_the_file_is_ours_alone_before_anybody_can_connect(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    listen = socket.socket.listen

    def note(self: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE(os.stat(place.path).st_mode))
        with socket.socket(socket.AF_UNIX) as early:
            assert early.connect_ex(place.path) == errno.ECONNREFUSED
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", note)
    before = os.umask(0)
    try:
        place.listen()
    finally:
        os.umask(before)
    assert modes == [0o600]


@pytest.mark.parametrize("mode", [0o660, 0o666, 0o600])
def test_its_mode_is_what_was_asked_for_whatever_the_umask(place: Place, mode: int) -> None:
    before = os.umask(0o077)
    try:
        place.listen(permissions=Permissions(mode))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(place.path).st_mode) == mode


def test_owner_and_group_are_set_by_name_or_number(place: Place) -> None:
    if OUR_USER != 0:
        pytest.skip("only root can give a file away")
    place.listen(permissions=Permissions(0o660, "nobody", "33"))
    found = os.stat(place.path)
    assert (found.st_uid, found.st_gid) == (unix._user_id("nobody"), 33)
    assert "no user" in place.fails(str(place.directory / "other"), Permissions(owner="nobody-of-that-name")).message
    assert not (place.directory / "other").exists()


def test_a_stale_file_is_replaced_and_a_live_one_refused(place: Place) -> None:
    place.stale()
    listener = place.listen()
    place.connect()
    place.arrived()
    error = place.fails()
    assert (error.code, error.message) == (Reason.LIMIT, f"cannot listen on {place.path}: Address already in use")
    assert "ss -xlp" in error.hint
    place.connect()
    place.arrived()
    listener.close()
    assert not os.path.exists(place.path)
    listener.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link", "datagrams", "somebody else's"])
def test_what_is_no_stale_socket_of_ours_is_left_alone(place: Place, kind: str) -> None:
    with ExitStack() as stack:
        path = Path(place.path)
        if kind == "file":
            path.write_text("precious")
        elif kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("elsewhere")
        elif kind == "datagrams":
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(place.path)
        elif OUR_USER != 0:
            pytest.skip("only root can give a file away")
        else:
            place.stale()
            os.chown(path, 65534, 65534)
        before = os.lstat(path)
        error = place.fails()
        assert error.code == Reason.LIMIT
        cures = {"datagrams": "ss -xlp", "somebody else's": "have that user end its program"}
        assert cures.get(kind, "move it away, or choose another path") in error.hint
        assert os.lstat(path).st_ino == before.st_ino


def test_of_many_that_find_a_stale_file_at_once_one_has_it(place: Place) -> None:
    for _ in range(20):
        place.stale()
        listeners: list[UnixListener] = []
        go = threading.Barrier(4)

        def take(go: threading.Barrier = go, listeners: list[UnixListener] = listeners) -> None:
            go.wait(SECONDS)
            try:
                listeners.append(place.listen())
            except EndpointError:
                return

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert len(listeners) == 1
        place.connect()
        place.arrived()
        listeners[0].close()


def test_the_end_removes_its_own_file_and_no_other(place: Place) -> None:
    listener = place.listen()
    os.unlink(place.path)
    place.stale()
    listener.close()
    assert os.path.exists(place.path), "somebody else has the name by now"


def test_a_directory_that_is_not_there_says_what_to_do(place: Place) -> None:
    error = place.fails(str(place.directory / "none" / "socket"))
    assert "make the directory" in error.hint


def test_an_abstract_name_is_for_our_user_and_root_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@qanat-test-{os.getpid()}"
    place.listen(name)
    assert place.fails(name).code == Reason.LIMIT
    place.connect(name)
    place.arrived()
    monkeypatch.setattr(unix, "peer_credentials", lambda sock: (OUR_USER + 1, 1))
    assert place.connect(name).recv(1) == b"", "closed"
    assert place.connections.empty()


def target(path: str, seconds: float = SECONDS, cancel: Cancel | None = None) -> UnixTarget:
    return UnixTarget(lambda: path, path, timeout=seconds, cancel=cancel)


def test_a_target_is_connected_to_at_once(place: Place) -> None:
    place.listen()
    sock = target(place.path).connect_now()
    assert sock is not None
    assert sock.peer == place.path
    place.arrived()
    assert sock.recv(1) == b""
    sock.close(orderly=True)


def test_why_a_target_cannot_be_had_is_said(place: Place) -> None:
    with pytest.raises(EndpointError, match="No such file") as caught:
        target(place.path).connect_now()
    assert caught.value.code == Reason.UNREACHABLE
    place.stale()
    with pytest.raises(EndpointError, match="Connection refused") as caught:
        target(place.path).connect_now()
    assert caught.value.code == Reason.REFUSED


def test_a_target_whose_queue_is_full_is_waited_for(place: Place) -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket(socket.AF_UNIX))
        full.bind(place.path)
        full.listen(0)
        place.connect()
        assert target(place.path).connect_now() is None
        with pytest.raises(EndpointError, match="queue of connections is full"):
            target(place.path, 0.1).connect()
        cancel = Cancel()
        cancel.cancel()
        with pytest.raises(EndpointError, match="stopped"):
            target(place.path, cancel=cancel).connect()
        room = threading.Timer(0.1, lambda: full.accept()[0].close())
        room.start()
        target(place.path).connect().close(orderly=True)
        room.join()
