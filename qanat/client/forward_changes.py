"""What becomes of a client's forwards when others are wanted: which are new, which end, which go on as something else.

A forward is known by where it listens: one that leads elsewhere, or has other limits, goes on in its place, and of a
range each port by itself.  Pure; `qanat.client.local_forwards` and `qanat.client.remote_forwards` act on it, and
`qanat.client.client` reports what came of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from qanat.base.endpoint_addresses import ListenPlace, UdpAddress
from qanat.config.forward_settings import Forward


class Fate(StrEnum):
    """What has become of a forward."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class ForwardChange:
    """One forward that is not what it was, and what came of it."""

    fate: Fate
    forward: Forward
    """As it is now; one that was removed as it was."""
    listening: tuple[str, ...] = ()
    """Where it listens, with the ports that were really bound."""
    failure: str = ""
    """Why it does not listen in all of its places; it is tried again then."""
    pending: str = ""
    """What is waited for until that is known."""
    was: Forward | None = None
    """What one that was changed was before."""
    again: str = ""
    """When one that failed is tried again, where that is known."""

    def __str__(self) -> str:
        if self.fate is Fate.REMOVED:
            open_ones = "its flows end" if isinstance(self.forward.listen, UdpAddress) else "its open connections go on"
            return f"removed {self.forward}; {open_ones}"
        if self.fate is Fate.CHANGED:
            text = f"changed {self.was} to {self.forward}" if str(self.was) != str(self.forward) else ""
            text = text or f"changed the options of {self.forward}"
        else:
            text = f"added {self.forward}"
        if self.listening:
            text += f": listening on {', '.join(self.listening)}"
        if self.failure:
            text += f"{';' if self.listening else ':'} {self.failure}"
            if self.again:
                text += f"; it is asked for again in {self.again}"
        if self.pending:
            text += f"; {self.pending}"
        return text


@dataclass(frozen=True, slots=True)
class ForwardFates:
    """The forwards of two settings, one beside the other."""

    added: tuple[Forward, ...]
    removed: tuple[Forward, ...]
    changed: Mapping[Forward, Forward] = field(default_factory=dict)
    """Those that go on as something else: what they were, by what they are."""


def compare_forwards(before: Sequence[Forward], after: Sequence[Forward]) -> ForwardFates:
    """Return what becomes of each forward, as people wrote it."""
    left, fresh = list(before), []
    for forward in after:
        if forward in left:
            left.remove(forward)
        else:
            fresh.append(forward)
    added: list[Forward] = []
    changed: dict[Forward, Forward] = {}
    for forward in fresh:
        places = set(_places(forward))
        same = (one for one in left if one.kind == forward.kind and places.intersection(_places(one)))
        was = next(same, None)
        if was is None:
            added.append(forward)
        else:
            left.remove(was)
            changed[forward] = was
    return ForwardFates(tuple(added), tuple(left), changed)


def match_ports(before: Iterable[Forward], after: Iterable[Forward]) -> list[int | None]:
    """Return for each port of `after` which of `before` goes on as that one, by its index; None for a new one.

    Both are forwards of one port each.  None goes on as two.
    """
    equal: dict[Forward, list[int]] = {}
    for index, forward in enumerate(before):
        equal.setdefault(forward, []).append(index)
    wanted = list(after)
    found: list[int | None] = [indexes.pop(0) if (indexes := equal.get(one)) else None for one in wanted]
    places: dict[tuple[str, ListenPlace], list[int]] = {}
    for forward, indexes in equal.items():
        places.setdefault((forward.kind, forward.listen), []).extend(indexes)
    for n, forward in enumerate(wanted):
        if found[n] is None and (indexes := places.get((forward.kind, forward.listen))):
            found[n] = indexes.pop(0)
    return found


def _places(forward: Forward) -> list[ListenPlace]:
    return [part.listen for part in forward.parts()]
