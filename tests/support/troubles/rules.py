"""What one troubled path does to the requests that go through it: data, which `tests.support.troubles.relay` obeys."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Portal(enum.Enum):
    """What a captive portal answers to everything."""

    PAGE = "200 with a page"
    REDIRECT = "302 to its login"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """An honest relay: HTTP/1.1 and HTTP/2 towards the client, each passed on as it is; until something else is said.

    Sizes are bytes, times seconds.  What is held back, limited or lost are requests and answers; a WebSocket, once it
    is open, is carried as it comes, but for the black hole and what is cut.
    """

    http1: bool = True
    http2: bool = True
    upgrade: bool = True
    """Whether a request for an Upgrade is passed on over HTTP/1.1; if not, it loses the two headers, as in nginx."""
    extended_connect: bool = True
    """Whether RFC 8441 is announced and taken over HTTP/2; it becomes an Upgrade towards the server, as in HAProxy."""
    upgrade_required: bool = False
    """Whether over HTTP/2 every answer is 426, with the Upgrade header that HTTP/2 forbids."""
    grpc: bool = True
    """Whether requests with gRPC's content type are let through; if not, they are answered with 403."""

    hold_request: bool = False
    """Whether a request is passed on only when it has ended."""
    hold_request_grpc: bool = True
    """Whether that holds for gRPC too."""
    hold_answer_end: bool = False
    """Whether an answer is passed on only when it has ended."""
    hold_answer_bytes: int = 0
    """The answer's bytes that have to come before any is passed on."""
    hold_answer_seconds: float = 0.0
    """How long an answer's bytes, and its head, are collected before they are passed on together."""
    heed_accel: bool = False
    """Whether an answer with `X-Accel-Buffering: no` is not held back, as in nginx."""

    body_limit: int = 0
    """The bytes of a request's body from which on the answer is 413, or the stream is reset."""
    idle: float = 0.0
    """How long either direction may be silent before the exchange is cut."""
    life: float = 0.0
    """How long an exchange may last, whatever it carries."""
    random_life: tuple[float, float] | None = None
    """Between which times a connection is cut, however busy it is."""
    requests_per_connection: int = 0
    one_at_a_time: bool = False
    """Whether a request waits until the one before it on its connection has its whole answer."""
    lose_posts: int = 0
    """One POST in so many gets no answer; every other of these has reached the server."""
    repeat_posts: int = 0
    """One POST in so many reaches the server twice."""

    black_hole: bool = False
    """Whether nothing passes, either way, once a WebSocket is open; nobody is told."""
    portal: Portal | None = None
    intercepts_tls: bool = False
    """Whether its certificate is from an authority that the client does not trust."""
    dead_first_address: bool = False
    """Whether the server's name has another address first, at which nothing answers."""

    headers: tuple[tuple[str, str], ...] = ()
    """What it adds to every answer."""
