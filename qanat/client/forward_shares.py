"""What the streams of each forward of a client share: its rates, and how many there may be.

A forward that goes on as another one keeps what is counted for it, and the streams that are open follow its new rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qanat.base.addresses import is_loopback
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.watcher import Watcher
from qanat.client.forward_changes import compare_forwards
from qanat.config.forward_settings import Forward
from qanat.endpoints.stream_quota import StreamQuota, StreamRoom
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.session.forward_limits import change_traffic, quota_of_forward, traffic_of_forward


@dataclass(frozen=True, slots=True)
class ServedForward:
    """One port of a forward, and what its streams share with those of the forward's other ports."""

    forward: Forward
    traffic: TrafficLimits
    quota: StreamQuota
    name: str
    """The forward's, for people: made once, since every connection needs it."""


class ForwardShares:
    """The shares of all forwards of one client.  One thread at a time changes them."""

    def __init__(self, room: StreamRoom, watcher: Watcher) -> None:
        """Have none; all will be part of `room`."""
        self._room = room
        self._watcher = watcher
        self._shares: dict[Forward, tuple[TrafficLimits, StreamQuota]] = {}  # by forward, with all its ports
        self._traffic: dict[Forward, TrafficLimits] = {}

    @property
    def traffic(self) -> Mapping[Forward, TrafficLimits]:
        """What the streams of each port share, by the forward of that port alone; a view that is always up to date."""
        return self._traffic

    def change(self, forwards: Sequence[Forward]) -> None:
        """Have these forwards from now on.  Does not block."""
        fates = compare_forwards(tuple(self._shares), forwards)
        shares: dict[Forward, tuple[TrafficLimits, StreamQuota]] = {}
        for forward in forwards:
            was = fates.changed.get(forward)
            if forward in self._shares:
                shares[forward] = self._shares[forward]
            elif was is not None:
                traffic, quota = self._shares[was]
                quota.change(quota_of_forward(forward.limits), shared=not _is_ours_alone(forward))
                shares[forward] = change_traffic(traffic, forward.limits, self._watcher), quota
            else:
                limits = quota_of_forward(forward.limits)
                quota = StreamQuota(self._room, limits, shared=not _is_ours_alone(forward))
                shares[forward] = traffic_of_forward(forward.limits, self._watcher), quota
        self._shares = shares
        parts = {part: traffic for forward, (traffic, _) in shares.items() for part in forward.parts()}
        self._traffic.update(parts)
        for stale in self._traffic.keys() - parts.keys():
            del self._traffic[stale]

    def serve(self, forward: Forward) -> tuple[ServedForward, ...]:
        """Return the ports of a forward that `change` was called with."""
        traffic, quota = self._shares[forward]
        return tuple(ServedForward(part, traffic, quota, str(part)) for part in forward.parts())


def _is_ours_alone(forward: Forward) -> bool:
    """Return whether only this machine reaches a forward, so that it may use the room whole."""
    at = forward.listen
    return not isinstance(at, TcpAddress) or at.host == "localhost" or is_loopback(at.host)
