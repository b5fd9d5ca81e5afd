"""SOCKS5 (RFC 1928, RFC 1929) over a wire to the proxy, by python-socks.

The library makes its own sockets unless another proxy is in between (`forward`); the wire takes that one's place, so
that our deadline, canceling and TLS hold here too.  Names go to the proxy as they are.  Used by `dialer` alone.
"""

from __future__ import annotations

from typing import Any

from python_socks import ProxyError, ProxyType
from python_socks.sync import Proxy as SocksProxy

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.sockets import format_address
from qanat.transports.dial.proxies import Proxy
from qanat.transports.pipe import Wire

_HINTS = {  # by the reply's code, RFC 1928 §6
    1: "it does not say why: look at its log",
    2: "its rules do not allow this host or port",
    3: "it has no route to the server: check the host in the URL",
    4: "it cannot reach the server or look up its name: check the host in the URL",
    5: "nothing listens there: check that the server runs, and the port in the URL",
    6: "the server is too far away, or does not answer: check the host in the URL",
    7: "it cannot do what was asked: check that it is a SOCKS5 proxy",
    8: "it does not know this kind of address: write the server's name, or its IPv4 address, in the URL",
}


def connect(proxy: Proxy, wire: Wire, host: str, port: int, deadline: Deadline) -> None:
    """Have `proxy` connect `wire` to `host`, which it looks up itself.  Blocks until `deadline`.

    Raises TransportError whose hint says what to do; `wire` is the caller's to close.
    """
    socks = SocksProxy(
        ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        proxy.user,
        proxy.password,
        rdns=True,
        forward=_Dialed(wire, deadline),
    )
    target = format_address((host, port))
    try:
        socks.connect(host, port)
    except ProxyError as error:
        raise _explain(proxy, target, error) from error
    except (UnicodeError, ValueError) as error:
        raise TransportError(
            f"the proxy {proxy} cannot be asked for {target}: it is no host name", hint="check the host in the URL"
        ) from error
    except TransportError as error:
        if deadline.passed:
            raise TransportError(
                f"the proxy {proxy} did not answer in time when asked for {target}",
                hint=f"{_check(proxy)}; then host and port in the URL, and firewalls behind the proxy",
            ) from error
        raise TransportError(f"the proxy {proxy} did not answer: {error.message}", hint=_check(proxy)) from error


def _explain(proxy: Proxy, target: str, error: ProxyError) -> TransportError:
    code = error.error_code
    if code is not None:
        return TransportError(
            f"the proxy {proxy} cannot connect to {target}: {str(error).lower()}", hint=_HINTS.get(code, _check(proxy))
        )
    # Of the faults without a code only the library's words tell which one it is.
    words = str(error)
    if "authentication failure" in words:
        return TransportError(
            f"the proxy {proxy} does not accept the user name and password", hint=f"check them in {proxy.origin}"
        )
    if "No acceptable authentication methods" in words:
        missing = "wants a user name and password" if proxy.user is None else "takes neither this login nor none"
        return TransportError(
            f"the proxy {proxy} {missing}", hint="put them into the proxy's URL: socks5h://USER:PASSWORD@HOST:PORT"
        )
    return TransportError(f"the proxy {proxy} does not answer as SOCKS5 demands: {words}", hint=_check(proxy))


def _check(proxy: Proxy) -> str:
    return f"check that it is a SOCKS5 proxy, and its address in {proxy.origin}"


class _Dialed(SocksProxy):
    """Stands for the connection that there is already."""

    def __init__(self, wire: Wire, deadline: Deadline) -> None:
        self._stream = _WireSocket(wire, deadline)

    def connect(self, *_: Any, **__: Any) -> Any:
        return self._stream


class _WireSocket:
    """As much of a socket as the library uses."""

    def __init__(self, wire: Wire, deadline: Deadline) -> None:
        self._wire = wire
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._wire.send_all(data)

    def recv(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._wire.set_read_timeout(self._deadline.remaining())
        return bytes(buffer[: self._wire.recv_into(memoryview(buffer))])

    def close(self) -> None:
        """Leave the wire open: the caller closes it."""
