"""WebSocket over one stream of an HTTP/2 connection: extended CONNECT (RFC 8441), the `websocket-h2` transport.

The frames are WebSocket's, masked by the client, and the pipe is that of `websocket`, to which the stream is a wire.
What opens it is a request with `:protocol`, which a client may send only to an end that has offered that in SETTINGS.
For the server, proxies mostly make a WebSocket over HTTP/1.1 of it.  `connect` is used by the running client; the
front door uses `is_request` and `dialect_of`.
"""

from __future__ import annotations

from collections.abc import Mapping

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.version import __version__
from qanat.transports.dial.errors import explain_status
from qanat.transports.dial.route import DIRECT, Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2.client import open_pipe
from qanat.transports.http2.dialect import Dialect, Headers
from qanat.transports.http2.request import Http2Request
from qanat.transports.pipe import Pipe
from qanat.transports.websocket.upgrade import SUBPROTOCOL, UpgradeRequest, check_accepted, check_offer


class WebSocketDialect(Dialect):
    """CONNECT with `:protocol: websocket`; the rest is WebSocket's."""

    name = "websocket-h2"
    method = ((":method", "CONNECT"), (":protocol", "websocket"))
    extended_connect = True

    def __init__(self, *, subprotocol: bool = True) -> None:
        """`subprotocol` is whether a server's answer names it: not where the request did not."""
        self._subprotocol = subprotocol

    def request_headers(self) -> Headers:
        """See `Dialect.request_headers`."""
        return [
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", SUBPROTOCOL),
            ("user-agent", f"qanat/{__version__}"),
        ]

    def response_headers(self) -> Headers:
        """See `Dialect.response_headers`."""
        return [(":status", "200"), *([("sec-websocket-protocol", SUBPROTOCOL)] if self._subprotocol else [])]

    def check_response(self, status: int, headers: Mapping[str, str], url: TunnelUrl) -> TransportError | None:
        """See `Dialect.check_response`."""
        return check_accepted(headers, url) if status == 200 else explain_status(status, headers, self.name, url)


DIALECT = WebSocketDialect()
_UNNAMED = WebSocketDialect(subprotocol=False)


def is_request(request: Http2Request) -> bool:
    """Return whether this asks for WebSocket, be it well or badly."""
    return request.method == "CONNECT" and request.value(":protocol").lower() == "websocket"


def dialect_of(request: Http2Request) -> Dialect:
    """Return what to speak with whoever asks for WebSocket.  Raises UpgradeRefused."""
    offer = UpgradeRequest(request.path, request.headers, request.method)
    check_offer(offer)
    return DIALECT if offer.value("sec-websocket-protocol") else _UNNAMED


def connect(url: TunnelUrl, *, route: Route = DIRECT, deadline: Deadline, cancel: Cancel | None = None) -> Pipe:
    """Dial `url` by `route` and open a pipe on a connection of its own.

    Blocks until `deadline`, or until `cancel` is canceled.  Raises TransportError whose hint says what to do, and
    UsageError for files that `route` names and that cannot be used.
    """
    return open_pipe(url, DIALECT, route=route, deadline=deadline, cancel=cancel)
