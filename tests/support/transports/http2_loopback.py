"""HTTP/2 over loopback: joined pipes of either dialect, a server that anything can connect to, and raw peers."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event

from qanat.base.deadline import Deadline
from qanat.base.threads import ThreadGroup
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import extended_connect, grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.dialect import Dialect
from qanat.transports.http2.frames import PREFACE
from qanat.transports.http2.request import Http2Request, PlainAnswer
from qanat.transports.http2.server import Exchange, Http2Server
from qanat.transports.pipe import Pipe, Wire
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import ReloadingServerContext
from tests.support.background import DEADLINE, Background
from tests.support.machine.certificates import Certificate
from tests.support.transports.loopback import listen

DIALECTS: dict[str, Dialect] = {"http2": http2.DIALECT, "grpc": grpc.DIALECT}
CONNECT = {"http2": http2.connect, "grpc": grpc.connect, "websocket-h2": extended_connect.connect}
HELD = 60.0
"""Seconds that a handler keeps its stream; the test's end comes first."""


class TestServer:
    """Accepts connections, and gives out the pipes of their streams.

    `/tunnel` is a tunnel of the dialect that the content type names, `/busy` one that is refused, `/healthz` plain.
    """

    __test__ = False

    def __init__(self, stack: ExitStack, certificate: Certificate | None = None, *, idle: float = HELD) -> None:
        self.pipes: queue.SimpleQueue[Pipe] = queue.SimpleQueue()
        self.connections: list[Http2Server] = []
        self._idle = idle
        self._certificate = certificate
        self._over = threading.Event()
        self._listener, self.port = listen(stack)
        self._listener.settimeout(None)
        self._threads: list[threading.Thread] = []
        self._streams = ThreadGroup("test streams")
        accepting = threading.Thread(target=self._accept_loop, name="test accept")
        accepting.start()
        stack.callback(accepting.join)
        stack.callback(self._close)

    def keep_little(self) -> None:
        """Have the kernel keep little of what the clients of later connections do not read."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def pipe(self) -> Pipe:
        """The pipe of the next tunnel stream that comes."""
        return self.pipes.get(timeout=DEADLINE)

    def release(self) -> None:
        """Make every handler return, and so every pipe end."""
        self._over.set()

    def _accept_loop(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            thread = threading.Thread(target=self._serve, args=(sock,), name="test connection")
            thread.start()
            self._threads.append(thread)
        for thread in self._threads:
            thread.join(DEADLINE)
        self._streams.join(DEADLINE)

    def _serve(self, sock: socket.socket) -> None:
        with ExitStack() as stack:
            stack.enter_context(sock)
            wire: Wire = TcpWire(sock)
            if self._certificate is not None:
                files = self._certificate
                context = ReloadingServerContext(files.certificate, files.key, ("h2",))
                wire = TlsWire(wire, context.context(), server_side=True, deadline=Deadline(DEADLINE))
            first = b""
            buffer = memoryview(bytearray(4096))
            while len(first) < len(PREFACE):
                count = wire.recv_into(buffer)
                if not count:
                    wire.close()
                    return
                first += bytes(buffer[:count])
            server = Http2Server(wire, first, self._route, self._handle, self._streams, idle=self._idle)
            self.connections.append(server)
            server.serve(stack.pop_all().close)  # a connection that rests is over later

    def _route(self, request: Http2Request) -> PlainAnswer | Dialect:
        if request.path == "/tunnel" and extended_connect.is_request(request):
            return extended_connect.dialect_of(request)
        if request.method != "POST" or request.ended:
            return PlainAnswer(200, "ok\n") if request.path == "/healthz" else PlainAnswer(404)
        if request.path not in ("/busy", "/tunnel", grpc.METHOD_PATH):
            return PlainAnswer(404)
        return grpc.DIALECT if request.value("content-type").startswith("application/grpc") else http2.DIALECT

    def _handle(self, exchange: Exchange) -> None:
        if exchange.request.path == "/busy":
            exchange.refuse(503, retry_after=3)
            return
        self.pipes.put(exchange.accept())
        self._over.wait(HELD)

    def _close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self.connections:
            connection.end("the test is over")


def http2_pair(
    stack: ExitStack, dialect: Dialect, certificate: Certificate | None = None, ca_file: Path | None = None
) -> tuple[Pipe, Pipe]:
    """Two pipes made by the client's and the server's side."""
    server = TestServer(stack, certificate)
    scheme = "ws" if certificate is None else "wss"
    url = TunnelUrl.parse(f"{scheme}://127.0.0.1:{server.port}/tunnel")
    client = CONNECT[dialect.name](url, route=Route(ca_file=ca_file), deadline=Deadline(DEADLINE))
    stack.callback(client.close, "the test is over")
    accepted = server.pipe()
    stack.callback(accepted.close, "the test is over")
    return client, accepted


class RawHttp2:
    """The other end of a connection under test: a plain socket, h2, and whatever bytes the test writes itself."""

    def __init__(self, sock: socket.socket, *, client: bool, **settings: int) -> None:
        self.sock = sock
        self.h2 = H2Connection(H2Configuration(client_side=client, header_encoding="utf-8"))
        self.events: list[Event] = []
        self.ended = False
        """Whether the connection under test has closed."""
        for name, value in settings.items():
            setattr(self.h2.local_settings, name, value)
            self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.flush()

    def flush(self, extra: bytes = b"") -> None:
        """Send what h2 has to say, then `extra`."""
        self.sock.sendall(self.h2.data_to_send() + extra)

    def read_until(self, wanted: Callable[[Event], bool]) -> Event:
        """Read, and answer what h2 wants to answer, until such an event has come; it is taken out."""
        while True:
            for number, event in enumerate(self.events):
                if wanted(event):
                    return self.events.pop(number)
            assert not self.ended, f"the connection ended; events: {self.events}"
            self.read()

    def expect(self, kind: type[Event]) -> Event:
        return self.read_until(lambda event: isinstance(event, kind))

    def read(self) -> None:
        data = self.sock.recv(65536)
        self.ended = not data
        self.events += self.h2.receive_data(data)
        self.flush()

    def request(self, path: str = "/tunnel", method: str = "POST", **headers: str) -> int:
        """Open a stream as a client."""
        stream_id = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.h2.send_headers(stream_id, fields, end_stream=method in ("GET", "HEAD"))
        self.flush()
        return stream_id

    def extended_connect(self, path: str = "/tunnel", protocol: str = "websocket", **headers: str) -> int:
        """Open a stream as a browser opens a WebSocket (RFC 8441 §5.1)."""
        stream_id = self.h2.get_next_available_stream_id()
        fields = [(":method", "CONNECT"), (":protocol", protocol), (":scheme", "http"), (":path", path)]
        fields += [(":authority", "localhost"), *((name.replace("_", "-"), value) for name, value in headers.items())]
        self.h2.send_headers(stream_id, fields)
        self.flush()
        return stream_id


def raw_client(stack: ExitStack, server: TestServer, *, small_buffers: bool = False, **settings: int) -> RawHttp2:
    """A client; with `small_buffers` the kernel keeps little of what it does not read."""
    sock = stack.enter_context(socket.socket())
    if small_buffers:
        server.keep_little()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(DEADLINE)
    sock.connect(("127.0.0.1", server.port))
    return RawHttp2(sock, client=True, **settings)


def client_pipe(
    stack: ExitStack, dialect: Dialect = http2.DIALECT, *, small_buffers: bool = False, **settings: int
) -> tuple[Pipe, RawHttp2, int]:
    """A client's pipe, and the raw server that has answered it, with the stream's id."""
    listener, port = listen(stack)
    if small_buffers:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    url = TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")
    connecting = Background(lambda: CONNECT[dialect.name](url, deadline=Deadline(DEADLINE)))
    sock = stack.enter_context(listener.accept()[0])
    sock.settimeout(DEADLINE)
    peer = RawHttp2(sock, client=False, **settings)
    while not peer.h2.highest_inbound_stream_id:
        peer.read()
    stream_id = peer.h2.highest_inbound_stream_id
    peer.h2.send_headers(stream_id, dialect.response_headers())
    peer.flush()
    pipe = connecting.result()
    stack.callback(pipe.close, "the test is over")
    return pipe, peer, stream_id


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame, the slow and plain way (RFC 9113 §4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def framed(dialect: Dialect, message: bytes) -> bytes:
    """`message` as it stands in DATA."""
    buffer = memoryview(bytearray(dialect.overhead) + message)
    return bytes(buffer[dialect.wrap(buffer, dialect.overhead) :])
