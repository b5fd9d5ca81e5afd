"""The values that go into a lane and the events that come out of it.  No behavior."""

from __future__ import annotations

from dataclasses import dataclass

from qanat.mux.stream_state import StreamState


@dataclass(frozen=True, slots=True)
class LaneParameters:
    """What both ends agreed on in HELLO and READY, and our own bounds: bytes, counts, and `keepalive` in seconds.

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
    resumable: bool = True  # keep what was sent until it is acknowledged, for the next pipe


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened this stream; answer with `accept` or `reset`."""

    stream: StreamState


@dataclass(frozen=True, slots=True)
class ControlReceived:
    """The peer sent this control message."""

    message: bytes


Event = Opened | ControlReceived
