"""gRPC: the same open POST as `http2`, in the form that gRPC gives it, for paths that let nothing else be open.

One bidirectional call of docs/qanat.proto: each message is a `Record` with one field of bytes, behind gRPC's five
bytes of length, and an orderly end is `grpc-status` 0 in the trailers.  Any gRPC program that has the .proto can
speak it; CDNs and nginx's `grpc_pass` let it through unbuffered.  No deadline is ever asked for (`grpc-timeout`),
since it would end the tunnel.  The form is that of gRPC's PROTOCOL-HTTP2.  `connect` is used by the running client; the
front door uses `DIALECT` and `METHOD_PATH`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, TransportError
from qanat.base.untrusted import number, percent_decoded, retry_after_milliseconds
from qanat.base.version import __version__
from qanat.transports.dial.errors import explain_status
from qanat.transports.dial.route import DIRECT, Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2.client import open_pipe
from qanat.transports.http2.dialect import Headers, MessageDialect
from qanat.transports.pipe import MAX_MESSAGE, Pipe

CONTENT_TYPE = "application/grpc"

METHOD_PATH = "/qanat.Tunnel/Connect"
"""The path that a stub made from docs/qanat.proto asks for."""

_PREFIX = struct.Struct("!BI")  # compressed or not, length
_FIELD = 0x0A  # field 1, length-delimited
_MAX_BODY = MAX_MESSAGE + 4  # the field's tag, and three bytes of length

OK = 0
_UNKNOWN = 2
_NAMES = {
    0: "OK",
    1: "CANCELLED",
    2: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    16: "UNAUTHENTICATED",
}
_OF_STATUS = {400: 3, 404: 12, 431: 8, 503: 14}
_HINTS = {
    5: "check the path in the URL against `path` in the server's configuration",
    7: "allow the tunnel's path in the firewall or access rule; on CloudFlare switch gRPC on under Network",
    12: "check the path in the URL against `path` in the server's configuration",
    14: "it will be tried again later; if it stays, look at the log of the server, or of the proxy in front of it",
    16: "exempt the tunnel's path from the login; the tunnel has its own authentication",
}


class GrpcDialect(MessageDialect):
    """A stream of `Record` messages, never compressed."""

    name = "grpc"
    prefix_size = _PREFIX.size
    overhead = _PREFIX.size + 4

    def body_size(self, prefix: bytes | memoryview) -> int:
        """See `Dialect.body_size`."""
        compressed: int
        size: int
        compressed, size = _PREFIX.unpack(prefix)
        if compressed:
            raise ProtocolError("a compressed gRPC message, which was not agreed on")
        if size > _MAX_BODY:
            raise ProtocolError(f"a gRPC message of {size} bytes, above the limit of {_MAX_BODY}")
        return size

    def unwrap(self, body: memoryview) -> memoryview:
        """See `Dialect.unwrap`."""
        if not body:  # how protobuf writes an empty field
            return body
        if body[0] != _FIELD:
            raise ProtocolError("a gRPC message that is not a Record")
        length = shift = 0
        for at in range(1, min(len(body), 6)):
            length |= (body[at] & 0x7F) << shift
            shift += 7
            if body[at] < 0x80:
                if length != len(body) - at - 1:
                    raise ProtocolError("a Record with more than its one field")
                if length > MAX_MESSAGE:
                    raise ProtocolError(f"a message of {length} bytes, above the limit of {MAX_MESSAGE}")
                return body[at + 1 :]
        raise ProtocolError("a Record with a malformed length")

    def wrap(self, buffer: memoryview, at: int) -> int:
        """See `Dialect.wrap`."""
        length = len(buffer) - at
        end = at
        size = 1 if length < 0x80 else 2 if length < 0x4000 else 3
        at -= size
        for position in range(at, end):
            buffer[position] = (length & 0x7F) | (0x80 if position + 1 < end else 0)
            length >>= 7
        at -= 1
        buffer[at] = _FIELD
        at -= _PREFIX.size
        _PREFIX.pack_into(buffer, at, 0, len(buffer) - at - _PREFIX.size)
        return at

    def request_headers(self) -> Headers:
        """See `Dialect.request_headers`."""
        return [("content-type", CONTENT_TYPE), ("te", "trailers"), ("user-agent", f"grpc-python-qanat/{__version__}")]

    def response_headers(self) -> Headers:
        """See `Dialect.response_headers`."""
        return [(":status", "200"), ("content-type", CONTENT_TYPE)]

    def trailers(self) -> Headers:
        """See `Dialect.trailers`."""
        return [("grpc-status", str(OK))]

    def refusal(self, status: int, retry_after: int | None) -> Headers | None:
        """See `Dialect.refusal`."""
        code = _OF_STATUS.get(status, _UNKNOWN)
        headers = [
            (":status", "200"),
            ("content-type", CONTENT_TYPE),
            ("grpc-status", str(code)),
            ("grpc-message", _NAMES[code].lower()),
        ]
        if retry_after is not None:
            headers.append(("grpc-retry-pushback-ms", str(retry_after * 1000)))
        return headers

    def check_response(self, status: int, headers: Mapping[str, str], url: TunnelUrl) -> TransportError | None:
        """See `Dialect.check_response`."""
        if status != 200 or not headers.get("content-type", "").startswith(CONTENT_TYPE):
            return explain_status(status, headers, self.name, url)
        if "grpc-status" not in headers:
            return None
        return TransportError(
            f"{url} over {self.name}: {self.describe_trailers(headers)}",
            hint=_HINTS.get(_code(headers), "look at the log of the server, or of the proxy in front of it"),
            retry_after=retry_after_milliseconds(headers.get("grpc-retry-pushback-ms", "")),
        )

    def describe_trailers(self, headers: Mapping[str, str]) -> str:
        """See `Dialect.describe_trailers`."""
        if "grpc-status" not in headers:
            return ""
        code = _code(headers)
        message = percent_decoded(headers.get("grpc-message", ""))
        return f"gRPC status {code} {_NAMES.get(code, '')}".rstrip() + (f": {message}" if message else "")


def _code(headers: Mapping[str, str]) -> int:
    code = number(headers.get("grpc-status", ""), 999)
    return _UNKNOWN if code is None else code


DIALECT = GrpcDialect()


def connect(url: TunnelUrl, *, route: Route = DIRECT, deadline: Deadline, cancel: Cancel | None = None) -> Pipe:
    """Dial `url` by `route` and open a pipe on a connection of its own.

    Blocks until `deadline`, or until `cancel` is canceled.  Raises TransportError whose hint says what to do, and
    UsageError for files that `route` names and that cannot be used.
    """
    return open_pipe(url, DIALECT, route=route, deadline=deadline, cancel=cancel)
