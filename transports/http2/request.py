"""A request as an HTTP/2 connection hands it to its router, and the plain answer that the router may give.

Used by the front door, which writes the `Router`, and by `core` and `server`, which follow it.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable
from dataclasses import dataclass, field

from qanat.transports.http2.dialect import Dialect, Headers


@dataclass(frozen=True, slots=True)
class Http2Request:
    """A request's head (RFC 9113 §8.3.1).

    One that is malformed concerns its stream alone: a proxy may hand on what a client of many has made up.
    """

    stream_id: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # pseudo-headers first, names in lower case
    ended: bool  # there is no body
    well_formed: bool = True  # as RFC 9113 §8.1.1 means it; otherwise the router's answer must be a refusal

    def values(self, name: str) -> tuple[str, ...]:
        """All values of the header `name` (lower case), in the order sent."""
        return tuple(value for key, value in self.headers if key == name)

    def value(self, name: str) -> str:
        """Return the first value of the header `name`, "" without one."""
        return next(iter(self.values(name)), "")

    @property
    def method(self) -> str:
        """The request's method."""
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
class PlainAnswer:
    """A whole answer; the body is a few words."""

    status: int
    body: str = ""
    headers: Headers = field(default_factory=list)


Router = Callable[[Http2Request], PlainAnswer | Dialect]
"""Decides what becomes of a request: a plain answer, or a pipe in this dialect.

Called with the connection's lock held: it only decides, and must not block.
"""


def no_budget(request: Http2Request) -> None:
    """Return that a request is charged to its connection."""


def encode_answer(request: Http2Request, answer: PlainAnswer) -> tuple[Headers, bytes]:
    """Return headers and body of a plain answer; the body is left out for HEAD (RFC 9110 §9.3.2)."""
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
