"""Single texts of a configuration: what each may be, and what it means.

Each parser raises UsageError with a message that goes on after the name of what held the text ("is not …") and does
not repeat the text, which may be a secret.  Nothing here opens a file or looks up a name.  The declarations in
`settings` name these, so a file and a command line say the same.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from typing import TypeVar

from qanat.base.addresses import check_target_host, normalize_name, parse_address, parse_listen, parse_network
from qanat.base.errors import UsageError
from qanat.base.text import NAME
from qanat.config.access_rules import parse_connect_rule, parse_listen_rule, parse_unix_rule
from qanat.transports.dial.proxies import EnvironmentProxies, Proxy
from qanat.transports.dial.urls import TunnelUrl

NO_PROXY, FROM_ENVIRONMENT = "none", "environment"

AUTO = "auto"
"""The transport that stands for all of them: the client finds out which one works."""
TRANSPORTS = ("websocket", "http2", "grpc", "websocket-h2", "split", AUTO)
"""What can stand in a configuration."""
MAX_PATH = 512
"""Characters; with the rest of a request's head they fit into the least that `limits.header_bytes` can be."""
PATH_PATTERN = rf"/[A-Za-z0-9/%:@!$&'()*+,=~._-]{{0,{MAX_PATH - 1}}}"
"""What a client's URL can name without quoting."""

_PATH = re.compile(PATH_PATTERN)
_MONITORS = "/healthz"

S = TypeVar("S")
T = TypeVar("T")

AnyProxy = Proxy | EnvironmentProxies | None


def check_name(text: str) -> str:
    """Return `text`, when it is a name as the protocol carries it."""
    if not NAME.fullmatch(text):
        raise UsageError("must be 1 to 64 of A-Z a-z 0-9 . _ -", hint="for example my-office")
    return text


def check_url(text: str) -> str:
    """Return `text`, when it is a server's URL."""
    try:
        TunnelUrl.parse(text)
    except UsageError as error:
        raise UsageError(f"cannot be used: {error.message}", hint=error.hint) from error
    return text


def check_path(text: str) -> str:
    """Return `text`, when it can be the tunnel's path."""
    if len(text) > MAX_PATH:
        raise UsageError(f"is longer than {MAX_PATH} characters", hint="for example /tunnel")
    if not _PATH.fullmatch(text):
        raise UsageError(
            "must begin with / and have only characters that a URL's path can have", hint="for example /tunnel"
        )
    if text == _MONITORS:
        raise UsageError(f"is taken: {_MONITORS} tells monitors that the server is alive", hint="for example /tunnel")
    return text


def check_network(text: str) -> str:
    """Return `text`, when it is a network or an address."""
    parse_network(text)
    return text


def check_server_name(text: str) -> str:
    """Return the name in the form that a certificate has."""
    check_target_host(text)
    name = text if parse_address(text) is not None else normalize_name(text)
    if name is None:
        raise UsageError("is not a host's name")
    return name


def check_listen_rule(text: str) -> str:
    """Return `text`, when it says where one may listen."""
    if parse_unix_rule(text) is None:
        parse_listen_rule(text)
    return text


def check_shared_rule(text: str) -> str:
    """Return `text`, when it says where several may listen together."""
    if parse_unix_rule(text) is not None:
        raise UsageError("names Unix sockets, which several clients cannot share", hint="put it into `allow_listen`")
    rule = parse_listen_rule(text)
    if rule.udp:
        raise UsageError("is for UDP, whose ports are not shared", hint="put it into `allow_listen`")
    if 0 in rule.ports:
        raise UsageError(
            "has port 0, for which the system gives each client a port of its own", hint="put it into `allow_listen`"
        )
    return text


def check_connect_rule(text: str) -> str:
    """Return `text`, when it says what one may connect to."""
    parse_connect_rule(text)
    return text


def parse_next_listen(text: str, before: Collection[tuple[str, int]]) -> tuple[str, int]:
    """Return the address and port in `text`, when it is not one of those `before` it."""
    address = parse_listen(text)
    if address[1] and address in before:
        raise UsageError("has this address twice")
    return address


def parse_transport(text: str, before: Collection[str]) -> str:
    """Return the transport that `text` means, when it is not one of those `before` it."""
    if text not in TRANSPORTS:
        raise UsageError(f"must be {any_of(TRANSPORTS)}", hint=did_you_mean(text, TRANSPORTS))
    if text in before:
        raise UsageError(f"names {text} twice")
    return text


def parse_proxy(text: str, environment: EnvironmentProxies, *, password_follows: bool = False) -> AnyProxy:
    """Return what `none`, `environment` or a proxy's URL means."""
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


def named(what: str, parse: Callable[[S], T], value: S) -> T:
    """Return `parse(value)`, with `what` in front of its complaint."""
    try:
        return parse(value)
    except UsageError as error:
        raise UsageError(f"{what} {error.message}", hint=error.hint) from error


def any_of(choices: Collection[str]) -> str:
    """Return `a, b or c`."""
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def did_you_mean(word: str, words: Collection[str]) -> str:
    """Return a hint at the nearest of `words`, or "" when none is near."""
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""
