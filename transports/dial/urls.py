"""The address of a server, as a person writes it: `wss://host[:port]/path`.

In a URL `wss` and `https` mean the same, as do `ws` and `http`: with TLS or without.  The transport is
chosen elsewhere.  Used by the configuration, the command line and every transport's client.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

from qanat.base.addresses import ascii_name, format_host_port, split_zone
from qanat.base.errors import UsageError

_SCHEMES = {"wss": True, "https": True, "ws": False, "http": False}
_EXAMPLE = "write it like wss://tunnel.example.com/tunnel"
_PATH_CHARACTERS = "/%:@!$&'()*+,=~-._?"


@dataclass(frozen=True, slots=True)
class TunnelUrl:
    """A parsed URL.  `path` includes the query, is pure ASCII and begins with a slash."""

    tls: bool
    host: str  # a name in its ASCII form without a final dot, or an IP literal without brackets
    port: int
    path: str
    absolute: bool = False
    """Whether the name was written with a final dot, which keeps resolvers from appending a search domain."""
    zone: str = ""
    """The interface to a link-local address: [fe80::1%eth0], or with %25."""

    @classmethod
    def parse(cls, text: str) -> TunnelUrl:
        """Parse `text`; raise UsageError that says what is wrong and how it should look.  Does not block."""
        if any(c.isspace() or not c.isprintable() for c in text):
            raise UsageError("the URL contains a space or a control character", hint=_EXAMPLE)
        parts = _split(text)
        if parts.username is not None or parts.password is not None:
            # The text is not repeated: it has a password in it.
            raise UsageError("a user name or password in the URL is not used", hint="leave out all before the @")
        if parts.scheme not in _SCHEMES or "://" not in text:
            raise UsageError(f"the URL {text!r} does not begin with wss://, https://, ws:// or http://", hint=_EXAMPLE)
        if parts.fragment:
            raise UsageError(f"the URL {text!r} has a fragment (#), which is never sent", hint=_EXAMPLE)
        if ";" in parts.path:
            raise UsageError(f"the URL {text!r} has a semicolon in its path", hint="choose a path without one")
        tls = _SCHEMES[parts.scheme]
        path = quote(parts.path, safe=_PATH_CHARACTERS) or "/"
        host, zone = _host(text, parts)
        name = host.removesuffix(".")
        if not name:
            raise UsageError(f"the URL {text!r} names no host", hint=_EXAMPLE)
        query = "?" + quote(parts.query, safe=_PATH_CHARACTERS + ";") if parts.query else ""
        return cls(tls, name, _port(text, parts, tls), path + query, absolute=name != host, zone=zone)

    @property
    def lookup_host(self) -> str:
        """What to look up: `host`, with the final dot (RFC 6066 §3) or the zone, which certificates and HTTP lack."""
        return f"{self.host}." if self.absolute else self.host + self._zone

    @property
    def authority(self) -> str:
        """What goes into a Host header (RFC 9110 §7.2): the port only where it is not the default."""
        return self._with_port(self.host)

    @property
    def address(self) -> str:
        """`host:port`, for logs and messages."""
        return format_host_port(self.host + self._zone, self.port)

    @property
    def _zone(self) -> str:
        return f"%{self.zone}" if self.zone else ""

    def __str__(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://{self._with_port(self.lookup_host)}{self.path}"

    def _with_port(self, host: str) -> str:
        default = 443 if self.tls else 80
        text = format_host_port(host, self.port)
        return text.removesuffix(f":{default}") if self.port == default else text


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise UsageError(f"the URL cannot be understood: {error}", hint=_EXAMPLE) from error


def _host(text: str, parts: SplitResult) -> tuple[str, str]:
    """Return the host, and the zone of a link-local address."""
    host = parts.hostname or ""
    if not host:
        raise UsageError(f"the URL {text!r} names no host", hint=_EXAMPLE)
    if ":" in host:
        address, zone = split_zone(host)
        try:
            return str(ipaddress.IPv6Address(address)), zone
        except ValueError as error:
            raise UsageError(f"{host!r} in the URL is not an IPv6 address", hint=_EXAMPLE) from error
    try:
        return host if host.isascii() else ascii_name(host), ""
    except UnicodeError as error:
        raise UsageError(f"{host!r} in the URL is not a host name", hint=_EXAMPLE) from error


def _port(text: str, parts: SplitResult, tls: bool) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise UsageError(f"the port in the URL {text!r} is not a number from 1 to 65535", hint=_EXAMPLE)
    return port if port is not None else (443 if tls else 80)
