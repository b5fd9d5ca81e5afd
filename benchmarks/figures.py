"""What is measured: the groups that `--figures` names, the figures that each gives, and how long each takes.

A group is one function of a contender at work; it returns its figures by name.  `benchmarks.rounds` calls them.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.contenders import Contender, Running
from benchmarks.rig import load, processes

Values = dict[str, float]

SETTLE = 2.0
"""Seconds after which memory is looked at, when the last stream was opened or closed."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long each measurement takes, in seconds, and how much of it there is."""

    bulk: float = 2.0
    many: float = 5.0  # with 1,000 streams, where each may wait for long
    streams: tuple[int, ...] = (1, 8, 64, 1000)
    ways: tuple[str, ...] = ("up", "down", "both")
    ping: float = 3.0
    ping_bulk: float = 5.0
    connections: float = 2.0
    requests: float = 3.0
    idle: tuple[int, ...] = (1000, 5000)
    gone: float = 15.0  # from when they have gone until memory is looked at: what returns does so within 10
    clients: tuple[int, ...] = (200, 1000)
    clients_watch: float = 15.0  # over which the idle processor time is taken
    path_warm: float = 5.0  # at 100 ms, for the windows to open
    path: float = 8.0
    losses: tuple[float, ...] = (0.0, 0.001)


FULL = Lengths()
QUICK = Lengths(
    bulk=0.7,
    many=3.0,
    streams=(1, 64),
    ways=("up", "down"),
    ping=1.0,
    ping_bulk=1.5,
    connections=1.0,
    requests=1.0,
    idle=(200,),
    gone=SETTLE,
    clients=(20,),
    clients_watch=3.0,
    path_warm=3.0,
    path=4.0,
    losses=(0.0,),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One column: what it is called, and which way is better."""

    name: str  # in JSON: "throughput.up.1"
    title: str
    unit: str
    better: str  # "more" or "less"


Step = Callable[[Running, Contender, Lengths], Values]
"""One measurement of a contender."""


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that belong together, by one step or several; each contender does a step before the next one begins."""

    name: str  # in --figures
    title: str
    figures: Callable[[Lengths], list[Figure]]
    steps: Callable[[Lengths], list[Step]]
    fresh: bool = False  # whether the contender has to be started for it alone


@dataclass(slots=True)
class LoadCost:
    """What the load and the target themselves used: cores, by figure group."""

    target: int
    seen: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def watched(self, group: str) -> Iterator[None]:
        """Take the processor time of what runs inside; the most of all measurements is kept."""

        def used() -> float:
            ours = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
            return sum(u.ru_utime + u.ru_stime for u in ours) + processes.processor_time([self.target])

        began, before = time.monotonic(), used()
        yield
        took = time.monotonic() - began
        self.seen[group] = round(max(self.seen.get(group, 0.0), (used() - before) / took), 2)


def percentile(ordered: list[float], part: float) -> float:
    """Return the value that `part` (0 to 1) of these ascending values do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


# --- throughput ---------------------------------------------------------------------------------


def _throughput_figures(lengths: Lengths) -> list[Figure]:
    found = []
    for way in lengths.ways:
        for count in lengths.streams:
            streams = "1 stream" if count == 1 else f"{count:,} streams"
            found.append(Figure(f"throughput.{way}.{count}", f"{way}, {streams}", "Gbit/s", "more"))
            if count >= 64:
                found.append(Figure(f"wait.{way}.{count}", f"longest wait, {way}, {streams}", "s", "less"))
    if 1 in lengths.streams:
        found += [Figure(f"cpu.{way}", f"CPU, {way}", "ms/GB", "less") for way in lengths.ways if way != "both"]
    return found


def _throughput(way: str, count: int, running: Running, contender: Contender, lengths: Lengths) -> Values:
    load.settle(running.address)
    before = running.processor_time
    carried = load.bulk(
        running.address,
        streams=count,
        up=way in ("up", "both"),
        down=way in ("down", "both"),
        seconds=lengths.many if count >= 1000 else lengths.bulk,
    )
    cost = running.processor_time - before
    try:
        settled = load.settle(running.address, 5.0)
    except OSError:
        settled = False
    if not settled:
        running.stop()  # its backlog would be at the cost of the next one; it is started anew
    values = {f"throughput.{way}.{count}": (carried.up + carried.down) * 8 / 1e9}
    if count >= 64:
        values[f"wait.{way}.{count}"] = carried.waited
    if count == 1 and way != "both":
        values[f"cpu.{way}"] = cost * 1000 / (carried.total / 1e9)
    return values


def _throughput_steps(lengths: Lengths) -> list[Step]:
    return [partial(_throughput, way, count) for count in lengths.streams for way in lengths.ways]


# --- small exchanges ----------------------------------------------------------------------------


def _ping_figures(lengths: Lengths) -> list[Figure]:
    return [*_percentiles("ping", "ping-pong", "µs"), Figure("cpu.ping", "CPU a ping", "µs", "less")]


def _percentiles(name: str, title: str, unit: str) -> list[Figure]:
    return [Figure(f"{name}.{part}", f"{title} {part}", unit, "less") for part in ("p50", "p99", "p99.9")]


def _as_percentiles(name: str, seconds: list[float], factor: float) -> Values:
    ordered = sorted(seconds)
    parts = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {f"{name}.{part}": percentile(ordered, value) * factor for part, value in parts.items()}


def _ping(running: Running, contender: Contender, lengths: Lengths) -> Values:
    load.settle(running.address)
    before = running.processor_time
    took = load.ping(running.address, lengths.ping)
    return {**_as_percentiles("ping", took, 1e6), "cpu.ping": (running.processor_time - before) * 1e6 / len(took)}


def _ping_bulk(running: Running, contender: Contender, lengths: Lengths) -> Values:
    load.settle(running.address)
    with load.Beside(running.address, streams=1, up=False, down=True) as beside:
        took = load.ping(running.address, lengths.ping_bulk)
    assert beside.carried is not None
    return {**_as_percentiles("ping-bulk", took, 1e3), "ping-bulk.rate": beside.carried.down * 8 / 1e9}


def _connections(running: Running, contender: Contender, lengths: Lengths) -> Values:
    load.settle(running.address)
    before = running.processor_time
    count, took = load.connections_in_turn(running.address, lengths.connections)
    cost = (running.processor_time - before) * 1000 / count
    at_once, took_at_once = load.connections_at_once(running.address, lengths.connections, 50)
    return {"connections.turn": count / took, "connections.50": at_once / took_at_once, "cpu.connection": cost}


def _http(running: Running, contender: Contender, lengths: Lengths) -> Values:
    found = load.requests(running.address, lengths.requests)
    return {"http.rate": found.rate, "http.p99": found.p99 * 1000}


# --- memory -------------------------------------------------------------------------------------


def _memory_figures(lengths: Lengths) -> list[Figure]:
    found = [
        Figure("memory.0", "memory, no stream", "MiB", "less"),
        Figure("threads.0", "threads, no stream", "", "less"),
    ]
    for count in lengths.idle:
        found += [
            Figure(f"memory.{count}", f"memory, {count:,} idle streams", "MiB", "less"),
            Figure(f"memory.stream.{count}", f"memory a stream at {count:,}", "KiB", "less"),
            Figure(f"threads.{count}", f"threads at the busier end, {count:,} idle streams", "", "less"),
            Figure(f"memory.after.{count}", f"memory when {count:,} have gone", "MiB", "less"),
            Figure(f"memory.returned.{count}", f"memory that has returned, of {count:,} streams'", "%", "more"),
        ]
    return found


def _memory(running: Running, contender: Contender, lengths: Lengths) -> Values:
    def look(after: float = SETTLE) -> tuple[float, float]:
        time.sleep(after)
        near = processes.memory(p.pid for p in (*running.near, *running.between))
        far = processes.memory(p.pid for p in running.far)
        return float(near.pss + far.pss), float(max(near.threads, far.threads))

    if not running.processes:
        return {}
    empty, threads = look()
    values = {"memory.0": empty / 2**20, "threads.0": threads}
    for count in lengths.idle:
        if count > contender.streams:
            continue
        with load.idle_streams(running.address, count):
            full, threads = look()
        values[f"memory.{count}"] = full / 2**20
        values[f"memory.stream.{count}"] = (full - empty) / count / 1024
        values[f"threads.{count}"] = threads
        gone, _ = look(lengths.gone)
        values[f"memory.after.{count}"] = gone / 2**20
        if full > empty:
            values[f"memory.returned.{count}"] = (full - gone) / (full - empty) * 100
    return values


def client_figures(lengths: Lengths) -> list[Figure]:
    """Return what many idle clients cost their server."""
    found = []
    for count in lengths.clients:
        clients = f"{count:,} idle clients"
        found += [
            Figure(f"clients.memory.{count}", f"server's memory a client, {clients}", "KiB", "less"),
            Figure(f"clients.threads.{count}", f"server's threads, {clients}", "", "less"),
            Figure(f"clients.cpu.{count}", f"server's CPU, {clients}", "% of a core", "less"),
        ]
    return found


def measure_clients(start: Callable[[int], Running], most: int, lengths: Lengths) -> Values:
    """Measure a server without clients, and with each number of idle ones that is not above `most`.

    `start` gives a server at the far end of a Running, with that many clients at its near end.
    """

    def look(running: Running) -> processes.Memory:
        time.sleep(SETTLE)
        return processes.memory(process.pid for process in running.far)

    def with_clients(count: int) -> tuple[processes.Memory, float]:
        running = start(count)
        try:
            found = look(running)
            pids = [process.pid for process in running.far]
            before = processes.processor_time(pids)
            time.sleep(lengths.clients_watch)
            return found, (processes.processor_time(pids) - before) / lengths.clients_watch * 100
        finally:
            running.stop()

    values: Values = {}
    one, _ = with_clients(1)
    for count in lengths.clients:
        if count <= most:
            many, busy = with_clients(count)
            values[f"clients.memory.{count}"] = (many.pss - one.pss) / (count - 1) / 1024
            values[f"clients.threads.{count}"] = float(many.threads)
            values[f"clients.cpu.{count}"] = busy
    return values


def _only(step: Step) -> Callable[[Lengths], list[Step]]:
    return lambda lengths: [step]


def _fixed(*figures: Figure) -> Callable[[Lengths], list[Figure]]:
    return lambda lengths: list(figures)


GROUPS = (
    Group("throughput", "Bulk", _throughput_figures, _throughput_steps),
    Group("ping", "64 bytes there and back", _ping_figures, _only(_ping)),
    Group(
        "ping-bulk",
        "The same beside one bulk download",
        lambda lengths: [
            *_percentiles("ping-bulk", "ping-pong beside bulk", "ms"),
            Figure("ping-bulk.rate", "what the download had", "Gbit/s", "more"),
        ],
        _only(_ping_bulk),
    ),
    Group(
        "connections",
        "New connections, 64 bytes each",
        _fixed(
            Figure("connections.turn", "new connections, in turn", "1/s", "more"),
            Figure("connections.50", "new connections, 50 at once", "1/s", "more"),
            Figure("cpu.connection", "CPU a connection", "ms", "less"),
        ),
        _only(_connections),
    ),
    Group(
        "http",
        "HTTP on 50 kept connections",
        _fixed(
            Figure("http.rate", "HTTP requests", "1/s", "more"),
            Figure("http.p99", "HTTP request p99", "ms", "less"),
        ),
        _only(_http),
    ),
    Group("memory", "Memory of both ends (PSS) and threads", _memory_figures, _only(_memory), fresh=True),
)
"""Those on loopback, of any contender.  `clients` and `paths` have modules of their own."""
