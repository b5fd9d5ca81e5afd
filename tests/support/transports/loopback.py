"""Real connections over loopback: wires, WebSocket pipes, and peers that speak the raw protocol."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import h11

from qanat.base.deadline import Deadline
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import Pipe, Wire
from qanat.transports.websocket.upgrade import ALPN, UpgradeRequest, accept, connect
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import ReloadingServerContext, client_tls_context
from tests.support.background import DEADLINE, Background
from tests.support.machine.certificates import Certificate

CLIENT_HEAD = (
    b"GET /tunnel HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: qanat.1\r\n\r\n"
)
"""An upgrade request with the key of RFC 6455 §1.3."""


def listen(stack: ExitStack) -> tuple[socket.socket, int]:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    listener.settimeout(DEADLINE)
    return listener, listener.getsockname()[1]


def socket_pair(stack: ExitStack, *, small_buffers: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets: the client's and the server's."""
    listener, port = listen(stack)
    client = stack.enter_context(socket.socket())
    if small_buffers:
        # A receive buffer of about one segment would make the kernel wait a fifth of a second for each
        # (silly window avoidance, RFC 9293 §3.8.6.2): that tests the kernel, and takes minutes.
        for option, size in ((socket.SO_SNDBUF, 4096), (socket.SO_RCVBUF, 32768)):
            client.setsockopt(socket.SOL_SOCKET, option, size)
            listener.setsockopt(socket.SOL_SOCKET, option, size)
    client.settimeout(DEADLINE)
    client.connect(("127.0.0.1", port))
    server = stack.enter_context(listener.accept()[0])
    server.settimeout(DEADLINE)
    return client, server


def tls_pair(
    stack: ExitStack,
    certificate: Certificate,
    *,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    small_buffers: bool = False,
) -> tuple[TlsWire, TlsWire]:
    """Two TlsWires joined over TCP: the client's and the server's."""
    client_sock, server_sock = socket_pair(stack, small_buffers=small_buffers)
    client_context = trusting(certificate)
    client_context.maximum_version = version
    server_context = ReloadingServerContext(certificate.certificate, certificate.key, ALPN).context()
    server = Background(
        lambda: TlsWire(TcpWire(server_sock), server_context, server_side=True, deadline=Deadline(DEADLINE))
    )
    client = TlsWire(TcpWire(client_sock), client_context, server_hostname="localhost", deadline=Deadline(DEADLINE))
    return closing(stack, client), closing(stack, server.result())


def trusting(certificate: Certificate) -> ssl.SSLContext:
    """A client's context that trusts this very certificate."""
    return client_tls_context(certificate.certificate, ALPN)


def closing(stack: ExitStack, wire: TlsWire) -> TlsWire:
    stack.callback(wire.close)
    return wire


def read_request(wire: Wire) -> tuple[UpgradeRequest, bytes]:
    """A request head and what came after it, as the front door reads it."""
    parser = h11.Connection(h11.SERVER)
    buffer = memoryview(bytearray(4096))
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Request):
            headers = tuple((name.decode(), value.decode("latin-1")) for name, value in event.headers)
            return UpgradeRequest(event.target.decode(), headers, event.method.decode()), parser.trailing_data[0]
        assert event is h11.NEED_DATA
        parser.receive_data(bytes(buffer[: wire.recv_into(buffer)]))


def websocket_pair(stack: ExitStack, certificate: Certificate | None, ca_file: object = None) -> tuple[Pipe, Pipe]:
    """Two WebSocket pipes made by `connect` and `accept`: the client's and the server's."""
    listener, port = listen(stack)

    def serve() -> Pipe:
        sock, _ = listener.accept()
        wire: Wire = TcpWire(sock)
        if certificate is not None:
            context = ReloadingServerContext(certificate.certificate, certificate.key, ALPN).context()
            wire = TlsWire(wire, context, server_side=True, deadline=Deadline(DEADLINE))
        request, rest = read_request(wire)
        return accept(request, wire, rest)

    server = Background(serve)
    scheme = "ws" if certificate is None else "wss"
    url = TunnelUrl.parse(f"{scheme}://127.0.0.1:{port}/tunnel")
    client = connect(url, route=Route(ca_file=ca_file), deadline=Deadline(DEADLINE))  # type: ignore[arg-type]
    stack.callback(client.close, "the test is over")
    accepted = server.result()
    stack.callback(accepted.close, "the test is over")
    return client, accepted


@dataclass
class RawPeer:
    """The other end of a pipe under test: a plain socket and the frames of RFC 6455, written out."""

    sock: socket.socket
    masks: bool

    def send_frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        self.sock.sendall(encode_frame(opcode, payload, fin=fin, mask=os.urandom(4) if self.masks else None))

    def read_frame(self) -> tuple[int, bytes]:
        """First byte and unmasked payload of the next frame."""
        first, second = self._read(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._read(8))
        mask = self._read(4) if second & 0x80 else bytes(4)
        assert bool(second & 0x80) is not self.masks, "the pipe must mask if and only if it is a client's"
        return first, slow_mask(self._read(length), mask)

    def read_close(self) -> int:
        """The code of the close frame that must come next."""
        first, payload = self.read_frame()
        assert first == 0x88
        return int(struct.unpack("!H", payload[:2])[0])

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            assert part, "the pipe closed the connection in the middle of a frame"
            data += part
        return bytes(data)


def encode_frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None) -> bytes:
    """One frame, the slow and plain way."""
    length = len(payload)
    bit = 0x80 if mask is not None else 0
    head = bytes([(0x80 if fin else 0) | opcode])
    if length < 126:
        head += bytes([bit | length])
    elif length < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", length)
    return head + payload if mask is None else head + mask + slow_mask(payload, mask)


def slow_mask(payload: bytes, mask: bytes) -> bytes:
    key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")


def server_pipe(stack: ExitStack, *, small_buffers: bool = False, extra: bytes = b"") -> tuple[Pipe, RawPeer]:
    """A server's pipe and a raw client, which sent `extra` together with its request."""
    client, server = socket_pair(stack, small_buffers=small_buffers)
    client.sendall(CLIENT_HEAD + extra)
    wire = TcpWire(server)
    request, rest = read_request(wire)
    pipe = accept(request, wire, rest)
    stack.callback(pipe.close, "the test is over")
    read_head(client)
    return pipe, RawPeer(client, masks=True)


def client_pipe(stack: ExitStack, *, extra: bytes = b"") -> tuple[Pipe, RawPeer]:
    """A client's pipe and a raw server, which sent `extra` together with its answer."""
    listener, port = listen(stack)
    connecting = Background(lambda: connect(TunnelUrl.parse(f"ws://127.0.0.1:{port}/t"), deadline=Deadline(DEADLINE)))
    sock = stack.enter_context(listener.accept()[0])
    sock.settimeout(DEADLINE)
    sock.sendall(upgrade_answer(read_head(sock)) + extra)
    pipe = connecting.result()
    stack.callback(pipe.close, "the test is over")
    return pipe, RawPeer(sock, masks=False)


def read_head(sock: socket.socket) -> bytes:
    """An HTTP head, read so that nothing behind it is taken."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        part = sock.recv(1)
        assert part, data
        data += part
    return data


def upgrade_answer(head: bytes) -> bytes:
    """The 101 for a client's request head (RFC 6455 §4.2.2)."""
    lines = head.split(b"\r\n")
    key = next(line.split(b":")[1].strip() for line in lines if line.lower().startswith(b"sec-websocket-key"))
    token = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\nSec-WebSocket-Protocol: qanat.1\r\n\r\n"
    )


PipeMaker = Callable[..., tuple[Pipe, RawPeer]]


def send_bytes(pipe: Pipe, data: bytes) -> None:
    """Send a copy of `data` as one message."""
    buffer = memoryview(bytearray(pipe.headroom + len(data)))
    buffer[pipe.headroom :] = data
    pipe.send(buffer)
