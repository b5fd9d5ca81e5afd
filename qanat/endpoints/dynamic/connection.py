"""One application's connection to a proxy's port, until it leads to its target.

    first byte -> the protocol's machine -> what is asked for -> `accepted`: the socket leads there from now on
                                                              -> `refused`: the reason, in the protocol's words

While nothing comes, and while the target is being connected to, it costs no thread: the watcher reads what comes.  A
head has to be there within HEAD_SECONDS.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from qanat.base.errors import NoThread
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.endpoints.dynamic import socks4, socks5
from qanat.endpoints.dynamic.asked import Asked, Command, ProxyMachine
from qanat.endpoints.dynamic.http_proxy import HttpProxy
from qanat.endpoints.dynamic.lingering import Lingering
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.pending import MAX_EARLY, PendingConnection
from qanat.mux.frames import Reason
from qanat.mux.stream import Stream

log = logging.getLogger("qanat.dynamic")

HEAD_SECONDS = 10.0
"""How long a connection may take to say where it wants to go."""
READ = 4096
"""Bytes read at once."""

_TLS = 0x16


class ProxyPort(Protocol):
    """What a connection needs of the port that it came to (`qanat.endpoints.dynamic.port.DynamicPort`)."""

    name: str
    watcher: Watcher
    passwords: Passwords | None

    def ask(self, pending: PendingConnection, asked: Asked) -> None:
        """Open a stream to what is asked for."""

    def forward(self, connection: DynamicConnection, machine: HttpProxy, asked: Asked) -> None:
        """Take over the socket of `connection`, whose requests go through `machine`, and forget the connection."""

    def associate(self, connection: DynamicConnection, machine: ProxyMachine) -> None:
        """Take over the socket of `connection`, whose user sends datagrams, and forget the connection."""

    def forget(self, connection: DynamicConnection) -> None:
        """Note that the connection is over, or has its stream."""

    def tell(self, origin: str, problem: str) -> None:
        """Log what is wrong with what an application sent."""


class DynamicConnection:
    """See the module's docstring.  Its methods may be called from any thread; none blocks."""

    def __init__(
        self,
        sock: socket.socket,
        origin: str,
        port: ProxyPort,
        done: Callable[[], None],
        machine: ProxyMachine | None = None,
    ) -> None:
        """Own `sock`; `done` is called once, when it is closed.  With a `machine` its head was read already."""
        sock.setblocking(False)
        self.origin = origin
        self.early = b""
        self.sock = sock
        self.done = done
        self._fd = sock.fileno()
        self._port = port
        self._machine = machine
        self._lock = threading.Lock()  # guards the next, and the socket
        self._over = False  # the socket is closed, or somebody else's
        self._lingering: Lingering | None = None
        self._stream: Stream | None = None
        self._asks = False
        self._timer = port.watcher.timer(self._too_late)

    def start(self) -> None:
        """Read what comes from now on."""
        try:
            self._timer.set(time.monotonic() + HEAD_SECONDS)
            self._port.watcher.add(self._fd, self._ready)
        except (NoThread, OSError) as error:
            self._port.tell(self.origin, str(error))
            self.close()

    def close(self) -> None:
        """Reset the connection, unless it is somebody else's by now.  Idempotent."""
        with self._lock:
            lingering = self._lingering
            ended = not self._over and lingering is None
            if ended:
                self._leave_locked()
                self.sock.close()
            stream = self._stream
        if lingering is not None:
            lingering.close()
        elif ended:
            if stream is not None:
                stream.reset(Reason.CANCELED, "")
            self._forgotten()

    def finish(self) -> None:
        """End the connection unless it has said where it wants to go.  Idempotent."""
        with self._lock:
            if self._asks:
                return
        self.close()

    def hand_over(self) -> socket.socket | None:
        """Return the socket, which is the caller's from now on, and so is `done`; None when it is closed."""
        with self._lock:
            if self._over or self._lingering is not None:
                return None
            self._leave_locked()
            return self.sock

    # --- while the head is read: by the watcher ---------------------------------------------------

    def _ready(self) -> None:
        asked: Asked | None = None
        failed = False
        try:
            with self._lock:
                if self._over or self._lingering is not None:
                    return
                asked = self._read_locked()
        except BlockingIOError:
            return
        except OSError:
            failed = True
        except Exception:
            log_unexpected(f"{self._port.name}: reading what a connection asks for failed")
            failed = True
        if failed:
            self.close()
        elif asked is not None:
            self._asked(asked)
        elif self._machine is not None and self._machine.problem:
            self._port.tell(self.origin, self._machine.problem)
            self._end(b"")

    def _read_locked(self) -> Asked | None:
        """Read once; return what is asked for once that is known.  Raises OSError when nothing can come any more."""
        data = self.sock.recv(READ)
        if not data:
            raise ConnectionResetError
        if self._machine is None:
            self._machine = machine_for(data[0], self._port.passwords)
            if self._machine is None:
                what = "speaks TLS: this port is a plain proxy" if data[0] == _TLS else "speaks neither SOCKS nor HTTP"
                self._port.tell(self.origin, what)
                raise ConnectionResetError
        asked = self._machine.receive(data)
        self._send_locked(self._machine.take_output())
        if asked is not None:
            self._asks = True
            self._port.watcher.remove(self._fd)
            self._timer.cancel()
        return asked

    def _send_locked(self, data: bytes) -> None:
        """Send an answer, which is shorter than any socket's buffer.  Raises OSError."""
        if data and self.sock.send(data) < len(data):
            raise ConnectionResetError  # it has read none of a dozen answers

    def _too_late(self) -> None:
        machine = self._machine
        if isinstance(machine, HttpProxy):
            machine.too_late()
            self._end(machine.take_output())
        else:
            self.close()

    # --- what is asked for ------------------------------------------------------------------------

    def _asked(self, asked: Asked) -> None:
        machine = self._machine
        assert machine is not None
        if asked.command is Command.REQUEST:
            assert isinstance(machine, HttpProxy)
            self._port.forward(self, machine, asked)
        elif asked.command is Command.ASSOCIATE:
            self._port.associate(self, machine)
        else:
            self.ask(asked)

    def ask(self, asked: Asked) -> None:
        """Have a stream opened to what is asked for, which the machine has read."""
        assert self._machine is not None
        self._asks = True
        self.early = self._machine.take_rest()
        if len(self.early) > MAX_EARLY:
            self._port.tell(self.origin, "sends more than it may before its target is connected to")
            self.close()
            return
        self._port.ask(self, asked)

    def opened(self, stream: Stream) -> None:
        """Note the stream, which ends with the connection."""
        with self._lock:
            self._stream = stream
            over = self._over
        if over:
            stream.reset(Reason.CANCELED, "")

    def accepted(self, address: str) -> socket.socket | None:
        """Answer that the target was reached; return the socket, which is the caller's from now on."""
        assert self._machine is not None
        with self._lock:
            if self._over:
                return None
            self._leave_locked()
            self._stream = None
            self._port.forget(self)
            with contextlib.suppress(OSError):  # whoever reads from it learns it
                self._send_locked(self._machine.accepted(address))
            return self.sock

    def refused(self, reason: Reason, text: str) -> None:
        """Answer why the target was not reached, and end the connection."""
        assert self._machine is not None
        self._end(self._machine.refused(reason, text))

    def ended(self) -> None:
        """Note that the socket that `accepted` returned is closed."""
        self.done()

    # --- the end ----------------------------------------------------------------------------------

    def _leave_locked(self) -> None:
        self._over = True
        self._timer.cancel()
        self._port.watcher.remove(self._fd)

    def _end(self, answer: bytes) -> None:
        """Send a last answer, and close once it has arrived."""
        with self._lock:
            if self._over or self._lingering is not None:
                return
            self._timer.cancel()
            self._port.watcher.remove(self._fd)
            with contextlib.suppress(OSError):
                self._send_locked(answer)
            self._lingering = Lingering(self.sock, self._port.watcher, self._forgotten)
        self._lingering.start()

    def _forgotten(self) -> None:
        self._port.forget(self)
        self.done()


def machine_for(first_byte: int, passwords: Passwords | None) -> ProxyMachine | None:
    """Return what reads a connection that begins with this byte; None for what is no protocol of ours."""
    if first_byte == socks5.VERSION:
        return socks5.Socks5(passwords)
    if first_byte == socks4.VERSION:
        return socks4.Socks4(passwords)
    if chr(first_byte).isascii() and chr(first_byte).isalpha():
        return HttpProxy(passwords)
    return None
