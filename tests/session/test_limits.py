"""What a session may hold: numbers that stand in more than one room are the same."""

from __future__ import annotations

from qanat.config.settings import Flow, Keepalive
from qanat.handshake.hello import Parameters
from qanat.mux.parameters import LaneParameters
from qanat.session.limits import CLIENT_STREAMS, lane_parameters


def test_a_lane_by_default_has_what_the_configuration_and_the_wire_have_by_default() -> None:
    """Flow has the configuration's numbers, Parameters those that an absent parameter stands for in HELLO."""
    for client in (True, False):
        made = lane_parameters(Flow(), Keepalive(), CLIENT_STREAMS, Parameters(), client=client, resumable=True)
        assert made == LaneParameters(client=client)
