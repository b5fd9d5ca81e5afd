"""What a command line says, as settings: a client without a file, and flags that come before a file.

`qanat.cli` parses the command line and calls this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qanat.base.errors import UsageError
from qanat.config.client_settings import ClientSettings, ClientTls, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.forwards import parse_publishes, parse_ssh_forwards
from qanat.config.options import Kind, Option, conflicts_of, options_of
from qanat.config.request_headers import check_header_name, check_header_value, looks_secret
from qanat.config.secret_files import read_secret_file, read_token_file, token_secret
from qanat.config.state import environment_state_dir, user_state_dir
from qanat.config.texts import AnyProxy, check_name, check_url, named, parse_proxy
from qanat.transports.dial.proxies import EnvironmentProxies, Proxy
from qanat.transports.dial.urls import TunnelUrl

S = TypeVar("S")
T = TypeVar("T")

TOKEN_VARIABLE = "QANAT_TOKEN"
NAME_VARIABLE = "QANAT_NAME"
DEFAULT_NAME = "client"

_USER = re.compile(r"^(\w+://)([^@/?#:]*)@")


def client_from_options(
    *,
    urls: Sequence[str],
    environ: Mapping[str, str] | None = None,
    state_dir: Path | None = None,
    **given: Any,
) -> ClientSettings:
    """Return the settings of a client that has no file.  Blocks on the disk only.

    All of `urls`, of which there is one at least, lead to the one server.  `given` has the values of flags, by the
    `dest` of each.  The token is that in `token_file`, else in $QANAT_TOKEN.  The name is the first of `name`, the
    part before @ in a URL, $QANAT_NAME, the token file's name without its ending, and "client".
    `header` are NAME:VALUE, and `header_file` NAME:FILE; neither `proxy` nor `header` may hold a secret.
    `state_dir` defaults to $STATE_DIRECTORY, then to the user's own directory for state.  Raises
    UsageError for the first thing that is wrong.
    """
    environ = os.environ if environ is None else environ
    user, urls = _split_users(urls)
    token_file: Path | None = given.get("token_file")
    name = given.pop("name", None) or user or environ.get(NAME_VARIABLE)
    name = name or (token_file.stem if token_file else "") or DEFAULT_NAME
    server = with_flags(RemoteServer(urls, _token(token_file, environ)), given)
    kept = server.fingerprint is None
    settings = ClientSettings(
        name=_client_name(name),
        servers=(server,),
        forwards=forwards_from_options(given),
        proxy=_proxy(urls, given.get("proxy"), given.get("proxy_password_file"), environ),
        headers=_headers(given.get("header", ()), given.get("header_file", ())),
        state_dir=state_dir or environment_state_dir(environ) or user_state_dir(environ, needed=kept),
    )
    settings = with_flags(settings, given)
    _check_tls(urls, settings.tls, given)
    return settings


def forwards_from_options(given: Mapping[str, Any]) -> tuple[Forward, ...]:
    """Return the forwards of the flags that make some, by the `dest` of each.  Raises UsageError."""
    return (
        *parse_ssh_forwards(*(given.get(flag, ()) for flag in ("local", "remote", "udp", "dynamic"))),
        *parse_publishes(given.get("publish", ())),
    )


def with_flags(settings: T, given: Mapping[str, Any]) -> T:
    """Return `settings` with what flags set in them and in the sections below; for a client or a server.

    What has a form of its own is left as it is.  Raises UsageError for a value that cannot be.
    """
    values: dict[str, Any] = {}
    names: dict[str, str] = {}  # of the flags that stood there, by the keys that they set
    for option in options_of(type(settings)):
        before = getattr(settings, option.field)
        if option.kind is Kind.SECTION and before is not None:
            values[option.field] = with_flags(before, given)
        elif option.kind is not Kind.OWN:
            for flag in option.declared.flags:
                if is_given(value := given.get(flag.dest)):
                    values[option.field] = named(flag.name, partial(_parse_flag, option), value)
                    names[option.key] = flag.name
    made: T = replace(settings, **values)  # type: ignore[type-var]
    for conflict in conflicts_of(made):
        for key in conflict.keys:
            if key in names:
                raise UsageError(f"{names[key]} {conflict.text}")
    return made


def is_given(value: object) -> bool:
    """Whether a flag stood on the command line."""
    return value is not None and value != []


def _parse_flag(option: Option, value: Any) -> Any:
    declared = option.declared
    if option.kind in (Kind.WHOLE, Kind.NUMBER) and not option.allows(value):
        raise UsageError(option.wanted)
    if option.kind is Kind.TEXT:
        return declared.value_of(value)
    if option.kind is Kind.TEXTS:
        found: list[Any] = []
        for text in ",".join(value).split(","):
            found.append(declared.value_of(text.strip(), found))
        return tuple(found)
    if option.kind is Kind.PATH and declared.check is not None:
        declared.check(value)
    return value


def _check_tls(urls: Sequence[str], tls: ClientTls, given: Mapping[str, Any]) -> None:
    for option in options_of(ClientTls):
        for flag in option.declared.flags:
            if is_given(given.get(flag.dest)) and not any(TunnelUrl.parse(url).tls for url in urls):
                raise UsageError(
                    f"{flag.name} has no effect on a URL without TLS", hint="write wss://, or leave it out"
                )
    if (tls.certificate is None) != (tls.key is None):
        raise UsageError("--cert and --key go together", hint="both may name one file that holds both")


def _proxy(urls: Sequence[str], text: str | None, password_file: Path | None, environ: Mapping[str, str]) -> AnyProxy:
    environment = EnvironmentProxies.read(environ)
    if text is None:
        proxy: AnyProxy = environment
    else:
        follows = password_file is not None
        proxy = named("--proxy", lambda value: parse_proxy(value, environment, password_follows=follows), text)
    if isinstance(proxy, EnvironmentProxies):
        for url in urls:
            proxy.proxy_for(TunnelUrl.parse(url))  # a variable that cannot be used ends the start
    if isinstance(proxy, Proxy) and proxy.password is not None:
        raise UsageError(
            "--proxy has a password, which every user of this machine can read on a command line",
            hint="give --proxy-password-file FILE, or the whole URL in the environment variable ALL_PROXY",
        )
    if password_file is None:
        return proxy
    if not isinstance(proxy, Proxy) or proxy.user is None:
        raise UsageError("--proxy-password-file needs a user in --proxy", hint="write --proxy http://USER@HOST:PORT")
    password = named("--proxy-password-file", read_secret_file, password_file)
    return named("--proxy-password-file", proxy.with_password, password)


def _headers(texts: Sequence[str], files: Sequence[str]) -> tuple[tuple[str, str], ...]:
    headers: dict[str, tuple[str, str]] = {}
    for option, form, entries in (("--header", "NAME:VALUE", texts), ("--header-file", "NAME:FILE", files)):
        for entry in entries:
            name, colon, value = (part.strip() for part in entry.partition(":"))
            if not colon or not value:
                raise UsageError(f"{option} must be {form}", hint="give it once for each header")
            what = f"{option} {name}"  # never the value
            named(what, check_header_name, name)
            if name.lower() in headers:
                raise UsageError(f"{what} is given twice")
            if option == "--header-file":
                value = named(what, read_secret_file, Path(value))
            elif looks_secret(name):
                raise UsageError(
                    f"{what} looks like a secret, which every user of this machine can read on a command line",
                    hint=f"put the value into a file that only you can read, and give --header-file {name}:FILE",
                )
            named(what, check_header_value, value)
            headers[name.lower()] = (name, value)
    return tuple(headers.values())


def _client_name(name: str) -> str:
    try:
        return named("the client's name", check_name, name)
    except UsageError as error:  # it may be that of the token file, which nobody gave as a name
        hint = "give --name NAME, as the server's configuration has it, for example my-office"
        raise UsageError(error.message, hint=hint) from error


def _split_users(urls: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the name before the @ in any of `urls`, or "", and the URLs without it."""
    user, plain = "", []
    for url in urls:
        match = _USER.match(url)
        if match:
            if user and match[2] and match[2] != user:
                raise UsageError("the URLs have different names before the @", hint="they are ways to one server")
            user, url = match[2] or user, match[1] + url[match.end() :]
        plain.append(named("the URL", check_url, url))
    return user, tuple(plain)


def _token(token_file: Path | None, environ: Mapping[str, str]) -> bytes:
    if token_file is not None:
        return named("--token-file", read_token_file, token_file)
    text = environ.get(TOKEN_VARIABLE)
    if not text:
        raise UsageError("there is no token", hint=f"give --token-file FILE, or set {TOKEN_VARIABLE}")
    return token_secret(text, f"{TOKEN_VARIABLE} holds no token")
