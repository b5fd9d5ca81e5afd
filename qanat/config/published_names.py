"""Names under which web services are published: what they may be, who may have which, and the forms to ask for one.

A published name is a host name in lower case, of DNS labels alone (RFC 1123 §2.1), so that it can be a file's name and
nothing in it can lead out of its directory.  Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qanat.base.addresses import looks_numeric, normalize_name, parse_port, parse_target
from qanat.base.endpoint_addresses import PublishedName, TcpAddress
from qanat.base.errors import UsageError

MAX_NAME = 253
"""Characters of a host name (RFC 1035 §2.3.4, without the root's label and length)."""
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
MODE_PATTERN = "0?[0-7]{3}"
_NAME = re.compile(rf"{LABEL}(\.{LABEL})*")
_FORM = "write --publish NAME:PORT, or NAME:HOST:PORT for a service on another machine"


def is_published_name(name: str) -> bool:
    """Return whether this can be a published name as it is."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None and not looks_numeric(name)


def parse_published_name(text: str) -> PublishedName:
    """Return the name in `text`, in lower case and IDNA's ASCII form.  Raises UsageError."""
    name = normalize_name(text)
    if name is None or not is_published_name(name):
        raise UsageError(
            "is not a name under which something can be published",
            hint="a host name, as app.example.com, or its first part alone, as app",
        )
    return PublishedName(name)


def parse_publish(text: str) -> tuple[PublishedName, TcpAddress]:
    """Return what `NAME:PORT` or `NAME:HOST:PORT` publishes, and where that is.  Raises UsageError."""
    name, _, where = text.partition(":")
    if not where:
        raise UsageError("does not say where the service is", hint=_FORM)
    target = TcpAddress(*parse_target(where)) if ":" in where else TcpAddress("127.0.0.1", parse_port(where))
    return parse_published_name(name), target


class PublishRules:
    """The names that one client may publish: NAME, and `*.NAME` for all names below it.  Immutable."""

    def __init__(self, rules: Sequence[str]) -> None:
        """Read the rules of `allow_publish`.  Raises UsageError for one that cannot be understood."""
        self._names = {rule for rule in map(check_publish_rule, rules) if not rule.startswith("*.")}
        self._above = [rule.removeprefix("*") for rule in map(check_publish_rule, rules) if rule.startswith("*.")]

    def full_name(self, name: str) -> str | None:
        """Return the name that is published for `name`; None when no rule allows it.

        One without a dot is the first part of a name below the first `*.NAME`, unless a rule names it as it is.
        """
        if "." not in name and name not in self._names and self._above:
            name += self._above[0]
        return name if is_published_name(name) and self.allows(name) else None

    def allows(self, name: str) -> bool:
        """Return whether a rule is about this full name."""
        return name in self._names or any(name.endswith(suffix) for suffix in self._above)


def check_publish_rule(text: str) -> str:
    """Return the rule in its normal form.  Raises UsageError."""
    below = "*." if text.startswith("*.") else ""
    try:
        return below + parse_published_name(text.removeprefix("*.")).name
    except UsageError as error:
        raise UsageError(
            "is not a rule for names that may be published", hint="for example app.example.com or *.office.example.com"
        ) from error


def check_mode(text: str) -> str:
    """Return `text`, when it is the permission bits of a file in octal.  Raises UsageError."""
    if not re.fullmatch(MODE_PATTERN, text):
        raise UsageError("must be permission bits in octal, in quotes", hint='for example "0660"')
    return text
