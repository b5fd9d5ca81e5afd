"""A running client's control socket: what other processes of the same user ask of it (docs/CONTROL.md).

It is a Unix socket in `state_dir` that only its owner can open.  Both sides write JSON objects, one a line; each has
`version`, and who does not know the version, or the command, says so.  What a stream carries never passes here: whoever
asks for one sends a socket along (SCM_RIGHTS, unix(7)).

Threads: none; the client's watcher reads.  The other side, `ControlConnection`, blocks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qanat.base.addresses import parse_target
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import NoThread, UsageError
from qanat.base.sockets import describe_os_error
from qanat.base.text import printable
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.client.shared_stream import Ended, Failed, Reached, SharedStream, Word
from qanat.client.status import state_file
from qanat.config.settings import ClientSettings
from qanat.mux.frames import reason_name

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("qanat.control")

VERSION = 1
MAX_LINE = 4096
"""Bytes of a line at most."""
MAX_CONNECTIONS = 256
"""Processes that are listened to at once."""
_BACKLOG = 64
_WAIT_SECONDS = 5.0
"""How long a process that asks may take to send its line, and a client to take notice of one."""

Connect = Callable[[SharedStream, TcpAddress, str], None]


def control_path(settings: ClientSettings) -> Path | None:
    """Return where a client with these settings has its control socket; None where it has none.  Pure."""
    return state_file(settings, "sock") if hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds") else None


class ControlSocket:
    """See the module's docstring.  From `start` to `close`; any thread may call these, and none blocks."""

    def __init__(self, path: Path, watcher: Watcher, connect: Connect) -> None:
        """`connect(stream, to, what)` opens a stream; it must not block."""
        self._path = path
        self._watcher = watcher
        self._connect = connect
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._changed = threading.Condition()  # guards the next two
        self._all: set[_Conversation] = set()
        self._closed = False

    def start(self) -> bool:
        """Listen; False when that cannot be, or another client of the same settings does."""
        try:
            with _locked(self._path.parent) as directory:
                if _connected(self._path, directory) is not None:
                    return False
                self._listener = self._bind(directory)
            self._watcher.add(self._listener.fileno(), self._accept)
        except (NoThread, OSError) as error:
            log.debug("no control socket: %s", error)
            self.close()
            return False
        return True

    def _bind(self, directory: int) -> socket.socket:
        """Put a socket that only we can open where a former one may be."""
        name = f".{secrets.token_hex(8)}"
        os.mkdir(name, 0o700, dir_fd=directory)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A path through the directory's descriptor is short however long its own is: sun_path ends at 107 bytes.
            listener.bind(f"/proc/self/fd/{directory}/{name}/s")
            os.chmod(f"{name}/s", 0o600, dir_fd=directory)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            os.rename(f"{name}/s", self._path.name, src_dir_fd=directory, dst_dir_fd=directory)
            found = os.stat(self._path.name, dir_fd=directory)
            self._inode = found.st_dev, found.st_ino
        except BaseException:
            listener.close()
            with contextlib.suppress(OSError):
                os.unlink(f"{name}/s", dir_fd=directory)
            raise
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=directory)
        return listener

    def stop_listening(self) -> None:
        """Let nobody come any more.  Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._watcher.remove(listener.fileno())
            listener.close()
            with contextlib.suppress(OSError):
                found = os.lstat(self._path)
                if (found.st_dev, found.st_ino) == self._inode:
                    os.unlink(self._path)

    def close(self) -> None:
        """Listen no more, and forget who was listened to.  Idempotent."""
        self.stop_listening()
        with self._changed:
            self._closed = True
            everyone = list(self._all)
            self._changed.notify_all()
        for one in everyone:
            one.close()

    def wait_unused(self) -> None:
        """Block until nobody has a stream by way of this, or it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not any(one.has_stream for one in self._all))

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            return
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # gone again, or no descriptor: who asks is told by the end of it
        conversation = _Conversation(sock, self._watcher, self._connect, self._forget)
        with self._changed:
            room = not self._closed and len(self._all) < MAX_CONNECTIONS
            if room:
                self._all.add(conversation)
        if room:
            conversation.start()
        else:
            sock.close()

    def _forget(self, conversation: _Conversation) -> None:
        with self._changed:
            self._all.discard(conversation)
            self._changed.notify_all()


class _Conversation:
    """One process that asks."""

    def __init__(
        self, sock: socket.socket, watcher: Watcher, connect: Connect, on_over: Callable[[_Conversation], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._watcher = watcher
        self._connect = connect
        self._on_over = on_over
        self._buffer = b""
        self._given: list[int] = []  # descriptors that came along
        self._stream: SharedStream | None = None
        self._lock = threading.Lock()  # guards the next, and the socket
        self._over = False

    @property
    def has_stream(self) -> bool:
        """Whether it has a stream that is not over."""
        return self._stream is not None and not self._over

    def start(self) -> None:
        """Read what it asks."""
        try:
            self._watcher.add(self._sock.fileno(), self._ready)
        except (NoThread, OSError):
            self.close()

    def close(self) -> None:
        """Listen no more.  Idempotent; does not block."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self._watcher.remove(self._sock.fileno())
            self._sock.close()
            given, self._given = self._given, []
        for descriptor in given:
            os.close(descriptor)
        self._on_over(self)

    def _ready(self) -> None:
        """Read once.  By the watcher."""
        try:
            with self._lock:
                if self._over:
                    return
                data, given, _, _ = socket.recv_fds(self._sock, MAX_LINE, 1)
                self._given += given
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            self._received(data)
        except Exception:
            log_unexpected("what came on the control socket was not handled")
            self.close()

    def _received(self, data: bytes) -> None:
        if not data:  # whoever asked is gone, and so is the other end of his stream
            if self._stream is not None:
                self._stream.cancel()
            self.close()
            return
        self._buffer += data
        line, end, rest = self._buffer.partition(b"\n")
        if self._stream is not None or (not end and len(self._buffer) >= MAX_LINE):
            self._refuse("there may be one line, of at most 4096 bytes")
        elif end:
            self._buffer = rest
            self._act(line)

    def _act(self, line: bytes) -> None:
        try:
            asked = json.loads(line)
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            self._refuse("that is no JSON object in a line")
        elif asked.get("version") != VERSION:
            self._refuse(f"only version {VERSION} is known here")
        elif asked.get("command") != "connect":
            self._refuse("that command is not known here")
        elif len(self._given) != 1:
            self._refuse("no socket came along")
        else:
            self._open(str(asked.get("to", "")))

    def _open(self, text: str) -> None:
        try:
            to = TcpAddress(*parse_target(text))
            sock = socket.socket(fileno=self._given.pop())
        except UsageError as error:
            self._refuse(f"`to` {error.message}")
            return
        except OSError:
            self._refuse("what came along is no socket")
            return
        self._stream = SharedStream(sock, "stdio", self._tell)
        self._connect(self._stream, to, f"stdio to {to}")

    def _refuse(self, why: str) -> None:
        self._send({"ok": False, "error": why})
        self.close()

    def _tell(self, word: Word) -> None:
        if isinstance(word, Reached):
            self._send({"ok": True, "address": word.address})
        elif isinstance(word, Failed):
            self._send({"ok": False, "reason": word.reason, "error": printable(word.text)})
            self.close()
        else:
            self._send({"event": "ended", "reason": word.reason, "error": printable(word.text)})
            self.close()

    def _send(self, answer: Mapping[str, Any]) -> None:
        line = json.dumps({"version": VERSION, **answer}).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            if not self._over:
                self._sock.send(line)  # short, and one of two: there is room


class ControlConnection:
    """What asks a running client for a stream.  One thread at a time; close it, by `with`."""

    def __init__(self, control: socket.socket) -> None:
        """Own `control`, which is connected."""
        self._control = control
        self._lines = control.makefile("rb")
        self.sock, self._theirs = socket.socketpair()
        """Our end of what leads to the target."""

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Connect to the client whose control socket this is; None when there is none.  Does not block."""
        try:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            control = _connected(path, directory)
        finally:
            os.close(directory)
        return None if control is None else cls(control)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sock in (self._lines, self._control, self.sock, self._theirs):
            sock.close()

    def connect(self, to: TcpAddress) -> bool:
        """Ask for a stream to `to`; False when the client is gone already.  `words` has what becomes of it."""
        asked = json.dumps({"version": VERSION, "command": "connect", "to": str(to)}).encode() + b"\n"
        try:
            socket.send_fds(self._control, [asked], [self._theirs.fileno()])
        except OSError:
            return False
        self._theirs.close()
        return True

    def words(self) -> Iterator[Word]:
        """Yield what becomes of the stream, the last word included, unless the client ends before that.  Blocks."""
        while line := self._lines.readline(MAX_LINE):
            word = _read_word(line)
            yield word
            if not isinstance(word, Reached):
                return


def _read_word(line: bytes) -> Word:
    try:
        answer = json.loads(line)
        reason, error = answer.get("reason"), str(answer.get("error", ""))
        if answer.get("event") == "ended":
            return Ended(reason, error)
        if answer["ok"]:
            return Reached(str(answer.get("address", "")))
    except (ValueError, AttributeError, KeyError):
        return Failed(0, "the running client answers in words that are not known here: it may be of another version")
    return Failed(reason if isinstance(reason, int) else 0, error or reason_name(0))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Hold a lock among those who put sockets into `directory`; yields its descriptor.  Blocks for a moment."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # where there are no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _connected(path: Path, directory: int) -> socket.socket | None:
    """Return a socket that is connected to `path`, in the open `directory`; None when nobody listens there."""
    try:
        if not stat.S_ISSOCK(os.stat(path.name, dir_fd=directory, follow_symlinks=False).st_mode):
            return None
    except OSError:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    except OSError as error:
        log.debug("no control socket at %s: %s", path, describe_os_error(error))
        sock.close()
        return None
    return sock
