"""Why a request was refused, in words for the log, and which requests are worth a line there.

A server on the internet is knocked at all day, so only what looks like a tunnel's client on a way that somebody set up
wrongly is told of: the right path or nearly, our headers, our content types.  Used by
`qanat.server.front_door.connection`, which has the sockets and decides how often; bytes and text only.  What is refused
to an authenticated client (`allow_connect`, `allow_listen`) is in `qanat.session.connect_rules` and
`qanat.server.access.rules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qanat.base.untrusted import header_text, words
from qanat.transports.http2 import grpc
from qanat.transports.http2 import octet_stream as http2

_MAX_PATH = 100
"""Characters of a path in a log line."""

_OURS = re.compile(rb"(?im)^(user-agent:[ \t]*qanat/|sec-websocket-protocol:[^\r\n]*qanat\.)")
_TARGET = re.compile(rb"\A(?:\r?\n)*[A-Z]+ +([^ \r\n]+)")
_ORIGIN = re.compile(r"(?i)\Ahttps?://[^/]*")
_CONTENT_TYPES = (http2.CONTENT_TYPE, grpc.CONTENT_TYPE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why, and what to do.  Neither has anything in it that a stranger sent."""

    subject: str
    reason: str
    remedy: str

    @property
    def body(self) -> str:
        """For the answer: it tells a stranger nothing that it does not know.

        The word Upgrade is not in it: what is in front may look for that.
        """
        return f"Bad Request: {self.reason}\n"


PROXY_PROTOCOL = Refusal(
    "PROXY protocol",
    "a PROXY protocol header came before the request",
    "if it is your proxy, set proxy_protocol: true, with its address in trusted_proxies; or switch the PROXY "
    "protocol off in it (nginx: proxy_protocol, HAProxy: send-proxy), and have it send X-Forwarded-For",
)
UNTRUSTED_PROXY_PROTOCOL = Refusal(
    "untrusted PROXY protocol",
    "a PROXY protocol header came before the request",
    "only the addresses in trusted_proxies may send it (proxy_protocol); if it is your proxy, add its address, "
    "and if it is one of them already, have it send one header only",
)
LOST_UPGRADE = Refusal(
    "lost upgrade",
    "a WebSocket request came without its hop-by-hop headers, or as HTTP/1.0",
    "a proxy in front drops the Upgrade and Connection headers, or speaks HTTP/1.0; nginx needs: "
    'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";',
)
TOO_LARGE = Refusal(
    "head too large",
    "the request's headers are larger than limits.header_bytes",
    "look for cookies or headers that the client or a proxy adds, or raise limits.header_bytes",
)
WRONG_PATH = Refusal(
    "wrong path",
    "there is no tunnel at this path",
    "compare it with `path` in the server's configuration, letter by letter, with the URL of the client, and with what "
    "the proxy makes of it",
)
NO_TUNNEL_REQUEST = Refusal(
    "no tunnel request",
    "the path is right, and the request is none for a tunnel",
    "a WebSocket, http2 or grpc client has to reach this server unchanged: a proxy in front may change the method or "
    "the content type, or hold the body back to give it a length",
)


def malformed(message: str) -> Refusal:
    """Return why the parser refused a request, from its own message."""
    for found, reason, remedy in (
        ("multiple Host", "the request has two Host headers", "a proxy in front adds one: have it replace Host"),
        ("Host", "the request has no Host header", "a proxy in front takes it away: have it pass Host on"),
    ):
        if found in message:
            return Refusal(reason, reason, remedy)
    return Refusal("malformed", "the request is not well-formed HTTP", "look at what the proxy in front sends")


def bad_upgrade(reason: str) -> Refusal:
    """Return why a WebSocket request was refused; `reason` is one of `qanat.transports.websocket.upgrade`."""
    return Refusal("bad upgrade", reason, "a proxy in front may take Sec-WebSocket headers away: have it pass them on")


def looks_like_client(path: str, headers: Iterable[tuple[str, str]], our_path: str) -> bool:
    """Return whether this may be a tunnel's client; `headers` have names in lower case."""
    if _nearly(path) == _nearly(our_path) or path == grpc.METHOD_PATH:
        return True
    return any(
        (name == "user-agent" and value.startswith("qanat/"))
        or (name == "sec-websocket-protocol" and "qanat." in value)
        or (name == "content-type" and value.lower().startswith(_CONTENT_TYPES) and "qanat" in path.lower())
        for name, value in headers
    )


def raw_head_looks_like_client(head: bytes, our_path: str) -> bool:
    """Do as `looks_like_client`, with the beginning of a request that no parser took."""
    return bool(_OURS.search(head)) or _nearly(raw_path(head)) == _nearly(our_path)


def raw_path(head: bytes) -> str:
    """Return the path in a request that no parser took, "" when none is found."""
    found = _TARGET.match(head)
    return _ORIGIN.sub("", header_text(found[1])).partition("?")[0] if found else ""


def shown(path: str) -> str:
    """Return a stranger's path, fit for a log line."""
    return words(path, _MAX_PATH)


def _nearly(path: str) -> str:
    return re.sub("/+", "/", f"/{path[:1024]}/").lower()
