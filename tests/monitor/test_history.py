"""The last hour stays in memory, and never more than that."""

from __future__ import annotations

from qanat.monitor.history import ALL, CLIENTS, INTERVAL, SAMPLES, History
from tests.support.made_snapshots import START, crowd, server, session, stream


def test_a_sample_has_rates_counts_and_round_trips() -> None:
    history = History()
    history.add(server(0, session("a", bytes_received=1000), session("b", recoveries=1)))
    samples = history.add(
        server(
            INTERVAL,
            session("a", stream("a", 1), bytes_received=1000 + 5000, bytes_sent=500, round_trip_s=0.5),
            session("b", recoveries=3, state="waiting"),
        )
    )
    assert samples["a"]["received"] == 1000
    assert samples["a"]["sent"] == 100
    assert samples[ALL]["received"] == 1000
    assert samples[ALL]["recoveries"] == 2
    assert samples[ALL]["streams"] == 1
    assert samples[ALL]["sessions"] == 1
    assert samples[ALL]["round_trip_most"] == 0.5
    assert history.columns("a")["at"] == [START, START + INTERVAL]
    assert history.recoveries(START + INTERVAL) == 3
    assert history.columns("nobody")["at"] == []


def test_an_hour_is_kept_and_whoever_left_is_forgotten_after_one() -> None:
    history = History()
    history.add(server(0, session("gone")))
    for step in range(1, SAMPLES + 10):
        history.add(server(step * INTERVAL, session("a")))
    columns = history.columns(ALL)
    assert {len(column) for column in columns.values()} == {SAMPLES}
    assert columns["at"][-1] == START + (SAMPLES + 9) * INTERVAL
    assert history.plotted == ("a",)


def test_only_so_many_clients_have_an_hour_of_their_own() -> None:
    history = History()
    samples = history.add(crowd(0, 1000, 5000))
    assert len(samples) == CLIENTS + 1
    assert len(history.plotted) == CLIENTS
    assert samples[ALL]["streams"] == 5000


def test_several_sessions_of_one_client_are_one_line() -> None:
    history = History()
    history.add(server(0, session("a", id="1"), session("a", id="2")))
    samples = history.add(server(INTERVAL, session("a", id="1", bytes_sent=5), session("a", id="2", bytes_sent=10)))
    assert samples["a"]["sent"] == 3
    assert samples["a"]["sessions"] == 2


def test_a_sample_without_sessions_knows_no_round_trip() -> None:
    assert History().add(server(0))[ALL]["round_trip"] is None
