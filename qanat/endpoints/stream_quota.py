"""How many streams those who connect to a forward may have: at once and anew a second, all together and each address.

A `StreamRoom` is what all forwards of one owner have together (of a session at a server, of a client); each forward
has a `StreamQuota` of it, which is asked for each connection:

    enter -> "": it may have a stream, then leave once       enter -> a reason: close it

Beside the bounds that a forward is given two hold where strangers come (`shared`), so that nobody takes the room whole:

- an address may have no more than are free, so that one alone gets half of the room, and leaves others the other half;
- a forward may have no more than seven times what is free: an eighth stays for the others.

Neither holds for the first `SMALL` streams of an address or a forward, so that little room can be used whole.  An IPv6
address counts as its /64, which one customer has whole.  Where there is no address, as with a Unix socket, nothing is
counted by it.

Rejected: a fixed number for each address, since a proxy in front of a forward is one address for everybody.

Arithmetic only, with the caller's clock; `qanat.server.session` and `qanat.client.client` put it to use.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from qanat.base.addresses import bucket_key
from qanat.base.token_bucket import TokenBucket

SMALL = 64
"""Streams that an address or a forward may have while there is room, whatever its part of that is."""
REMEMBERED = 4096
"""Addresses without a stream whose rate is remembered; who was not seen for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """What a forward may have; 0 is no limit of its own.  A rate's burst is one second's worth, at least 1."""

    max_streams: int = 0
    streams_per_second: float = 0
    max_streams_per_address: int = 0
    streams_per_second_per_address: float = 0


class StreamRoom:
    """The streams that the forwards of one owner may have together."""

    def __init__(
        self, size: int, *, clock: Callable[[], float] = time.monotonic, tidy: Callable[[], bool] = lambda: False
    ) -> None:
        """Have room for `size` streams.

        `tidy` is called without the lock before one is refused: it counts out those that are over and still have a
        place, if it can, and says whether there were any.
        """
        self.size = size
        self.lock = threading.Lock()  # guards this and all quotas of it
        self.open = 0
        self.clock = clock
        self.tidy = tidy

    @property
    def free(self) -> int:
        """How many more there may be."""
        return self.size - self.open

    def grow(self, size: int) -> None:
        """Have room for `size` streams, if that is more than now."""
        with self.lock:
            self.size = max(self.size, size)


class _OfAddress:
    """What one address has of a forward."""

    __slots__ = ("bucket", "open")

    def __init__(self, bucket: TokenBucket | None) -> None:
        self.open = 0
        self.bucket = bucket


class StreamQuota:
    """One forward's part of a room.  Safe to use from any thread; never blocks."""

    def __init__(self, room: StreamRoom, limits: QuotaLimits, *, shared: bool = True) -> None:
        """`shared` says whether strangers may come, of whom each gets a part; otherwise the room may be used whole."""
        self._room = room
        self._shared = shared
        self._limits = limits
        self._open = 0
        self._bucket = _bucket(limits.streams_per_second, room.clock())
        self._busy: dict[str, _OfAddress] = {}  # those with a stream, by what `bucket_key` returns
        self._seen: OrderedDict[str, _OfAddress] = OrderedDict()  # others, as long as their rate has to be known

    def change(self, limits: QuotaLimits, *, shared: bool) -> None:
        """Hold to other limits from now on; streams that are open stay, and count."""
        with self._room.lock:
            self._shared = shared
            if limits == self._limits:
                return
            now, before, self._limits = self._room.clock(), self._limits, limits
            if limits.streams_per_second != before.streams_per_second:
                self._bucket = _bucket(limits.streams_per_second, now)
            if limits.streams_per_second_per_address != before.streams_per_second_per_address:
                self._seen.clear()
                for key, known in self._busy.items():
                    known.bucket = _bucket(limits.streams_per_second_per_address, now) if key else None

    def __len__(self) -> int:
        """How many streams there are."""
        return self._open

    @property
    def remembered(self) -> int:
        """Of how many addresses something is known."""
        with self._room.lock:
            return len(self._busy) + len(self._seen)

    def enter(self, address: str) -> str:
        """Count a stream for `address` and return "", or return why it may have none; "" for no address."""
        reason = self._enter(address)
        if reason and self._room.tidy():
            reason = self._enter(address)
        return reason

    def _enter(self, address: str) -> str:
        with self._room.lock:
            key = bucket_key(address) if address else ""
            now = self._room.clock()
            known = self._busy.get(key) or self._seen.get(key)
            if known is None:
                rate = self._limits.streams_per_second_per_address
                known = _OfAddress(_bucket(rate, now) if rate and key else None)
            reason = self._reason_locked(key, known, now)
            if not reason:
                known.open += 1
                self._open += 1
                self._room.open += 1
                self._busy[key] = known
                if self._seen:
                    self._seen.pop(key, None)
            elif known.bucket is not None and key not in self._busy:
                self._remember_locked(key, known)
            return reason

    def leave(self, address: str) -> None:
        """Count out a stream that `enter` has counted in."""
        with self._room.lock:
            key = bucket_key(address) if address else ""
            known = self._busy[key]
            known.open -= 1
            self._open -= 1
            self._room.open -= 1
            if not known.open:
                del self._busy[key]
                if known.bucket is not None:
                    self._remember_locked(key, known)

    def _remember_locked(self, key: str, known: _OfAddress) -> None:
        self._seen[key] = known
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _reason_locked(self, key: str, known: _OfAddress, now: float) -> str:
        limits, free = self._limits, self._room.free
        if free <= 0:
            return f"all {self._room.size} streams are in use"
        if limits.max_streams and self._open >= limits.max_streams:
            return f"{limits.max_streams} streams are open, as many as its max_streams"
        if self._shared and self._open >= max(SMALL, 7 * free):
            return f"it has {self._open} streams, and the {free} that are left are kept for other forwards"
        if key:
            if limits.max_streams_per_address and known.open >= limits.max_streams_per_address:
                return f"{key} has {known.open} streams, as many as its max_streams_per_address"
            if self._shared and known.open >= max(SMALL, free):
                return f"{key} has {known.open} streams, and the {free} that are left are kept for others"
            if known.bucket is not None and not known.bucket.take(1, now):
                return f"{key} comes more often than its streams_per_second_per_address"
        if self._bucket is not None and not self._bucket.take(1, now):
            return "more come than its streams_per_second"
        return ""


def _bucket(rate: float, now: float) -> TokenBucket | None:
    return TokenBucket(rate, max(1.0, rate), now) if rate else None


def address_of(peer: str) -> str:
    """Return the IP address of a peer written as HOST:PORT, without brackets; "" for one without an address."""
    host, colon, _ = peer.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return host if colon and host and not host.startswith(("/", "@")) else ""
