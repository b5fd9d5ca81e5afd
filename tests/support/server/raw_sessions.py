"""Sessions as a client's other end sees them: raw servers that answer HELLO as a test likes, and a line to a real one.

`client_of_raw` gives a real client and the desk at which its connections arrive; `Line` a real client, a real
server, and a relay in between.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import QanatError
from qanat.client.client import Client
from qanat.config.client_settings import ClientSettings, Reconnect, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.server_settings import ClientAccount, ServerSettings
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Answer, Hello, Intent, Ready, RecordKind
from qanat.mux.parameters import ResumePoint
from qanat.mux.stream import Stream
from qanat.server.server import Server
from tests.support.applications import Target, connection, echo
from tests.support.harness import Relay
from tests.support.identities import place_identity
from tests.support.mux.rig import read
from tests.support.server.raw_peers import PARAMETERS, SECONDS, Carried, RawServer, carry

TOKEN = os.urandom(32)
QUICK = Reconnect(first=0.01, min=0.01, max=0.02)
LONG = 60
"""`resume_for` where it does not matter."""
LOCAL = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("db.internal", 5432))
REMOTE = Forward("remote", TcpAddress("127.0.0.1", 80), TcpAddress("localhost", 1))


class Caller:
    """One connection of the client that has said HELLO, on the server's side; what it is told is up to the test."""

    def __init__(self, sealed: SealedPipe, hello: Hello) -> None:
        self.sealed = sealed
        self.hello = hello

    def say(self, kind: RecordKind, content: bytes) -> None:
        self.sealed.send_record(bytes((kind,)) + content)

    def is_gone(self) -> bool:
        """Whether the client leaves it; blocks until it does."""
        try:
            self.sealed.recv_record()
        except QanatError:
            return True
        return False


class Desk:
    """What a RawServer does: it hands each caller to the test, and waits until that is over."""

    def __init__(self) -> None:
        self.callers: queue.SimpleQueue[Caller] = queue.SimpleQueue()
        self.closed = threading.Event()

    def __call__(self, sealed: SealedPipe) -> None:
        kind, content = sealed.recv_record()
        assert kind is RecordKind.HELLO
        self.callers.put(Caller(sealed, Hello.decode(content)))
        self.closed.wait(3 * SECONDS)

    def next(self, intent: Intent, timeout: float = SECONDS) -> Caller:
        caller = self.callers.get(timeout=timeout)
        assert caller.hello.intent is intent
        return caller


class RawSession:
    """A session on the server's side, from its first caller on."""

    def __init__(self, caller: Caller, *, resume_for: int = LONG, lanes: int = 1) -> None:
        self.id = os.urandom(16)
        self.secret = caller.sealed.result.resume
        self.parameters = replace(PARAMETERS, resume_for=resume_for, lanes=lanes)
        ready = Ready(Answer.NEW, "raw", self.parameters, session=self.id)
        caller.say(RecordKind.READY, ready.encode())
        self.caller = caller
        self.carried = carry(caller.sealed, client=False, resumable=resume_for > 0)

    def cut(self) -> None:
        self.carried.lane.cut("the network was cut")
        self.carried.end()

    def ready(self, caller: Caller, expected: int) -> Ready:
        ready = Ready(Answer.RESUMED, "raw", self.parameters, self.id, expected)
        return ready.proven(self.secret, caller.sealed.result.transcript)

    def resume(self, caller: Caller) -> Carried:
        """Do what a server does with a good HELLO."""
        hello = caller.hello
        assert hello.session == self.id
        assert hello.proof_holds(self.secret, caller.sealed.result.transcript)
        expected = self.carried.lane.acquire(hello.epoch, hello.expected, Deadline(SECONDS))
        caller.say(RecordKind.READY, self.ready(caller, expected).encode())
        self.caller = caller
        self.carried = carry(
            caller.sealed,
            client=False,
            before=self.carried,
            resume=ResumePoint(hello.epoch, hello.expected, expected),
        )
        return self.carried

    def next_stream(self) -> Stream:
        return self.carried.opened.get(timeout=SECONDS)


@contextmanager
def client_of_raw(directory: Path, *forwards: Forward, **settings: object) -> Iterator[tuple[Client, Desk]]:
    """A started client of a raw server."""
    desk = Desk()
    with ExitStack() as stack:
        server = stack.enter_context(RawServer(directory, TOKEN, desk))
        stack.callback(desk.closed.set)
        client = stack.enter_context(client_to((server.url,), server.fingerprint, directory, *forwards, **settings))
        yield client, desk


@contextmanager
def one_stream(
    directory: Path, *, resume_for: int = LONG, **settings: object
) -> Iterator[tuple[Desk, RawSession, socket.socket, Stream]]:
    """A client of a raw server with a session and one stream on it: the application's socket, and the server's end."""
    with client_of_raw(directory, LOCAL, **settings) as (client, desk):
        session = RawSession(desk.next(Intent.NEW), resume_for=resume_for)
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            yield desk, session, sock, stream
            stream.release()


def arrives(data: bytes, sock: socket.socket, stream: Stream) -> bool:
    """Whether what an application sends comes out of the stream's other end; blocks until it does."""
    sock.sendall(data)
    return read(stream, len(data)) == data


@contextmanager
def client_to(
    urls: tuple[str, ...], fingerprint: str, directory: Path, *forwards: Forward, **settings: object
) -> Iterator[Client]:
    values: dict[str, object] = {"reconnect": QUICK, "drain": 0.2, "state_dir": directory, **settings}
    client = Client(
        ClientSettings("a", (RemoteServer(urls, TOKEN, fingerprint),), forwards, **values)  # type: ignore[arg-type]
    )
    client.start()
    try:
        yield client
    finally:
        client.stop()


@contextmanager
def real_server(directory: Path, **changes: object) -> Iterator[Server]:
    account = ClientAccount("a", (TOKEN,), allow_connect=("127.0.0.1:*",), allow_listen=("127.0.0.1:*",))
    values: dict[str, object] = {
        "clients": (account,),
        "listen": (("127.0.0.1", 0),),
        "identity": place_identity(directory / "server.key"),
        "drain": 0.2,
    }
    server = Server(ServerSettings(**(values | changes)))  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Line:
    """A real client and a real server with a relay in between, and an echo behind a local forward."""

    def __init__(
        self, directory: Path, stack: ExitStack, *, server: dict[str, object] | None = None, **client: object
    ) -> None:
        self.target = stack.enter_context(Target(echo))
        self.server = stack.enter_context(real_server(directory, **(server or {})))
        self.relay = stack.enter_context(Relay(self.server.addresses[0][1]))
        forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", self.target.port))
        urls = (url_of(self.relay),)
        self.client = stack.enter_context(
            client_to(urls, self.server.identity.fingerprint, directory, forward, **client)
        )
        self.port = self.client.local_ports[0]


def url_of(relay: Relay) -> str:
    return f"ws://127.0.0.1:{relay.port}/tunnel"
