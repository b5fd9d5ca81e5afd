"""How much a session may hold, and how its sockets are probed: what each end allows the other, and each lane gets.

Made from the configuration and from what the peer said in HELLO or READY.  `qanat.client.server_connection` and
`qanat.server.server` use it when a session begins.
"""

from __future__ import annotations

import logging
import math

from qanat.base.files_limit import raise_open_files_limit
from qanat.base.version import __version__
from qanat.config.settings import ApplicationProbes, Flow, Keepalive
from qanat.endpoints.application_socket import ApplicationKeepalive
from qanat.handshake.hello import Parameters
from qanat.mux.parameters import LaneParameters

log = logging.getLogger("qanat.session")

AGENT = f"qanat/{__version__}"
"""What we call this program in HELLO and READY."""
CLIENT_STREAMS = 4096
"""Streams that a server may have open towards a client at once; a server's own limit is `limits.streams`."""
FILES_PER_STREAM = 3
"""Descriptors one stream may need: its socket, and a pair to wake a thread that waits for a slow target."""
FILES_RESERVED = 128
"""Descriptors left for everything else."""
MIN_STREAMS = 16
"""Streams that are allowed however few descriptors there are."""
MIN_CONNECTIONS = 16
"""Connections that are allowed however few descriptors there are."""


def affordable_streams(wanted: int) -> int:
    """Raise the limit on open files, and return how many of `wanted` streams it allows; logs a lower number."""
    files = raise_open_files_limit()
    affordable = max(MIN_STREAMS, (files - FILES_RESERVED) // FILES_PER_STREAM)
    if affordable < wanted:
        log.warning(
            "%d open files are allowed, so a session may have %d streams, not %d; raise the hard limit (ulimit -Hn)",
            files,
            affordable,
            wanted,
        )
    return min(wanted, affordable)


def affordable_connections(wanted: int) -> int:
    """Raise the limit on open files, and return how many of `wanted` connections it allows; logs a lower number.

    Half of the descriptors stay for the streams and listeners of those who are authenticated: others cannot take
    them by connecting.
    """
    files = raise_open_files_limit()
    affordable = max(MIN_CONNECTIONS, (files - FILES_RESERVED) // 2)
    if affordable < wanted:
        log.warning(
            "%d open files are allowed, so there may be %d connections at once, not %d (limits.connections); "
            "raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd)",
            files,
            affordable,
            wanted,
        )
    return min(wanted, affordable)


def share(total: int, lanes: int) -> int:
    """Return what each of `lanes` may have of a limit that is for a whole session, rounded up."""
    return -(-total // max(1, lanes))


def hello_parameters(
    flow: Flow, keepalive: Keepalive, max_streams: int, *, lanes: int = 1, resume_for: float = 0
) -> Parameters:
    """Return what we tell the peer about ourselves in HELLO or READY; `max_streams` is for one lane."""
    return Parameters(AGENT, flow.initial_window, max_streams, round(keepalive.interval), lanes, math.ceil(resume_for))


def lane_parameters(
    flow: Flow,
    keepalive: Keepalive,
    max_streams: int,
    peer: Parameters,
    *,
    client: bool,
    lanes: int = 1,
    resumable: bool = False,
) -> LaneParameters:
    """Return our own limits and the peer's for one lane of a session that has `lanes` of them."""
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
        resumable=resumable,
    )


def application_keepalive(probes: ApplicationProbes) -> ApplicationKeepalive:
    """Return how the sockets of a session's applications are probed."""
    return ApplicationKeepalive(probes.idle, probes.interval, probes.count)
