"""A running process's control socket: what other processes of the same user ask of it (docs/CONTROL.md).

It is a Unix socket in `state_dir` that only its owner can open.  Both sides write JSON objects, one a line; each has
`version`, and who does not know the version, or the command, says so.  What a stream carries never passes here: whoever
asks for one sends a socket along (SCM_RIGHTS, unix(7)).

Threads: the watcher reads; a command (`qanat.control.commands`) runs in a thread of the pool, which also writes its
answer and waits for whoever reads that slowly.  Only `connect` is dealt with by the watcher, since that never blocks.
The asking side is `qanat.control.asking`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qanat.base.addresses import parse_target
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import NoThread, UsageError
from qanat.base.long_work import long_work
from qanat.base.sockets import describe_os_error
from qanat.base.text import printable
from qanat.base.threads import ThreadGroup
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.control.answers import encoded
from qanat.control.asking import MAX_LINE, VERSION
from qanat.control.commands import Commands, Request
from qanat.control.paths import ENDING, STOPPING, connect_in, describe_peer, locked
from qanat.control.shared_stream import Failed, Reached, SharedStream, Word

log = logging.getLogger("qanat.control")

MAX_CONNECTIONS = 256
"""Processes that are listened to at once; then the eldest that has not asked gives way."""
ANSWER_SECONDS = 10.0
"""How long a process that asks may take to read its answer."""
_BACKLOG = 64
_JOIN_SECONDS = 2.0
_EXAMPLE = f'write {{"version": {VERSION}, "command": "commands"}}'

Connect = Callable[[SharedStream, TcpAddress, str], None]


class ControlSocket:
    """See the module's docstring.  From `start` to `close`; any thread may call these."""

    def __init__(self, path: Path, watcher: Watcher, commands: Commands, connect: Connect | None = None) -> None:
        """`connect(stream, to, what)` opens a stream, where this process can; it must not block."""
        self._path = path
        self._watcher = watcher
        self._commands = commands
        self._connect = connect
        self._threads = ThreadGroup("control")
        self._listener: socket.socket | None = None
        self._directory = -1  # kept open, so that others find this socket by our descriptors (`qanat.control.running`)
        self._inode: tuple[int, int] | None = None
        self._gave_way = False
        self._changed = threading.Condition()  # guards the next two
        self._all: dict[_Conversation, None] = {}  # the eldest first
        self._closed = False

    def start(self) -> bool:
        """Listen; False when that cannot be, or another process of the same settings does.  Does not block."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # as on a first start
            with locked(self._path.parent) as directory:
                other = connect_in(self._path, directory)
                if other is not None:
                    other.close()
                    log.info("no control socket: another process has %s", self._path)
                    return False
                self._listener = self._bind(directory)
                self._remove_dead(directory)
                # Opened anew: a copy of `directory` would hold its lock.
                self._directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            self._watcher.add(self._listener.fileno(), self._accept)
        except (NoThread, OSError) as error:
            log.info("no control socket, so `status` cannot ask this process: %s", _why(error))
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

    def _remove_dead(self, directory: int) -> None:
        """Remove what processes that were killed while they stopped have left."""
        for path in self._path.parent.glob(f"{self._path.stem}.{STOPPING}-*.{ENDING}"):
            other = connect_in(path, directory)
            if other is not None:
                other.close()
                continue
            with contextlib.suppress(OSError):
                os.unlink(path.name, dir_fd=directory)

    def give_way(self) -> None:
        """Leave the path to a successor, and be found beside it until `close`.  Idempotent; blocks for a moment.

        Open streams may have an hour to finish: whoever waits for that can look, and end them.
        """
        beside = self._path.with_name(f"{self._path.stem}.{STOPPING}-{os.getpid()}.{ENDING}")
        if self._listener is None or self._gave_way:
            return
        self._gave_way = True
        try:
            with locked(self._path.parent) as directory:
                found = os.stat(self._path.name, dir_fd=directory, follow_symlinks=False)
                if (found.st_dev, found.st_ino) == self._inode:
                    os.rename(self._path.name, beside.name, src_dir_fd=directory, dst_dir_fd=directory)
                    self._path = beside
        except OSError as error:
            log.debug("no control socket while this stops: %s", describe_os_error(error))
            self.stop_listening()

    def stop_listening(self) -> None:
        """Let nobody come any more.  Idempotent; does not block."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._watcher.remove(listener.fileno())
            listener.close()
            with contextlib.suppress(OSError):
                found = os.lstat(self._path)
                if (found.st_dev, found.st_ino) == self._inode:
                    os.unlink(self._path)
        directory, self._directory = self._directory, -1
        if directory >= 0:
            os.close(directory)

    def close(self) -> None:
        """Listen no more, and forget who was listened to.  Idempotent; blocks a moment for commands that still run."""
        self.stop_listening()
        with self._changed:
            self._closed = True
            everyone = list(self._all)
            self._changed.notify_all()
        for one in everyone:
            one.close()
        self._threads.join(_JOIN_SECONDS)

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
        conversation = _Conversation(sock, self._watcher, self._commands, self._threads, self._connect, self._forget)
        with self._changed:
            full = len(self._all) >= MAX_CONNECTIONS
            silent = next((one for one in self._all if one.is_silent), None) if full else None
        if silent is not None:
            silent.close()  # whoever has asked nothing gives way to who may
        with self._changed:
            room = not self._closed and len(self._all) < MAX_CONNECTIONS
            if room:
                self._all[conversation] = None
        if room:
            conversation.start()
        else:
            sock.close()

    def _forget(self, conversation: _Conversation) -> None:
        with self._changed:
            self._all.pop(conversation, None)
            self._changed.notify_all()


class _Conversation:
    """One process that asks."""

    def __init__(
        self,
        sock: socket.socket,
        watcher: Watcher,
        commands: Commands,
        threads: ThreadGroup,
        connect: Connect | None,
        on_over: Callable[[_Conversation], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._watcher = watcher
        self._commands = commands
        self._threads = threads
        self._connect = connect
        self._on_over = on_over
        self._buffer = b""
        self._given: list[int] = []  # descriptors that came along
        self._stream: SharedStream | None = None
        self._lock = threading.Lock()  # guards the next two, and the socket
        self._running = False  # a command's thread has the socket, and closes it
        self._over = False

    @property
    def has_stream(self) -> bool:
        """Whether it has a stream that is not over."""
        return self._stream is not None and not self._over

    @property
    def is_silent(self) -> bool:
        """Whether it has not asked yet."""
        return not self._running and self._stream is None

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
            if self._running:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)  # which wakes whoever writes the answer
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
                if self._over or self._running:
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
        if not data and self._buffer and self._stream is None:
            data = b"\n"  # `printf … | socat - UNIX:…`: the end of what is asked is the end of the line
        if not data:  # whoever asked is gone, and so is the other end of his stream
            if self._stream is not None:
                self._stream.cancel()
            self.close()
            return
        self._buffer += data
        line, end, rest = self._buffer.partition(b"\n")
        if self._stream is not None or (not end and len(self._buffer) >= MAX_LINE):
            self._refuse(f"there may be one line, of at most {MAX_LINE} bytes", "ask for less, or once more")
        elif end:
            self._buffer = rest
            self._act(line)

    def _act(self, line: bytes) -> None:
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            self._refuse("that is no JSON object in a line", _EXAMPLE)
        elif asked.get("version") != VERSION:
            self._refuse(f"only version {VERSION} is known here", _EXAMPLE)
        elif asked.get("command") == "connect" and self._connect is not None:
            if len(self._given) != 1:
                self._refuse("no socket came along", "send one as ancillary data with the line (SCM_RIGHTS)")
            else:
                self._open(self._connect, str(asked.get("to", "")))
        else:
            self._run(Request(str(asked.get("command", "")), asked, describe_peer(self._sock)))

    # --- a command ------------------------------------------------------------------------------

    def _run(self, request: Request) -> None:
        """Run a command in a thread of its own, which has the socket from now on."""
        with self._lock:
            if self._over:
                return
            self._running = True
            self._watcher.remove(self._sock.fileno())
        try:
            self._threads.start("control", lambda: self._answer(request))
        except NoThread as error:
            with self._lock:
                self._running = False
            self._refuse(error.message, error.hint or "")

    def _answer(self, request: Request) -> None:
        try:
            with long_work():  # a thousand sessions to show, or a configuration with as many clients to read
                line = _line(self._commands.run(request))
            self._sock.settimeout(ANSWER_SECONDS)
            self._sock.sendall(line)
        except OSError as error:
            log.debug("nobody has read the answer to a control command: %s", _why(error))
        finally:
            with self._lock:
                self._running = False
            self.close()

    # --- a stream -------------------------------------------------------------------------------

    def _open(self, connect: Connect, text: str) -> None:
        try:
            to = TcpAddress(*parse_target(text))
            sock = socket.socket(fileno=self._given.pop())
        except UsageError as error:
            self._refuse(f"`to` {error.message}", error.hint or "")
            return
        except OSError:
            self._refuse("what came along is no socket", "send a connected stream socket")
            return
        self._stream = SharedStream(sock, "stdio", self._tell)
        connect(self._stream, to, f"stdio to {to}")

    def _refuse(self, why: str, hint: str) -> None:
        self._send({"ok": False, "error": why, "hint": hint})
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
        with self._lock, contextlib.suppress(OSError):
            if not self._over:
                self._sock.send(_line(answer))  # short, and one of two: there is room


def _line(answer: Mapping[str, Any]) -> bytes:
    return encoded({"version": VERSION, **answer})


def _why(error: NoThread | OSError) -> str:
    return describe_os_error(error) if isinstance(error, OSError) else str(error)
