"""How much a session may hold, and how its sockets are probed: what each end allows the other, and each lane gets.

Made from the configuration and from what the peer said in HELLO or READY.  `qanat.client.server_connection` and
`qanat.server.server` use it when a session begins.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

from qanat.base.files_limit import raise_open_files_limit
from qanat.base.threads_limit import spare_threads
from qanat.base.version import __version__
from qanat.base.workers import WORKERS
from qanat.config.server_settings import ServerLimits
from qanat.config.settings import ApplicationProbes, Flow, Keepalive
from qanat.endpoints.application_socket import ApplicationKeepalive
from qanat.handshake.hello import Features, Parameters
from qanat.mux.observer import NOBODY, Observer
from qanat.mux.parameters import KEEPALIVE_SLACK, LaneParameters

log = logging.getLogger("qanat.session")

AGENT = f"qanat/{__version__}"
"""What we call this program in HELLO and READY."""
FEATURES = Features.KINDS | Features.DATAGRAMS | Features.CLOCK | Features.LATER_RULES
"""What this program can do."""
CLIENT_STREAMS = 4096
"""Streams that a server may have open towards a client at once; a server's own limit is `limits.streams`."""
FILES_PER_STREAM = 3
"""Descriptors one stream may need: its socket, and a pair to wake a thread that waits for a slow target."""
FILES_RESERVED = 128
"""Descriptors left for everything else."""
MIN_STREAMS = 16
"""Streams that are allowed however few descriptors there are."""
MIN_CONNECTIONS = 16
"""Connections that are allowed however few descriptors and threads there are."""
THREADS_PER_CONNECTION = 3
"""Threads that one connection may have: its own, over HTTP/2 a writer, and on an average one for its streams.  A thread
for the time that a handshake takes comes to that."""
THREADS_RESERVED = 8
"""Threads that wait for what sessions have to do when the system gives no more."""


def affordable_streams(wanted: int, *, asked: bool = True) -> int:
    """Raise the limit on open files, and return how many of `wanted` streams it allows; logs a lower one if `asked`."""
    files = raise_open_files_limit()
    affordable = max(MIN_STREAMS, (files - FILES_RESERVED) // FILES_PER_STREAM)
    if affordable < wanted and asked:
        log.warning(
            "%d open files are allowed, so a session may have %d streams, not %d; raise the hard limit (ulimit -Hn)",
            files,
            affordable,
            wanted,
        )
    return min(wanted, affordable)


def affordable_limits(wanted: ServerLimits) -> ServerLimits:
    """Raise the limits on open files and threads; return `wanted` with as many connections as they allow, and log it.

    Half of the descriptors stay for the streams and listeners of those who are authenticated, and half of the threads
    for their streams: others cannot take them by connecting.  Of fewer connections than wanted, at most half may be in
    the handshake, so that a newcomer always finds one that gives way.
    """
    files = raise_open_files_limit()
    by_files = max(MIN_CONNECTIONS, (files - FILES_RESERVED) // 2)
    threads = spare_threads()
    by_threads = wanted.connections
    if threads is not None:
        by_threads = max(MIN_CONNECTIONS, (threads // 2 - wanted.handshakes) // THREADS_PER_CONNECTION)
    affordable = min(by_files, by_threads)
    if affordable >= wanted.connections:
        return wanted
    what, remedy = (
        (f"{files} open files", "the hard limit (ulimit -Hn, LimitNOFILE= of systemd)")
        if by_files <= by_threads
        else (f"{threads} more threads", "that limit (ulimit -Hu, TasksMax= of systemd, a container's pids)")
    )
    log.warning(
        "%s are allowed, so there may be %d connections at once, not %d (limits.connections); raise %s",
        what,
        affordable,
        wanted.connections,
        remedy,
    )
    return replace(wanted, connections=affordable, handshakes=min(wanted.handshakes, affordable // 2))


def reserve_threads(make_room: Callable[[], object]) -> None:
    """Keep threads waiting for sessions where the system bounds them; `make_room` ends who is not authenticated."""
    if spare_threads() is not None:
        WORKERS.reserve(THREADS_RESERVED, make_room)


def release_threads() -> None:
    """Keep no thread waiting any more."""
    WORKERS.reserve(0, lambda: None)


def share(total: int, lanes: int) -> int:
    """Return what each of `lanes` may have of a limit that is for a whole session, rounded up."""
    return -(-total // max(1, lanes))


def hello_parameters(
    flow: Flow, keepalive: Keepalive, max_streams: int, *, lanes: int = 1, resume_for: float = 0
) -> Parameters:
    """Return what we tell the peer about ourselves in HELLO or READY; `max_streams` is for one lane."""
    return Parameters(
        AGENT,
        flow.initial_window,
        max_streams,
        round(keepalive.interval),
        lanes,
        math.ceil(resume_for),
        features=FEATURES,
    )


def lane_parameters(
    flow: Flow,
    keepalive: Keepalive,
    max_streams: int,
    peer: Parameters,
    *,
    client: bool,
    lanes: int = 1,
    resumable: bool = False,
    observer: Observer = NOBODY,
) -> LaneParameters:
    """Return our own limits and the peer's for one lane of a session that has `lanes` of them.

    `observer` hears of what happens on it.
    """
    return LaneParameters(
        client=client,
        initial_window=flow.initial_window,
        max_window=flow.max_window,
        window_budget=share(flow.window_budget, lanes),
        outbox=flow.outbox,
        max_streams=max_streams,
        peer_initial_window=peer.initial_window,
        peer_max_streams=peer.max_streams,
        keepalive=keepalive.interval,
        # Less where the link counts as dead soon after the interval.
        keepalive_slack=min(KEEPALIVE_SLACK, (keepalive.timeout - keepalive.interval) / 4),
        resumable=resumable,
        peer_features=peer.features,
        tell_clock=bool(peer.features & Features.CLOCK),
        observer=observer,
    )


def application_keepalive(probes: ApplicationProbes) -> ApplicationKeepalive:
    """Return how the sockets of a session's applications are probed."""
    return ApplicationKeepalive(probes.idle, probes.interval, probes.count, probes.unacknowledged)
