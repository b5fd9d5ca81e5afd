"""What one lane owes its peer without a number: ACK, CREDIT, PING and PONG.

State, not a queue: the highest number to acknowledge, the set of streams whose credit moved, the last
PING.  So a reader never has to write, and nothing that a peer does makes this grow.  Pure;
`qanat.mux.core` is the only caller.
"""

from __future__ import annotations

from collections.abc import Iterable

from qanat.mux import frames as wire
from qanat.mux.stream import Stream

ACK_DELAY = 0.020
"""Seconds an ACK may wait for something to ride on."""
CREDITS_AT_ONCE = 1024
"""CREDIT frames in one record at most."""


class Owed:
    """See the module's docstring.  `keepalive` is in seconds, `ack_bytes` counts DATA payload."""

    def __init__(self, keepalive: float, ack_bytes: int, now: float) -> None:
        self.round_trip = 0.0
        self.credits: dict[int, Stream] = {}
        self.pong: int | None = None
        self._keepalive = keepalive
        self._ack_bytes = ack_bytes
        self._ack_due: float | None = None
        self._bytes_since_ack = 0
        self._ping_due = now
        self._ping_sent: tuple[int, float] | None = None
        self.ping_count = 0
        """How many PINGs have been sent; also the value of the last."""
        self.pings_answered = 0
        """The highest value of ours that came back in a PONG."""

    def restart(self, now: float, streams: Iterable[Stream]) -> None:
        """A new pipe: say again what the old one may have lost, and measure the new round trip."""
        # A stream that never had a CREDIT may be unknown to the peer: its OPEN is perhaps among what is replayed.
        for stream in streams:
            if stream.window.granted > stream.window.initial and not stream.fin_received:
                self.credits[stream.id] = stream
        self.pong = None
        self._ack_due = now
        self._ping_due = now
        self._ping_sent = None

    def accepted(self, size: int, now: float) -> bool:
        """One numbered frame with `size` bytes of DATA has been accepted.  True when an ACK is now due sooner."""
        since = self._bytes_since_ack
        self._bytes_since_ack = since + size
        if since < self._ack_bytes <= since + size:
            self._ack_due = now
            return True
        if self._ack_due is None:
            self._ack_due = now + ACK_DELAY
            return True
        return False

    def pong_received(self, value: int, now: float) -> None:
        """Smooth the round trip (RFC 6298 §2 with a quicker gain, since samples are rare)."""
        if value <= self.ping_count:
            self.pings_answered = max(self.pings_answered, value)
        if self._ping_sent is not None and value == self._ping_sent[0]:
            sample = now - self._ping_sent[1]
            self._ping_sent = None
            self.round_trip = sample if not self.round_trip else 0.75 * self.round_trip + 0.25 * sample

    def ping_now(self, now: float) -> None:
        """Send a PING with the next record, whatever the interval says."""
        self._ping_due = now

    def frames(self, now: float, received: int, *, riding: bool) -> list[bytes]:
        """The frames to send now; `riding` says that others will go out anyway, so an ACK may join."""
        owed: list[bytes] = []
        if self.pong is not None:
            owed.append(wire.Pong(self.pong).encode())
            self.pong = None
        if now >= self._ping_due:
            self.ping_count += 1
            self._ping_sent = (self.ping_count, now)
            self._ping_due = now + self._keepalive
            owed.append(wire.Ping(self.ping_count).encode())
        while self.credits and len(owed) < CREDITS_AT_ONCE:
            stream = self.credits.pop(next(iter(self.credits)))
            owed.append(wire.Credit(stream.id, stream.window.grant()).encode())
        if self._ack_due is not None and (riding or owed or now >= self._ack_due):
            owed.append(wire.Ack(received).encode())
            self._ack_due = None
            self._bytes_since_ack = 0
        return owed

    def timeout(self, now: float) -> float:
        """Seconds until `frames` has something although nothing else happens."""
        due = self._ping_due if self._ack_due is None else min(self._ack_due, self._ping_due)
        return max(0.0, due - now)
