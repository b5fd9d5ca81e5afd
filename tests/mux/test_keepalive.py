"""What an idle lane promises: no direction is silent for much longer than the interval, at half the PINGs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qanat.mux import frames as wire
from qanat.mux.parameters import KEEPALIVE_SLACK, LaneParameters
from qanat.mux.pending_control import ANSWERS_IN_TURN, SHARED_TIME
from tests.support.mux.cores import Peer, Rig

STEP = 0.125
PERIODS = 40


class Kept:
    """Two ends by a fake clock, and when each said something, and when a PING."""

    def __init__(self, client: float = 15.0, server: float = 15.0) -> None:
        self.rig = Rig(LaneParameters(client=True, keepalive=client), LaneParameters(client=False, keepalive=server))
        self.now = 0.1
        self.rig.settle(self.now)
        self.said: dict[Peer, list[float]] = {peer: [self.now] for peer in self.rig.ends}
        self.pings: dict[Peer, list[float]] = {peer: [self.now] for peer in self.rig.ends}

    def run(self, seconds: float, *, mute: Peer | None = None) -> None:
        """Let time go by; what `mute` says is lost."""
        end = self.now + seconds
        while self.now < end:
            self.now += STEP
            for peer in self.rig.ends:
                while frames := peer.next_frames(self.now):
                    self.said[peer].append(self.now)
                    if any(isinstance(frame, wire.Ping) for frame in frames):
                        self.pings[peer].append(self.now)
                    if peer is not mute:
                        told = [frame.encode() for frame in frames if not isinstance(frame, wire.Data)]
                        self.rig.other(peer).feed(*told, now=self.now)

    def longest_silence(self, peer: Peer) -> float:
        said = [*self.said[peer], self.now]
        return max(later - sooner for sooner, later in pairwise(said))


@pytest.mark.parametrize(("client", "server"), [(15.0, 15.0), (15.0, 40.0), (40.0, 15.0), (5.0, 5.0), (1.0, 1.0)])
def test_no_direction_is_silent_for_much_longer_than_the_shorter_interval(client: float, server: float) -> None:
    kept = Kept(client, server)
    shorter = min(client, server)
    kept.run(PERIODS * shorter)
    for peer in kept.rig.ends:
        slack = 0.0 if client == server else min(KEEPALIVE_SLACK, shorter / 8)
        assert kept.longest_silence(peer) <= shorter + slack + 2 * STEP


def test_on_an_idle_lane_the_ends_share_the_pings() -> None:
    kept = Kept()
    kept.run(PERIODS * 15)
    both = [len(kept.pings[peer]) for peer in kept.rig.ends]
    assert sum(both) <= PERIODS * (1 + 1 / ANSWERS_IN_TURN) * 1.1 + 2, "each sent its own"
    assert min(both) >= PERIODS / (ANSWERS_IN_TURN + 2), "an end does not measure the round trip any more"


def test_an_end_pings_by_itself_when_the_peer_falls_silent() -> None:
    for which in (0, 1):
        kept = Kept()
        kept.run(PERIODS * 15)
        mute = kept.rig.ends[which]
        heard = kept.pings[kept.rig.other(mute)]
        before = len(heard)
        kept.run(15 + KEEPALIVE_SLACK + STEP, mute=mute)
        assert len(heard) > before


def test_where_something_moves_each_end_measures_for_itself() -> None:
    kept = Kept()
    for _ in range(PERIODS):
        kept.rig.client.core.send_control(b"")
        kept.run(15)
    for peer in kept.rig.ends:
        assert len(kept.pings[peer]) >= PERIODS


def test_a_ping_that_was_asked_for_is_not_put_off() -> None:
    kept = Kept()
    kept.run(50)
    server = kept.rig.server
    number = server.core.pending.ping_now(kept.now)
    server.feed(wire.Ping(1000).encode(), now=kept.now)
    assert wire.Ping(number) in server.next_frames(kept.now)


def test_idle_lanes_ping_at_shared_times() -> None:
    due = set()
    for number in range(100):
        pending = Rig().client.core.pending
        now = 0.01 * number
        pending.ping_now(now)
        pending.frames(now, riding=False)
        due.add(round(now + pending.timeout(now), 6))
    assert all(each % SHARED_TIME == 0 for each in due)
    assert len(due) <= 1 + 1 / SHARED_TIME
