"""What an HTTP answer that is not the tunnel most likely means, in words that say what to do.

Every transport's client meets the same proxies, gateways and wrong addresses, so the explanations are in
one place.  Facts about proxies are measured ones.  Used by each transport's client.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from qanat.base.errors import TransportError
from qanat.base.untrusted import http_date, retry_after, words
from qanat.transports.dial.urls import TunnelUrl

_CHECK_PATH = "check the path in the URL against `path` in the server's configuration, and the proxy's routes"

_REDIRECTS = (301, 302, 303, 307, 308)

_NGINX_UPGRADE = (
    "nginx needs proxy_http_version 1.1, proxy_set_header Upgrade $http_upgrade and "
    'proxy_set_header Connection "upgrade"'
)
_LET_IN = "allow the tunnel's path there, or give what an access gateway wants in `headers`"

_EXPLAINED = {
    400: (
        "400 Bad Request: it did not accept the request",
        f"a proxy in front may strip the upgrade headers: {_NGINX_UPGRADE}",
    ),
    401: (
        "401 Unauthorized: something in front of the server wants a login",
        "exempt the tunnel's path from it (the tunnel has its own authentication), or give the login in `headers`",
    ),
    403: (
        "403 Forbidden: a firewall, CDN or access rule in front of the server blocks it",
        f"{_LET_IN}; on CloudFlare look at WAF events, and switch WebSockets on under Network",
    ),
    404: ("404 Not Found: a web server answers, but there is no tunnel at this path", _CHECK_PATH),
    405: ("405 Method Not Allowed: there is another service at this path", _CHECK_PATH),
    407: (
        "407 Proxy Authentication Required: a proxy on the path wants a login",
        "it intercepts the connection: name it with its login in `proxy`, or use wss://, which it cannot read",
    ),
    421: (
        "421 Misdirected Request: the web server does not serve this host name here",
        "check the host in the URL, and `host` and `tls.server_name` where they are set",
    ),
    426: (
        "426 Upgrade Required: the request arrived without its Upgrade header",
        f"a proxy in front strips it; {_NGINX_UPGRADE}",
    ),
    431: (
        "431 Request Header Fields Too Large: the request's headers are larger than what answers takes",
        "shorten `headers`, or raise its limit: large_client_header_buffers in nginx, limits.header_bytes in Qanat",
    ),
    429: (
        "429 Too Many Requests: something in front of the server limits how often we may come",
        "it will be tried again later; raise the limit for the tunnel's path",
    ),
    500: ("500 Internal Server Error: the web server or proxy has a fault", "look at its error log"),
    501: (
        "501 Not Implemented: the proxy does not know WebSocket",
        "switch WebSocket on in it, or try `transport: http2` or grpc",
    ),
    502: (
        "502 Bad Gateway: the proxy answers, but it cannot reach the tunnel's server behind it",
        "check that the server runs, and that the proxy's backend has its address, port and http:// or https:// right",
    ),
    503: (
        "503 Service Unavailable: the server has no room now, or the proxy has no backend that is up",
        "it will be tried again later; if it stays, look at the proxy's log and the server's limits",
    ),
    504: (
        "504 Gateway Timeout: the proxy answers, but the tunnel's server behind it does not",
        "check that the server runs, and firewalls between the proxy and it",
    ),
    520: ("520: CloudFlare got an answer from the origin that it did not understand", "look at the origin's log"),
    521: ("521: the origin refused CloudFlare's connection", "check that the server runs and lets CloudFlare in"),
    522: ("522: CloudFlare's connection to the origin timed out", "check the origin's address and firewall"),
    523: ("523: CloudFlare has no route to the origin", "check the DNS record in CloudFlare"),
    524: ("524: the origin did not answer CloudFlare in time", "check that the server behind it runs"),
    525: ("525: the TLS handshake between CloudFlare and the origin failed", "check CloudFlare's SSL/TLS mode"),
    526: (
        "526: CloudFlare does not accept the origin's certificate",
        "renew it, or set CloudFlare's SSL/TLS mode to Full instead of Full (strict)",
    ),
}

_EXPLAINED_OVER_HTTP2 = {
    400: ("400 Bad Request: it did not accept the request", "a proxy may refuse a body without a length"),
    403: (
        "403 Forbidden: a firewall, CDN or access rule in front of the server blocks it",
        f"{_LET_IN}; on CloudFlare switch gRPC on under Network for `transport: grpc`, and look at WAF events",
    ),
    405: (
        "405 Method Not Allowed: what answers at this path takes no POST",
        f"try `transport: websocket`, or {_CHECK_PATH}",
    ),
    413: (
        "413 Content Too Large: a proxy limits the size of requests",
        "lift it for the tunnel's path: client_max_body_size 0 in nginx",
    ),
    426: (
        "426 Upgrade Required: something at this path speaks WebSocket alone",
        "try `transport: websocket`, or check the path and the proxy's backend",
    ),
    501: (
        "501 Not Implemented: the proxy does not know this kind of request",
        "try `transport: websocket`",
    ),
    502: (
        "502 Bad Gateway: the proxy cannot reach the tunnel's server behind it, or not in this protocol",
        "check that the server runs, and that the proxy speaks HTTP/2 to it: grpc_pass in nginx, h2c:// in Apache and "
        "Caddy, proto h2 in HAProxy",
    ),
    504: (
        "504 Gateway Timeout: the proxy answers, but the tunnel's server behind it does not",
        "check that the server runs; a proxy that holds requests back until they end looks like this too: switch its "
        "request buffering off, or try `transport: websocket`",
    ),
    524: (
        "524: the origin did not answer CloudFlare in time",
        "check that the server behind it runs; CloudFlare holds requests back unless gRPC is switched on and they are "
        "`transport: grpc`",
    ),
}
"""Where the meaning differs for the transports that are a request over HTTP/2: http2 and grpc."""

_OF_TRANSPORT = {
    "http2": _EXPLAINED_OVER_HTTP2,
    "grpc": _EXPLAINED_OVER_HTTP2,
    "split": _EXPLAINED_OVER_HTTP2,
    "websocket-h2": {
        400: (
            "400 Bad Request: it did not accept the request",
            "a proxy in front may not hand WebSocket on to the server: see deploy/ for its settings",
        ),
        426: (
            "426 Upgrade Required: the proxy did not make a WebSocket of the request for the server behind it",
            "see deploy/ for its settings, or try `transport: websocket`",
        ),
    },
}

_ON_PLAIN_PORT = "if the port speaks TLS, write wss:// instead of ws://; otherwise "
"""What a web server says in plain HTTP to whatever is not TLS is 400."""

_ON_TLS_PORT = "it may demand a client certificate (set tls.certificate and tls.key); or "
"""Those that let the handshake pass without one say 400 afterwards."""


_HOP_BY_HOP = "hop-by-hop"  # so the front door calls the headers that a proxy drops unless told otherwise
_SEE_ITS_LOG = "a proxy on the way may change it; the log of the server says what to do"
_BODY_LIMIT = 1024 * 1024  # nginx's default client_max_body_size, in bytes


def explain_reset(code: str, sent: int) -> str:
    """Return what the reset of a request over HTTP/2 most likely means, to be put behind its name, or "".

    `code` is its error's name, `sent` the bytes of the request's body so far.  nginx lets its default body limit pass
    and a little more, as much as is on its way.
    """
    if code == "INTERNAL_ERROR" and _BODY_LIMIT * 15 // 16 <= sent <= 2 * _BODY_LIMIT:
        return (
            f" after {sent / _BODY_LIMIT:.1f} MiB went up: nginx in front may limit the size of requests; set "
            "client_max_body_size 0 for the tunnel's path"
        )
    return ""


def explain_status(
    status: int, headers: Mapping[str, str], transport: str, url: TunnelUrl, *, reason: str = ""
) -> TransportError:
    """One error for an answer that is not the tunnel.

    `headers` has lower-case names.  `reason` is what a Qanat server gives with 400.
    Retry-After (RFC 9110 §10.2.3) is honored for 429 and 503.
    """
    text, hint = _text_and_hint(status, headers, transport, url)
    if reason:
        text = f"{status}: the server refused the request: {reason}"
        hint = f"a proxy in front changes it; {_NGINX_UPGRADE}" if _HOP_BY_HOP in reason else _SEE_ITS_LOG
    wait = None
    if status in (429, 503):
        # A date is one by the clock of whoever answers, which ours may be far from.
        now = http_date(headers.get("date", "")) or datetime.datetime.now(datetime.UTC)
        wait = retry_after(headers.get("retry-after", ""), now)
    return TransportError(f"{url} over {transport}: {text}", hint=hint, retry_after=wait)


def _text_and_hint(status: int, headers: Mapping[str, str], transport: str, url: TunnelUrl) -> tuple[str, str]:
    if status in _REDIRECTS:
        return _explain_redirect(status, words(headers.get("location", "")), url)
    explained = _OF_TRANSPORT.get(transport, {}).get(status) or _EXPLAINED.get(status)
    if explained is not None:
        text, hint = explained
        if status == 400:
            hint = (_ON_TLS_PORT if url.tls else _ON_PLAIN_PORT) + hint
        return text, hint
    if 200 <= status < 300:
        return f"{status}: an ordinary web page is there, not a tunnel", _CHECK_PATH
    return f"status {status}, which no tunnel gives", "look at the log of the web server or proxy that answered"


def _explain_redirect(status: int, location: str, url: TunnelUrl) -> tuple[str, str]:
    where = f" to {location}" if location else ""
    text = f"{status}: it redirects{where}, which is not followed"
    if location.startswith("https://") and not url.tls:
        return text, "write wss:// instead of ws:// in the URL"
    return text, (
        "put the final address into the URL; if it leads to a login, exempt the tunnel's path from that, or give what "
        "the access gateway wants in `headers`"
    )
