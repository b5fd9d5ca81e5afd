"""How long a look at a large server takes: `python -m benchmarks.status [SESSIONS [STREAMS]]`.

A server in this process has so many sessions, on no pipe, with idle streams spread over them, and is asked over a real
control socket as `tunnel.py status` does, and for its metrics.  Prints the processor time of a snapshot, of a whole
answer, both ends of the socket included, and of a scrape: the machine may be busy with something else.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.request_head import RequestHead
from qanat.base.watcher import Watcher
from qanat.cli.status_tables import MOST_ROWS
from qanat.config.server_settings import ClientAccount, ServerSettings
from qanat.control.asking import ask
from qanat.control.paths import control_path
from qanat.monitor.metrics import Metrics
from qanat.monitor.reading import read_snapshot
from qanat.monitor.snapshot import streams_of
from qanat.monitor.summary import counts_of
from qanat.mux.parameters import LaneParameters
from qanat.server.accounts import Account
from qanat.server.server import Server
from qanat.server.session import ServerSession
from qanat.server.shared_ports import SharedPorts
from qanat.session.messages import Through

SESSIONS, STREAMS = 1000, 5000
LOOKS = 5
CLIENTS = 50
"""`max_clients`, by default."""


@dataclass(frozen=True)
class Looks:
    """Seconds of processor time, the least of LOOKS, since others' work only adds to it, and what one answer had."""

    snapshot: float
    answer: float
    size: int
    streams: int
    short: float
    """What `status` asks for unless all is wanted: the first sessions and the busiest streams alone."""
    short_size: int
    short_streams: int
    counted: int
    """How many streams there are, as that answer says."""
    scrape: float
    scrape_size: int


@contextmanager
def idle_server(directory: Path, sessions: int, streams: int) -> Iterator[Server]:
    """Run a server in this process, whose files are in `directory`, with so many sessions and streams on no pipe."""
    settings = ServerSettings(
        listen=(("127.0.0.1", 0),),
        clients=(ClientAccount("office", (b"t" * 32,)),),
        identity=directory / "server.key",
        state_dir=directory,
    )
    server = Server(settings)
    server.registry._limit = sessions  # affordable_limits has fitted it to the descriptors, of which these need none
    server.start()
    watcher = Watcher()
    try:
        ports = SharedPorts(watcher)
        for number in range(sessions):
            session = _session(f"client-{number}", watcher, ports)
            server.registry.claim(session, Deadline(10))
            for stream in range(number, streams, sessions):
                session.open_stream(Through(0, f"192.0.2.7:{stream % 65536}").encode(), forward="127.0.0.1:8080")
        yield server
    finally:
        for each in server.registry.sessions:
            each.end("measured")
        server.stop()
        watcher.close()


def scraper(server: Server) -> Callable[[], bytes]:
    """Return what makes the answer to a scrape of `server`."""
    metrics = Metrics(
        lambda label_of: server.observation.sums(server.settings, server.watchdog.look(0.1), label_of),
        server.events,
        CLIENTS,
    )
    head = RequestHead("GET", "/metrics", (("host", "localhost"),), "1.1", b"")
    return lambda: metrics.answer(head).body


def measure(directory: Path, sessions: int = SESSIONS, streams: int = STREAMS) -> Looks:
    """Look at a server with so many sessions and streams, whose files are in `directory`.  Blocks."""
    with idle_server(directory, sessions, streams) as server:
        server.open_control()
        path = control_path(server.settings)
        assert path is not None
        answer, short = ask(path, "status"), ask(path, "status", sessions=MOST_ROWS, streams=MOST_ROWS)
        whole, part = read_snapshot(answer["status"]), read_snapshot(short["status"])
        scrape = scraper(server)
        return Looks(
            _least(server.snapshot),
            _least(lambda: ask(path, "status")),
            len(json.dumps(answer)),
            sum(1 for _ in streams_of(whole)),
            _least(lambda: ask(path, "status", sessions=MOST_ROWS, streams=MOST_ROWS)),
            len(json.dumps(short)),
            sum(1 for _ in streams_of(part)),
            counts_of(part).streams,
            _least(scrape),
            len(scrape()),
        )


def _session(name: str, watcher: Watcher, ports: SharedPorts) -> ServerSession:
    return ServerSession(
        name,
        LaneParameters(client=False, peer_max_streams=STREAMS),
        secret=b"r" * 32,
        resume_for=600.0,
        instance=name.encode().ljust(16)[:16],
        origin=name,
        account=Account(ClientAccount(name, (b"t" * 32,)), STREAMS, watcher),
        connect_timeout=1.0,
        max_forwards=1,
        max_lanes=1,
        watcher=watcher,
        shared_ports=ports,
    )


def _least(do: Callable[[], object]) -> float:
    found = []
    for _ in range(LOOKS):
        began = time.process_time()
        do()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    """Measure, and print what came out."""
    sessions, streams = [*map(int, sys.argv[1:]), *(SESSIONS, STREAMS)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory(prefix="q-") as directory:
        looks = measure(Path(directory), sessions, streams)
    print(
        f"{sessions} sessions, {streams} streams: snapshot {looks.snapshot * 1000:.0f} ms, "
        f"answer {looks.answer * 1000:.0f} ms, {looks.size / 1e6:.2f} MB, "
        f"with {looks.short_streams} streams {looks.short * 1000:.0f} ms, {looks.short_size / 1e6:.2f} MB, "
        f"scrape {looks.scrape * 1000:.0f} ms, {looks.scrape_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
