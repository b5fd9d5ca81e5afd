"""Statistics over rounds: median, spread, and ratios that are taken within a round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of several values, and their least and greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Return the spread of those values that are there; None when there is none."""
        present = [value for value in values if value is not None]
        return cls(statistics.median(present), min(present), max(present)) if present else None


def ratios(values: Sequence[float | None], to: Sequence[float | None]) -> list[float | None]:
    """Return each value divided by the one of the same round; None where either is missing or the divisor is 0."""
    return [a / b if a is not None and b else None for a, b in zip(values, to, strict=True)]


def differences(values: Sequence[float | None], to: Sequence[float | None]) -> list[float | None]:
    """Return each value less the one of the same round; None where either is missing."""
    return [a - b if a is not None and b is not None else None for a, b in zip(values, to, strict=True)]


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    """Return the items beginning with another one, so that none always has the same predecessor's heat."""
    if not items:
        return []
    start = by % len(items)
    return [*items[start:], *items[:start]]
