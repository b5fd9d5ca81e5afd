"""Deadlines instead of timeouts: one instant for a whole operation, however many steps it takes."""

from __future__ import annotations

import time


class Deadline:
    """The instant `seconds` from now on the monotonic clock; None means never."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float | None:
        """Seconds left, never below zero; None when there is no limit."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return self._at is not None and time.monotonic() >= self._at
