"""Who stands there: what an answer's headers and error pages tell of the proxy that gave them.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qanat.base.untrusted import words

NGINX, HAPROXY, APACHE, CADDY, NGHTTPX, SQUID, CLOUDFLARE = (
    "nginx",
    "HAProxy",
    "Apache",
    "Caddy",
    "nghttpx",
    "Squid",
    "CloudFlare",
)
H2O, VARNISH, QANAT = "h2o", "Varnish", "Qanat"
ADVISED = (NGINX, HAPROXY, APACHE, CADDY, NGHTTPX, SQUID, CLOUDFLARE)
"""Those for which there is a setting to every cause that they can have."""

KNOWN_FOR = {
    NGINX: "as installed it drops Upgrade, holds requests and answers back, and takes 1 MiB of a body",
    HAPROXY: "passes everything, and cuts what is silent for 50 s with Debian's defaults",
    APACHE: "with http:// it holds open requests back, and Debian's mod_reqtimeout cuts idle uploads after 11 s",
    CADDY: "passes WebSocket; http2 and grpc need an h2c:// backend, which does not take WebSocket",
    NGHTTPX: "one backend protocol for all: proto=h2 takes http2 and grpc, http/1.1 takes websocket",
    SQUID: "passes no Upgrade in front of a server, and cuts what is silent for 15 minutes",
    CLOUDFLARE: "holds request bodies back except gRPC's, and cuts what is silent for about 100 s",
    H2O: "drops Upgrade as installed, and holds open requests back",
    VARNISH: "drops Upgrade as installed, holds open requests back, and merges requests for one URL",
    QANAT: "nobody in between that shows itself",
}

_SERVERS = (
    ("cloudflare", CLOUDFLARE),
    ("openresty", NGINX),
    ("nginx", NGINX),
    ("apache", APACHE),
    ("caddy", CADDY),
    ("nghttpx", NGHTTPX),
    ("h2o", H2O),
    ("varnish", VARNISH),
    ("squid", SQUID),
    ("haproxy", HAPROXY),
)
_PAGES = (
    (re.compile(r"<center>(nginx|openresty)", re.I), NGINX),
    (re.compile(r"Your browser sent a request that this server could not understand"), APACHE),
    (re.compile(r"Your browser sent an invalid request\.|No server is available to handle this request"), HAPROXY),
    (re.compile(r"ERR_INVALID_(REQ|URL)|squid", re.I), SQUID),
    (re.compile(r"cloudflare", re.I), CLOUDFLARE),
    (re.compile(r"Varnish cache server|Guru Meditation", re.I), VARNISH),
    (re.compile(r"\ABad Request: the request is not well-formed HTTP"), QANAT),
)


@dataclass(frozen=True, slots=True)
class Product:
    """What it is most likely, and by what it was known."""

    name: str
    evidence: str


def by_headers(fields: Mapping[str, str]) -> Product | None:
    """Return what an answer's header fields tell; None when they tell nothing."""
    if fields.get("cf-ray"):
        return Product(CLOUDFLARE, f"cf-ray: {words(fields['cf-ray'], 40)}")
    if fields.get("x-squid-error"):
        return Product(SQUID, f"x-squid-error: {words(fields['x-squid-error'], 40)}")
    if fields.get("x-varnish"):
        return Product(VARNISH, f"x-varnish: {words(fields['x-varnish'], 40)}")
    for name in ("server", "via"):
        value = fields.get(name, "")
        for text, product in _SERVERS:
            if text in value.lower():
                return Product(product, f"{name}: {words(value, 60)}")
    return None


def by_page(fields: Mapping[str, str], page: str) -> Product | None:
    """Return what the answer to a request that is not HTTP tells."""
    found = by_headers(fields)
    if found is not None:
        return found
    for pattern, product in _PAGES:
        if match := pattern.search(page):
            return Product(product, f"its error page has {words(match[0], 60)!r}")
    return None
