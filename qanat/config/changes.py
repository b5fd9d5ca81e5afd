"""What differs between the settings that a process runs with and those that its file has now: option by option.

A reload compares with this, and so touches only what changed.  What has a form of its own (clients, forwards, a proxy)
is named and not shown: it may hold secrets.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qanat.config.options import Kind, options_of

_SHOWN = frozenset({Kind.SWITCH, Kind.WHOLE, Kind.NUMBER, Kind.CHOICE, Kind.PATH})


@dataclass(frozen=True, slots=True)
class Change:
    """One option that has another value than before.  `str()` says it for people, without secrets."""

    key: str
    """Its place in the file: "limits.streams"."""
    text: str
    """What is different, to be read after the key; "" where values are not shown."""

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.text else self.key


def changes_between(old: object, new: object) -> list[Change]:
    """Return what differs, in the order of the settings.  Both are settings of one class, of a server or a client."""
    return list(_changes(old, new, ""))


def _changes(old: object, new: object, above: str) -> Iterator[Change]:
    for option in options_of(type(new)):
        before, after = getattr(old, option.field), getattr(new, option.field)
        if before == after:
            continue
        key = above + option.keys[0]
        if option.kind is Kind.SECTION and before is not None and after is not None:
            yield from _changes(before, after, f"{key}.")
        elif option.kind in _SHOWN:
            yield Change(key, f"{_shown(before)} -> {_shown(after)}")
        else:
            yield Change(key, "")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
