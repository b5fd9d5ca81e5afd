"""An error that nobody expected in one connection or stream is the end of that alone, wherever it is raised.

Each case raises one, once, at one place of a running tunnel.  Another client's session must not notice, the tunnel must
work again by itself, and the log must have the traceback once, with the request to report it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qanat.base import listen, unexpected
from qanat.base.endpoint_addresses import TcpAddress
from qanat.client import connect as connect_module
from qanat.client import remote_forwards, server_connection, session
from qanat.client.client import Client
from qanat.client.connect import Connector
from qanat.client.reconnector import Reconnector
from qanat.client.server_connection import ServerConnection
from qanat.client.session import ClientSession
from qanat.config.client_settings import ClientSettings, Reconnect, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.server_settings import ClientAccount, ServerSettings
from qanat.endpoints.pump import Pump
from qanat.endpoints.target import Target as StreamTarget
from qanat.endpoints.wakeable import WakeableSocket
from qanat.handshake import keys
from qanat.mux.pipe_runner import QUIET_SECONDS
from qanat.server import server as server_module
from qanat.server.front_door import connection as front_connection
from qanat.server.front_door.connection import FrontConnection
from qanat.server.front_door.context import FrontDoorContext
from qanat.server.front_door.front_door import FrontDoor
from qanat.server.front_door.http2_connection import Http2Connection
from qanat.server.resume_timeouts import ResumeTimeouts
from qanat.server.server import Server
from qanat.server.session import ServerSession
from qanat.server.sessions import Registry
from qanat.session.joined_streams import JoinedStreams
from qanat.session.session import Session
from qanat.transports.http2.pipe import Http2Pipe
from qanat.transports.http2.stream_wire import StreamWire
from qanat.transports.pipe import Pipe
from qanat.transports.websocket.pipe import WebSocketPipe
from tests.support.applications import Target, connection, echo, echoes, exchange
from tests.support.background import wait_until
from tests.support.harness import SECONDS, Relay
from tests.support.identities import place_identity

TOKENS = {"a": b"a" * 32, "b": b"b" * 32}
QUICK = Reconnect(first=0.01, min=0.01, max=0.05)


class Place:
    """A server, an echo, and a client `b` that only watches, with a connection that stays open."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.target = stack.enter_context(Target(echo))
        rules = ("127.0.0.1:*",)
        accounts = tuple(ClientAccount(name, (token,), ("127.0.0.1:0",), rules) for name, token in TOKENS.items())
        identity = place_identity(directory / "server.key")
        settings = ServerSettings(clients=accounts, listen=(("127.0.0.1", 0),), identity=identity, drain=0.1)
        self.server = Server(settings)
        self.server.start()
        stack.callback(self.server.stop)
        self.port = self.server.addresses[0][1]
        self.bystander = stack.enter_context(self.client("b", self.port, directory, self.local))
        self._witness = stack.enter_context(connection(self.bystander.local_ports[0]))
        assert self.notices_nothing()  # so that all of its threads and sockets are there before any test
        (session,) = self.server.registry.sessions
        self._bystanders_port = int(session.origin.split()[0].rpartition(":")[2])

    @property
    def local(self) -> Forward:
        return Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", self.target.port))

    @contextmanager
    def client(
        self, name: str, port: int, directory: Path, *forwards: Forward, transport: str = "websocket", lanes: int = 1
    ) -> Iterator[Client]:
        scheme = "ws" if transport == "websocket" else "http"
        server = RemoteServer((f"{scheme}://127.0.0.1:{port}/tunnel",), TOKENS[name], self.server.identity.fingerprint)
        client = Client(
            ClientSettings(
                name,
                (server,),
                forwards,
                transports=(transport,),
                lanes=lanes,
                reconnect=QUICK,
                drain=0.1,
                state_dir=directory,
            )
        )
        client.start()
        try:
            yield client
        finally:
            client.stop()

    def is_bystanders(self, *arguments: object) -> bool:
        """Whether this is a call of the bystander's pipe, at either end."""
        pipes = [each for each in arguments if isinstance(each, Pipe) and each.addresses is not None]
        return any(self._bystanders_port in (address[1] for address in pipe.addresses or ()) for pipe in pipes)

    def notices_nothing(self) -> bool:
        """Whether the bystander is well, with the connection that it had at first."""
        return exchange(self._witness, b"still there?") == b"still there?" and not self.bystander.over.is_set()


class Tunnel:
    """A client `a` of that server, over a relay, with a forward either way."""

    def __init__(self, place: Place, directory: Path, stack: ExitStack, transport: str, lanes: int) -> None:
        self.place, self.relay = place, stack.enter_context(Relay(place.port))
        self._directory, self._stack, self._transport, self._lanes = directory, stack, transport, lanes
        self.client: Client | None = None

    def start(self) -> None:
        place = self.place
        remote = Forward("remote", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", place.target.port))
        client = place.client(
            "a", self.relay.port, self._directory, place.local, remote, transport=self._transport, lanes=self._lanes
        )
        self.client = self._stack.enter_context(client)

    def works(self) -> bool:
        """Whether client `a` carries connections both ways, over as many lanes as it should."""
        assert self.client is not None
        session = self.client.servers[0].session
        if session is None or sum(lane.attached for lane in session.lanes.values()) != self._lanes:
            return False
        return self.open_local() and self.open_remote()

    def open_local(self) -> bool:
        assert self.client is not None
        return _echoes(self.client.local_ports[0])

    def rest_and_open_local(self) -> bool:
        """When a pipe is quiet it has no thread of its own, and the watcher reads what comes."""
        threading.Event().wait(2 * QUIET_SECONDS)
        return self.open_local()

    def open_remote(self) -> bool:
        ports = [
            listener.port
            for session in self.place.server.registry.sessions
            if session.name == "a"
            for listener in list(session._listeners.values())
        ]
        return bool(ports) and _echoes(ports[0])


def _echoes(port: int) -> bool:
    try:
        return echoes(port)
    except OSError:
        return False


@dataclass(frozen=True)
class Case:
    """Where the error is raised, and what comes to that place."""

    owner: Any
    name: str
    provoke: str
    thread: str = ""  # in the first thread whose name begins so
    transport: str = "websocket"
    lanes: int = 1

    def __str__(self) -> str:
        owner = getattr(self.owner, "__name__", "").removeprefix("qanat.")
        return f"{owner}.{self.name}-{self.provoke}" + (f"-{self.transport}" if self.transport != "websocket" else "")


PROVOKE: dict[str, Callable[[Tunnel], object]] = {
    "start": Tunnel.start,
    "cut": lambda tunnel: tunnel.relay.cut(),
    "local": Tunnel.open_local,
    "after a rest": Tunnel.rest_and_open_local,
    "remote": Tunnel.open_remote,
}

CLIENT = [
    Case(Connector, "connect", "start"),
    Case(connect_module, "client_handshake", "start"),
    Case(Connector, "exchange_hello", "start"),
    Case(server_connection, "lane_parameters", "start"),
    Case(ClientSession, "request_forwards", "start"),
    Case(ServerConnection, "_keep_session", "start"),
    Case(Reconnector, "_start_pipe", "start"),
    Case(Reconnector, "_watch_pipe", "start"),
    Case(Reconnector, "run", "start", thread="connector lane", lanes=2),
    Case(Reconnector, "_exchange_hello", "start", thread="connector lane", lanes=2),
    Case(ClientSession, "_on_control", "start"),
    Case(keys, "generate_private_key", "start"),
    Case(Connector, "connect", "cut"),
    Case(Reconnector, "_move_lane", "cut"),
    Case(Reconnector, "_exchange_hello", "cut"),
    Case(Reconnector, "_take_over", "cut"),
    Case(Reconnector, "_watch_pipe", "cut"),
    Case(Reconnector, "_wait_for_cause", "cut", thread="connector"),
    Case(ClientSession, "_conclude", "cut"),
    Case(Reconnector, "_log_end", "cut", thread="a-reader"),
    Case(WebSocketPipe, "recv_within", "after a rest", thread="watcher"),
    Case(WebSocketPipe, "send", "cut", thread="a-writer"),
    Case(WebSocketPipe, "send_now", "local"),
    Case(Http2Pipe, "recv_within", "local", thread="watcher", transport="http2"),
    Case(Http2Pipe, "send", "cut", thread="a-writer", transport="grpc"),
    Case(Http2Pipe, "send_now", "local", transport="http2"),
    Case(StreamWire, "recv_within", "local", thread="watcher", transport="websocket-h2"),
    Case(StreamWire, "send_now", "local", transport="websocket-h2"),
    Case(Client, "_choose", "local"),
    Case(Session, "join_accepted", "local"),
    Case(JoinedStreams, "pump", "local"),
    Case(Pump, "_read_now", "local"),
    Case(WakeableSocket, "send_now", "local"),
    Case(WakeableSocket, "half_close", "local"),
    Case(ClientSession, "_on_open", "remote"),
    Case(JoinedStreams, "connect_now", "remote"),
    Case(session, "resolve", "remote"),
    Case(StreamTarget, "connect_now", "remote"),
]
SERVER = [
    Case(listen.Acceptor, "accept", "start", thread="accept"),
    Case(FrontDoor, "_wait_for_room", "start"),
    Case(FrontDoor, "_serve_in_thread", "start"),
    Case(FrontConnection, "_serve_wire", "start"),
    Case(front_connection, "classify_opening", "start"),
    Case(front_connection, "accept", "start"),
    Case(FrontDoorContext, "enter", "start"),
    Case(FrontDoorContext, "enter", "start", transport="http2"),
    Case(Http2Connection, "_choose_route", "start", transport="http2"),
    Case(Http2Connection, "_choose_websocket", "start", transport="websocket-h2"),
    Case(Http2Connection, "_serve_tunnel", "start", transport="grpc"),
    Case(server_module, "server_handshake", "start"),
    Case(server_module, "server_handshake", "start", transport="http2"),
    Case(Server, "_admit", "start"),
    Case(Server, "_begin_session", "start"),
    Case(server_module, "lane_parameters", "start"),
    Case(Registry, "claim", "start"),
    Case(Server, "_carry", "start"),
    Case(ServerSession, "_bind", "start"),
    Case(Server, "_resume_session", "cut"),
    Case(Registry, "find", "cut"),
    Case(ServerSession, "lane_for", "cut"),
    Case(ResumeTimeouts, "begin", "cut"),
    Case(ResumeTimeouts, "stop", "cut"),
    Case(ServerSession, "_conclude", "cut"),
    Case(WebSocketPipe, "recv_within", "after a rest", thread="watcher"),
    Case(WebSocketPipe, "send", "cut", thread="a-writer"),
    Case(Http2Pipe, "recv_within", "local", thread="watcher", transport="grpc"),
    Case(ServerSession, "_on_open", "local"),
    Case(JoinedStreams, "connect_now", "local"),
    Case(StreamTarget, "connect_now", "local"),
    Case(ServerSession, "join_accepted", "remote", thread="watcher"),
]
CASES = [*CLIENT, *SERVER]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path_factory.mktemp("server"), stack)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def _quick_and_heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qanat")
    monkeypatch.setattr(remote_forwards, "RETRY_IN_USE", 0.1)


@pytest.mark.parametrize("case", [case for case in CASES if case.provoke == "start"], ids=str)
def test_an_unexpected_error_while_a_session_begins_ends_that_try_and_nothing_else(
    place: Place, tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture, case: Case
) -> None:
    raise_once_in(case, Tunnel(place, tmp_path, stack, case.transport, case.lanes), caplog)


@pytest.mark.parametrize("transport", ["websocket", "http2", "grpc", "websocket-h2"])
def test_an_unexpected_error_in_a_session_ends_what_it_was_raised_in_and_nothing_else(
    place: Place, tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture, transport: str
) -> None:
    """One error after the other, since the same tunnel has to work again after each."""
    tunnel = Tunnel(place, tmp_path, stack, transport, lanes=1)
    tunnel.start()
    wait_until(tunnel.works, "the tunnel is up")
    for case in CASES:
        if case.provoke != "start" and case.transport == transport:
            try:
                raise_once_in(case, tunnel, caplog)
            except BaseException as error:
                error.add_note(f"raised in {case}")
                raise


def raise_once_in(case: Case, tunnel: Tunnel, caplog: pytest.LogCaptureFixture) -> None:
    """Raise at the place of `case` while `tunnel` does what leads there, and check what became of it."""
    assert tunnel.place.notices_nothing()
    caplog.clear()
    real, raised, lock = getattr(case.owner, case.name), threading.Event(), threading.Lock()

    def raise_once(*arguments: Any, **named: Any) -> Any:
        with lock:
            here = threading.current_thread().name.startswith(case.thread)
            first = here and not raised.is_set() and not tunnel.place.is_bystanders(*arguments)
            if first:
                raised.set()
        if first:
            raise ZeroDivisionError
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unexpected, "_logged", {})
        patch.setattr(case.owner, case.name, raise_once)
        PROVOKE[case.provoke](tunnel)
        assert raised.wait(SECONDS), "nothing came to that place"
        wait_until(tunnel.works, "the tunnel works again")
        assert tunnel.place.notices_nothing()
        assert tunnel.client is not None
        assert not tunnel.client.over.is_set()
        wait_until(lambda: "please report it" in caplog.text, "it is in the log")
    assert caplog.text.count("an unexpected error") == 1
    assert caplog.text.count("Traceback") == 1
