"""HTTP/2 without more: one POST whose request body and response body are both open as long as the pipe lives.

In DATA, each message has its length in front as u32.  Passes every proxy that does not wait for the end of a request
before it sends it on (docs/PROTOCOL.md §6.2).  `connect` is used by the running client; the front door uses `DIALECT`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, TransportError
from qanat.base.version import __version__
from qanat.transports.dial.errors import explain_status
from qanat.transports.dial.route import DIRECT, Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2.client import open_pipe
from qanat.transports.http2.dialect import Headers, MessageDialect
from qanat.transports.pipe import MAX_MESSAGE, Pipe

CONTENT_TYPE = "application/octet-stream"

_LENGTH = struct.Struct("!I")


class Http2Dialect(MessageDialect):
    """u32 length and message; an end of DATA is the end."""

    name = "http2"
    prefix_size = _LENGTH.size
    overhead = _LENGTH.size

    def body_size(self, prefix: bytes | memoryview) -> int:
        """See `Dialect.body_size`."""
        size: int
        (size,) = _LENGTH.unpack(prefix)
        if size > MAX_MESSAGE:
            raise ProtocolError(f"a message of {size} bytes, above the limit of {MAX_MESSAGE}")
        return size

    def unwrap(self, body: memoryview) -> memoryview:
        """See `Dialect.unwrap`."""
        return body

    def wrap(self, buffer: memoryview, at: int) -> int:
        """See `Dialect.wrap`."""
        _LENGTH.pack_into(buffer, at - _LENGTH.size, len(buffer) - at)
        return at - _LENGTH.size

    def request_headers(self) -> Headers:
        """See `Dialect.request_headers`."""
        return [("content-type", CONTENT_TYPE), ("user-agent", f"qanat/{__version__}")]

    def response_headers(self) -> Headers:
        # nginx and others hold answers back, transform or store them unless told not to.
        """See `Dialect.response_headers`."""
        return [
            (":status", "200"),
            ("content-type", CONTENT_TYPE),
            ("cache-control", "no-store, no-transform"),
            ("x-accel-buffering", "no"),
        ]

    def check_response(self, status: int, headers: Mapping[str, str], url: TunnelUrl) -> TransportError | None:
        """See `Dialect.check_response`."""
        if status == 200 and headers.get("content-type", "") == CONTENT_TYPE:
            return None
        return explain_status(status, headers, self.name, url)


DIALECT = Http2Dialect()


def connect(url: TunnelUrl, *, route: Route = DIRECT, deadline: Deadline, cancel: Cancel | None = None) -> Pipe:
    """Dial `url` by `route` and open a pipe on a connection of its own.

    Blocks until `deadline`, or until `cancel` is canceled.  Raises TransportError whose hint says what to do, and
    UsageError for files that `route` names and that cannot be used.
    """
    return open_pipe(url, DIALECT, route=route, deadline=deadline, cancel=cancel)
