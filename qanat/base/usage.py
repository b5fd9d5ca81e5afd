"""How near something has come to its limit, so that a bench can tell how much room honest traffic has left.

Kept by the limits themselves, at the price of a comparison.  Nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Usage(NamedTuple):
    """How much of a limit was used at the worst moment."""

    used: float
    limit: float

    @property
    def share(self) -> float:
        """The part of the limit that was used; more than 1 where somebody was refused."""
        return self.used / self.limit


UNUSED = Usage(0, 1)


def worst(first: Usage, *others: Usage) -> Usage:
    """Return the one of them that came nearest to its limit."""
    return max((first, *others), key=lambda usage: usage.share)


class Peaks:
    """The worst usage of several limits, by their names.  For one thread at a time."""

    def __init__(self) -> None:
        self._peaks: dict[str, Usage] = {}

    def note(self, name: str, usage: Usage) -> None:
        """Keep `usage` if it is the worst so far."""
        self._peaks[name] = worst(self._peaks.get(name, usage), usage)

    def note_all(self, usages: Mapping[str, Usage]) -> None:
        """Keep each of these that is the worst so far."""
        for name, usage in usages.items():
            self.note(name, usage)

    def copy(self) -> dict[str, Usage]:
        """Return all of them, in the order in which their names came."""
        return dict(self._peaks)
