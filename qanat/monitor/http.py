"""What the monitoring listener says and hears: a request, a response, and an answer that goes on.  Bytes only.

Whatever serves a path is a `Handler`; `qanat.monitor.listener` has the sockets, and `qanat.monitor.access` decides who
may ask.
"""

from __future__ import annotations

import email.utils
import http
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from qanat.base.request_head import RequestHead

TEXT = "text/plain; charset=utf-8"
_GUARDS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer that does not have its own: no other site may show, read or keep it."""


class EventStream(Protocol):
    """An answer that goes on after its head, as server-sent events do.  Any thread may call its methods."""

    def send(self, data: bytes) -> bool:
        """Send `data` as far as the system takes it at once, and keep the rest; False once this is over.

        Does not block.  Whoever has not taken what was sent before is too slow, and is cut off.
        """

    def close(self) -> None:
        """End the answer.  Idempotent; does not block."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when this is over; at once if it is.  It must not block."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers."""

    body: bytes = b""
    content_type: str = TEXT
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers; they replace those that every answer has."""
    stream: Callable[[EventStream], None] | None = None
    """Called, when the head is sent, with what the answer goes on with; it must not block for long."""


Handler = Callable[[RequestHead], Response]
"""Answers a GET.  It is called in a thread of its own, may block for a moment, and may be called by several at once."""


def failure(status: int, text: str, **headers: str) -> Response:
    """Return a refusal, with what to do about it in `text`.  Words of a header's name are joined by underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(f"{text}\n".encode(), status=status, headers=named)


def encode_head(response: Response) -> bytes:
    """Return the head of an answer, which ends its connection (RFC 9112 §9.6)."""
    try:
        reason = http.HTTPStatus(response.status).phrase
    except ValueError:
        reason = "Error"
    headers = {
        "Date": email.utils.formatdate(usegmt=True),
        "Content-Type": response.content_type,
        "Connection": "close",
        **_GUARDS,
        **response.headers,
    }
    if response.stream is None:
        headers["Content-Length"] = str(len(response.body))
    lines = [f"HTTP/1.1 {response.status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
