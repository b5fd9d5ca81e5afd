"""How a client reaches its servers, in a configuration file: `transport`, `proxy`, `tls` and `headers`.

`qanat.config.client` calls this; `qanat.config.command_line` uses the checks of single texts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from qanat.base.addresses import check_target_host, normalise_name, parse_address
from qanat.base.errors import UsageError
from qanat.config.document import Text
from qanat.config.request_headers import check_header_name, check_header_value, looks_secret
from qanat.config.secret_files import check_private, check_readable, read_secret_file
from qanat.config.section import Section, did_you_mean
from qanat.config.settings import ClientTls
from qanat.transports.dial.proxies import EnvironmentProxies, Proxy
from qanat.transports.dial.urls import TunnelUrl

NO_PROXY, FROM_ENVIRONMENT = "none", "environment"

_TRANSPORTS = {"websocket": "websocket", "http2": "http2", "grpc": "grpc", "auto": "websocket"}
_LATER_TRANSPORTS = ("websocket-h2", "split")
_TRANSPORT_CHOICE = "websocket, http2, grpc or auto"

AnyProxy = Proxy | EnvironmentProxies | None


def read_transports(s: Section, default: tuple[str, ...]) -> tuple[str, ...]:
    """`transport`: one, or a list of those that are tried in turn."""
    found: list[str] = []

    def parse(text: str) -> str:
        found.append(parse_transport(text, found))
        return found[-1]

    s.not_empty("transport", "is empty, so nothing could carry the tunnel")
    return s.tuple_of("transport", default, parse)


def parse_transport(text: str, before: Collection[str]) -> str:
    """The transport that `text` means, when it is not one of those `before` it.  Raises UsageError."""
    if text in _LATER_TRANSPORTS:
        raise UsageError("names a transport that is not available in this version", hint=f"use {_TRANSPORT_CHOICE}")
    if text not in _TRANSPORTS:
        raise UsageError(f"must be {_TRANSPORT_CHOICE}", hint=did_you_mean(text, _TRANSPORTS))
    transport = _TRANSPORTS[text]
    if transport in before:
        hint = "auto is websocket in this version" if transport == _TRANSPORTS["auto"] else ""
        raise UsageError(f"names {transport} twice", hint=hint)
    return transport


def read_proxy(s: Section, urls: tuple[str, ...]) -> AnyProxy:
    """`proxy` and `proxy_password_file`; variables that cannot be used for one of `urls` are faults, too."""
    environment = EnvironmentProxies.read(s.document.environ)
    proxy: AnyProxy = environment
    follows = "proxy_password_file" in s
    for text in s.texts("proxy", several=False):
        proxy = s.parsed("proxy", text, None, lambda value: parse_proxy(value, environment, password_follows=follows))
        if isinstance(proxy, Proxy) and proxy.password is not None and _password_stands_there(text):
            _refuse_open_file(s, "proxy", "has a password and stands", "proxy_password_file", text)
    password = s.text("proxy_password_file", None, lambda value: read_secret_file(s.resolve(value)))
    if isinstance(proxy, EnvironmentProxies):
        _check_environment(s, proxy, urls)
    if follows and ("proxy" not in s or proxy is not None):
        if not isinstance(proxy, Proxy) or proxy.user is None:
            s.refuse("proxy_password_file", "needs a user in `proxy`: http://USER@HOST:PORT")
        elif proxy.password is not None:
            s.refuse("proxy_password_file", "and a password in `proxy` are both given; keep one of them")
        elif password is not None:
            try:
                return proxy.with_password(password)
            except UsageError as error:
                s.refuse("proxy", str(error))
    return proxy


def parse_proxy(text: str, environment: EnvironmentProxies, *, password_follows: bool = False) -> AnyProxy:
    """`none`, `environment` or a URL.  Raises UsageError."""
    if text == NO_PROXY:
        return None
    if text == FROM_ENVIRONMENT:
        return environment
    if "://" not in text:
        near = did_you_mean(text, (NO_PROXY, FROM_ENVIRONMENT))
        raise UsageError(
            f"must be {NO_PROXY}, {FROM_ENVIRONMENT} or a proxy's URL",
            hint=near or "for example http://proxy.example.com:3128 or socks5h://127.0.0.1:1080",
        )
    return Proxy.parse(text, password_follows=password_follows)


def read_client_tls(s: Section, urls: tuple[str, ...], proxy: AnyProxy) -> ClientTls:
    """The client's `tls`; a key that could have no effect is a fault."""
    tls = s.section("tls")
    settings = ClientTls(
        ca_file=tls.path("ca_file", check_readable),
        certificate=tls.path("certificate", check_readable),
        key=tls.path("key", check_private),
        server_name=tls.text("server_name", None, check_server_name),
    )
    if ("certificate" in tls) != ("key" in tls):
        here, missing = ("certificate", "key") if "certificate" in tls else ("key", "certificate")
        tls.refuse(here, f"needs `{missing}` beside it; both may name one file that holds both")
    if urls and not any(TunnelUrl.parse(url).tls for url in urls):
        for key in ("ca_file", "certificate", "key", "server_name"):
            if key in tls and not (key == "ca_file" and _has_tls(proxy, urls)):
                tls.refuse(key, "has no effect, since no `url` is with TLS; write wss:// there, or leave it out")
    tls.finish()
    return settings


def _has_tls(proxy: AnyProxy, urls: tuple[str, ...]) -> bool:
    """Whether the proxy on the way to one of `urls` is reached by TLS."""
    for url in urls:
        with contextlib.suppress(UsageError):  # noted already
            used = proxy.proxy_for(TunnelUrl.parse(url)) if isinstance(proxy, EnvironmentProxies) else proxy
            if used is not None and used.scheme == "https":
                return True
    return False


def check_server_name(text: str) -> str:
    """The name in the form that a certificate has.  Raises UsageError."""
    check_target_host(text)
    name = text if parse_address(text) is not None else normalise_name(text)
    if name is None:
        raise UsageError("is not a host's name")
    return name


def read_headers(s: Section) -> tuple[tuple[str, str], ...]:
    """`headers`: names to values, or to {value_file: FILE}."""
    h = s.section("headers")
    headers: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for name in h.keys:
        try:
            check_header_name(name)
        except UsageError as error:
            h.knows(name)
            h.refuse(name, str(error))
            continue
        other = seen.setdefault(name.lower(), name)
        if other != name:
            h.refuse(name, f"is the same header as `{other}`")
        value = _read_header(h, name)
        if value is not None:
            headers.append((name, value))
    h.finish()
    return tuple(headers)


def _read_header(h: Section, name: str) -> str | None:
    def check(value: str) -> str | None:
        check_header_value(value)
        return value

    if h.is_section(name):
        inner = h.section(name)
        inner.require("value_file", "it is the file that holds the header's value")
        value = inner.text("value_file", None, lambda path: check(read_secret_file(inner.resolve(path))))
        inner.finish()
        return value
    for text in h.texts(name, several=False):
        if looks_secret(name) and "${" not in text.written:
            _refuse_open_file(h, name, "looks like a secret and stands", "{value_file: FILE}", text)
        return h.parsed(name, text, None, check)
    return None


def _password_stands_there(text: Text) -> bool:
    """Whether the password in a proxy's URL is written out, and not brought in from the environment."""
    password = text.written.rpartition("@")[0].rpartition(":")[2]
    return "${" not in password


def _refuse_open_file(s: Section, key: str, problem: str, instead: str, text: Text) -> None:
    """Note that a secret is written out where others can read it, when they can."""
    if exposure := s.document.exposure:
        cure = f"{exposure.cure}, or use ${{NAME}} or {instead}"
        s.refuse(key, f"{problem} in a file that others can read ({cure})", text.place)


def _check_environment(s: Section, proxies: EnvironmentProxies, urls: tuple[str, ...]) -> None:
    for url in urls:
        try:
            proxies.proxy_for(TunnelUrl.parse(url))
        except UsageError as error:
            s.document.fault(s.place_of("proxy"), f"{error}; or set `proxy`")
