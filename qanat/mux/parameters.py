"""The values that go into a lane and the events that come out of it.  No behavior."""

from __future__ import annotations

from dataclasses import dataclass, field

from qanat.mux.observer import NOBODY, Observer
from qanat.mux.stream_state import StreamState

KEEPALIVE_SLACK = 1.5
"""Seconds that a client waits longer, so that the server, who is sooner, sends the PINGs.  More than
`pending_control.SHARED_TIME`, by which the client's time may be rounded down."""


@dataclass(frozen=True, slots=True)
class LaneParameters:
    """What both ends agreed on in HELLO and READY, and our own bounds: bytes, counts, and `keepalive` in seconds.

    `keepalive_slack` is for how many seconds longer a client waits where the server's PING stands for its own.
    `outbox` has the configuration's name (`flow.outbox`): it is the limit of the retransmit buffer.
    """

    client: bool
    initial_window: int = 131_072
    max_window: int = 16 * 1024 * 1024
    window_budget: int = 64 * 1024 * 1024
    outbox: int = 16 * 1024 * 1024
    max_streams: int = 4096
    peer_initial_window: int = 131_072
    peer_max_streams: int = 4096
    keepalive: float = 15.0
    keepalive_slack: float = KEEPALIVE_SLACK
    resumable: bool = True  # keep what was sent until it is acknowledged, for the next pipe
    peer_features: int = 0  # qanat.handshake.hello.Features
    tell_clock: bool = False  # the peer knows CLOCK
    observer: Observer = field(default=NOBODY, compare=False, repr=False)
    """Who hears of what happens on the lane."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a lane goes on with its next pipe, as both ends have said in HELLO and READY; by default its first pipe."""

    epoch: int = 0
    """The pipe's, which `Lane.acquire` has granted."""
    peer_expects: int = 0
    """The number of the frame that the peer expects first."""
    receive_from: int = 0
    """The number of the frame that the peer sends first: what we said that we expect."""


FIRST_PIPE = ResumePoint()
"""A lane begins: nothing was sent before, and no epoch needs to be granted."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened this stream; answer with `accept` or `reset`."""

    stream: StreamState


@dataclass(frozen=True, slots=True)
class ControlReceived:
    """The peer sent this control message."""

    message: bytes


Event = Opened | ControlReceived
