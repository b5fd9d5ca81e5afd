"""How much a peer may ask for: windows, streams, header lists, and frames that cost us more than it.

Numbers, and one budget that `core` charges.  The windows are sized for 1 Gbit/s over 100 ms,
which is 12.5 MB in flight: an update is sent for each eighth, so 14 MiB of 16 are always open.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from h2.errors import ErrorCodes

from qanat.transports.http2.frames import FrameType, Http2Error

WINDOW = 16 * 1024 * 1024
"""Bytes in flight that we let a stream, and a connection, have."""

UNAUTHENTICATED_WINDOW = 65535
"""Bytes in flight on a stream towards a server until its client is authenticated (RFC 9113's own default)."""

MAX_STREAMS = 128
"""Requests that a connection may have open at once (SETTINGS_MAX_CONCURRENT_STREAMS)."""

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
        self._left = self._budget
        self._at = clock()
        self._updates = 0.0  # WINDOW_UPDATEs that have been paid for

    def trust(self) -> None:
        """Grant the whole budget: the peer is authenticated, or carries a client that is."""
        if self._budget < _BUDGET:
            self._left += _BUDGET - self._budget
            self._budget = _BUDGET

    def spend(self, kind: int) -> None:
        """Charge a frame that the peer sent, or made us send.  Call `check` afterwards."""
        if kind == FrameType.WINDOW_UPDATE and self._updates >= 1:
            self._updates -= 1
            return
        self._charge(_COSTS.get(kind, 1.0))

    def spend_request(self) -> None:
        """Charge a tunnel request whose client was never authenticated: it had a thread and a handshake."""
        self._charge(_UNAUTHENTICATED_REQUEST)

    def check(self) -> None:
        """Raise Http2Error if more was spent than there is."""
        if self._left < 0 and self.spent:
            raise Http2Error(ErrorCodes.ENHANCE_YOUR_CALM, "too many control frames in too short a time")

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        if self._left < 0:
            self._refill()
        return self._left < 0

    @property
    def retry_after(self) -> int:
        """Whole seconds until something is left again, at least 1."""
        return max(1, math.ceil(-self._left / (_REFILL * self._budget)))

    def _charge(self, cost: float) -> None:
        self._left -= cost
        if self._left < 0:
            self._refill()
            self._left = max(self._left, -self._budget)  # debts are forgiven in the end

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._budget, self._left + (now - self._at) * _REFILL * self._budget)
        self._at = now

    def earn(self, size: int) -> None:
        """Give something back for a DATA frame of `size` bytes that was sent."""
        self._left = min(self._budget, self._left + _EARNED)
        self._updates = min(_MOST_UPDATES, self._updates + size / _BYTES_AN_UPDATE)


class StreamBudget:
    """A budget for streams of one client, which may be spread over many connections that it shares with others.

    When it is spent, the client's new streams are refused, and no connection ends.  Safe to use from any thread.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._budget = ControlFrameBudget(clock)

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

    def refused_for(self) -> int:
        """Return for how many seconds new streams must be refused, mostly 0."""
        with self._lock:
            return self._budget.retry_after if self._budget.spent else 0
