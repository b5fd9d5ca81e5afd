"""A request as an HTTP/2 connection hands it to whoever decides what becomes of it, and what that may be.

Used by the front door, which writes the `Route`, and by `http2_core` and `http2_server`, which follow it.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qanat.transports.http2.dialect import Dialect, Headers

if TYPE_CHECKING:
    from qanat.transports.http2.server import Exchange


@dataclass(frozen=True, slots=True)
class Http2Request:
    """A request's head (RFC 9113 §8.3.1), which h2 found to be well-formed."""

    stream_id: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # pseudo-headers first, names in lower case
    ended: bool  # there is no body

    def values(self, name: str) -> tuple[str, ...]:
        """All values of the header `name` (lower case), in the order sent."""
        return tuple(value for key, value in self.headers if key == name)

    def value(self, name: str) -> str:
        """The first value of the header `name`, "" without one."""
        return next(iter(self.values(name)), "")

    @property
    def method(self) -> str:
        return self.value(":method")

    @property
    def path(self) -> str:
        """Without the query; "" for CONNECT."""
        return self.value(":path").partition("?")[0]

    @property
    def size(self) -> int:
        """As RFC 9113 §6.5.2 counts a header list."""
        return sum(len(name) + len(value) + 32 for name, value in self.headers)


@dataclass(frozen=True, slots=True)
class Plain:
    """A whole answer; the body is a few words."""

    status: int
    body: str = ""
    headers: Headers = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The request is to become a pipe: `handle` runs in a thread of its own, and when it returns all is over."""

    dialect: Dialect
    handle: Callable[[Exchange], None]


Route = Callable[[Http2Request], Plain | Tunnel]
"""Called with the connection's lock held: only decides, does not block."""


def plain_answer(request: Http2Request, answer: Plain) -> tuple[Headers, bytes]:
    """Headers and body of a plain answer; the body is left out for HEAD (RFC 9110 §9.3.2)."""
    content = (answer.body or f"{answer.status}\n").encode()
    headers = [
        (":status", str(answer.status)),
        ("date", email.utils.formatdate(usegmt=True)),
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", str(len(content))),
        ("cache-control", "no-store"),
        *answer.headers,
    ]
    return headers, b"" if request.method == "HEAD" else content
