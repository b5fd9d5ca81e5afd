"""One way to reach a server, for every transport: TCP, a proxy if there is one, TLS.

    look up, connect (tcp) -> proxy: TLS to it, CONNECT or SOCKS5 -> TLS to the server

Which way to go stands in the `Route`.  Every step obeys one deadline, can be canceled from another thread, and
explains what went wrong in one TransportError.  Used by each transport's client.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.sockets import format_address
from qanat.transports.dial import http_connect, socks5, tcp
from qanat.transports.dial.proxies import Proxy
from qanat.transports.dial.route import DIRECT, DialStep, Route
from qanat.transports.dial.tcp import Destination
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import SockAddr, Wire
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import client_tls_context

log = logging.getLogger("qanat.dialer")

_LARGE_HEADERS = 7000
"""Bytes of the configuration's headers from which on a proxy may refuse them: most take 8 KiB, or less."""


def dial(
    url: TunnelUrl, *, alpn: Sequence[str], deadline: Deadline, route: Route = DIRECT, cancel: Cancel | None = None
) -> Wire:
    """Connect to `url`'s server by `route`; for a URL with TLS, do that handshake, offering `alpn`.

    Blocks until `deadline`, or until `cancel` is canceled.  The wire's `peer` is the URL's address.  Raises
    TransportError whose hint says what to do, and UsageError for files or variables that cannot be used.
    """
    cancel = cancel or Cancel()
    # Files first: what is wrong with them is ours, and must not cost a connection.
    context = route.tls_context(alpn) if url.tls else None
    proxy = route.proxy_for(url)
    try:
        if proxy is None:
            wire = _connect_directly(url, route, deadline, cancel)
        else:
            wire = _connect_through(proxy, url, route, deadline, cancel)
        with opening(wire, deadline, cancel):
            if context is not None:
                with cancel.waking(wire.close):
                    wire = TlsWire(wire, context, server_hostname=route.tls_name(url), deadline=deadline)
            route.on_step(DialStep.OPEN, _remote_of(wire))
            return wire
    except TransportError as error:
        if cancel.canceled:
            raise TransportError(f"connecting to {url.address} was stopped") from error
        raise


@contextlib.contextmanager
def opening(wire: Wire, deadline: Deadline, cancel: Cancel, route: Route | None = None) -> Iterator[None]:
    """Close `wire` when what is done in here fails, and learn from that for the next connection (`tcp.learn_failure`).

    With a `route`, its headers have been sent, and a failure says so when they are large.
    """
    try:
        yield
    except BaseException as error:
        wire.close()
        if isinstance(error, TransportError) and not cancel.canceled:
            address = _remote_of(wire)
            lenient = route is not None and route.one_of_several and not deadline.passed
            if address is not None and error.retry_after is None and not lenient:
                tcp.learn_failure(address, stalled=deadline.passed)
            size = sum(len(name) + len(value) + 4 for name, value in route.headers) if route is not None else 0
            if size >= _LARGE_HEADERS:
                large = (
                    f"the configuration's `headers` have {size} bytes, which may be too large for a proxy on the way "
                    "(nginx: large_client_header_buffers)"
                )
                error.hint = f"{error.hint}; or {large}" if error.hint else large
        raise


def _remote_of(wire: Wire) -> SockAddr | None:
    """Return the address that a wire is connected to, where that is known."""
    return None if wire.addresses is None else wire.addresses[1]


def _connect_directly(url: TunnelUrl, route: Route, deadline: Deadline, cancel: Cancel) -> Wire:
    host, port = route.target(url)
    destination = Destination(host, port, where="the URL" if route.connect_to is None else "`connect_to`")
    return _connect(destination, url, route, deadline, cancel)


def _connect(destination: Destination, url: TunnelUrl, route: Route, deadline: Deadline, cancel: Cancel) -> Wire:
    wire = TcpWire(tcp.connect(destination, deadline, cancel), url.address)
    with opening(wire, deadline, cancel):
        route.on_step(DialStep.CONNECTED, _remote_of(wire))
    return wire


def _connect_through(proxy: Proxy, url: TunnelUrl, route: Route, deadline: Deadline, cancel: Cancel) -> Wire:
    host, port = route.target(url)
    host = host.removesuffix(".").partition("%")[0]  # The proxy's rules know names without it; a zone is ours alone.
    log.debug("reaching %s through %s, which %s names", format_address((host, port)), proxy, proxy.origin)
    destination = Destination(proxy.host, proxy.port, what="proxy", where=proxy.origin)
    wire = _connect(destination, url, route, deadline, cancel)
    with opening(wire, deadline, cancel), cancel.waking(wire.close):
        if proxy.scheme == "https":
            wire = _tls_to_proxy(proxy, wire, route, deadline)
        through = socks5.connect if proxy.scheme == "socks5h" else http_connect.connect
        through(proxy, wire, host, port, deadline)
        wire.set_read_timeout(None)
    return wire


def _tls_to_proxy(proxy: Proxy, wire: Wire, route: Route, deadline: Deadline) -> Wire:
    # Beside the server's own authority, which `ca_file` may be, a proxy may well have a public certificate.  Our
    # client certificate is for the server alone.
    context = client_tls_context(route.ca_file, ("http/1.1",), system_too=True)
    try:
        return TlsWire(wire, context, server_hostname=proxy.host.removesuffix(".").partition("%")[0], deadline=deadline)
    except TransportError as error:
        raise TransportError(
            f"TLS to the proxy {proxy} failed: {error.message}",
            hint=f"check {proxy.origin}: write http:// for a proxy without TLS; tls.ca_file may name its authority",
        ) from error
