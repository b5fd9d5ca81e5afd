"""Promises of the metrics: all that is counted is there, under names that Prometheus' own tools accept."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qanat.base.events import Events
from qanat.base.request_head import HeadReader, RequestHead
from qanat.monitor.metrics import Metrics
from qanat.monitor.snapshot import Snapshot
from tests.support.machine.programs import require_program
from tests.support.snapshots import NOW, client, lane, server, session, summing

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def request(*headers: str) -> RequestHead:
    lines = ["GET /metrics HTTP/1.1", "Host: localhost", *headers, "", ""]
    head = HeadReader(4096).feed("\r\n".join(lines).encode())
    assert head is not None
    return head


def samples_of(text: str) -> Samples:
    """Every sample by its name and its labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(snapshot: Snapshot, events: Events | None = None, *, most: int = 50) -> Samples:
    return samples_of(Metrics(summing(snapshot), events or Events(), most).answer(request()).body.decode())


def busy_events() -> Events:
    events = Events()
    events.answered(0.02)
    events.stream_opened(0.003)
    events.recovered(7.0)
    events.stream_reset("unreachable", by_peer=False)
    events.stream_reset("canceled", by_peer=True)
    events.refused("wrong name or token")
    events.handshakes.add("new")
    events.connect_failures.add("not reached")
    events.rsa_operations.observe(0.0012)
    events.rsa_waits.observe(0.0001)
    return events


def both() -> Iterator[Snapshot]:
    waiting = session("two", lane(connected=False, outbox_bytes=900), state="waiting", round_trip_s=None)
    yield server(session("one", lane(via="10.0.0.1"), lane(index=1, transport="grpc")), waiting)
    yield client(session("office", peer="wss://a.example/secret"), urls=("wss://a.example/secret", "wss://b.example/x"))


@pytest.mark.parametrize("snapshot", list(both()), ids=["server", "client"])
def test_prometheus_own_tool_finds_nothing_to_blame(snapshot: Snapshot) -> None:
    promtool = require_program("promtool")
    answer = Metrics(summing(snapshot), busy_events(), 50).answer(request())
    checked = subprocess.run([promtool, "check", "metrics"], input=answer.body, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    assert answer.content_type.startswith("text/plain; version=0.0.4")


def test_open_metrics_are_given_to_who_asks_for_them() -> None:
    head = request("Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    answer = Metrics(summing(server()), Events(), 50).answer(head)
    assert answer.content_type.startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def test_what_is_counted_is_there() -> None:
    found = read(next(both()), busy_events())
    for name, labels, value in (
        ("qanat_info", (("name", "tunnel-1"), ("role", "server"), ("version", "0.9")), 1),
        ("qanat_sessions", (("state", "connected"),), 1),
        ("qanat_sessions", (("state", "waiting"),), 1),
        ("qanat_forwards", (("state", "listening"),), 1),
        ("qanat_lanes", (("proxy", "yes"), ("transport", "websocket")), 1),
        ("qanat_lanes", (("proxy", "no"), ("transport", "grpc")), 1),
        ("qanat_lanes_detached", (), 1),
        ("qanat_streams", (), 6),
        ("qanat_outbox_bytes", (), 1100),
        ("qanat_outbox_limit_bytes", (), 3000),
        ("qanat_outbox_fill_ratio", (), 0.9),
        ("qanat_threads", (), 5),
        ("qanat_received_bytes_total", (), 4000),
        ("qanat_replayed_bytes_total", (), 40),
        ("qanat_handshakes_queued", (), 2),
        ("qanat_handshakes_limit", (), 64),
        ("qanat_client_connected", (("client", "one"),), 1),
        ("qanat_client_connected", (("client", "two"),), 0),
        ("qanat_client_round_trip_seconds", (("client", "one"),), 0.02),
        ("qanat_client_sent_bytes_total", (("client", "two"),), 200),
        ("qanat_client_lanes", (("client", "one"), ("proxy", "no"), ("transport", "grpc")), 1),
        ("qanat_client_session_start_timestamp_seconds", (("client", "one"),), NOW),
        ("qanat_round_trip_seconds_bucket", (("le", "0.025"),), 1),
        ("qanat_round_trip_seconds_bucket", (("le", "0.01"),), 0),
        ("qanat_round_trip_seconds_sum", (), 0.02),
        ("qanat_stream_open_seconds_count", (), 1),
        ("qanat_recovery_seconds_bucket", (("le", "5.0"),), 0),
        ("qanat_recovery_seconds_bucket", (("le", "+Inf"),), 1),
        ("qanat_streams_reset_total", (("by", "this"), ("reason", "unreachable")), 1),
        ("qanat_streams_reset_total", (("by", "other"), ("reason", "canceled")), 1),
        ("qanat_refusals_total", (("reason", "wrong name or token"),), 1),
        ("qanat_handshakes_total", (("result", "new"),), 1),
        ("qanat_rsa_operation_seconds_count", (), 1),
        ("qanat_rsa_wait_seconds_count", (), 1),
    ):
        assert found[name, labels] == pytest.approx(value), name
    assert ("qanat_client_round_trip_seconds", (("client", "two"),)) not in found
    assert any(name == "process_resident_memory_bytes" for name, _ in found)


def test_a_clients_servers_are_named_without_what_need_not_be_known() -> None:
    found = read(list(both())[1], busy_events())
    assert found["qanat_server_connected", (("server", "wss://a.example"),)] == 1
    assert found["qanat_server_state", (("server", "wss://b.example"), ("state", "waiting"))] == 1
    assert found["qanat_server_state", (("server", "wss://b.example"), ("state", "connected"))] == 0
    assert found["qanat_connect_failures_total", (("reason", "not reached"),)] == 1
    assert not any("secret" in value for _, labels in found for _, value in labels)


def test_two_servers_behind_one_name_stay_apart() -> None:
    found = read(client(urls=("wss://a.example/1", "wss://a.example/2")))
    labels = {dict(labels)["server"] for name, labels in found if name == "qanat_server_state"}
    assert len(labels) == 2


def test_more_clients_than_are_allowed_labels_are_one_together_and_stay_so() -> None:
    shown: list[Snapshot] = [server(*(session(f"c{number}") for number in range(5)))]
    metrics = Metrics(lambda label_of: summing(shown[0])(label_of), Events(), 2)

    def by_client(name: str) -> dict[str, float]:
        found = samples_of(metrics.answer(request()).body.decode())
        return {dict(labels)["client"]: value for (each, labels), value in found.items() if each == name}

    assert by_client("qanat_client_streams") == {"c0": 3, "c1": 3, "other": 9}
    assert by_client("qanat_client_received_bytes_total") == {"c0": 2000, "c1": 2000, "other": 6000}
    shown[0] = server(*(session(f"c{number}") for number in range(4, 0, -1)))
    assert by_client("qanat_client_streams") == {"c1": 3, "other": 9}


def test_a_hostile_name_is_only_a_label() -> None:
    name = 'a"} evil 1\n# HELP x\\ <b>'
    assert read(server(session(name)))["qanat_client_streams", (("client", name),)] == 3


def test_a_thousand_clients_cost_no_more_series_than_fifty() -> None:
    few, many = (read(server(*(session(f"c{number}") for number in range(count)))) for count in (51, 1000))
    assert set(many) == set(few)
    assert many["qanat_client_streams", (("client", "other"),)] == 950 * 3
