"""Promises about sessions: whatever the network does to connections, the streams through them do not notice.

Each test sends fifty applications of every kind through a network that ends each connection after a moment, in
every way there is.  The seed is printed; QANAT_CHAOS_SEED=N in the environment repeats a run.  The long run is
`python -m benchmarks.chaos`, with `--paths` for split through real proxies.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chaos import Fault, deck
from tests.support.storm import Storm, chosen_seed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "silent"),
    [
        ("websocket", Fault.STALLED),
        ("http2", Fault.UP_DEAD),
        ("grpc", Fault.DOWN_DEAD),
        ("websocket-h2", Fault.UP_DEAD),
        ("split", Fault.STALLED),
    ],
)
def test_streams_do_not_notice_what_happens_to_connections(directory: Path, transport: str, silent: Fault) -> None:
    # What only keepalive finds takes two seconds each time: one such fault for each transport.
    with Storm(directory, seed=chosen_seed(1), transports=[transport], faults=deck(2, silent)) as storm:
        storm.run(9, patient=transport == "websocket")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "packets"), [("nginx", False), ("apache", True), ("worst", True)])
def test_requests_that_each_may_fail_carry_streams_through_what_people_have(
    directory: Path, path: str, packets: bool
) -> None:
    with Storm(
        directory,
        seed=chosen_seed(6),
        transports=["split"],
        faults=deck(8, Fault.STALLED),
        slots=20,
        path=path,
        packets=packets,
    ) as storm:
        storm.run(33, patient=False)


@pytest.mark.slow
def test_a_session_moves_from_one_transport_to_another(directory: Path) -> None:
    faults = deck(2, Fault.SERVER_TOLD)
    with Storm(
        directory, seed=chosen_seed(4), transports=["websocket", "http2", "grpc", "websocket-h2"], faults=faults
    ) as storm:
        storm.run(9, patient=False)


@pytest.mark.slow
def test_each_lane_of_a_session_survives_by_itself(directory: Path) -> None:
    with Storm(directory, seed=chosen_seed(5), lanes=3, faults=deck(4, Fault.STALLED)) as storm:
        storm.run(17)
