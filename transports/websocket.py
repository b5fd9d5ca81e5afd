"""WebSocket, the transport that passes every proxy: `connect` for a client, `accept` for a server.

Who does what: the libraries do the opening handshake and decide what everything unusual means (pings,
closes, fragments); bulk is ours, because neither library can move it without a copy, a lock or a wait too
many.  websocket-client asks, over a wire that `dialer` made; simple-websocket answers.  Extensions are
never negotiated: the client offers none, the server does not let the library see an offer, and so
permessage-deflate, which simple-websocket always accepts, cannot happen to ciphertext.

The client offers `http/1.1` alone in ALPN (with `h2` every proxy would choose that, and WebSocket's
Upgrade does not exist there), follows no redirect, and explains every other answer (`http_errors`).
Used by the running client, and by the front door, which has read the request already.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Any

import simple_websocket
import websocket
from attrs import field, frozen
from wsproto.utilities import RemoteProtocolError

from base.deadline import Deadline
from base.errors import ProtocolError, TransportError
from base.version import __version__
from transports.dialer import dial
from transports.http_errors import explain_status, printable
from transports.pipe import MAX_MESSAGE, Pipe, Wire
from transports.tls import TlsWire
from transports.tls_contexts import client_tls_context
from transports.urls import TunnelUrl
from transports.websocket_machine import Capture, ClientMachine, NoThread, ServerMachine
from transports.websocket_pipe import WebSocketPipe

SUBPROTOCOL = "qanat.1"
ALPN = ("http/1.1",)

MAX_HEAD = 64 * 1024
"""Bytes of an answer's head; CDNs send several KiB of headers."""

_NO_REWRITING = "a proxy on the way may rewrite or cache answers: exempt the tunnel's path from that"

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_UPGRADE_HEADERS = ("upgrade", "connection", "sec-websocket-accept", "sec-websocket-protocol")


@frozen
class UpgradeRequest:
    """A request head as the front door read it."""

    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # names in lower case, in the order sent
    method: str = "GET"

    def value(self, name: str) -> str:
        """All values of the header `name` (lower case), joined by commas (RFC 9110 §5.3)."""
        return ", ".join(value for key, value in self.headers if key == name)

    def tokens(self, name: str) -> frozenset[str]:
        """The comma-separated items of a header, in lower case."""
        return frozenset(token for item in self.value(name).split(",") if (token := item.strip().lower()))


class UpgradeRefused(ProtocolError):
    """A request that cannot become a WebSocket pipe.  `reason` is for our log; the answer is `status` alone.

    The answer never has an `Upgrade` header, nor status 426, which demands one: a proxy would copy it
    into an HTTP/2 answer, where it is illegal (RFC 9113 §8.2.2).
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def is_upgrade(request: UpgradeRequest) -> bool:
    """Whether this request asks for WebSocket, be it well or badly (RFC 6455 §4.1)."""
    return (
        request.method == "GET"
        and "websocket" in request.tokens("upgrade")
        and "upgrade" in request.tokens("connection")
    )


def accept(request: UpgradeRequest, wire: Wire, already_read: bytes) -> Pipe:
    """Answer 101 and return the pipe, which owns `wire` from now on.

    `already_read` are the bytes that came after the head.  Raises UpgradeRefused, with nothing written and
    `wire` untouched, or TransportError.  Blocks only as long as it takes to write the answer.
    """
    _check_request(request)
    capture = Capture()
    environ = {
        "werkzeug.socket": capture,
        # The library decodes Host as a domain name, which fails for hosts that are legal; nothing depends on it.
        "HTTP_HOST": "qanat",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": request.value("sec-websocket-key").strip(),
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "HTTP_SEC_WEBSOCKET_PROTOCOL": SUBPROTOCOL,
    }
    try:
        server = simple_websocket.Server(
            environ, subprotocols=[SUBPROTOCOL], max_message_size=MAX_MESSAGE, thread_class=NoThread
        )
    except (RemoteProtocolError, simple_websocket.ConnectionError) as error:
        raise UpgradeRefused(400, f"not a WebSocket request: {error}") from error
    wire.send_all(capture.take())
    return WebSocketPipe(wire, ServerMachine(server, capture), is_client=False, first=already_read)


def connect(url: TunnelUrl, *, ca_file: Path | None = None, deadline: Deadline) -> Pipe:
    """Dial `url`, upgrade, and return the pipe.  Blocks until `deadline`.

    `ca_file` replaces the system's authorities.  Raises TransportError whose hint says what to do, and
    UsageError for a `ca_file` that cannot be used.
    """
    context = client_tls_context(ca_file, ALPN) if url.tls else None
    wire = dial(url, tls=context, deadline=deadline)
    try:
        if isinstance(wire, TlsWire) and wire.alpn not in (None, *ALPN):
            raise TransportError(
                f"{url.address} chose {wire.alpn} though only http/1.1 was offered",
                hint="its TLS is broken: look at what terminates TLS there",
            )
        return _upgrade(url, wire, deadline)
    except BaseException:
        wire.close()
        raise


def _check_request(request: UpgradeRequest) -> None:
    if not is_upgrade(request):
        raise UpgradeRefused(400, "not a request for WebSocket")
    if request.value("sec-websocket-version").strip() != "13":
        raise UpgradeRefused(400, "not version 13 of WebSocket")
    try:
        key = base64.b64decode(request.value("sec-websocket-key").strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 16:
        raise UpgradeRefused(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    if SUBPROTOCOL not in request.tokens("sec-websocket-protocol"):
        raise UpgradeRefused(400, f"the subprotocol {SUBPROTOCOL} is not offered")


def _upgrade(url: TunnelUrl, wire: Wire, deadline: Deadline) -> Pipe:
    opening = _Opening(url, wire, deadline)
    client = websocket.WebSocket(enable_multithread=False)  # its locks are not needed: only our reader uses it
    scheme = "wss" if url.tls else "ws"
    try:
        client.connect(  # type: ignore[no-untyped-call]
            f"{scheme}://{url.authority}{url.path}",
            socket=opening,
            host=url.authority,
            subprotocols=[SUBPROTOCOL],
            suppress_origin=True,
            redirect_limit=0,  # _Opening stops at a redirect; were it not for that, three would be followed
            header=[f"User-Agent: qanat/{__version__}"],
        )
    except websocket.WebSocketException as error:
        raise TransportError(
            f"{url} answered 101, but not as WebSocket demands: {error}",
            hint=_NO_REWRITING,
        ) from error
    wire.set_read_timeout(None)
    capture = Capture()
    client.sock = capture  # type: ignore[assignment]  # from now on it is fed frame by frame
    return WebSocketPipe(wire, ClientMachine(client, capture), is_client=True, first=opening.rest)


class _Opening:
    """The socket that websocket-client has during its handshake.

    It reads the whole head itself, bounded in size and time, explains every answer but 101, and shows the
    library only the headers that it has to check: so no foreign header, cookie or endless body gets into it.
    """

    def __init__(self, url: TunnelUrl, wire: Wire, deadline: Deadline) -> None:
        self._url = url
        self._wire = wire
        self._deadline = deadline
        self._head: memoryview | None = None
        self.rest = b""
        """What came after the head."""

    def send(self, data: bytes) -> int:
        self._wire.send_all(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        if self._head is None:
            self._head = memoryview(self._read_answer())
        part, self._head = bytes(self._head[:size]), self._head[size:]
        return part

    def gettimeout(self) -> Any:
        return None

    def close(self) -> None:
        """`connect` closes the wire when this fails."""

    def _read_answer(self) -> bytes:
        received = b""
        while True:
            head, received = self._read_head(received)
            status, headers = self._parse(head)
            if status == 101:
                break
            if not 100 <= status < 200:  # 103 Early Hints, for example, may come first
                raise explain_status(status, headers, "websocket", self._url)
        self.rest = received
        self._check_headers(headers)
        shown = "".join(f"{name}: {headers[name]}\r\n" for name in _UPGRADE_HEADERS if name in headers)
        return f"HTTP/1.1 101 Switching Protocols\r\n{shown}\r\n".encode("latin-1")

    def _read_head(self, received: bytes) -> tuple[bytes, bytes]:
        """One head without its end, and what came after it."""
        buffer = memoryview(bytearray(16 * 1024))
        while True:
            end = _HEAD_END.search(received)
            if end:
                return received[: end.start()], received[end.end() :]
            if not b"HTTP/1.".startswith(received[:7]):
                raise self._not_http(received)
            if len(received) > MAX_HEAD:
                raise TransportError(
                    f"{self._url} answered with more than {MAX_HEAD} bytes of headers",
                    hint="check that host and port in the URL are the server's",
                )
            received += buffer[: self._receive(buffer)]

    def _receive(self, buffer: memoryview) -> int:
        self._wire.set_read_timeout(self._deadline.remaining())
        try:
            count = self._wire.recv_into(buffer)
        except TransportError as error:
            if self._deadline.passed:
                raise TransportError(
                    f"{self._url} did not answer in time",
                    hint="the port may not be a web server's, or the server behind a proxy may hang",
                ) from error
            raise TransportError(
                f"{self._url} did not answer: {error.message}", hint=self._hint_for_no_answer
            ) from error
        if count == 0:
            raise TransportError(
                f"{self._url} closed the connection without an answer", hint=self._hint_for_no_answer
            )
        return count

    @property
    def _hint_for_no_answer(self) -> str:
        if self._url.tls:
            return "check the port, and the log of the server or the proxy in front of it"
        return "if the server speaks TLS, write wss:// instead of ws://; otherwise check the port"

    def _not_http(self, received: bytes) -> TransportError:
        if received[:1] in (b"\x15", b"\x16"):  # a TLS alert or handshake record, RFC 8446 §5.1
            return TransportError(
                f"{self._url.address} speaks TLS on this port", hint="write wss:// instead of ws:// in the URL"
            )
        return TransportError(
            f"{self._url.address} is not a web server: it answered {printable(received[:20].decode('latin-1'))!r}",
            hint="check host and port in the URL",
        )

    def _parse(self, head: bytes) -> tuple[int, dict[str, str]]:
        """Status and headers, names in lower case; of headers that come twice the last counts."""
        first, *lines = head.decode("latin-1").split("\n")
        words = first.split()
        if len(words) < 2 or not (words[1].isascii() and words[1].isdigit()):
            raise self._not_http(head)
        fields = (line.partition(":") for line in lines)
        return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in fields}

    def _check_headers(self, headers: dict[str, str]) -> None:
        if headers.get("sec-websocket-extensions"):
            raise TransportError(
                f"{self._url} wants a WebSocket extension that was not offered", hint=_NO_REWRITING
            )
        if headers.get("sec-websocket-protocol", "") != SUBPROTOCOL:
            raise TransportError(
                f"{self._url} is a WebSocket server, but not a Qanat server",
                hint="check the path in the URL against `path` in the server's configuration",
            )
