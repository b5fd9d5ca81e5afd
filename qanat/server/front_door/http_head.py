"""One HTTP/1.1 request head in, one short answer out: bytes only, no sockets.

The grammar is h11's; what lives here is the bound on a head's size, the few questions that the front
door asks about a request, and the form of its answers.  Every answer ends its connection: `/healthz` is asked
for once, and a connection that is never reused cannot confuse two requests.
Used by `qanat.server.front_door.connection`.
"""

from __future__ import annotations

import email.utils
from dataclasses import dataclass
from enum import Enum, auto

import h11

from qanat.base.proxy_protocol import V1_BEGINNING, V2_SIGNATURE
from qanat.base.untrusted import header_text

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What an HTTP/2 client sends first (RFC 9113 §3.4)."""

_TLS_HANDSHAKE = b"\x16\x03"
"""How a TLS record with a ClientHello begins (RFC 8446 §5.1)."""

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Opening(Enum):
    """What the first bytes of a connection say about the rest."""

    UNDECIDED = auto()
    HTTP1 = auto()
    HTTP2 = auto()
    TLS = auto()
    PROXY = auto()


_OPENINGS = (
    (HTTP2_PREFACE, Opening.HTTP2),
    (_TLS_HANDSHAKE, Opening.TLS),
    (V1_BEGINNING, Opening.PROXY),
    (V2_SIGNATURE, Opening.PROXY),
)


def classify_opening(first: bytes | bytearray) -> Opening:
    """Tell the protocol from the first bytes; UNDECIDED while they may still become another than HTTP/1."""
    for beginning, opening in _OPENINGS:
        if first.startswith(beginning):
            return opening
    if any(beginning.startswith(first) for beginning, _ in _OPENINGS):
        return Opening.UNDECIDED
    return Opening.HTTP1


class BadRequest(Exception):
    """A request head that is not acceptable.  `status` is the answer; the text is for our log only."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request head that h11 found to be well-formed, and the bytes that came after it."""

    method: str
    target: str  # as sent: origin-form, absolute-form, "*" or authority
    headers: tuple[tuple[str, str], ...]  # names in lower case, in the order sent
    version: str  # "1.0", "1.1"; RFC 9112 §2.3 allows later minor versions
    rest: bytes  # what was read beyond the head

    def values(self, name: str) -> tuple[str, ...]:
        """Return all values of the header `name` (lower case), in the order sent."""
        return tuple(value for key, value in self.headers if key == name)

    @property
    def path(self) -> str:
        """The path without query, of origin-form or absolute-form (RFC 9112 §3.2); "" for the other forms."""
        target = self.target
        scheme, separator, after = target.partition("://")
        if separator and scheme.lower() in ("http", "https"):
            _, slash, path = after.partition("/")
            target = slash + path
        return target.partition("?")[0] if target.startswith("/") else ""

    @property
    def query(self) -> str:
        """What follows the path's question mark, "" without one."""
        return self.target.partition("?")[2]

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        return bool(self.values("transfer-encoding")) or any(v.strip("0 ") for v in self.values("content-length"))

    @property
    def may_be_upgraded(self) -> bool:
        """Whether `Upgrade` counts: not with HTTP/1.0 (RFC 9110 §7.8), and not with a body, whose bytes would be
        taken for the new protocol's."""
        return self.version != "1.0" and not self.has_body


class HeadReader:
    """Collects the bytes of one request head, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        """Take at most `limit` bytes."""
        self._limit = limit
        self._received = 0
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limit)

    @property
    def room(self) -> int:
        """How many bytes `feed` may still be given; never 0 while the head is incomplete."""
        return self._limit - self._received

    def feed(self, data: bytes) -> RequestHead | None:
        """Take at most `room` more bytes, at least one; return the head once it is whole.  Raises BadRequest."""
        self._received += len(data)
        try:
            self._h11.receive_data(data)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            error.__traceback__ = None  # h11 raises it in a method of its own, which is a cycle
            raise BadRequest(str(error), status=error.error_status_hint) from error
        if isinstance(event, h11.Request):
            if not event.http_version.startswith(b"1."):
                raise BadRequest("a version of HTTP that is not spoken here", status=505)
            return RequestHead(
                method=header_text(event.method),
                target=header_text(event.target),
                headers=tuple((header_text(name), header_text(value)) for name, value in event.headers),
                version=header_text(event.http_version),
                rest=bytes(self._h11.trailing_data[0]),
            )
        if self._received >= self._limit:
            raise BadRequest(f"request head of more than {self._limit} bytes", status=431)
        return None


def answer(status: int, body: str = "", *, retry_after: int | None = None, to_head: bool = False) -> bytes:
    """Return a whole plain-text answer that ends the connection; `to_head` leaves the body out (RFC 9110 §9.3.2).

    It never names a server, and never has an `Upgrade` header, which a proxy may not pass on to HTTP/2.
    """
    reason = _REASONS.get(status, "Error")
    content = (body or f"{reason}\n").encode()
    lines = [
        f"HTTP/1.1 {status} {reason}",
        f"Date: {email.utils.formatdate(usegmt=True)}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if retry_after is not None:
        lines.append(f"Retry-After: {retry_after}")
    head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    return head if to_head else head + content
