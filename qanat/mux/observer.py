"""What a lane tells of: called now and then, with its lock held, by the core and by what is around it.

`qanat.base.events` has what counts.  Pure: an observer is given, and NOBODY by default.
"""

from __future__ import annotations

from typing import Protocol

from qanat.mux.frames import Reason, reason_name

_REASONS = frozenset(Reason)


class Observer(Protocol):
    """Hears what happens.  None of its methods may block, raise, or call the lane."""

    def answered(self, seconds: float) -> None:
        """Note the round trip of a PING."""

    def stream_opened(self, seconds: float) -> None:
        """Note that a stream's target was reached, so long after OPEN."""

    def stream_reset(self, reason: str, *, by_peer: bool) -> None:
        """Note that a stream was reset."""

    def recovered(self, seconds: float) -> None:
        """Note that a lane goes on after it was without a pipe."""

    def refused(self, reason: str) -> None:
        """Note that somebody was turned away; `reason` is one of a few words, none of them a stranger's."""


class Nobody:
    """Hears nothing."""

    def answered(self, seconds: float) -> None:
        """Do nothing."""

    def stream_opened(self, seconds: float) -> None:
        """Do nothing."""

    def stream_reset(self, reason: str, *, by_peer: bool) -> None:
        """Do nothing."""

    def recovered(self, seconds: float) -> None:
        """Do nothing."""

    def refused(self, reason: str) -> None:
        """Do nothing."""


NOBODY = Nobody()


def reason_label(code: int) -> str:
    """Return a word for a reason; the same for all that this version does not know, since the peer chooses them."""
    return reason_name(code) if code in _REASONS else "unknown"
