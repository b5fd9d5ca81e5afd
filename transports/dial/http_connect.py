"""HTTP CONNECT (RFC 9110 §9.3.6): asking a proxy for a connection, with Basic authentication (RFC 7617).

Used by `dialer` alone, over a wire to the proxy that is connected already.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.sockets import format_address
from qanat.base.untrusted import words
from qanat.base.version import __version__
from qanat.transports.dial.http_answer import AnswerReader
from qanat.transports.dial.proxies import Proxy
from qanat.transports.pipe import Wire

_BASIC = re.compile(r"(?i)(?:^|,)\s*basic(?:\s|,|$)")

_HINTS = {
    400: "it may not be an HTTP proxy: check {origin}",
    403: "it does not allow this host or port; most allow port 443 alone, so let the server listen there",
    404: "it may be a web server and no proxy: check {origin}",
    405: "it may be a web server and no proxy: check {origin}",
    502: "it cannot reach the server: check host and port in the URL, and that the server runs",
    503: "it cannot reach the server: check host and port in the URL, and that the server runs",
    504: "the server does not answer it: check host and port in the URL, and firewalls behind the proxy",
}


def connect(proxy: Proxy, wire: Wire, host: str, port: int, deadline: Deadline) -> None:
    """Have `proxy` connect `wire` to `host`, which it looks up itself.  Blocks until `deadline`.

    Raises TransportError whose hint says what to do; `wire` is the caller's to close.
    """
    target = format_address((host, port))
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"User-Agent: qanat/{__version__}"]
    if proxy.user is not None:
        login = f"{proxy.user}:{proxy.password or ''}".encode()
        lines.append("Proxy-Authorization: Basic " + str(base64.b64encode(login), "ascii"))
    wire.send_all("\r\n".join([*lines, "", ""]).encode("ascii"))
    reader = AnswerReader(
        wire,
        deadline,
        f"the proxy {proxy}",
        check=f"it may be no HTTP proxy: check {proxy.origin}",
        no_answer=f"check host, port and scheme of the proxy in {proxy.origin}",
        use_tls=f"write https:// instead of http:// in {proxy.origin}",
    )
    status, headers = reader.read()
    while 100 <= status < 200:
        status, headers = reader.read()
    if not 200 <= status < 300:
        raise _explain(proxy, target, status, headers)
    if reader.rest:
        # Neither TLS nor HTTP lets a server speak first, and an answer to CONNECT has no body.
        raise TransportError(
            f"the proxy {proxy} sent bytes of its own where the connection to {target} should begin",
            hint=f"it may be a web server and no proxy: check {proxy.origin}",
        )


def _explain(proxy: Proxy, target: str, status: int, headers: Mapping[str, str]) -> TransportError:
    if status == 407:
        return _explain_407(proxy, headers)
    what = f"the proxy {proxy} answered {status} when asked for {target}"
    hint = _HINTS.get(status, "ask whoever runs the proxy, or look at its log")
    return TransportError(what, hint=hint.format(origin=proxy.origin))


def _explain_407(proxy: Proxy, headers: Mapping[str, str]) -> TransportError:
    asked = headers.get("proxy-authenticate", "")
    offered = words(asked)
    # A scheme begins the header, or comes behind a comma; a realm may well have its name in it.
    basic = not asked or _BASIC.search(re.sub(r'"[^"]*"', "", asked)) is not None
    if basic and proxy.user is not None:
        return TransportError(
            f"407: the proxy {proxy} does not accept the user name and password",
            hint=f"check them in {proxy.origin}; special characters in a URL are percent-encoded (@ is %40)",
        )
    if basic:
        return TransportError(
            f"407: the proxy {proxy} wants a user name and password ({offered or 'it does not say how'})",
            hint="put them into the proxy's URL: http://USER:PASSWORD@HOST:PORT",
        )
    return TransportError(
        f"407: the proxy {proxy} wants a login that is not spoken here ({offered})",
        hint="run a small proxy that does (cntlm, px) beside this client and name that one, or have the server's host "
        "exempted",
    )
