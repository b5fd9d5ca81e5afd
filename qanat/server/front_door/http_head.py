"""How a connection begins, and one short answer out: bytes only, no sockets.

Request heads are read by `qanat.base.request_head`.  Every answer ends its connection: `/healthz` is asked for once,
and a connection that is never reused cannot confuse two requests.  Used by `qanat.server.front_door.connection`.
"""

from __future__ import annotations

import email.utils
from enum import Enum, auto

from qanat.base.proxy_protocol import V1_BEGINNING, V2_SIGNATURE

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
