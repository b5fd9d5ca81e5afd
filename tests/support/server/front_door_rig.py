"""A front door on loopback and the raw clients that knock at it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qanat.base.errors import PipeEnded
from qanat.config.server_settings import ServerLimits, ServerSettings, ServerTls
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door.front_door import FrontDoor
from qanat.transports.pipe import Pipe
from tests.support.background import DEADLINE

Address = tuple[str, int]

WEBSOCKET = (
    "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: qanat.1\r\n"
)


def echo(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
    """Send every message back until the pipe ends."""
    slot.release()
    with contextlib.suppress(PipeEnded):
        while True:
            message = bytes(pipe.recv())
            pipe.send(memoryview(bytearray(pipe.headroom) + message))


@contextlib.contextmanager
def front_door(
    on_pipe: Callable[[Pipe, ClientAddress, HandshakeSlot], None] = echo,
    *,
    limits: ServerLimits | None = None,
    **settings: Any,
) -> Iterator[FrontDoor]:
    """A front door on a free port; when the block ends every thread of it must end, too."""
    settings.setdefault("listen", (("127.0.0.1", 0),))
    door = FrontDoor(ServerSettings(clients=(), limits=limits or ServerLimits(), **settings), on_pipe)
    door.start()
    try:
        yield door
    finally:
        door.close()
        running = door.join(DEADLINE)
    assert running == []


def connect(door: FrontDoor, timeout: float = DEADLINE) -> socket.socket:
    sock = socket.create_connection(door.addresses[0], timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or small frames wait for delayed ACKs
    return sock


def read_to_end(sock: socket.socket) -> bytes:
    """Everything until the other end has closed, by FIN or by reset."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while block := sock.recv(65536):
            data += block
    return bytes(data)


def exchange(door: FrontDoor, data: bytes) -> bytes:
    """Send `data` in one go and read until the server closes."""
    with connect(door) as sock:
        sock.sendall(data)
        return read_to_end(sock)


def read_head(sock: socket.socket) -> bytes:
    """Up to the empty line after an answer's head; the answer may leave the connection open."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            break
        data += byte
    return data


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode() + body


def without_date(answer: bytes) -> bytes:
    return b"\r\n".join(line for line in answer.split(b"\r\n") if not line.startswith(b"Date:"))


def seconds_until_closed(sock: socket.socket, started: float) -> float:
    read_to_end(sock)
    return time.monotonic() - started


class Certificate:
    """A self-signed certificate for localhost in two files; `renew` writes another one over it."""

    def __init__(self, folder: Path) -> None:
        self.tls = ServerTls(certificate=folder / "fullchain.pem", key=folder / "privkey.pem")
        self.serial = 0
        self.renew()

    def renew(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        self.serial = x509.random_serial_number()
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(self.serial)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.tls.key.unlink(missing_ok=True)
        self.tls.key.touch(mode=0o600)
        self.tls.key.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        self.tls.certificate.write_bytes(certificate.public_bytes(pem))

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.tls.certificate))

    def served_by(self, door: FrontDoor) -> int:
        """The serial number of the certificate that the door shows to a new connection."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with connect(door) as sock, context.wrap_socket(sock) as tls:
            shown = tls.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number
