"""The frames without a number that one lane still has to send: ACK, CREDIT, PING, PONG and CLOCK.

State, not a queue: the highest number to acknowledge, the set of streams whose credit moved, the last
PING.  So a reader never has to write, and nothing that a peer does makes this grow.  Pure, and not thread-safe: the
lane's lock guards it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import islice

from qanat.mux import frames as wire
from qanat.mux.path_queue import PATH_TIME
from qanat.mux.stream_state import StreamState
from qanat.mux.window import LEAST_TIME, RATE_TIME

ACK_DELAY = 0.020
"""Seconds an ACK may wait for something to ride on."""
PINGS_KEPT = 8
"""PINGs whose round trips are remembered: the least of them is the path's own, without what waits in it."""
PING_SPAN = 7.5
"""Seconds in which PINGs count as one of these, by the least of them, so that a few in turn push out no older one."""
FIRST_PINGS = 4
"""Answers on a new pipe until it is believed that its path is no short one, where there is bulk: when a session begins
both ends are busy, and one late answer would make a short path long for as long as it is remembered."""
SHARED_TIME = 1.0
"""Seconds: keepalive PINGs of a process's lanes are due at multiples of this, so that one wake-up serves many idle
ones; of a shorter interval an eighth."""
ANSWERS_IN_TURN = 3
"""PINGs of the peer in turn that stand for our own while nothing else moves; with the next answer goes one of ours."""
CLOCK_EVERY = 0.005
"""Seconds between CLOCKs that ride on what is sent over a long path: the peer sees by them how long it has waited."""
CREDITS_HELD, CREDITS_PART = 16, 4
"""CREDITs that wait for each other at most, to share a record, and the part of the streams in turn that these may be:
the peer has credit for the others meanwhile.  As many as are in turn, where none of these presses: a stream presses of
whose window another quarter has come beyond what makes its CREDIT due."""
CREDITS_RIDING, RIDING_SECONDS = 64, 2 * RATE_TIME
"""Streams in turn that are looked at when a CREDIT is sent: those of which half as much has been consumed as makes one
due have theirs in the same record, which is early, and never late.  Not for longer than that in turn, since a window is
measured, and may shrink, when its own is due."""
CREDITS_AT_ONCE = 1024
"""CREDIT frames in one record at most."""
LITTLE_CREDIT = 4
"""CREDITs that surely fit in front of a buffer's payload, with all else that may be due."""


class PendingControl:
    """What `Receiver` and `Sender` owe the peer together; `Sender` sends it.

    `keepalive` is the number of seconds between PINGs, and `slack` for how many longer this end waits where the peer's
    stands for its own, an eighth of these at most; an ACK is due at once after `ack_bytes` bytes of DATA.  With
    `tell_clock` the peer hears our clock, before PINGs and datagrams.
    """

    def __init__(
        self, keepalive: float, ack_bytes: int, now: float, *, slack: float = 0.0, tell_clock: bool = False
    ) -> None:
        self.round_trip = 0.0
        """Seconds that a PING takes, smoothed; 0 before the first answer."""
        self.least_round_trip = 0.0
        """Seconds: the least of the last PINGS_KEPT spans, one in requests; 0 before the first answer on a pipe."""
        self._round_trips: deque[float] = deque(maxlen=PINGS_KEPT)
        self._span, self._span_since = PING_SPAN, now
        self._answers = 0  # on this pipe
        self._in_doubt = False  # a PING is due since the path seems to be no short one
        self.ping_count = 0
        """How many PINGs have been sent; also the value of the last."""
        self.pings_answered = 0
        """The highest value of ours that came back in a PONG."""
        self._keepalive = keepalive
        self._shared = min(SHARED_TIME, keepalive / 8)
        self._later = min(slack, keepalive / 8)
        self._ack_bytes = ack_bytes
        self._credits: dict[int, StreamState] = {}
        self._turn: dict[int, StreamState] = {}  # with a CREDIT since one of them had its last that was due
        self._in_turn: dict[int, StreamState] = {}  # those before that
        self._pressing = False  # one of those to which CREDIT is due
        self._pong: int | None = None
        self._expected = 0
        self._ack_due: float | None = None
        self._bytes_since_ack = 0
        self._ping_due = now
        self._answers_in_turn = 0
        self._ping_sent: tuple[int, float] | None = None
        self._clock_since = now if tell_clock else None
        self._clock_due = now

    def restart(self, now: float, streams: Iterable[StreamState], *, in_requests: bool = False) -> None:
        """Say again on a new pipe what the old one may have lost, and measure the new round trip.

        Where the pipe is `in_requests` all its life is one span: nothing empties the path for a PING there
        (`qanat.mux.path_queue`), so the least of a few minutes would have the queue of our own windows in it.
        """
        # A stream that never had a CREDIT may be unknown to the peer: its OPEN is perhaps among what is replayed.
        for stream in streams:
            if stream.window.granted > stream.window.initial and not stream.fin_received:
                self._credits[stream.id] = stream
        self._turn.clear()
        self._in_turn.clear()
        self._span = math.inf if in_requests else PING_SPAN
        self._round_trips.clear()
        self._answers = 0
        self._in_doubt = False
        self.least_round_trip = 0.0
        self._pong = None
        self._ack_due = now
        self._ping_due = now
        self._answers_in_turn = 0
        self._ping_sent = None

    # --- what makes a frame due -------------------------------------------------------------------

    def accepted(self, expected: int, size: int, now: float) -> bool:
        """Note that the numbered frames before `expected`, the new ones with `size` bytes of DATA, have been accepted.

        True when an ACK is due now.  Otherwise one is due within ACK_DELAY.
        """
        self._expected = expected
        since = self._bytes_since_ack
        self._bytes_since_ack = since + size
        if since < self._ack_bytes <= since + size:
            self._ack_due = now
            return True
        if self._ack_due is None:
            self._ack_due = now + ACK_DELAY
        return False

    @property
    def ack_waits(self) -> bool:
        """Whether an ACK will be sent within ACK_DELAY, whatever else happens, and what is queued with it."""
        return self._ack_due is not None

    def add_credit(self, stream: StreamState) -> None:
        """Have the stream's present credit sent, and a PING with it where it is in doubt whether the path is short."""
        if self.least_round_trip >= LEAST_TIME:
            self._ask_again()
        number = stream.id
        self._credits[number] = stream
        self._pressing = self._pressing or stream.window.pressing
        if number in self._turn:
            self._in_turn, self._turn = self._turn, {}
        self._turn[number] = stream

    @property
    def credit_can_wait(self) -> bool:
        """Whether what credit is due may wait for that of others, until the ACK that waits already at most.

        So it is with streams in turn on a short path, where a CREDIT by itself would wake a peer that has enough
        to send.  Without the lane's lock, by who has added the credit: whatever is sent from then on has it.
        """
        if self._ack_due is None:
            return False  # what brought the payload has been acknowledged before that was handed on
        most = len(self._in_turn) // (CREDITS_PART if self._pressing else 1)
        return len(self._credits) < min(CREDITS_HELD, most) and 0.0 < self.least_round_trip < PATH_TIME

    @property
    def fits_before_buffer(self) -> bool:
        """Whether all that is due, and rides, surely fits in front of a buffer's payload."""
        return len(self._credits) + len(self._in_turn) <= LITTLE_CREDIT

    def drop_credit(self, stream: StreamState) -> None:
        """Send no credit for a stream on which nothing more will come."""
        number = stream.id
        self._credits.pop(number, None)
        self._turn.pop(number, None)
        self._in_turn.pop(number, None)

    def ping_received(self, value: int, now: float, *, quiet: bool = False) -> None:
        """Answer the peer's latest PING; one that has not been answered yet no longer counts.

        `quiet` says that nothing but PINGs has moved since its last: then this one shows the peer, and its answer
        shows us to the peer, as well as a PING of ours would.  So ours waits, unless it is due or has no answer yet.
        Each end sends one now and then all the same, since whoever asks learns the round trip.
        """
        self._pong = value
        if quiet and self._ping_sent is None and now < self._ping_due:
            self._answers_in_turn += 1
            if self._answers_in_turn > ANSWERS_IN_TURN:
                self._ping_due = now  # in one record with the answer
            else:
                self._ping_due = self._shared_time(now + self._keepalive + self._later)

    def pong_received(self, value: int, now: float) -> float | None:
        """Smooth the round trip (RFC 6298 §2 with a quicker gain, since samples are rare).

        Returns its seconds, None when this is no answer to the last PING.
        """
        if value <= self.ping_count:
            self.pings_answered = max(self.pings_answered, value)
        if self._ping_sent is None or value != self._ping_sent[0]:
            return None
        sample = now - self._ping_sent[1]
        self._ping_sent = None
        if self._round_trips and now - self._span_since < self._span:
            self._round_trips[-1] = min(sample, self._round_trips[-1])
        else:
            self._round_trips.append(sample)
            self._span_since = now
        self.least_round_trip = min(self._round_trips)
        self._answers += 1
        self.round_trip = sample if not self.round_trip else 0.75 * self.round_trip + 0.25 * sample
        return sample

    def ping_waits(self, now: float) -> float | None:
        """Return for how many seconds the last PING has had no answer; None once it has one."""
        return None if self._ping_sent is None else now - self._ping_sent[1]

    def overdue(self, now: float) -> float:
        """Return for how many seconds a PING has been due; below 0 until then."""
        return now - self._ping_due

    def ping_now(self, now: float) -> int:
        """Have a PING sent with the next record, whatever the interval says; return its value."""
        self._ping_due = now
        return self.ping_count + 1

    def path_is_long(self) -> bool:
        """Return whether the path takes PATH_TIME or more; where that is in doubt, a PING goes with the next record.

        For whoever has bulk to send.
        """
        if self.least_round_trip < PATH_TIME:
            return False
        self._ask_again()
        return True

    def path_is_short(self) -> bool:
        """Return whether the path is known to take less than LEAST_TIME; else as `path_is_long`."""
        if 0.0 < self.least_round_trip < LEAST_TIME:
            return True
        self._ask_again()
        return False

    def _ask_again(self) -> None:
        """Have a PING go with the next record, unless as many as count have been answered, or one is under way."""
        self._in_doubt = self._answers < FIRST_PINGS and self._ping_sent is None

    # --- what is sent -----------------------------------------------------------------------------

    def frames(self, now: float, *, riding: bool) -> list[bytes]:
        """Return the frames to send now; `riding` says that others will go out anyway, so an ACK may join."""
        due: list[bytes] = []
        if self._pong is not None:
            due.append(wire.Pong(self._pong).encode())
            self._pong = None
        if now >= self._ping_due or self._in_doubt:
            self._in_doubt = False
            self.ping_count += 1
            self._ping_sent = (self.ping_count, now)
            later = self._later if self._answers_in_turn else 0.0  # the peer will ask again before
            self._ping_due = self._shared_time(now + self._keepalive + later)
            self._answers_in_turn = 0
            due += self.clock(now)
            due.append(wire.Ping(self.ping_count).encode())
        elif (riding or self._credits) and now >= self._clock_due and self.least_round_trip >= PATH_TIME:
            due += self.clock(now)
        if self._credits and self._in_turn and 0.0 < self.least_round_trip < PATH_TIME:
            self._add_riding_credits(now)
        self._pressing = False
        while self._credits and len(due) < CREDITS_AT_ONCE:
            stream = self._credits.pop(next(iter(self._credits)))
            due.append(wire.credit(stream.id, stream.window.grant()))
        if self._ack_due is not None and (riding or due or now >= self._ack_due):
            due.append(wire.ack(self._expected))
            self._ack_due = None
            self._bytes_since_ack = 0
        return due

    def _add_riding_credits(self, now: float) -> None:
        """Add the credit of streams in turn that will be due soon, so that it does not cost a record of its own."""
        for number, stream in islice(self._in_turn.items(), CREDITS_RIDING):
            if stream.window.soon_due and now - stream.window.since < RIDING_SECONDS:
                self._credits[number] = self._turn[number] = stream

    def clock(self, now: float) -> list[bytes]:
        """Return the CLOCK for a record that is made now; nothing where the peer does not know it."""
        if self._clock_since is None:
            return []
        self._clock_due = now + CLOCK_EVERY
        return [wire.Clock(round((now - self._clock_since) * 1000)).encode()]

    def urgent(self, now: float) -> bool:
        """Return whether a PING or PONG is due, which waits for nothing to ride on."""
        return self._pong is not None or now >= self._ping_due

    def timeout(self, now: float, *, ping_only: bool = False) -> float:
        """Return the seconds until `frames` has something although nothing else happens; with `ping_only` a PING."""
        due = self._ping_due if ping_only or self._ack_due is None else min(self._ack_due, self._ping_due)
        return max(0.0, due - now)

    @property
    def streams_with_credit(self) -> tuple[StreamState, ...]:
        """The streams for which a CREDIT will be sent."""
        return tuple(self._credits.values())

    def clear(self) -> None:
        """Send no credit any more: the lane is over."""
        self._credits.clear()
        self._turn.clear()
        self._in_turn.clear()

    def _shared_time(self, due: float) -> float:
        """Return the last shared time up to `due`."""
        return due - due % self._shared
