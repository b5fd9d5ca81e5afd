"""Real clients behind a shared proxy, by what they do: talk without end, say nothing, or come and go.

Each has an address of its own, as the proxy sees it, and so has the office in which several of them sit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from qanat.base.endpoint_addresses import TcpAddress
from qanat.client.client import Client
from qanat.config.client_settings import ClientSettings, ClientTls, Reconnect, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.server_settings import ClientAccount
from tests.support.applications import connection, exchange, receive_exactly
from tests.support.background import Background
from tests.support.harness import SECONDS, Relay

_BULK = os.urandom(1 << 18)
_QUICK = Reconnect(first=0.05, min=0.1, max=1)
_PAUSE = 0.2
"""Seconds between two rounds, so that the load is that of people and not of a benchmark."""


@dataclass(frozen=True, slots=True)
class Way:
    """How clients get to the server: through the proxy on `port`, with this certificate; behind it is an echo."""

    url: str
    port: int
    ca_file: Path
    fingerprint: str
    echo: int
    directory: Path


class Honest:
    """One client with a token, at an address.  Subclasses say what it does, round after round, until it is stopped."""

    def __init__(self, name: str, transport: str, address: str, way: Way) -> None:
        self.name, self.transport, self.address = name, transport, address
        self.account = ClientAccount(name, (os.urandom(32),), allow_connect=("127.0.0.1:*",))
        self.rounds = 0
        self._way = way
        self._over = threading.Event()
        self._relay = Relay(way.port, source=address)
        self._running: Background[None] | None = None

    def begin(self) -> None:
        """Do what it does from now on, in the background."""
        self._running = Background(self._live)

    def end(self) -> None:
        """Return when it has left; raises what it has met."""
        self._over.set()
        try:
            if self._running is not None:
                self._running.result(3 * SECONDS)
        finally:
            self._relay.__exit__(None, None, None)

    def check(self) -> None:
        """Raise what it has met, if that has ended it."""
        if self._running is not None and self._running.wait(0):
            self._running.result()

    def _live(self) -> None:
        raise NotImplementedError

    def _connect(self) -> Client:
        way = self._way
        server = RemoteServer((way.url,), self.account.tokens[0], way.fingerprint)
        client = Client(
            ClientSettings(
                self.name,
                (server,),
                (Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", way.echo)),),
                transports=(self.transport,),
                tls=ClientTls(ca_file=way.ca_file),
                connect_to=("127.0.0.1", self._relay.port),
                connect_timeout=SECONDS,
                drain=0,
                reconnect=_QUICK,
                state_dir=way.directory,
            )
        )
        client.start()
        return client

    def _stay(self, use: Callable[[int], object]) -> None:
        client = self._connect()
        try:
            with connection(client.local_ports[0]) as sock:  # which waits for the session
                assert exchange(sock, b"hello") == b"hello"
            while not self._over.is_set():
                self.rounds += 1
                use(client.local_ports[0])
            with connection(client.local_ports[0]) as sock:
                assert exchange(sock, b"still here") == b"still here"
        finally:
            client.stop()


class Talkative(Honest):
    """Bulk both ways, and short streams one after the other."""

    def _live(self) -> None:
        self._stay(self._talk)

    def _talk(self, port: int) -> None:
        for _ in range(10):
            with connection(port) as sock:
                assert exchange(sock, b"a short stream") == b"a short stream"
        with connection(port) as sock:
            sending = Background(lambda: sock.sendall(_BULK))
            assert receive_exactly(sock, len(_BULK)) == _BULK
            sending.result()
        self._over.wait(_PAUSE)


class Silent(Honest):
    """Has a tunnel, and leaves it alone."""

    def _live(self) -> None:
        self._stay(lambda port: self._over.wait(SECONDS))


class Flapping(Honest):
    """Connects, uses the tunnel, says goodbye, and comes back."""

    killed = False

    def _live(self) -> None:
        while not self._over.is_set():
            with ExitStack() as stack:
                self._relay.refusing = False
                client = self._connect()
                stack.callback(client.stop)
                with connection(client.local_ports[0]) as sock:
                    assert exchange(sock, b"in and out") == b"in and out"
                if self.killed:
                    self._relay.refusing = True
                    self._relay.cut()
            self.rounds += 1
            self._over.wait(_PAUSE)


class Killed(Flapping):
    """Does the same without a goodbye: its machine is switched off, and all that the proxy sees is a reset."""

    killed = True
