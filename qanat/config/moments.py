"""Moments as people write them, in ISO 8601 with a zone: when a token ends.  Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from qanat.base.errors import UsageError

NEVER = "never"
_HINT = "for example 2027-01-31T00:00:00Z, or 2027-01-31T00:00+01:00; in quotes"
MOMENT_PATTERN = rf"{NEVER}|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[T ][0-9]{{2}}:[0-9]{{2}}.*"


def parse_moment(text: str) -> float:
    """Return the moment in seconds since 1970; infinity for `never`.  Raises UsageError."""
    if text == NEVER:
        return math.inf
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("is no date and time in ISO 8601", hint=_HINT) from None
    if moment.tzinfo is None:
        raise UsageError("does not say in which zone", hint=_HINT)
    try:
        return moment.timestamp()
    except OverflowError:  # a year that the system's clock does not have
        raise UsageError("is no moment that can come", hint=_HINT) from None


def format_moment(moment: float) -> str:
    """Return it as `parse_moment` takes it, in UTC and whole seconds."""
    if math.isinf(moment):
        return NEVER
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
