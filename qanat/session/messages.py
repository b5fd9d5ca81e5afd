"""What client and server say to each other through the mux: stream requests and control messages.

Their layouts are in docs/PROTOCOL.md §4.  Frozen values with `encode`, and two strict parsers that
accept or raise ProtocolError.  Pure; used by the sessions of both ends.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from qanat.base.endpoint_addresses import ListenPlace, PublishedName, TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import EndpointError, ProtocolError
from qanat.base.text import decode_text, encode_cut, printable
from qanat.handshake.fields import FieldReader, lp16
from qanat.handshake.hello import Features
from qanat.mux.frames import Reason

MAX_NAME = 255
"""Bytes of UTF-8 in a host name (RFC 1035 §2.3.4), and in the text that says who connected."""
_PORT_AND_SIZE = struct.Struct("!HH")
_FIRST_VERSION = 3
"""The highest first byte of a request that an end without Features.KINDS knows; of what asks to listen, it knows 1."""
UPGRADE = "run the same version of Qanat at both ends"
MAX_REASON = 512
"""Bytes of UTF-8 in the text that says why the server cannot listen."""


class MalformedListen(ProtocolError):
    """A LISTEN that cannot be understood, though it names its forward: only that is refused."""

    def __init__(self, forward: int, message: str) -> None:
        super().__init__(message)
        self.forward = forward


class Network(IntEnum):
    """What kind of address a message names."""

    NONE = 0
    TCP = 1
    UDP = 2
    UNIX = 3
    NAME = 4


class ListenOption(IntEnum):
    """What a LISTEN_AT asks for beside the place, each with a u32; who does not know one ignores it."""

    DYNAMIC = 1
    """1: speak SOCKS and HTTP proxy there, and open each stream with the target that was named."""
    PROXY_PROTOCOL = 2
    """1: expect the PROXY protocol's header from trusted proxies."""
    MAX_STREAMS = 3
    """Streams at once."""
    STREAM_RATE = 4
    """New streams in 1,000 seconds."""
    MAX_STREAMS_PER_ADDRESS = 5
    """Streams at once from one address."""
    STREAM_RATE_PER_ADDRESS = 6
    """New streams in 1,000 seconds from one address."""
    MODE = 7
    """Permission bits of a Unix socket."""
    UDP_IDLE = 8
    """Seconds without a datagram until a UDP flow ends."""
    OWNER = 9
    """The number of the user who gets the file of a Unix socket, on the server's machine."""
    GROUP = 10
    """The number of that file's group, likewise."""
    KEEP_PORT = 11
    """With port 0: the port that was chosen before, to be had again where it is free."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Client to server: connect this stream to `to`, whose host may be a name."""

    to: TcpAddress | UdpAddress | UnixAddress
    origin: str = ""
    """Who connected, as an address; for logs, and for the PROXY protocol."""
    local: str = ""
    """The address that he connected to, where that is to be known at the other end."""

    def encode(self) -> bytes:
        """Return the stream request, in the layout that the oldest peer knows; texts that are too long are cut."""
        if isinstance(self.to, TcpAddress) and not self.local:
            return _connect_head(self.to.host, self.to.port) + _cut(self.origin)
        return b"\x04" + _encode_place(self.to) + _cut(self.origin) + _cut(self.local)


@dataclass(frozen=True, slots=True)
class Through:
    """Server to client: someone connected to this remote forward of yours."""

    forward: int
    origin: str = ""
    to: TcpAddress | UdpAddress | None = None
    """The target that the user of a dynamic forward has named."""
    local: str = ""
    """As in `Connect`."""

    def encode(self) -> bytes:
        """Return the stream request, in the layout that the oldest peer knows; texts that are too long are cut."""
        if self.to is None and not self.local:
            return struct.pack("!BI", 2, self.forward) + _cut(self.origin)
        return struct.pack("!BI", 5, self.forward) + _encode_place(self.to) + _cut(self.origin) + _cut(self.local)


class Measurement(IntEnum):
    """What the server does with a stream that measures."""

    ECHO = 1
    """Sends back what comes."""
    SINK = 2
    """Drops what comes, and says how much came and how long that took."""
    SOURCE = 3
    """Sends until the client half-closes."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Client to server, in a session that is for measuring: join this stream to what measures it."""

    what: Measurement

    def encode(self) -> bytes:
        """Return the stream request."""
        return struct.pack("!BB", 3, self.what)


@dataclass(frozen=True, slots=True)
class Listen:
    """Client to server: listen here for my remote forward of this number."""

    forward: int
    at: ListenPlace
    options: Mapping[int, int] = field(default_factory=dict)
    """By ListenOption; numbers that we do not know are kept, and mean nothing."""

    def encode(self) -> bytes:
        """Return the control message, in the layout that the oldest peer knows."""
        if isinstance(self.at, TcpAddress) and not self.options:
            return struct.pack("!BIH", 1, self.forward, self.at.port) + lp16(self.at.host.encode())
        options = b"".join(struct.pack("!BI", *option) for option in sorted(self.options.items()))
        return struct.pack("!BI", 5, self.forward) + _encode_place(self.at) + bytes([len(self.options)]) + options


@dataclass(frozen=True, slots=True)
class Listening:
    """Server to client: it listens, on this port."""

    forward: int
    port: int

    def encode(self) -> bytes:
        """Return the control message."""
        return struct.pack("!BIH", 2, self.forward, self.port)


@dataclass(frozen=True, slots=True)
class Published:
    """Server to client: it is published, under this name; the answer where a name was asked for."""

    forward: int
    name: str

    def encode(self) -> bytes:
        """Return the control message."""
        return struct.pack("!BI", 6, self.forward) + lp16(self.name.encode())


@dataclass(frozen=True, slots=True)
class ListenFailed:
    """Server to client: it cannot listen there; `reason` is a qanat.mux.frames.Reason."""

    forward: int
    reason: int
    text: str

    def encode(self) -> bytes:
        """Return the control message; a text that is too long is cut."""
        return struct.pack("!BIH", 3, self.forward, self.reason) + lp16(encode_cut(self.text, MAX_REASON))


@dataclass(frozen=True, slots=True)
class Unlisten:
    """Client to server: stop listening for this forward."""

    forward: int

    def encode(self) -> bytes:
        """Return the control message."""
        return struct.pack("!BI", 4, self.forward)


@dataclass(frozen=True, slots=True)
class ListenEnded:
    """Server to client: it listens for this forward no more, though the client wants it; only with LATER_RULES."""

    forward: int
    reason: int
    text: str

    def encode(self) -> bytes:
        """Return the control message; a text that is too long is cut."""
        return struct.pack("!BIH", 7, self.forward, self.reason) + lp16(encode_cut(self.text, MAX_REASON))


@dataclass(frozen=True, slots=True)
class ListenAgain:
    """Server to client: what was refused may be allowed now, so ask again; only with LATER_RULES."""

    def encode(self) -> bytes:
        """Return the control message."""
        return b"\x08"


StreamRequest = Connect | Through | Measure
ControlMessage = Listen | Listening | Published | ListenFailed | Unlisten | ListenEnded | ListenAgain


def check_known(message: bytes, peer_features: int, what: str) -> None:
    """Raise EndpointError (NOT_ALLOWED) when a request, or control message, is newer than the peer; `what` needs it."""
    if message[0] > _FIRST_VERSION and not peer_features & Features.KINDS:
        raise EndpointError(
            f"{what}: the other end does not know this kind of forward", code=Reason.NOT_ALLOWED, hint=UPGRADE
        )


def decode_request(content: bytes) -> StreamRequest:
    """Parse the stream request of an OPEN frame.  Raises ProtocolError, which concerns this stream alone."""
    plain = _plain_connect(content)
    if plain is not None:
        return plain
    reader = FieldReader(content, "stream request")
    kind = reader.u8()
    request: StreamRequest
    if kind == 1:
        port = reader.u16()
        request = Connect(TcpAddress(_text(reader), port), _text(reader))
    elif kind == 2:
        request = Through(reader.u32(), _text(reader))
    elif kind == 3:
        request = Measure(_measurement(reader.u8()))
    elif kind == 4:
        to = _read_place(reader)
        if to is None or isinstance(to, PublishedName):
            raise ProtocolError("a CONNECT without a target")
        request = Connect(to, _text(reader), _text(reader))
    elif kind == 5:
        forward, to = reader.u32(), _read_place(reader)
        if isinstance(to, UnixAddress | PublishedName):
            raise ProtocolError("a THROUGH to what a dynamic forward cannot lead to")
        request = Through(forward, _text(reader), to, _text(reader))
    else:
        raise ProtocolError(f"unknown stream request {kind}")
    reader.end()
    return request


def _plain_connect(content: bytes) -> Connect | None:
    """Return a CONNECT of the first version, which is what most streams ask for, without reading it field by field.

    None for all else, and for one at which something is wrong: the reader says what.
    """
    if content[:1] != b"\x01" or len(content) < 7:
        return None
    port, size = _PORT_AND_SIZE.unpack_from(content, 1)
    rest = 5 + size
    if size > MAX_NAME or rest + 2 > len(content):
        return None
    size = content[rest] << 8 | content[rest + 1]
    if size > MAX_NAME or rest + 2 + size != len(content):
        return None
    try:
        return Connect(_target(content[5:rest], port), printable(content[rest + 2 :].decode()))
    except UnicodeDecodeError:
        return None


@lru_cache(256)
def _target(host: bytes, port: int) -> TcpAddress:
    """Return a target as it came.  Remembered, since many streams go to the same place."""
    return TcpAddress(printable(host.decode()), port)


def decode_control(content: bytes) -> ControlMessage:
    """Parse the message of a CONTROL frame.  Raises MalformedListen, and ProtocolError for what no end may send.

    A text that is too long or not UTF-8 in LISTEN_FAILED or LISTEN_ENDED, which is for people only, is made to fit.
    """
    reader = FieldReader(content, "control message")
    kind = reader.u8()
    if kind == 8:
        reader.end()
        return ListenAgain()
    forward = reader.u32()
    message: ControlMessage
    if kind in (1, 5):
        return _decode_listen(reader, forward, plain=kind == 1)
    if kind == 2:
        message = Listening(forward, reader.u16())
    elif kind == 3:
        message = ListenFailed(forward, reader.u16(), _readable(reader.lp16()))
    elif kind == 4:
        message = Unlisten(forward)
    elif kind == 6:
        message = Published(forward, _text(reader))
    elif kind == 7:
        message = ListenEnded(forward, reader.u16(), _readable(reader.lp16()))
    else:
        raise ProtocolError(f"unknown control message {kind}")
    reader.end()
    return message


def _decode_listen(reader: FieldReader, forward: int, *, plain: bool) -> Listen:
    try:
        if plain:
            port = reader.u16()
            message = Listen(forward, TcpAddress(_text(reader), port))
        else:
            at = _read_place(reader)
            if at is None:
                raise ProtocolError("a LISTEN_AT without a place")
            message = Listen(forward, at, _read_options(reader))
        reader.end()
    except ProtocolError as error:
        raise MalformedListen(forward, error.message) from error
    return message


def _read_options(reader: FieldReader) -> dict[int, int]:
    options: dict[int, int] = {}
    for _ in range(reader.u8()):
        number = reader.u8()
        if number in options:
            raise ProtocolError(f"the option {number} came twice")
        options[number] = reader.u32()
    return options


def _encode_place(place: ListenPlace | None) -> bytes:
    match place:
        case TcpAddress(host, port):
            return _packed_place(Network.TCP, port, host)
        case UdpAddress(host, port):
            return _packed_place(Network.UDP, port, host)
        case UnixAddress(path):
            return _packed_place(Network.UNIX, 0, path)
        case PublishedName(name):
            return _packed_place(Network.NAME, 0, name)
        case None:
            return _packed_place(Network.NONE, 0, "")


def _packed_place(network: Network, port: int, where: str) -> bytes:
    return struct.pack("!BH", network, port) + lp16(where.encode())


def _read_place(reader: FieldReader) -> ListenPlace | None:
    network, port, where = reader.u8(), reader.u16(), _text(reader)
    if network == Network.TCP:
        return TcpAddress(where, port)
    if network == Network.UDP:
        return UdpAddress(where, port)
    if port or (network == Network.NONE and where):
        raise ProtocolError(f"an address of the network {network} with what it does not have")
    if network == Network.UNIX:
        return UnixAddress(where)
    if network == Network.NAME:
        return PublishedName(where)
    if network == Network.NONE:
        return None
    raise ProtocolError(f"unknown network {network}")


@lru_cache(256)
def _connect_head(host: str, port: int) -> bytes:
    """Return how a CONNECT of the first version begins.  Remembered, since many streams go to the same place."""
    return struct.pack("!BH", 1, port) + lp16(host.encode())


def _cut(text: str) -> bytes:
    return lp16(encode_cut(text, MAX_NAME))


def _measurement(number: int) -> Measurement:
    try:
        return Measurement(number)
    except ValueError:
        raise ProtocolError(f"unknown measurement {number}") from None


def _readable(content: bytes) -> str:
    return printable(decode_text(content[:MAX_REASON]))


def _text(reader: FieldReader) -> str:
    content = reader.lp16()
    if len(content) > MAX_NAME:
        raise ProtocolError(f"a text of {len(content)} bytes where {MAX_NAME} are allowed")
    try:
        return printable(content.decode())
    except UnicodeDecodeError as error:
        raise ProtocolError("a text that is not UTF-8") from error
