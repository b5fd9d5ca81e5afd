"""WebSocket, the transport that passes every proxy: `connect` for a client, `accept` for a server.

Who does what: the libraries do the opening handshake and decide what everything unusual means (pings,
closes, fragments); bulk is ours, because neither library can move it without a copy, a lock or a wait too
many.  websocket-client asks, over a wire that `dialer` made; simple-websocket answers.  Extensions are
never negotiated: the client offers none, the server does not let the library see an offer, and so
permessage-deflate, which simple-websocket always accepts, cannot happen to ciphertext.

The client offers `http/1.1` alone in ALPN (with `h2` every proxy would choose that, and WebSocket's
Upgrade does not exist there), follows no redirect, and explains every other answer (`qanat.transports.dial.errors`).
Used by the running client, and by the front door, which has read the request already.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import simple_websocket
import websocket
from wsproto.utilities import RemoteProtocolError

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, TransportError
from qanat.base.version import __version__
from qanat.transports.dial.answer_fields import cookies
from qanat.transports.dial.dialer import dial, opening
from qanat.transports.dial.errors import explain_status
from qanat.transports.dial.http_answer import AnswerReader
from qanat.transports.dial.route import DIRECT, Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import MAX_MESSAGE, Pipe, Wire
from qanat.transports.websocket.machine import Capture, ClientMachine, NoThread, ServerMachine, new_client
from qanat.transports.websocket.pipe import WebSocketPipe
from qanat.transports.wire.tls import TlsWire

SUBPROTOCOL = "qanat.1"
ALPN = ("http/1.1",)

_HEADERS = (("User-Agent", f"qanat/{__version__}"),)

_NO_REWRITING = "a proxy on the path may rewrite or cache answers: exempt the tunnel's path from that"

_UPGRADE_HEADERS = ("upgrade", "connection", "sec-websocket-accept", "sec-websocket-protocol")


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A request head as the front door read it."""

    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # names in lower case, in the order sent
    method: str = "GET"

    def value(self, name: str) -> str:
        """All values of the header `name` (lower case), joined by commas (RFC 9110 §5.3)."""
        return ", ".join(value for key, value in self.headers if key == name)

    def tokens(self, name: str) -> frozenset[str]:
        """Return the comma-separated items of a header, in lower case."""
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
    }
    if request.value("sec-websocket-protocol"):
        environ["HTTP_SEC_WEBSOCKET_PROTOCOL"] = SUBPROTOCOL
    try:
        server = simple_websocket.Server(
            environ, subprotocols=[SUBPROTOCOL], max_message_size=MAX_MESSAGE, thread_class=NoThread
        )
    except (RemoteProtocolError, simple_websocket.ConnectionError) as error:
        raise UpgradeRefused(400, f"not a WebSocket request: {error}") from error
    wire.send_all(capture.take())
    return WebSocketPipe(wire, ServerMachine(server, capture), is_client=False, first=already_read)


def connect(url: TunnelUrl, *, route: Route = DIRECT, deadline: Deadline, cancel: Cancel | None = None) -> Pipe:
    """Dial `url` by `route`, upgrade, and return the pipe.  Blocks until `deadline`, or until `cancel` is canceled.

    Raises TransportError whose hint says what to do, and UsageError for files that `route` names and that
    cannot be used.
    """
    cancel = cancel or Cancel()
    wire = dial(url, alpn=ALPN, deadline=deadline, route=route, cancel=cancel)
    with opening(wire, deadline, cancel, route):
        if isinstance(wire, TlsWire) and wire.alpn not in (None, *ALPN):
            raise TransportError(
                f"{url.address} chose {wire.alpn} though only http/1.1 was offered",
                hint="its TLS is broken: look at what terminates TLS there",
            )
        with cancel.waking(wire.close):
            return _upgrade(url, route, wire, deadline)


def check_offer(request: UpgradeRequest) -> None:
    """Raise UpgradeRefused unless this asks for what we speak, however the WebSocket is opened."""
    if request.value("sec-websocket-version").strip() != "13":
        raise UpgradeRefused(400, "not version 13 of WebSocket")
    # Some corporate proxies take the header away: without any offer the answer names no subprotocol either.
    offered = request.tokens("sec-websocket-protocol")
    if offered and SUBPROTOCOL not in offered:
        raise UpgradeRefused(400, f"the subprotocol {SUBPROTOCOL} is not offered")


def _check_request(request: UpgradeRequest) -> None:
    if not is_upgrade(request):
        raise UpgradeRefused(400, "not a request for WebSocket")
    try:
        key = base64.b64decode(request.value("sec-websocket-key").strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 16:
        raise UpgradeRefused(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    check_offer(request)


def check_accepted(headers: Mapping[str, str], url: TunnelUrl) -> TransportError | None:
    """Return what is wrong with an answer that opens a WebSocket, which may have been opened in any way."""
    if headers.get("sec-websocket-extensions"):
        return TransportError(f"{url} wants a WebSocket extension that was not offered", hint=_NO_REWRITING)
    if headers.get("sec-websocket-protocol", SUBPROTOCOL) != SUBPROTOCOL:
        return TransportError(
            f"{url} is a WebSocket server, but not a Qanat server",
            hint="check the path in the URL against `path` in the server's configuration",
        )
    return None


def _upgrade(url: TunnelUrl, route: Route, wire: Wire, deadline: Deadline) -> Pipe:
    opening = _Opening(url, wire, deadline)
    client, capture = new_client()
    scheme = "wss" if url.tls else "ws"
    try:
        client.connect(  # type: ignore[no-untyped-call]
            f"{scheme}://{url.authority}{url.path}",
            socket=opening,
            host=route.authority(url),
            subprotocols=[SUBPROTOCOL],
            suppress_origin=True,
            redirect_limit=0,  # _Opening stops at a redirect; were it not for that, three would be followed
            header=[f"{name}: {value}" for name, value in route.with_headers(_HEADERS)],
        )
    except websocket.WebSocketException as error:
        raise TransportError(
            f"{url} answered 101, but not as WebSocket demands: {error}",
            hint=_NO_REWRITING,
        ) from error
    wire.set_read_timeout(None)
    client.sock = capture  # type: ignore[assignment]  # from now on it is fed frame by frame
    pipe = WebSocketPipe(wire, ClientMachine(client, capture), is_client=True, first=opening.rest)
    pipe.cookies = opening.cookies
    return pipe


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
        self.cookies: Mapping[str, str] = {}

    def send(self, data: bytes) -> int:
        with contextlib.suppress(TransportError):  # what reading says is better: a server may refuse us and close
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
        url = self._url
        no_answer = "check the port, and the log of the server or the proxy in front of it"
        if not url.tls:
            no_answer = "if the server speaks TLS, write wss:// instead of ws://; otherwise check the port"
        reader = AnswerReader(
            self._wire,
            self._deadline,
            str(url),
            check="check host and port in the URL",
            no_answer=no_answer,
            use_tls="write wss:// instead of ws:// in the URL",
        )
        status, headers = reader.read()
        while 100 <= status < 200 and status != 101:  # 103 Early Hints, for example, may come first
            status, headers = reader.read()
        if status != 101:
            reason = reader.read_reason(headers) if status == 400 else ""
            raise explain_status(status, headers, "websocket", url, reason=reason)
        self.rest = reader.rest
        self.cookies = cookies(headers)
        self._check_headers(headers)
        # A proxy may take the subprotocol away, on which the library would insist.
        headers.setdefault("sec-websocket-protocol", SUBPROTOCOL)
        shown = "".join(f"{name}: {headers[name]}\r\n" for name in _UPGRADE_HEADERS if name in headers)
        return f"HTTP/1.1 101 Switching Protocols\r\n{shown}\r\n".encode("latin-1")

    def _check_headers(self, headers: dict[str, str]) -> None:
        problem = check_accepted(headers, self._url)
        try:
            if problem is not None:
                raise problem
        finally:
            del problem  # its traceback has this frame
        if not all(headers.get(name, "").isascii() for name in _UPGRADE_HEADERS):
            raise TransportError(
                f"{self._url} answered 101, but not as WebSocket demands: a header of it is not ASCII",
                hint=_NO_REWRITING,
            )
