"""How a client reaches its servers, in a configuration file: `proxy`, `tls` and `headers`.

`qanat.config.client` calls this.
"""

from __future__ import annotations

import contextlib

from qanat.base.errors import UsageError
from qanat.config.client_settings import ClientTls
from qanat.config.document import Text
from qanat.config.reader import read_options
from qanat.config.request_headers import check_header_name, check_header_value, looks_secret
from qanat.config.secret_files import read_secret_file
from qanat.config.section import Section
from qanat.config.texts import AnyProxy, parse_proxy
from qanat.transports.dial.proxies import EnvironmentProxies, Proxy
from qanat.transports.dial.urls import TunnelUrl


def read_proxy(s: Section, urls: tuple[str, ...]) -> AnyProxy:
    """Return `proxy`, with its password; variables that cannot be used for one of `urls` are faults, too."""
    environment = EnvironmentProxies.read(s.document.environ)
    proxy: AnyProxy = environment
    follows = "proxy_password_file" in s
    for text in s.texts("proxy", several=False):
        proxy = s.parsed("proxy", text, None, lambda value: parse_proxy(value, environment, password_follows=follows))
        if isinstance(proxy, Proxy) and proxy.password is not None and _password_stands_there(text):
            _refuse_open_file(s, "proxy", "has a password and is", "proxy_password_file", text)
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


def read_client_tls(s: Section, urls: tuple[str, ...], proxy: AnyProxy) -> ClientTls:
    """Return the client's `tls`; a key that could have no effect is a fault."""
    tls = s.section("tls")
    settings = read_options(tls, ClientTls)
    if ("certificate" in tls) != ("key" in tls):
        here, missing = ("certificate", "key") if "certificate" in tls else ("key", "certificate")
        tls.refuse(here, f"needs `{missing}` beside it; both may name one file that holds both")
    if urls and not any(TunnelUrl.parse(url).tls for url in urls):
        for key in tls.keys:
            if key in tls and not (key == "ca_file" and _has_tls(proxy, urls)):
                tls.refuse(key, "has no effect, since no `url` is with TLS; write wss:// there, or leave it out")
    return settings


def _has_tls(proxy: AnyProxy, urls: tuple[str, ...]) -> bool:
    """Return whether the proxy on the way to one of `urls` is reached by TLS."""
    for url in urls:
        with contextlib.suppress(UsageError):  # noted already
            used = proxy.proxy_for(TunnelUrl.parse(url)) if isinstance(proxy, EnvironmentProxies) else proxy
            if used is not None and used.scheme == "https":
                return True
    return False


def read_headers(s: Section) -> tuple[tuple[str, str], ...]:
    """Return `headers`: names to values, or to {value_file: FILE}."""
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
            _refuse_open_file(h, name, "looks like a secret and is", "{value_file: FILE}", text)
        return h.parsed(name, text, None, check)
    return None


def _password_stands_there(text: Text) -> bool:
    """Return whether the password in a proxy's URL is written out, and not brought in from the environment."""
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
