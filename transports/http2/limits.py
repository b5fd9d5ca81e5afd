"""How much a peer may ask for: windows, streams, header lists, and frames that cost us more than it.

Numbers, and one budget that `core` charges.  The windows are sized for 1 Gbit/s over 100 ms,
which is 12.5 MB in flight: a stream's is opened again for each eighth, so 14 MiB of 16 are always open, and the
connection's with that of a stream, or for each quarter: 12 MiB.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from h2.errors import ErrorCodes

from qanat.base.usage import Usage
from qanat.transports.http2.frames import FrameType, Http2Error

WINDOW = 16 * 1024 * 1024
"""Bytes in flight that we let a stream, and a connection, have."""

STREAM_UPDATES = 8
"""The part of its window that a stream's peer has used when it is opened again: an eighth."""

CONNECTION_UPDATE = WINDOW // 4
RIDING_UPDATE = WINDOW // 16
"""Bytes after which the connection's window is opened by itself, and from which on it is along with a stream's."""

UNAUTHENTICATED_WINDOW = 65535
"""Bytes in flight on a stream towards a server until its client is authenticated (RFC 9113's own default)."""

MAX_STREAMS = 128
"""Requests that a connection may have open at once (SETTINGS_MAX_CONCURRENT_STREAMS)."""

MAX_LINGERING = 16
"""Requests that were answered in full and that the peer may leave open; beyond these, the oldest is reset."""

MAX_HEADER_LIST = 64 * 1024
"""Bytes of a decompressed header list (RFC 9113 §6.5.2); above, the connection ends, since h2 can do no less."""

MAX_PENDING_CONTROL = 64 * 1024
"""Bytes of control frames that wait to be sent; a peer that asks for more does not read."""

MAX_BURST = 272 * 1024
"""Bytes that one stream may send before another that is waiting gets its turn."""

MAX_PLAIN = 1000
"""Plain requests that one connection may ask; then it is told to go away, and the next one counts as a new one.
Not where they are charged to a `StreamBudget`."""

IDLE = 60.0
"""Seconds that a connection to a server may be without any request."""

_BUDGET = 4096.0
_UNAUTHENTICATED_BUDGET = 1024.0
_REFILL = 1 / 16  # of the budget, every second
_EARNED = 4.0  # by each DATA frame that we send: WINDOW_UPDATEs and PINGs are the answer to these
_BYTES_AN_UPDATE = 512
"""Bytes of DATA that we send for each WINDOW_UPDATE that is free of charge.  A proxy that hands on what it reads
acknowledges it for the stream and for the connection after each piece, which may be no more than one TCP segment."""
_MOST_UPDATES = WINDOW / _BYTES_AN_UPDATE
_COSTS: dict[int, float] = {FrameType.RST_STREAM: 32.0, FrameType.SETTINGS: 16.0}
_UNAUTHENTICATED_REQUEST = 16.0
_SERVED_ALL_THE_SAME = 4
"""Unauthenticated streams at a time of an address that has spent its budget, and from which somebody is known."""


class ControlFrameBudget:
    """A budget for frames that carry nothing, so that no peer sends those alone (RFC 9113 §10.5).

    128 resets, 256 SETTINGS or 4096 PINGs at once are allowed, a quarter of that until a stream of the connection is
    known to be an honest client's, and a sixteenth every second.  RST_STREAM is dear because the request that it ends
    was cheap for the peer and dear for us (CVE-2023-44487), and as dear when we send it for what the peer did
    (CVE-2025-8671).  WINDOW_UPDATEs are paid for by the bytes that they acknowledge.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._budget = _UNAUTHENTICATED_BUDGET
        self._used = _Spent()
        self._updates = 0.0  # WINDOW_UPDATEs that have been paid for
        self._by_kind: dict[str, _Spent] = {}

    @property
    def used_most(self) -> Usage:
        """How much was used at the worst moment."""
        return self._used.peak

    @property
    def used_most_for(self) -> dict[str, Usage]:
        """How much each kind of charge alone would have used at its worst moment, by the frame's name."""
        return {kind: spent.peak for kind, spent in self._by_kind.items()}

    def trust(self) -> None:
        """Grant the whole budget: the peer is authenticated, or carries a client that is."""
        self._budget = _BUDGET

    def spend(self, kind: int) -> None:
        """Charge a frame that the peer sent, or made us send.  Call `check` afterwards."""
        if kind == FrameType.WINDOW_UPDATE and self._updates >= 1:
            self._updates -= 1
            return
        self._charge(_name_of(kind), _COSTS.get(kind, 1.0))

    def spend_request(self) -> None:
        """Charge a tunnel request whose client was never authenticated: it had a thread and a handshake."""
        self._charge("unauthenticated request", _UNAUTHENTICATED_REQUEST)

    def check(self) -> None:
        """Raise Http2Error if more was spent than there is."""
        if self.spent:
            raise Http2Error(ErrorCodes.ENHANCE_YOUR_CALM, "too many control frames in too short a time")

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        if self._used.amount > self._budget:
            self._used.refill(self._clock(), self._budget)
        return self._used.amount > self._budget

    @property
    def trusted(self) -> bool:
        """Whether `trust` was called."""
        return self._budget == _BUDGET

    @property
    def retry_after(self) -> int:
        """Whole seconds until something is left again, at least 1."""
        return max(1, math.ceil((self._used.amount - self._budget) / (_REFILL * self._budget)))

    def _charge(self, what: str, cost: float) -> None:
        now = self._clock()
        self._used.add(cost, now, self._budget)
        self._by_kind.setdefault(what, _Spent()).add(cost, now, self._budget)

    def earn(self, size: int) -> None:
        """Give something back for a DATA frame of `size` bytes that was sent."""
        self._used.amount = max(0.0, self._used.amount - _EARNED)
        self._updates = min(_MOST_UPDATES, self._updates + size / _BYTES_AN_UPDATE)


class _Spent:
    """What was spent and has not been refilled since."""

    __slots__ = ("_at", "amount", "peak")

    def __init__(self) -> None:
        self.amount = 0.0
        self.peak = Usage(0, _UNAUTHENTICATED_BUDGET)
        self._at = 0.0

    def add(self, cost: float, now: float, budget: float) -> None:
        self.refill(now, budget)
        self.amount = min(2 * budget, self.amount + cost)  # debts are forgiven in the end
        if self.amount * self.peak.limit > self.peak.used * budget:
            self.peak = Usage(self.amount, budget)

    def refill(self, now: float, budget: float) -> None:
        self.amount = max(0.0, self.amount - (now - self._at) * _REFILL * budget)
        self._at = now


class StreamBudget:
    """A budget for streams of one address, which may be spread over many connections that it shares with others.

    When it is spent, the address's new streams are refused, and no connection ends.  Where somebody has authenticated,
    an office perhaps with a stranger in it, a few at a time are served all the same: one that resets them leaves room,
    and how often a handshake may begin is bounded elsewhere.  Safe to use from any thread.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._budget = ControlFrameBudget(clock)
        self._unauthenticated = 0  # tunnel streams that run

    @property
    def used_most(self) -> Usage:
        """How much was used at the worst moment."""
        return self._budget.used_most

    def trust(self) -> None:
        """Do as `ControlFrameBudget.trust`."""
        with self._lock:
            self._budget.trust()

    def spend(self, kind: int) -> None:
        """Do as `ControlFrameBudget.spend`; there is nothing to check afterwards."""
        with self._lock:
            self._budget.spend(kind)

    def spend_request(self) -> None:
        """Do as `ControlFrameBudget.spend_request`."""
        with self._lock:
            self._budget.spend_request()

    def begin(self) -> None:
        """Count a tunnel stream that is not authenticated, until `end`."""
        with self._lock:
            self._unauthenticated += 1

    def end(self) -> None:
        """Count it no more: it is authenticated, or over."""
        with self._lock:
            self._unauthenticated -= 1

    def refused_for(self) -> int:
        """Return for how many seconds new streams must be refused, mostly 0."""
        with self._lock:
            if not self._budget.spent:
                return 0
            if not self._budget.trusted:
                return self._budget.retry_after
            return 0 if self._unauthenticated < _SERVED_ALL_THE_SAME else 1


def _name_of(kind: int) -> str:
    try:
        return FrameType(kind).name
    except ValueError:
        return "unknown"
