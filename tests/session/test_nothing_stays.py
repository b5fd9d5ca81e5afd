"""What is over is freed at once, at both ends: connections, streams and sessions leave nothing to the collector.

Its oldest generation, where all that lasts a while ends up, is collected seldom: a client that left an HTTP/2
connection kept 0.7 MB of it until then.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from qanat.base.cancel import Cancel
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import QanatError
from qanat.base.sockets import set_reset_on_close
from qanat.client.client import Client
from qanat.client.connect import Connector
from qanat.client.known_hosts import KnownHosts
from qanat.config.client_settings import ClientSettings, ClientTls, Reconnect, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.server_settings import ClientAccount, ServerSettings, ServerTls
from qanat.handshake.hello import Hello, Intent, RecordKind
from qanat.handshake.key_pool import ClientKeyPool
from qanat.handshake.keys import ClientKey
from qanat.server.server import Server
from qanat.transports.http2 import grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.frames import PREFACE
from tests.support.applications import Target, connection, discard, echo, ending_at, ending_of, exchange, reset_at_once
from tests.support.background import DEADLINE, wait_until
from tests.support.cycles import stays_behind
from tests.support.harness import Relay
from tests.support.machine.certificates import Authority
from tests.support.server.raw_peers import PARAMETERS, RawClient, client_key
from tests.support.transports.http2_loopback import RawHttp2

TOKENS = {name: name.encode() * 32 for name in ("a", "b")}
NOWHERE = ("127.0.0.1", 1)
QUICK = Reconnect(first=0.01, min=0.01, max=0.05)
BULK = 300_000


class OneKey:
    """A pool that has the same key for everyone: making one costs more than the rest of a handshake."""

    def take(self, timeout: float) -> ClientKey:
        return client_key()


class Tunnel:
    """A server and, over a relay, a client `a` with forwards both ways; `dial` makes connections of a client `b`."""

    def __init__(self, directory: Path, stack: ExitStack, transport: str, *, tls: bool = False) -> None:
        self.transport, self.tls = transport, tls
        self._directory, self._stack = directory, stack
        self.authority = Authority(directory)
        certificate = self.authority.issue()
        self.echo = stack.enter_context(Target(echo)).port
        resetting = stack.enter_context(Target(reset_at_once)).port
        sink = stack.enter_context(Target(discard)).port
        rules = ("127.0.0.1:*",)
        self.server = Server(
            ServerSettings(
                clients=tuple(ClientAccount(name, (token,), ("127.0.0.1:0",), rules) for name, token in TOKENS.items()),
                listen=(("127.0.0.1", 0),),
                identity=directory / "server.key",
                tls=ServerTls(certificate.certificate, certificate.key) if tls else None,
                drain=0.1,
            )
        )
        self.server.start()
        stack.callback(self.server.stop)
        self.port = self.server.addresses[0][1]
        self.relay = stack.enter_context(Relay(self.port))
        targets = [("127.0.0.1", self.echo), ("127.0.0.1", resetting), ("127.0.0.1", sink), NOWHERE, ("10.0.0.1", 80)]
        forwards = [Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress(*target)) for target in targets]
        forwards.append(Forward("remote", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", self.echo)))
        self.client = Client(self.settings("a", *forwards))
        self.client.start()
        stack.callback(self.client.stop)
        wait_until(self.connected, "the client is connected")

    def settings(self, name: str, *forwards: Forward, port: int | None = None) -> ClientSettings:
        scheme = ("ws" if self.transport == "websocket" else "http") + ("s" if self.tls else "")
        url = f"{scheme}://127.0.0.1:{self.relay.port if port is None else port}/tunnel"
        return ClientSettings(
            name,
            (RemoteServer((url,), TOKENS[name], self.server.identity.fingerprint),),
            forwards,
            transports=(self.transport,),
            tls=ClientTls(ca_file=self.authority.ca_file),
            reconnect=QUICK,
            connect_timeout=DEADLINE,
            drain=0.1,
            state_dir=self._directory,
        )

    # --- the session of `a`

    def connected(self) -> bool:
        session = self.client.servers[0].session
        return session is not None and session.attached and bool(self.remote_ports())

    def remote_ports(self) -> list[int]:
        return [
            listener.port
            for session in self.server.registry.sessions
            if session.name == "a"
            for listener in list(session._listeners.values())
        ]

    def epoch(self) -> tuple[bytes, int]:
        session = self.client.servers[0].session
        return (b"", -1) if session is None else (session.id, session.lanes[0].epoch)

    # --- connections of `b`

    def dial(self, port: int | None = None, *, seconds: float = DEADLINE, **server: Any) -> None:
        """Connect to the server, or to whatever is at `port`, and leave; how it ends does not matter."""
        settings = replace(self.settings("b", port=self.port if port is None else port), connect_timeout=seconds)
        known = KnownHosts(self._directory / "known_hosts")
        keys = cast(ClientKeyPool, OneKey())
        connector = Connector(settings, replace(settings.servers[0], **server), keys, known)
        with contextlib.suppress(QanatError):
            connector.connect(connector.candidates[0], Cancel()).close("the test has seen it")


@pytest.mark.parametrize("transport", ["websocket", "http2-tls", "grpc", "websocket-h2"])
def test_nothing_stays_of_what_is_over(tmp_path: Path, transport: str) -> None:
    name, tls = transport.removesuffix("-tls"), transport.endswith("-tls")
    with ExitStack() as stack:
        tunnel = Tunnel(tmp_path, stack, name, tls=tls)
        cases = [lost_and_left, failed_dials, strangers]
        if transport in ("websocket", "http2-tls"):  # above the connections it is the same for all
            cases += [streams, sessions]
        if transport == "websocket":
            cases.append(refused_and_faulty_sessions)
        for case in cases:
            text = stays_behind(case(tunnel, stack))
            assert not text, f"after {case.__name__}: {text}"


Action = Callable[[], None]


# --- streams ----------------------------------------------------------------------------------------


def streams(tunnel: Tunnel, stack: ExitStack) -> Action:
    echoing, resetting, sink, nowhere, forbidden, *_ = tunnel.client.local_ports

    def action() -> None:
        for port in (echoing, *tunnel.remote_ports()):
            with connection(port) as sock:
                assert exchange(sock, b"a little") == b"a little"
            with connection(port) as sock:
                assert exchange(sock, bytes(BULK)) == bytes(BULK)
            with connection(port) as sock:
                sock.sendall(b"and gone")
                set_reset_on_close(sock, True)
        with connection(sink) as sock, contextlib.suppress(OSError):
            sock.sendall(bytes(BULK))
        for port in (nowhere, forbidden):
            ending_at(port)
        with contextlib.suppress(OSError), connection(resetting) as sock:
            sock.sendall(b"x")
            ending_of(sock)

    return action


# --- connections ------------------------------------------------------------------------------------


def lost_and_left(tunnel: Tunnel, stack: ExitStack) -> Action:
    port = tunnel.client.local_ports[0]

    def action() -> None:
        with connection(port) as sock:
            before = tunnel.epoch()
            tunnel.relay.cut()
            wait_until(lambda: tunnel.epoch() != before and tunnel.connected(), "the lane is on another connection")
            assert exchange(sock, bytes(BULK)) == bytes(BULK)
        with connection(port) as sock:
            before = tunnel.epoch()

            def moved() -> bool:
                for watched in list(tunnel.client._watch._watched):
                    watched.on_change(f"the test says so, at {before}")
                return tunnel.epoch() != before and tunnel.connected()

            wait_until(moved, "the lane has moved")
            assert exchange(sock, b"still there") == b"still there"

    return action


def failed_dials(tunnel: Tunnel, stack: ExitStack) -> Action:
    answers = (
        b"",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)) + b"and then nonsense",
    )
    ports = [stack.enter_context(Target(_answering(answer))).port for answer in answers]
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]

    def action() -> None:
        tunnel.dial()
        tunnel.dial(token=b"x" * 32)
        tunnel.dial(fingerprint="SHA256:" + "A" * 43)
        tunnel.dial(urls=(tunnel.settings("b", port=tunnel.port).servers[0].urls[0] + "/elsewhere",))
        tunnel.dial(1)
        tunnel.dial(silent, seconds=0.05)
        for port in ports:
            tunnel.dial(port)

    return action


def _answering(answer: bytes) -> Callable[[socket.socket, Target], str]:
    def handle(sock: socket.socket, target: Target) -> str:
        sock.recv(65536)
        sock.sendall(answer)
        return "answered"

    return handle


STRANGERS = (
    b"",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /tunnel HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /tunnel HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    PREFACE + b"and then nonsense",
)


def strangers(tunnel: Tunnel, stack: ExitStack) -> Action:
    def action() -> None:
        for data in STRANGERS:
            with contextlib.suppress(OSError), connection(tunnel.port) as sock:
                sock.sendall(data)
                _read_to_end(sock)
        if not tunnel.tls:
            _http2_strangers(tunnel.port)

    return action


def _read_to_end(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(65536):
        pass


def _http2_strangers(port: int) -> None:
    """Requests that are reset, refused, left in the middle, and no handshake at all."""
    for content_type in (http2.CONTENT_TYPE, grpc.CONTENT_TYPE, "text/plain"):
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
            peer = RawHttp2(sock, client=True)
            first, second = (peer.request(content_type=content_type) for _ in range(2))
            peer.read()
            with contextlib.suppress(Exception):  # refused already
                peer.h2.reset_stream(first)
                peer.h2.send_data(second, b"\0\0\0\0\5hello")
            peer.flush()
            _read_to_end(sock)
            peer.h2._frame_dispatch_table.clear()  # or this one would stay


# --- sessions ---------------------------------------------------------------------------------------


def sessions(tunnel: Tunnel, stack: ExitStack) -> Action:
    port = tunnel.client.local_ports[0]

    def action() -> None:
        with connection(port) as sock:
            assert exchange(sock, b"a stream of it") == b"a stream of it"
            before = tunnel.epoch()
            for session in tunnel.server.registry.sessions:
                session.end("the test ends it")
            wait_until(lambda: tunnel.epoch()[0] not in (b"", before[0]) and tunnel.connected(), "there is another")

    return action


def refused_and_faulty_sessions(tunnel: Tunnel, stack: ExitStack) -> Action:
    """Of clients that were turned away, replaced, unknown, or broke the protocol."""

    def action() -> None:
        b = TOKENS["b"]
        with RawClient(tunnel.server, "b", b) as client, RawClient(tunnel.server, "b", b) as again:
            client.join()
            with RawClient(tunnel.server, "b", b, instance=b"another one    .") as other:
                other.greet()  # the name is in use
            again.greet()  # the same process anew: the older session is replaced
            again.say(RecordKind.FRAMES, b"\xff")
            with contextlib.suppress(QanatError):
                again.hear()
        with RawClient(tunnel.server, "b", b) as client:
            lost = Hello(b"i" * 16, PARAMETERS, Intent.RESUME, b"s" * 16, 0, 1, 0)
            client.say(RecordKind.HELLO, lost.proven(b"k" * 32, client.sealed.result.transcript).encode())
            client.hear()

    return action
