"""The header fields of an answer: as a mapping, and the cookies in them.

A load balancer in front of several servers may set a cookie of its own, to know where a client belongs.  It goes back
with the requests that resume a session, as it would from a browser.  Pure.  Used by the clients of all transports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MAX_COOKIES = 8
"""Cookies that are taken from one answer, and kept."""

_LISTS = ("connection", "upgrade", "proxy-authenticate", "www-authenticate", "sec-websocket-extensions")
"""Headers of which several mean what one with all values does (RFC 9110 §5.3), and that are looked at."""

_PAIR = re.compile(r"\s*([A-Za-z0-9!#$%&'*+.^_`|~-]{1,128})=([!#-+./0-:<-\[\]-~-]{1,1024})\s*(;|$)")  # RFC 6265 §4.1.1
_DELETES = re.compile(r"(?i);\s*max-age\s*=\s*\"?(0+|-[0-9]+)\"?\s*(;|$)")


def mapping(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return fields, whose names are in lower case, by their names.

    Of those that come twice all count where they are lists, joined by commas; cookies are joined by line ends, since
    they may have commas in them; of others the last counts.
    """
    headers: dict[str, str] = {}
    for name, value in fields:
        before = headers.get(name)
        if before and name in _LISTS:
            value = f"{before}, {value}"
        elif before and name == "set-cookie":
            value = f"{before}\n{value}"
        headers[name] = value
    return headers


def cookies(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the cookies that an answer sets, at most MAX_COOKIES.

    Where they count, and for how long, is not looked at; what has another form than RFC 6265 demands is left out.
    """
    found: dict[str, str] = {}
    for line in headers.get("set-cookie", "").split("\n"):
        pair = _PAIR.match(line)
        if pair is not None and not _DELETES.search(line) and len(found) < MAX_COOKIES:
            found[pair[1]] = pair[2]
    return found


def with_newer(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return the cookies of both, `new` where they have the same name, and at most MAX_COOKIES: the latest."""
    kept = {name: value for name, value in old.items() if name not in new}
    return dict([*kept.items(), *new.items()][-MAX_COOKIES:])
