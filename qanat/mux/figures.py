"""What a lane and a stream say of themselves when somebody looks: `Lane.figures` and `Stream.figures`.

Counts that are kept anyhow, read at one moment.  Times are those of the lane's clock.  Pure.
"""

from __future__ import annotations

from typing import NamedTuple


class StreamFigures(NamedTuple):
    """Of one stream, in bytes."""

    opened_at: float
    received: int
    sent: int
    queued: int
    """What waits for the wire, and what has come and was not handed on yet."""
    inbox: int
    """The latter."""
    peer_takes_no_more: bool
    """Whether all credit is used up."""


class LaneFigures(NamedTuple):
    """Of one lane; sizes in bytes, payload counted once however often it was sent."""

    attached: bool
    changed_at: float
    """When its pipe began, or when it lost the last one."""
    round_trip: float
    """0 before the first answer."""
    received: int
    sent: int
    queued: int
    outbox: int
    outbox_limit: int
    pipes: int
    """How many pipes it has had."""
    opened: int
    """How many streams there have been."""
    recoveries: int
    """How often another pipe has followed one that was lost."""
    last_recovery: float | None
    """Seconds that it was without a pipe before the last of these; None while there was none."""
    replayed: int
    ping_waits: float | None
    """Seconds that the last PING has had no answer; None once it has one."""
    open: int
    """Streams that are open on the wire."""
