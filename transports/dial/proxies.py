"""A proxy between here and the Internet: its address and login, and which one the environment names for a URL.

Environment variables mean what they mean to curl: `https_proxy`, `HTTPS_PROXY`, `http_proxy` (in lower case only, since
a web server puts a request's `Proxy:` header into HTTP_PROXY), `ALL_PROXY` in both cases, and `NO_PROXY`, whose
entries `no_proxy` reads.  Nothing here connects: `dialer` does, with `http_connect` and `socks5`.  No message and
no `str()` holds a login.  Used by the configuration, the command line and the dialer.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from qanat.base.addresses import ascii_name, format_host_port, split_zone
from qanat.base.errors import UsageError
from qanat.base.untrusted import number
from qanat.transports.dial.no_proxy import is_exempt
from qanat.transports.dial.urls import TunnelUrl

DEFAULT_PORTS = {"http": 1080, "https": 443, "socks5": 1080, "socks5h": 1080, "socks": 1080}
"""By scheme; these are curl's.  Desktops write `socks`, without a version, into ALL_PROXY; that is version 5 here."""

_EXAMPLE = "write it like http://proxy.example.com:3128 or socks5h://127.0.0.1:1080"
_HOST = re.compile(r"[A-Za-z0-9._~-]{1,253}")
_SOCKS_FIELD = 255  # bytes in a user name or a password, RFC 1929 §2


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy.  `http` and `https` (TLS to the proxy) do HTTP CONNECT; names are resolved by the proxy, always."""

    scheme: str  # http, https or socks5h
    host: str
    port: int
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    origin: str = field(default="`proxy`", compare=False)  # what named it, for messages

    @classmethod
    def parse(
        cls, text: str, origin: str = "`proxy`", *, password_follows: bool = False, any_path: bool = False
    ) -> Proxy:
        """`[SCHEME://][USER:PASSWORD@]HOST[:PORT]`; the scheme is http when left out, as curl has it.

        User and password may be percent-encoded.  Raises UsageError that goes on after the name of what held `text` and
        repeats nothing of it.  With `password_follows` there will be a `with_password`; with `any_path` a path behind
        the port means nothing, where it is refused otherwise.
        """
        if any(c.isspace() or not c.isprintable() for c in text):
            raise UsageError("contains a space or a control character", hint=_EXAMPLE)
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "http", text
        scheme = scheme.lower()
        if scheme not in DEFAULT_PORTS:
            known = "http, https, socks5 and socks5h"
            raise UsageError(f"names a kind of proxy that is not spoken here, only {known}", hint=_EXAMPLE)
        # The last @: a password may well have one in it, a host never has.
        login, at, address = rest.rpartition("@")
        if any_path:
            address = address.partition("/")[0]
        user, colon, password = login.partition(":")
        host, port = _split_address(address, DEFAULT_PORTS[scheme])
        proxy = cls(
            scheme="socks5h" if scheme.startswith("socks") else scheme,
            host=host,
            port=port,
            user=unquote(user) if at else None,
            password=unquote(password) if colon else None,
            origin=origin,
        )
        if not password_follows:
            proxy.check_login()
        return proxy

    def with_password(self, password: str) -> Proxy:
        """Return this proxy with a password from elsewhere.  Raises UsageError when it cannot be sent."""
        proxy = replace(self, password=password)
        proxy.check_login()
        return proxy

    def check_login(self) -> None:
        """Raise UsageError unless the proxy's protocol can carry user and password."""
        if self.user is None:
            return
        both = self.user + (self.password or "")
        if not both.isprintable():
            raise UsageError("has a control character in its user name or password")
        if self.scheme != "socks5h":
            if ":" in self.user:
                raise UsageError("has a colon in its user name, which Basic authentication cannot carry")
            return
        for part in (self.user, self.password or ""):
            if not 1 <= len(part) <= _SOCKS_FIELD:
                raise UsageError("needs a user name and a password of 1 to 255 characters each for SOCKS5")
        if not both.isascii():
            raise UsageError("has a letter beyond ASCII in its SOCKS5 user name or password")

    @property
    def address(self) -> str:
        """`host:port`, for logs and messages."""
        return format_host_port(self.host, self.port)

    def __str__(self) -> str:
        """Return the URL without its login."""
        return f"{self.scheme}://{self.address}"


@dataclass(frozen=True, slots=True)
class EnvironmentProxies:
    """What the environment says about proxies; empty variables count as unset."""

    http: tuple[str, str] | None = field(default=None, repr=False)  # the variable's name, and its value
    https: tuple[str, str] | None = field(default=None, repr=False)
    every: tuple[str, str] | None = field(default=None, repr=False)
    exempt: str = ""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> EnvironmentProxies:
        """Return the variables of `environ`, unchecked."""

        def first(*names: str) -> tuple[str, str] | None:
            return next(((name, environ[name]) for name in names if environ.get(name)), None)

        exempt = first("no_proxy", "NO_PROXY")
        return cls(
            http=first("http_proxy"),
            https=first("https_proxy", "HTTPS_PROXY"),
            every=first("all_proxy", "ALL_PROXY"),
            exempt=exempt[1] if exempt else "",
        )

    def proxy_for(self, url: TunnelUrl) -> Proxy | None:
        """Return the proxy for `url`, or None to go straight there.  Raises UsageError that names the variable."""
        found = (self.https if url.tls else self.http) or self.every
        if found is None or is_exempt(url.host, url.port, self.exempt):
            return None
        name, value = found
        try:
            return Proxy.parse(value, origin=f"the environment variable {name}", any_path=True)  # as curl has it
        except UsageError as error:
            raise UsageError(f"the environment variable {name} {error.message}", hint=error.hint) from None


NO_PROXIES = EnvironmentProxies()
"""An environment that names none."""


def _split_address(text: str, default: int) -> tuple[str, int]:
    text = text.removesuffix("/")
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]{1,5}))?", text)
    if match is None:
        raise UsageError("is not HOST:PORT after its scheme and login", hint=_EXAMPLE)
    host = match[1]
    port = number(match[2], 65535) if match[2] else default
    if not port:
        raise UsageError("has a port outside 1 to 65535", hint=_EXAMPLE)
    if host.startswith("["):
        try:
            address, zone = split_zone(host[1:-1])
            return str(ipaddress.IPv6Address(address)) + (f"%{zone}" if zone else ""), port
        except ValueError:
            raise UsageError("has something in brackets that is not an IPv6 address", hint=_EXAMPLE) from None
    try:
        host = host if host.isascii() else ascii_name(host)
    except UnicodeError:
        host = ""
    if not _HOST.fullmatch(host):
        raise UsageError("names no host", hint=_EXAMPLE)
    return host, port
