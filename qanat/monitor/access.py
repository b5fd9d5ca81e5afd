"""Who may ask the monitoring listener: the token, the Host header, and the site that a browser's request comes from.

    token     a bearer token, or the password of any user (RFC 7617), so that a browser can ask for it; compared in
              constant time, and read from its file for each request, so that a new one counts at once
    Host      without a token, only names of this machine's loopback: otherwise a web page anywhere could have its own
              name resolved to 127.0.0.1 and read what is here (DNS rebinding)
    site      a browser says which site a request comes from (Fetch Metadata, and Origin); another one is refused

A Unix socket is reached by those whom its permissions let in, and by no browser, so it asks for nothing but a token
where there is one.  Blocks on the token's file alone.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
from pathlib import Path

from qanat.base.addresses import is_loopback
from qanat.base.errors import UsageError
from qanat.base.request_head import RequestHead
from qanat.config.secret_files import read_secret_file
from qanat.monitor.http import Response, failure
from qanat.process.log_throttle import LogThrottle

log = logging.getLogger("qanat.monitor")

_ASK = 'Basic realm="qanat", charset="UTF-8"'
_OTHER_SITES = frozenset({"cross-site", "same-site"})


class Access:
    """Judges requests.  Safe to use from any thread."""

    def __init__(self, token_file: Path | None, *, unix: bool) -> None:
        """Ask for the token in `token_file`, if one is given; `unix` says whether a Unix socket is listened on."""
        self._token_file = token_file
        self._unix = unix
        self._throttle = LogThrottle()

    def refuse(self, head: RequestHead, peer: str) -> Response | None:
        """Return the refusal of a request by `peer`, or None for one that may be answered.  Never raises."""
        if head.method not in ("GET", "HEAD"):
            return failure(405, "Only GET is answered here: nothing can be changed.", Allow="GET, HEAD")
        if head.has_body:
            return failure(413, "A request here has no body; leave it out.")
        if not self._unix and self._token_file is None and not _is_here(_host(head)):
            return failure(
                421,
                "Ask for localhost or 127.0.0.1, or have the proxy in front send that as Host. Any other Host needs "
                "`monitor.token_file`.",
            )
        if _from_another_site(head):
            return failure(403, "Another site's page asked for this. Open it from its own address.")
        return self._refuse_token(head, peer)

    def _refuse_token(self, head: RequestHead, peer: str) -> Response | None:
        if self._token_file is None:
            return None
        try:
            wanted = read_secret_file(self._token_file)
        except UsageError as error:
            if self._throttle.due("file"):
                log.error("nobody can see the metrics: `monitor.token_file` %s", error)
            return failure(503, "This end cannot read its token; its log says why.")
        given = _given_tokens(head)
        if any(hmac.compare_digest(token, wanted.encode()) for token in given):
            return None
        if given and self._throttle.due("token"):
            log.warning("%s asked for metrics with a wrong token", peer, extra={"event": "refused", "peer": peer})
        return failure(401, "Send the token: Authorization: Bearer TOKEN.", WWW_Authenticate=_ASK)


def _given_tokens(head: RequestHead) -> list[bytes]:
    """Return the tokens that a request has: at most one, or none."""
    values = head.values("authorization")
    if len(values) != 1:
        return []
    scheme, _, content = values[0].partition(" ")
    if scheme.lower() == "bearer":
        return [content.strip().encode("latin-1")]
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(content.strip().encode("latin-1"), validate=True)
        except binascii.Error:
            return []
        return [decoded.partition(b":")[2]]
    return []


def _host(head: RequestHead) -> str:
    """Return the host that a request is for, without its port, in lower case; "" when that is not clear."""
    values = head.values("host")
    host = values[0].strip().lower() if len(values) == 1 else ""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_here(host: str) -> bool:
    return host == "localhost" or is_loopback(host)


def _from_another_site(head: RequestHead) -> bool:
    """Return whether a browser says that another site's page asked for this, other than by a link to it."""
    sites, modes = head.values("sec-fetch-site"), head.values("sec-fetch-mode")
    if _OTHER_SITES.intersection(sites) and modes != ("navigate",):
        return True
    hosts = head.values("host")
    return any(origin.partition("://")[2] not in hosts for origin in head.values("origin"))
