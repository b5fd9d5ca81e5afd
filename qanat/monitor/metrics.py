"""Metrics in Prometheus' text format, made from sums and from what was counted, when somebody asks.

docs/METRICS.md has the list.

`prometheus-client` writes the format and counts what the process itself costs.  Only an end with `monitor:` loads this.

Labels are few and fixed: reasons, states and transports are words of this program, and of clients the first
`max_clients` have metrics of their own; all others are one together, `other`.  Who has a label keeps it, since a sum
that loses a member would look like one that began again.  Streams are counted, and never labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from qanat.base.events import OTHER, Events, Histogram, Tally
from qanat.base.long_work import long_work
from qanat.base.request_head import RequestHead
from qanat.monitor.http import Response
from qanat.monitor.snapshot import ConnectionSnapshot, HandshakesSnapshot
from qanat.monitor.sums import Look, PeerSums, Sums

STATES = ("connected", "waiting")
"""Of a session."""
CONNECTION_STATES = ("connected", "reconnecting", "connecting", "waiting", "refused", "standby")
"""Of a client's connection to a server."""
_WAY = ("transport", "proxy")
FORWARD_STATES = ("listening", "waiting", "failed")


class Metrics:
    """What `/metrics` answers.  Safe to use from any thread."""

    def __init__(self, look: Look, events: Events, max_clients: int) -> None:
        """`look` adds all up by label; `max_clients` have labels of their own."""
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(SumsCollector(look, events, max_clients))

    def answer(self, head: RequestHead) -> Response:
        """Return all metrics as they are now, in the format that is asked for."""
        encode, content_type = choose_encoder(", ".join(head.values("accept")))
        with long_work():
            return Response(encode(self._registry), content_type)


class SumsCollector(Collector):
    """Makes metric families of the sums, each time it is asked."""

    def __init__(self, look: Look, events: Events, max_clients: int) -> None:
        self._look = look
        self._events = events
        self._max_clients = max_clients
        self._labels: dict[str, str] = {}  # by name; only ever added to

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names need not be known before somebody asks."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        sums = self._look(self._label_of)
        yield from _whole(sums)
        yield from _peers(sums)
        yield from _happened(self._events)
        if sums.handshakes is not None:
            yield from _server(sums.handshakes, self._events)
        else:
            yield from self._client(sums.servers)

    def _label_of(self, name: str) -> str:
        """Return the label of a client's name, or of a server's URL."""
        label = self._labels.get(name)
        if label is None:
            if len(self._labels) >= self._max_clients:
                return OTHER
            label, taken = server_label(name), set(self._labels.values())
            while label in taken:
                label += "'"
            self._labels[name] = label
        return label

    def _client(self, servers: Iterable[ConnectionSnapshot]) -> Iterator[Metric]:
        yield _tally(
            "qanat_connect_failures",
            "Tries to connect to a server that came to nothing, by what kept them.",
            "reason",
            self._events.connect_failures,
        )
        state = GaugeMetricFamily(
            "qanat_server_state", "1 for the state of the connection to each server.", labels=("server", "state")
        )
        failure = GaugeMetricFamily(
            "qanat_server_last_failure_timestamp_seconds", "When something failed last, by server.", labels=("server",)
        )
        again = GaugeMetricFamily(
            "qanat_server_next_try_timestamp_seconds", "When the next try comes, by server.", labels=("server",)
        )
        since = GaugeMetricFamily(
            "qanat_server_state_since_timestamp_seconds",
            "Since when it is in its state, by server.",
            labels=("server",),
        )
        for server in servers:
            label = self._label_of(server.url)
            if label == OTHER:
                continue
            for each in CONNECTION_STATES:
                state.add_metric((label, each), float(server.state == each))
            since.add_metric((label,), server.since)
            if server.last_failure is not None:
                failure.add_metric((label,), server.last_failure.at)
            if server.next_try_at is not None:
                again.add_metric((label,), server.next_try_at)
        yield from (state, since, failure, again)


def _whole(sums: Sums) -> Iterator[Metric]:
    """Yield what a server and a client have in common."""
    total = sums.total
    info = GaugeMetricFamily("qanat_info", "Who this is.", labels=("role", "name", "version"))
    info.add_metric((sums.role, sums.name, sums.version), 1)
    yield info
    sessions = (total(lambda peer: peer.connected), total(lambda peer: peer.waiting))
    yield _by_word("qanat_sessions", "Sessions, by state.", "state", STATES, dict(zip(STATES, sessions, strict=True)))
    yield _by_word("qanat_forwards", "Forwards, by state.", "state", FORWARD_STATES, sums.forwards)
    family = GaugeMetricFamily(
        "qanat_lanes",
        "Connections that carry sessions, by transport and by whether a proxy is known to be on the way.",
        labels=_WAY,
    )
    for labels, count in sorted(sums.lanes.items()):
        family.add_metric(labels, count)
    yield family
    for gauge, text, value in (
        ("lanes_detached", "Lanes that wait for a connection.", total(lambda peer: peer.detached)),
        ("streams", "Streams that are open.", total(lambda peer: peer.streams)),
        ("queued_bytes", "Payload that waits to be sent.", total(lambda peer: peer.queued)),
        ("outbox_bytes", "Memory of what was sent and not acknowledged.", total(lambda peer: peer.outbox)),
        ("outbox_limit_bytes", "The bound of that.", total(lambda peer: peer.outbox_limit)),
        (
            "outbox_fill_ratio",
            "How full the fullest outbox of a lane is: streams wait at 1.",
            max((peer.fullest for peer in sums.peers.values()), default=0.0),
        ),
        ("threads", "Threads of this process.", sums.threads),
        ("troubles", "What does not move though it should.", sums.troubles),
    ):
        yield GaugeMetricFamily(f"qanat_{gauge}", text, value)
    for counter, text, value in (
        ("sessions_begun", "Sessions that have begun.", sums.sessions_begun),
        ("streams_opened", "Streams that were opened, by either end.", total(lambda peer: peer.opened)),
        ("received_bytes", "Payload that came through the tunnel.", total(lambda peer: peer.received)),
        ("sent_bytes", "Payload that was sent into the tunnel.", total(lambda peer: peer.sent)),
        ("replayed_bytes", "Bytes that were sent again, on another connection.", total(lambda peer: peer.replayed)),
    ):
        yield CounterMetricFamily(f"qanat_{counter}", text, value)


def _peers(sums: Sums) -> Iterator[Metric]:
    """Yield what each client of a server, or each server of a client, has of its own."""
    peers = sums.peers
    one = "client" if sums.role == "server" else "server"
    gauges: tuple[tuple[str, str, Callable[[PeerSums], float | None]], ...] = (
        ("connected", "Sessions that are on a connection", lambda peer: peer.connected),
        ("streams", "Streams that are open", lambda peer: peer.streams),
        ("queued_bytes", "Payload that waits to be sent", lambda peer: peer.queued),
        ("outbox_bytes", "Memory of what was sent and not acknowledged", lambda peer: peer.outbox),
        ("outbox_limit_bytes", "The bound of that", lambda peer: peer.outbox_limit),
        ("round_trip_seconds", "Round trip of a sealed PING, smoothed", lambda peer: peer.round_trip),
        ("session_start_timestamp_seconds", "When its session began", lambda peer: peer.since),
        ("lane_lost_timestamp_seconds", "When a connection was lost last", lambda peer: peer.last_failure),
    )
    counters: tuple[tuple[str, str, Callable[[PeerSums], float]], ...] = (
        ("streams_opened", "Streams that were opened, by either end", lambda peer: peer.opened),
        ("received_bytes", "Payload that came from it", lambda peer: peer.received),
        ("sent_bytes", "Payload that was sent to it", lambda peer: peer.sent),
        ("recoveries", "Connections that were lost and followed by another one", lambda peer: peer.recoveries),
        ("replayed_bytes", "Bytes that were sent again after that", lambda peer: peer.replayed),
    )
    lanes = GaugeMetricFamily(
        f"qanat_{one}_lanes", f"Connections that carry its session, by {one}.", labels=(one, *_WAY)
    )
    for label, peer in peers.items():
        for way, number in sorted(peer.lanes.items()):
            lanes.add_metric((label, *way), number)
    yield lanes
    for name, text, value in gauges:
        gauge = GaugeMetricFamily(f"qanat_{one}_{name}", f"{text}, by {one}.", labels=(one,))
        for label, peer in peers.items():
            if (figure := value(peer)) is not None:
                gauge.add_metric((label,), figure)
        yield gauge
    for name, text, count in counters:
        counter = CounterMetricFamily(f"qanat_{one}_{name}", f"{text}, by {one}.", labels=(one,))
        for label, peer in peers.items():
            counter.add_metric((label,), count(peer))
        yield counter


def _happened(events: Events) -> Iterator[Metric]:
    """Yield what a server and a client count alike."""
    yield _histogram("qanat_round_trip_seconds", "Round trips of sealed PINGs.", events.round_trips)
    yield _histogram(
        "qanat_stream_open_seconds", "From OPEN until the target was reached, as this end sees it.", events.stream_opens
    )
    yield _histogram(
        "qanat_recovery_seconds", "How long a lane was without a connection before it went on.", events.recoveries
    )
    resets = CounterMetricFamily(
        "qanat_streams_reset", "Streams that were reset, by reason and by which end did it.", labels=("by", "reason")
    )
    for end, tally in (("this", events.stream_resets), ("other", events.stream_resets_received)):
        for reason, count in sorted(tally.read().items()):
            resets.add_metric((end, reason), count)
    yield resets
    yield _tally(
        "qanat_refusals",
        "Connections, handshakes and visitors of forwards that were turned away, by reason.",
        "reason",
        events.refusals,
    )


def _server(handshakes: HandshakesSnapshot, events: Events) -> Iterator[Metric]:
    for name, text, value in (
        ("handshakes_running", "Connections in a handshake.", handshakes.running),
        ("handshakes_limit", "How many there may be at once (limits.handshakes).", handshakes.limit),
        ("handshakes_queued", "Clients that were told when to come back.", handshakes.queued),
        ("connections_unfinished", "Connections that are not authenticated.", handshakes.unfinished),
        ("connections_limit", "How many connections there may be (limits.connections).", handshakes.connections_limit),
    ):
        yield GaugeMetricFamily(f"qanat_{name}", text, value)
    yield _tally(
        "qanat_handshakes", "Handshakes that came to something, by what that was.", "result", events.handshakes
    )
    yield _histogram("qanat_rsa_operation_seconds", "Time that each private-key operation took.", events.rsa_operations)
    yield _histogram("qanat_rsa_wait_seconds", "Time that each waited for its turn.", events.rsa_waits)


def server_label(name: str) -> str:
    """Return what a client's server is called in labels: its URL without the path, which need not be known to all."""
    scheme, separator, rest = name.partition("://")
    return f"{scheme}{separator}{rest.partition('/')[0]}" if separator else name


def _by_word(name: str, text: str, label: str, words: Iterable[str], counts: Mapping[str, int]) -> Metric:
    """Return a gauge of how many there are of each word, those of which there is none included."""
    family = GaugeMetricFamily(name, text, labels=(label,))
    for word in words:
        family.add_metric((word,), counts.get(word, 0))
    return family


def _tally(name: str, text: str, label: str, tally: Tally) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for word, count in sorted(tally.read().items()):
        family.add_metric((word,), count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    counts, total = histogram.read()
    bounds = [*(f"{bound:g}" if bound != int(bound) else f"{bound:.1f}" for bound in histogram.bounds), "+Inf"]
    return HistogramMetricFamily(name, text, buckets=list(zip(bounds, counts, strict=True)), sum_value=total)
