"""Standard input and output joined to one target, as `ssh -W` does, so that ssh can go through the tunnel by itself.

A client that runs already for the same server and name opens the stream (`qanat.control.listener`); where none does, a
client of our own does, and stays for as long as others share it.  Either way bytes go through a pair of sockets, of
which the stream has the other end.

Threads: `stdin` reads what comes for the target, `stdout` writes what it sends, `words` hears what becomes of the
stream; the calling one waits for all that.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import EndpointError
from qanat.base.text import printable
from qanat.base.threads import start_thread
from qanat.config.client_settings import ClientSettings
from qanat.control.connecting import ControlConnection
from qanat.control.paths import control_path
from qanat.control.shared_stream import Ended, Failed, Reached, SharedStream, Word
from qanat.mux.frames import Reason, reason_name

if TYPE_CHECKING:
    from qanat.client.client import Client

READ = 64 * 1024
"""Bytes read at once."""

_STDIN, _STDOUT = 0, 1
_HINTS: dict[int, str] = {
    Reason.SESSION_ENDED: "the line above, or -v, says why; where a client runs under this name already, -W goes "
    "through it if both are started with the same -c FILE, or with the same URL and --name",
}

Words = queue.SimpleQueue[Word | None]
"""What becomes of the stream; None to stop."""


def run_stdio(settings: ClientSettings, to: TcpAddress, stop: threading.Event) -> None:
    """Join standard input and output to `to` until both ways have ended, or `stop` is set.  Blocks.

    Raises EndpointError when the target was not reached or its connection was reset, and RefusedError when the server
    refuses us.
    """
    path = control_path(settings)
    control = None if path is None else ControlConnection.open(path)
    if control is not None:
        with control:
            words: Words = queue.SimpleQueue()
            if control.connect(to):
                start_thread("words", lambda: _words_loop(control, words))
                _carry(control.sock, words, to, stop)
                return
    _run_client(settings, to, stop)


def _words_loop(control: ControlConnection, words: Words) -> None:
    with contextlib.suppress(OSError, ValueError):  # we have closed it
        for word in control.words():
            words.put(word)
    words.put(Failed(Reason.SESSION_ENDED, "the running client has ended"))


def _run_client(settings: ClientSettings, to: TcpAddress, stop: threading.Event) -> None:
    """Do it with a client of our own, which stays for those who share it."""
    from qanat.client.client import Client  # half of the time that a start takes, when a running client does the rest

    if settings.state_dir is not None:
        with contextlib.suppress(OSError):  # then others cannot share it
            settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    client = Client(replace(settings, forwards=(), exit_on_forward_failure=False))
    words: Words = queue.SimpleQueue()
    ours, theirs = socket.socketpair()
    client.start()
    try:
        with ours:
            client.connect(SharedStream(theirs, "stdio", words.put), to, f"stdio to {to}")
            start_thread("words", lambda: _hear_of_the_end(client, words))
            _carry(ours, words, to, stop)
        _leave_standard_streams()
        client.wait_unshared()
    except EndpointError as error:
        raise client.failure or error from error
    finally:
        client.stop()


def _hear_of_the_end(client: Client, words: Words) -> None:
    client.over.wait()
    words.put(Failed(Reason.SESSION_ENDED, "the server is not tried any more"))


def _carry(sock: socket.socket, words: Words, to: TcpAddress, stop: threading.Event) -> None:
    """Carry bytes both ways until both have ended.  Raises EndpointError."""
    start_thread("stop", lambda: _then(stop, lambda: words.put(None)))
    word = words.get()
    if isinstance(word, Reached):
        start_thread("stdin", lambda: _stdin_loop(sock))
        writing = start_thread("stdout", lambda: _stdout_loop(sock))
        word = words.get()
        if word is None:
            return
        writing.join()  # what came before the end is still written
        if isinstance(word, Failed) or (isinstance(word, Ended) and word.reason is not None):
            raise EndpointError(f"the connection to {to} was reset: {printable(word.text)}", code=word.reason or 0)
    elif isinstance(word, Failed | Ended):
        reason = word.reason or 0
        raise EndpointError(
            f"cannot connect to {to}: {reason_name(reason)}: {printable(word.text)}",
            code=reason,
            hint=_HINTS.get(reason, ""),
        )


def _then(event: threading.Event, call: Callable[[], None]) -> None:
    event.wait()
    call()


def _stdin_loop(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := _read(_STDIN):
            sock.sendall(data)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def _stdout_loop(sock: socket.socket) -> None:
    try:
        while data := sock.recv(READ):
            _write(_STDOUT, data)
    except OSError:  # whoever reads our output is gone
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    _replace_by_null(_STDOUT)  # which is the end of it, for whoever reads


def _read(descriptor: int) -> bytes:
    """Block for what comes; b"" at the end.  Whoever started us may have made it non-blocking.  Raises OSError."""
    while True:
        try:
            return os.read(descriptor, READ)
        except BlockingIOError:
            select.select([descriptor], [], [])


def _write(descriptor: int, data: bytes) -> None:
    """Block until all is written; otherwise as `_read`."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def _leave_standard_streams() -> None:
    """Let go of both, for whoever waits for their end while others still share this client."""
    for descriptor in (_STDIN, _STDOUT):
        _replace_by_null(descriptor)


def _replace_by_null(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor)
        os.close(null)
