"""The limits of the configuration, as what holds them: a client's at the server, a forward's at the client.

`up` is from the client to the server and `down` the reverse, whichever side listens.  A forward's rates and idle time
are kept by the client, for both directions; how many may come, and how often, by whoever listens: for a remote forward
that is the server, which is told in LISTEN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from qanat.base.watcher import Watcher
from qanat.config.forward_settings import ForwardLimits
from qanat.config.server_settings import ClientAccount
from qanat.config.settings import MAX_RATE
from qanat.endpoints.rate_limit import RateLimit
from qanat.endpoints.stream_quota import QuotaLimits
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.session.messages import ListenOption

_PER_1000_SECONDS = 1000


def traffic_of_client(account: ClientAccount, watcher: Watcher) -> TrafficLimits:
    """Return what all sessions of a client share at the server, where what is read from a socket goes down."""
    return _traffic(account.rate_down, account.rate_up, account.idle_timeout, watcher)


def change_traffic_of_client(limits: TrafficLimits, old: ClientAccount, new: ClientAccount, watcher: Watcher) -> bool:
    """Make `limits`, which all sessions of a client share, those of another account; return whether that changed any.

    Pumps have to be told.
    """
    if (old.rate_down, old.rate_up, old.idle_timeout) == (new.rate_down, new.rate_up, new.idle_timeout):
        return False
    if old.rate_down != new.rate_down:
        limits.reading = RateLimit(new.rate_down, watcher) if new.rate_down else None
    if old.rate_up != new.rate_up:
        limits.writing = RateLimit(new.rate_up, watcher) if new.rate_up else None
    limits.idle_timeout = new.idle_timeout
    return True


def traffic_of_forward(limits: ForwardLimits, watcher: Watcher) -> TrafficLimits:
    """Return what all streams of a forward share at the client, where what is read from a socket goes up."""
    return _traffic(limits.rate_up, limits.rate_down, limits.idle_timeout, watcher)


def change_traffic(before: TrafficLimits, limits: ForwardLimits, watcher: Watcher) -> TrafficLimits:
    """Return what a forward's new streams share when it has other limits; open ones follow rates that they have.

    A stream that began without a rate keeps having none, and each keeps its idle time.
    """
    return TrafficLimits(
        _change_rate(before.reading, limits.rate_up, watcher),
        _change_rate(before.writing, limits.rate_down, watcher),
        limits.idle_timeout,
    )


def _change_rate(before: RateLimit | None, rate: int, watcher: Watcher) -> RateLimit | None:
    if before is None:
        return RateLimit(rate, watcher) if rate else None
    before.change(rate or MAX_RATE)
    return before if rate else None


def quota_of_forward(limits: ForwardLimits) -> QuotaLimits:
    """Return how many streams those who come to a forward may have."""
    return QuotaLimits(
        limits.max_streams,
        limits.streams_per_second,
        limits.max_streams_per_address,
        limits.streams_per_second_per_address,
    )


def listen_options(limits: ForwardLimits, *, udp: bool = False) -> dict[int, int]:
    """Return the same for LISTEN; nothing where there are no limits, so that every server understands it.

    With `udp` also the idle time, which whoever listens keeps for flows.
    """
    options = {
        ListenOption.UDP_IDLE: math.ceil(limits.idle_timeout) if udp else 0,
        ListenOption.MAX_STREAMS: limits.max_streams,
        ListenOption.STREAM_RATE: _in_1000_seconds(limits.streams_per_second),
        ListenOption.MAX_STREAMS_PER_ADDRESS: limits.max_streams_per_address,
        ListenOption.STREAM_RATE_PER_ADDRESS: _in_1000_seconds(limits.streams_per_second_per_address),
    }
    return {int(option): value for option, value in options.items() if value}


def quota_of_options(options: Mapping[int, int]) -> QuotaLimits:
    """Return what the client asks for in the options of LISTEN."""
    return QuotaLimits(
        options.get(ListenOption.MAX_STREAMS, 0),
        options.get(ListenOption.STREAM_RATE, 0) / _PER_1000_SECONDS,
        options.get(ListenOption.MAX_STREAMS_PER_ADDRESS, 0),
        options.get(ListenOption.STREAM_RATE_PER_ADDRESS, 0) / _PER_1000_SECONDS,
    )


def _in_1000_seconds(rate: float) -> int:
    return max(1, round(rate * _PER_1000_SECONDS)) if rate else 0


def _traffic(reading: int, writing: int, idle_timeout: float, watcher: Watcher) -> TrafficLimits:
    return TrafficLimits(
        RateLimit(reading, watcher) if reading else None,
        RateLimit(writing, watcher) if writing else None,
        idle_timeout,
    )
