"""How to reach a server: everything about it that is not in its URL.

A frozen value, made once from the configuration and given to every transport's `connect`, which `dialer` follows.
Nothing here blocks but `tls_context`, which reads files.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from qanat.base.text import NAME
from qanat.transports.dial.proxies import EnvironmentProxies, Proxy
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import SockAddr
from qanat.transports.wire.tls_contexts import client_tls_context

_FINAL_DOT = re.compile(r"\.(?=(:[0-9]*)?$)")  # of the host, which a port may follow

NODE_COOKIE = "qanat-node"
"""The cookie's name, for the load balancer's configuration."""


class DialStep(Enum):
    """How far a connection has come, for who waits for it."""

    CONNECTED = auto()  # TCP, to the server or to the proxy on the way
    OPEN = auto()  # the proxy has let it through, and TLS is up: now the request goes out


def _nobody_waits(step: DialStep, address: SockAddr | None) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Route:
    """Straight to the server, verified by the system's authorities, unless something else is said."""

    ca_file: Path | None = None  # PEM; replaces the system's authorities
    certificate: Path | None = None  # PEM chain that we show when the server asks (mTLS)
    key: Path | None = None  # PEM, its private key
    server_name: str | None = None  # sent in SNI and expected in the certificate; the URL's host when None
    connect_to: tuple[str, int] | None = None  # dial this though the URL names another host
    proxy: Proxy | EnvironmentProxies | None = None
    host: str | None = None  # the Host header, or :authority; the URL's when None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # further ones; may be secrets
    cookies: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # that a load balancer set
    node: str | None = None  # of several servers behind one address, the one that a load balancer should choose
    on_step: Callable[[DialStep, SockAddr | None], None] = field(default=_nobody_waits, repr=False, compare=False)
    """Called by the thread that dials when it has come so far, with the address connected to; it may block, and raise
    TransportError."""
    one_of_several: bool = False
    """Whether other transports are tried beside this one, so that what it fails with says nothing of the address."""

    def proxy_for(self, url: TunnelUrl) -> Proxy | None:
        """Return the proxy that leads to `url`.  Raises UsageError for a variable that names none that can be used."""
        return self.proxy.proxy_for(url) if isinstance(self.proxy, EnvironmentProxies) else self.proxy

    def target(self, url: TunnelUrl) -> tuple[str, int]:
        """Return the host and port to connect to; the host may have a final dot, which is for looking it up alone."""
        return self.connect_to or (url.lookup_host, url.port)

    def tls_name(self, url: TunnelUrl) -> str:
        """Return the name that the server's certificate must have."""
        return (self.server_name or url.host).removesuffix(".")

    def authority(self, url: TunnelUrl) -> str:
        """Return what goes into the Host header, or into :authority."""
        return _FINAL_DOT.sub("", self.host) if self.host else url.authority

    def with_headers(self, defaults: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """`defaults` and the route's own headers, which come instead of defaults of the same name.

        `cookies` and `node`, which is a cookie too, come after those in the route's headers, and all become one header
        (RFC 6265 §5.4).  A node that is not 1 to 64 of A-Z a-z 0-9 . _ - is not sent: it came from the other end.
        """
        own = list(self.headers)
        further = [f"{name}={value}" for name, value in self.cookies]
        if self.node is not None and NAME.fullmatch(self.node):
            further.append(f"{NODE_COOKIE}={self.node}")
        if further:
            cookies = [value.strip(" ;") for name, value in own if name.lower() == "cookie"]
            cookies += further
            own = [header for header in own if header[0].lower() != "cookie"]
            own.append(("Cookie", "; ".join(filter(None, cookies))))
        replaced = {name.lower() for name, _ in own}
        return [header for header in defaults if header[0].lower() not in replaced] + own

    def tls_context(self, alpn: Sequence[str]) -> ssl.SSLContext:
        """Return a context for the server's TLS.  Raises UsageError when a file cannot be used."""
        return client_tls_context(self.ca_file, alpn, certificate=self.certificate, key=self.key)


DIRECT = Route()
