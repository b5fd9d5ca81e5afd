"""The troubles by name: what each is, and which transports get through it.

    for trouble in TROUBLES:
        with trouble.start(server_port, tmp_path) as path:
            ... path.url, path.ca_file ...

`passes` are the transports by which an application's first byte arrives if they do their best; `lasts` are those of
them that are not cut again and again by design.  A transport that is in neither may still get through now and then.
"""

from __future__ import annotations

import contextlib
import socket
import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.harness import Program
from tests.support.machine.certificates import Authority, Certificate
from tests.support.machine.ports import SilentListener, unused_port
from tests.support.machine.web import HOST
from tests.support.troubles import programs
from tests.support.troubles.relay import Relay
from tests.support.troubles.rules import Portal, Rules

ALL = frozenset({"websocket", "websocket-h2", "http2", "grpc", "split-streamed", "split-packets"})
SPLIT = frozenset({"split-streamed", "split-packets"})
PACKETS = frozenset({"split-packets"})
OPEN_POSTS = frozenset({"http2", "grpc"})
NONE: frozenset[str] = frozenset()

START = Callable[[Path, int, int, Certificate | None], Program]


@dataclass(frozen=True, slots=True)
class TroubledPath:
    """A path that is up: what a client dials, and what it has to trust (None without TLS)."""

    url: str
    port: int
    ca_file: Path | None
    relay: Relay | None = None
    """For the troubles that are a relay: its counts, and `cut`."""
    addresses: tuple[tuple[str, int], ...] = ()
    """Where the name has several addresses: all of them, the dead one first."""

    @property
    def tls(self) -> bool:
        return self.ca_file is not None


@dataclass(frozen=True, slots=True)
class Trouble:
    """One way in which a path can be troubled: a relay with `rules`, or a real `program`."""

    name: str
    what: str
    passes: frozenset[str]
    rules: Rules | None = None
    program: START | None = None
    lasts: frozenset[str] = field(default=NONE)
    tls_only: bool = False
    has_tls: bool = True

    @contextlib.contextmanager
    def start(self, server_port: int, directory: Path, *, tls: bool = False, seed: int = 1) -> Iterator[TroubledPath]:
        """Put it in front of the server on 127.0.0.1, for the length of a `with` block.

        `directory` gets its files.  With `tls` the URL is wss://, but for a program that has none.
        """
        directory.mkdir(parents=True, exist_ok=True)
        tls = (tls or self.tls_only) and self.has_tls
        authority = Authority(directory) if tls else None
        ca_file = authority.ca_file if authority is not None else None
        issued = authority.issue(HOST) if authority is not None else None
        with ExitStack() as stack:
            if self.program is not None:
                port = unused_port()
                stack.enter_context(self.program(directory, port, server_port, issued))
                yield TroubledPath(_url(port, tls), port, ca_file)
                return
            assert self.rules is not None
            if self.rules.intercepts_tls:
                other = directory / "interceptor"
                other.mkdir(exist_ok=True)
                issued = Authority(other).issue(HOST)
            port = 0
            addresses: tuple[tuple[str, int], ...] = ()
            if self.rules.dead_first_address:
                dead = SilentListener(stack, "127.0.0.2").address
                port = dead[1]
                addresses = (dead, ("127.0.0.1", port))
                stack.enter_context(_resolving(HOST, addresses))
            relay = stack.enter_context(Relay(("127.0.0.1", server_port), self.rules, issued, port=port, seed=seed))
            yield TroubledPath(_url(relay.port, tls), relay.port, ca_file, relay, addresses)


def _url(port: int, tls: bool) -> str:
    return f"{'wss' if tls else 'ws'}://{HOST}:{port}/tunnel"


@contextlib.contextmanager
def _resolving(name: str, addresses: tuple[tuple[str, int], ...]) -> Iterator[None]:
    """In this process `name` has these addresses, in this order.  Another process needs a patch of its own."""
    real = socket.getaddrinfo

    def lookup(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host == name:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, int(port or 0)))
                for address, _ in addresses
            ]
        return real(host, port, *args, **kwargs)

    with unittest.mock.patch("socket.getaddrinfo", lookup):
        yield


def _relay(
    name: str,
    what: str,
    passes: frozenset[str],
    *,
    lasts: frozenset[str] | None = None,
    tls_only: bool = False,
    **rules: Any,
) -> Trouble:
    return Trouble(
        name, what, passes, rules=Rules(**rules), lasts=passes if lasts is None else lasts, tls_only=tls_only
    )


NO_WEBSOCKET: dict[str, Any] = {"upgrade": False, "extended_connect": False}
LIVELY: dict[str, Any] = {"headers": (("server", "cloudflare"), ("cf-ray", "8f0a1b2c3d4e5f60-FRA"))}

RELAYS = (
    _relay("nothing", "an honest relay: what must not be taken for a trouble", ALL),
    _relay(
        "no-upgrade",
        "WebSocket's two headers are dropped; no RFC 8441",
        ALL - {"websocket", "websocket-h2"},
        **NO_WEBSOCKET,
    ),
    _relay(
        "426-over-h2",
        "over HTTP/2 all is 426, with a header that HTTP/2 forbids",
        frozenset({"websocket"}),
        upgrade_required=True,
        extended_connect=False,
    ),
    _relay(
        "request-held",
        "a request is passed on when it has ended; no WebSocket",
        SPLIT,
        hold_request=True,
        **NO_WEBSOCKET,
    ),
    _relay(
        "answer-held-2s",
        "an answer's bytes are collected for 2 s at a time; no WebSocket",
        OPEN_POSTS | SPLIT,
        hold_answer_seconds=2.0,
        **NO_WEBSOCKET,
    ),
    _relay(
        "answer-held-64k",
        "an answer is held until 64 KiB of it have come, or its end; no WebSocket",
        PACKETS,
        hold_answer_bytes=64 * 1024,
        **NO_WEBSOCKET,
    ),
    _relay(
        "answer-held", "an answer is held until its end; no WebSocket", PACKETS, hold_answer_end=True, **NO_WEBSOCKET
    ),
    _relay(
        "both-held",
        "requests and answers are held until their ends; no WebSocket",
        PACKETS,
        hold_request=True,
        hold_answer_end=True,
        **NO_WEBSOCKET,
    ),
    _relay(
        "both-held-but-websocket",
        "requests and answers are held; WebSocket passes",
        frozenset({"websocket"}) | PACKETS,
        hold_request=True,
        hold_answer_end=True,
        extended_connect=False,
    ),
    _relay("h2-only", "HTTP/2 alone, with RFC 8441", ALL - {"websocket"}, http1=False),
    _relay(
        "h2-only-without-8441",
        "HTTP/2 alone, without RFC 8441",
        OPEN_POSTS | SPLIT,
        http1=False,
        extended_connect=False,
    ),
    _relay("h1-only", "HTTP/1.1 alone", frozenset({"websocket"}) | SPLIT, http2=False),
    _relay("h1-only-without-upgrade", "HTTP/1.1 alone, without Upgrade", SPLIT, http2=False, upgrade=False),
    _relay(
        "grpc-refused",
        "gRPC is answered with 403; no WebSocket",
        frozenset({"http2"}) | SPLIT,
        grpc=False,
        **NO_WEBSOCKET,
    ),
    _relay(
        "body-limit",
        "413 above 1 MB of a request, and open ones are reset there; no WebSocket",
        OPEN_POSTS | SPLIT,
        lasts=SPLIT,
        body_limit=1_000_000,
        **NO_WEBSOCKET,
    ),
    *(
        _relay(
            f"idle-{seconds}",
            f"what is silent for {seconds} s in either direction is cut",
            ALL,
            lasts=ALL if seconds > 15 else NONE,
            idle=float(seconds),
        )
        for seconds in (10, 30, 60, 125)
    ),
    _relay("cut-after-30s", "every exchange is cut after 30 s", ALL, lasts=PACKETS, life=30.0),
    _relay(
        "close-after-100",
        "a connection is closed after 100 requests; no WebSocket",
        OPEN_POSTS | SPLIT,
        requests_per_connection=100,
        **NO_WEBSOCKET,
    ),
    _relay(
        "one-at-a-time",
        "one request at a time for each connection; no WebSocket",
        OPEN_POSTS | SPLIT,
        one_at_a_time=True,
        **NO_WEBSOCKET,
    ),
    _relay(
        "posts-lost",
        "one POST in 100 has no answer; requests are held, no WebSocket",
        SPLIT,
        lose_posts=100,
        hold_request=True,
        **NO_WEBSOCKET,
    ),
    _relay(
        "posts-repeated",
        "one POST in 100 comes twice; requests are held, no WebSocket",
        SPLIT,
        repeat_posts=100,
        hold_request=True,
        **NO_WEBSOCKET,
    ),
    _relay(
        "tls-intercepted",
        "TLS ends at somebody whose authority nobody trusts",
        NONE,
        intercepts_tls=True,
        tls_only=True,
    ),
    _relay("portal-page", "a captive portal: 200 with a page to everything", NONE, portal=Portal.PAGE),
    _relay("portal-redirect", "a captive portal: 302 to its login", NONE, portal=Portal.REDIRECT),
    _relay(
        "black-hole", "once a WebSocket is open nothing passes, and nobody is told", OPEN_POSTS | SPLIT, black_hole=True
    ),
    _relay(
        "dead-first-address", "the name has two addresses, and the first never answers", ALL, dead_first_address=True
    ),
    _relay(
        "cdn",
        "a CDN's edge: HTTP/2, no RFC 8441, requests held but for gRPC, idle cut, random cuts",
        frozenset({"grpc"}) | SPLIT,
        lasts=frozenset({"grpc"}) | SPLIT,
        http1=False,
        extended_connect=False,
        hold_request=True,
        hold_request_grpc=False,
        idle=100.0,
        random_life=(20.0, 60.0),
        **LIVELY,
    ),
    _relay(
        "cdn-without-grpc",
        "the same, and gRPC is switched off in the zone",
        SPLIT,
        http1=False,
        extended_connect=False,
        hold_request=True,
        grpc=False,
        idle=100.0,
        random_life=(20.0, 60.0),
        **LIVELY,
    ),
    _relay(
        "worst",
        "HTTP/1.1, no Upgrade, both bodies held, 1 MB, cuts, lost and repeated POSTs, 100 requests",
        PACKETS,
        http2=False,
        upgrade=False,
        hold_request=True,
        hold_answer_end=True,
        body_limit=1_000_000,
        idle=10.0,
        life=30.0,
        requests_per_connection=100,
        one_at_a_time=True,
        lose_posts=100,
        repeat_posts=100,
    ),
)

PROGRAMS = (
    Trouble(
        "nginx",
        "nginx as Debian installs it, with proxy_pass and nothing else",
        SPLIT,
        program=programs.start_nginx,
        lasts=SPLIT,
    ),
    Trouble("apache", "Apache with ProxyPass http://", SPLIT, program=programs.start_apache, lasts=SPLIT),
    Trouble("h2o", "h2o with proxy.reverse.url", SPLIT, program=programs.start_h2o, lasts=SPLIT),
    Trouble(
        "varnish",
        "Varnish with its built-in rules and HTTP/2",
        SPLIT,
        program=programs.start_varnish,
        lasts=SPLIT,
        has_tls=False,
    ),
    Trouble("squid", "Squid in front of the server", SPLIT, program=programs.Accelerator, lasts=SPLIT),
)

TROUBLES = (*RELAYS, *PROGRAMS)
