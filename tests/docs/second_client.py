"""A client of docs/PROTOCOL.md, written from that page alone: it knows nothing of Qanat's code.

What the page does not say, it cannot do.  One thread and blocking sockets: to send more than the credit allows, it
reads records until there is more.  The words are the page's.  Used by `tests.docs.test_second_client`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

import h2.config
import h2.connection
import h2.events
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

HELLO, READY, FRAMES, KEY_UPDATE, CLOSE = 1, 2, 3, 4, 5
NEW, JOIN, RESUME = 1, 2, 3
RESUMED, EXPIRED = 2, 3
OPEN, DATA, FIN, RESET, ACCEPT, CONTROL, ACK, CREDIT, PING, PONG, DATAGRAM = 1, 2, 3, 4, 5, 6, 16, 17, 18, 19, 20
LAYOUTS = {OPEN: "!xIH", DATA: "!xII", FIN: "!xIQ", RESET: "!xIHH", ACCEPT: "!xIH", CONTROL: "!xH"}
LAYOUTS |= {ACK: "!xQ", CREDIT: "!xIQ", PING: "!xQ", PONG: "!xQ", DATAGRAM: "!xIH"}
ENDS_WITH_BYTES = (OPEN, DATA, RESET, ACCEPT, CONTROL, DATAGRAM)
INITIAL_WINDOW = 131_072
SECONDS = 20.0


class Cut(Exception):
    """The pipe is over without a CLOSE."""


class Refused(Exception):
    """The server sent R, and its mac holds."""


class Closed(Exception):
    """The server sent CLOSE: its reason and text."""


def lp16(content: bytes) -> bytes:
    return struct.pack("!H", len(content)) + content


def lp(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content


# --- section 6: messages over HTTP ------------------------------------------------------------------------------------


class WebSocket:
    """Section 6.1, with the frames of RFC 6455.  `status` and `headers` are the answer's."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), SECONDS)
        self.received = bytearray()
        self.headers: dict[str, str] = {}
        self.ask(headers)

    def ask(self, headers: dict[str, str]) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ["GET /tunnel HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Protocol: qanat.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self.received:
            self.read()
        status, *answer = self.take(self.received.index(b"\r\n\r\n") + 4).decode().split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in answer)}

    def send(self, message: bytes, opcode: int = 2) -> None:
        self.sock.sendall(self.frame(message, opcode))

    @staticmethod
    def frame(message: bytes, opcode: int) -> bytes:
        size, mask = len(message), os.urandom(4)
        length = struct.pack("!B", 128 + size) if size < 126 else struct.pack("!BH", 254, size % 2**16)
        length = struct.pack("!BQ", 255, size) if size >= 2**16 else length
        masked = int.from_bytes(message) ^ int.from_bytes((mask * (size // 4 + 1))[:size])
        return bytes([0x80 + opcode]) + length + mask + masked.to_bytes(size)

    def recv(self) -> bytes:
        while True:
            first, size = self.take(2)
            if size >= 126:
                size = int.from_bytes(self.take(2 if size == 126 else 8))
            message = self.take(size)
            if first == 0x82:
                return message
            if first == 0x89:
                self.send(message, opcode=10)
            elif first != 0x8A:
                raise Cut(f"a WebSocket frame that begins with {first:#x}")

    def read(self) -> None:
        """Put what comes next into `received`."""
        content = self.sock.recv(65_536)
        if not content:
            raise Cut("the connection has ended")
        self.received += content

    def take(self, size: int) -> bytes:
        while len(self.received) < size:
            self.read()
        content = bytes(self.received[:size])
        del self.received[:size]
        return content

    def cut(self) -> int:
        """End it as a broken network does; return how many bytes had come that nobody has read."""
        unread = len(self.sock.recv(1 << 22, socket.MSG_DONTWAIT))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        return unread


class Http2(WebSocket):
    """Section 6.2."""

    METHOD: ClassVar = {":method": "POST"}
    CONTENT: ClassVar = {"content-type": "application/octet-stream"}

    def ask(self, headers: dict[str, str]) -> None:
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.http.initiate_connection()
        self.over = False
        self.await_offer()
        request = {**self.METHOD, ":scheme": "http", ":authority": "localhost", ":path": "/tunnel"}
        self.http.send_headers(1, [*{**request, **self.CONTENT, **headers}.items()])
        while ":status" not in self.headers:
            self.read()
        self.status = int(self.headers[":status"])

    def await_offer(self) -> None:
        """A POST needs none."""

    def read(self) -> None:
        if self.over:
            raise Cut("the stream has ended")
        self.sock.sendall(self.http.data_to_send())
        content = self.sock.recv(65_536)
        self.over = not content
        for event in self.http.receive_data(content):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                self.headers |= {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                self.received += event.data
                self.http.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self.over = True
        if not self.over:
            self.sock.sendall(self.http.data_to_send())

    def send(self, message: bytes, opcode: int = 2) -> None:
        content = self.wrap(message, opcode)
        while content:
            size = min(self.http.local_flow_control_window(1), self.http.max_outbound_frame_size, len(content))
            if not size:
                self.read()
                continue
            self.http.send_data(1, content[:size])
            content = content[size:]
            self.sock.sendall(self.http.data_to_send())

    def wrap(self, message: bytes, opcode: int) -> bytes:
        return lp(message)

    def recv(self) -> bytes:
        return self.take(int.from_bytes(self.take(4)))


class Grpc(Http2):
    """Section 6.3."""

    CONTENT: ClassVar = {"content-type": "application/grpc", "te": "trailers"}

    def wrap(self, message: bytes, opcode: int) -> bytes:
        length, varint = len(message), b""
        while length >= 128:
            varint, length = varint + bytes([length % 128 + 128]), length // 128
        return b"\x00" + lp(b"\x0a" + varint + bytes([length]) + message)

    def recv(self) -> bytes:
        record = self.take(int.from_bytes(self.take(5)[1:]))
        return record[next(at for at in range(1, 5) if record[at] < 128) + 1 :]


class WebSocketOverHttp2(Http2):
    """Section 6.4."""

    METHOD: ClassVar = {":method": "CONNECT", ":protocol": "websocket"}
    CONTENT: ClassVar = {"sec-websocket-version": "13", "sec-websocket-protocol": "qanat.1"}

    def await_offer(self) -> None:
        while not self.http.remote_settings.enable_connect_protocol:
            self.read()

    def wrap(self, message: bytes, opcode: int) -> bytes:
        return self.frame(message, opcode)

    def recv(self) -> bytes:
        return WebSocket.recv(self)


PIPES = {"websocket": WebSocket, "http2": Http2, "grpc": Grpc, "websocket-h2": WebSocketOverHttp2}


# --- section 1: the handshake -----------------------------------------------------------------------------------------


def mac(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def expand(key: bytes, info: str, size: int = 32) -> bytes:
    return HKDFExpand(SHA256(), size, info.encode()).derive(key)


def oaep(label: bytes) -> padding.OAEP:
    return padding.OAEP(padding.MGF1(SHA256()), SHA256(), label)


@dataclass(frozen=True)
class Secrets:
    """What a handshake gives."""

    c2s: bytes
    s2c: bytes
    resume: bytes
    transcript: bytes  # TH


def shake_hands(pipe: WebSocket, key: rsa.RSAPrivateKey, name: str, token: str, fingerprint: str) -> Secrets:
    m1 = pipe.recv()
    assert (m1[0], int.from_bytes(m1[1:3])) == (1, len(m1) - 3)
    assert 1 in struct.unpack_from(f"!{m1[3]}H", m1, 4)
    server_key = m1[4 + 2 * m1[3] + 32 + 4 :]
    assert "SHA256:" + base64.b64encode(sha256(server_key)).decode().rstrip("=") == fingerprint

    m3 = b"\x01" + lp16(lp(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)))
    client_secret = os.urandom(32)
    plain = struct.pack("!HB", 1, len(name)) + name.encode() + client_secret
    k_tok = mac(
        sha256(b"qanat/1 token" + lp(name.encode())),
        base64.urlsafe_b64decode(token.removeprefix("qanat1-")[:43] + "="),
    )
    proof_c = mac(expand(k_tok, "qanat/1 client proof"), lp(m1) + lp(m3) + lp(plain))
    public = load_der_public_key(server_key)
    assert isinstance(public, rsa.RSAPublicKey)
    m2 = b"\x02" + lp16(public.encrypt(plain + proof_c, oaep(b"qanat/1 auth")))
    pipe.send(m2)
    pipe.send(m3)

    m4 = pipe.recv()
    if m4[0] == 4:
        secret = mac(sha256(lp(m1) + lp(m2) + lp(m3)), client_secret)
        if hmac.compare_digest(m4[4:], mac(expand(secret, "qanat/1 refused"), m4[3:4])):
            raise Refused(m4[3])
        raise Cut("a refusal that anybody may have sent")
    assert m4[0] == 3
    server_secret = key.decrypt(m4[7:-32], oaep(b"qanat/1 session"))
    transcript = sha256(b"qanat/1" + lp(m1) + lp(m2) + lp(m3) + lp(m4[:-32]))
    prk = mac(transcript, expand(k_tok, "qanat/1 mix") + client_secret + server_secret)
    assert hmac.compare_digest(m4[-32:], mac(expand(prk, "qanat/1 server proof"), transcript))
    c2s, s2c, resume = (expand(prk, f"qanat/1 {word}") for word in ("c2s", "s2c", "resume"))
    return Secrets(c2s, s2c, resume, transcript)


# --- section 2: the sealed channel ------------------------------------------------------------------------------------


class Direction:
    """The key of one direction; `updates` counts how often it was changed."""

    def __init__(self, secret: bytes) -> None:
        self.updates = 0
        self.use(secret)

    def use(self, secret: bytes) -> None:
        self.secret, self.counter = secret, -1
        self.key, self.iv = AESGCM(expand(secret, "qanat/1 key")), expand(secret, "qanat/1 iv", 12)

    def update(self) -> None:
        self.use(expand(self.secret, "qanat/1 update"))
        self.updates += 1

    def nonce(self) -> bytes:
        self.counter += 1
        return (int.from_bytes(self.iv) ^ self.counter).to_bytes(12)


class Channel:
    """Records over a pipe."""

    def __init__(self, pipe: WebSocket, secrets: Secrets) -> None:
        self.pipe, self.secrets = pipe, secrets
        self.sending, self.receiving = Direction(secrets.c2s), Direction(secrets.s2c)

    def send(self, kind: int, content: bytes = b"") -> None:
        self.pipe.send(self.sending.key.encrypt(self.sending.nonce(), bytes([kind]) + content, None))
        if kind == KEY_UPDATE:
            self.sending.update()

    def recv(self) -> tuple[int, bytes]:
        """Return kind and content of the next record that is no KEY_UPDATE."""
        while True:
            record = self.receiving.key.decrypt(self.receiving.nonce(), self.pipe.recv(), None)
            if record[0] == CLOSE:
                raise Closed(record[1], record[4:].decode())
            if record[0] != KEY_UPDATE:
                return record[0], record[1:]
            self.receiving.update()


# --- section 4: frames and streams ------------------------------------------------------------------------------------


@dataclass
class Stream:
    number: int
    limit: int = INITIAL_WINDOW  # up to which offset we may send
    sent: int = 0
    granted: int = INITIAL_WINDOW  # up to which offset the server may
    received: bytearray = field(default_factory=bytearray)
    accepted: str | None = None
    finished: bool = False
    reset: tuple[int, str] | None = None


class Lane:
    """One lane, on one pipe after the other."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.epoch = 0
        self.expected = 0  # the number of the server's next frame
        self.first = 0  # the number of the first frame in `kept`
        self.kept: deque[bytes] = deque()  # sent and not acknowledged
        self.streams: dict[int, Stream] = {}
        self.opened = 0
        self.controls: list[bytes] = []
        self.channel: Channel | None = None

    def attach(self, channel: Channel, server_expects: int) -> None:
        """Go on over `channel`: credit anew, then every frame from the one that the server expects."""
        self.acknowledged(server_expects)
        moved = [stream for stream in self.streams.values() if stream.granted > INITIAL_WINDOW and not stream.finished]
        for frame in (*(struct.pack("!BIQ", CREDIT, each.number, each.granted) for each in moved), *self.kept):
            channel.send(FRAMES, frame)
        self.channel = channel

    def acknowledged(self, expected: int) -> None:
        while self.first < expected:
            self.kept.popleft()
            self.first += 1

    def open(self, host: str, port: int, origin: str = "a test") -> Stream:
        """CONNECT_TCP."""
        self.opened += 1
        stream = self.streams[2 * self.opened - 1] = Stream(2 * self.opened - 1)
        request = struct.pack("!BH", 1, port) + lp16(host.encode()) + lp16(origin.encode(errors="surrogatepass"))
        self.send_numbered(struct.pack("!BI", OPEN, stream.number) + lp16(request))
        return stream

    def send(self, stream: Stream, content: bytes) -> None:
        """Send all of `content`, as the credit allows it."""
        while content:
            part = content[: min(stream.limit - stream.sent, 16_384)]
            if not part:
                self.step()
                continue
            content = content[len(part) :]
            stream.sent += len(part)
            self.send_numbered(struct.pack("!BI", DATA, stream.number) + lp(part))

    def finish(self, stream: Stream) -> None:
        self.send_numbered(struct.pack("!BIQ", FIN, stream.number, stream.sent))

    def receive(self, stream: Stream, size: int) -> bytes:
        """Block until `size` bytes of a stream have come; return all of them."""
        while len(stream.received) < size:
            assert stream.reset is None, stream.reset
            self.step()
        return bytes(stream.received)

    def send_numbered(self, frame: bytes) -> None:
        self.kept.append(frame)
        if self.channel is not None:
            self.channel.send(FRAMES, frame)

    def step(self) -> None:
        """Block for one record, take its frames, and answer."""
        assert self.channel is not None
        kind, content = self.channel.recv()
        assert kind == FRAMES
        expected, owed = self.expected, b""
        while content:
            frame_type, layout = content[0], struct.Struct(LAYOUTS[content[0]])
            values, content = layout.unpack_from(content), content[layout.size :]
            size = values[-1] if frame_type in ENDS_WITH_BYTES else 0
            payload, content = content[:size], content[size:]
            self.expected += frame_type <= CONTROL
            owed += self.take(frame_type, payload, *values)
        if self.expected > expected:
            owed += struct.pack("!BQ", ACK, self.expected)
        if owed:
            self.channel.send(FRAMES, owed)

    def take(self, frame_type: int, payload: bytes, number: int = 0, value: int = 0, *_: int) -> bytes:
        """Take one frame; return what answers it without a number."""
        if frame_type == ACK:
            self.acknowledged(number)
        elif frame_type == PING:
            return struct.pack("!BQ", PONG, number)
        elif frame_type == CONTROL:
            self.controls.append(payload)
        elif frame_type == OPEN:
            self.streams[number] = Stream(number)
            self.send_numbered(struct.pack("!BI", ACCEPT, number) + lp16(b""))
        elif frame_type not in (PONG, DATAGRAM):
            stream = self.streams[number]
            if frame_type == CREDIT:
                stream.limit = max(stream.limit, value)
            elif frame_type == ACCEPT:
                stream.accepted = payload.decode()
            elif frame_type == RESET:
                stream.reset = (value, payload.decode())
            elif frame_type == FIN:
                assert value == len(stream.received)
                stream.finished = True
            else:
                stream.received += payload
                assert len(stream.received) <= stream.granted
                if stream.granted - len(stream.received) < INITIAL_WINDOW // 2:
                    stream.granted = len(stream.received) + INITIAL_WINDOW
                    return struct.pack("!BIQ", CREDIT, number, stream.granted)
        return b""


# --- section 3: HELLO, READY, sessions --------------------------------------------------------------------------------


class Session:
    """One session, and its lanes by number."""

    def __init__(self, transport: str, port: int, key: rsa.RSAPrivateKey, name: str, token: str, fingerprint: str):
        self.transport, self.port = transport, port
        self.credentials = (key, name, token, fingerprint)
        self.instance = os.urandom(16)
        self.id = self.resume = bytes(16)
        self.node = ""
        self.lanes: dict[int, Lane] = {}

    def start(self) -> Lane:
        """NEW, on lane 0."""
        lane, channel = Lane(0), self.dial()
        _, self.id, server_expects = self.greet(channel, NEW, lane)
        self.resume = channel.secrets.resume
        self.lanes[0] = lane
        lane.attach(channel, server_expects)
        return lane

    def attach(self, number: int) -> int:
        """JOIN with a lane that is new, RESUME with another; return the answer."""
        intent = RESUME if number in self.lanes else JOIN
        lane, channel = self.lanes.setdefault(number, Lane(number)), self.dial()
        lane.epoch += 1
        answer, _, server_expects = self.greet(channel, intent, lane)
        if answer == RESUMED:
            lane.attach(channel, server_expects)
        return answer

    def close(self) -> None:
        """SHUTDOWN, on lane 0 last."""
        for _, lane in sorted(self.lanes.items(), reverse=True):
            if lane.channel is not None:
                lane.channel.send(CLOSE, b"\x02" + lp16(b"that is all"))
                lane.channel.pipe.sock.close()

    def dial(self) -> Channel:
        pipe = PIPES[self.transport](self.port, {"cookie": f"qanat-node={self.node}"} if self.node else {})
        assert pipe.status in (101, 200)
        return Channel(pipe, shake_hands(pipe, *self.credentials))

    def greet(self, channel: Channel, intent: int, lane: Lane) -> tuple[int, bytes, int]:
        """Say HELLO; return answer, session and expected of READY."""
        hello = bytes([intent]) + self.instance + self.id + struct.pack("!HIQ", lane.number, lane.epoch, lane.expected)
        proof = bytes(32) if intent == NEW else self.proof(channel, b"client", hello)
        parameters = struct.pack("!BBIBIBI", 3, 1, INITIAL_WINDOW, 2, 100, 4, 2)
        channel.send(HELLO, hello + proof + b"\x06second" + parameters)
        kind, ready = channel.recv()
        assert kind == READY
        answer, session, server_expects, proof = struct.unpack_from("!B16sQ32s", ready)
        if answer == RESUMED:
            assert hmac.compare_digest(proof, self.proof(channel, b"server", ready[:25]))
        self.node = ready[58 : 58 + ready[57]].decode()
        return answer, session, server_expects

    def proof(self, channel: Channel, end: bytes, before: bytes) -> bytes:
        return mac(self.resume, b"qanat/1 resume " + end + channel.secrets.transcript + before)
