"""Many clients in one process: `python -m benchmarks.idle_clients LIST READY`, until SIGTERM.

LIST names their configuration files, one a line.  Each is the real client, threads and all; only their keys are one and
the same, since making a thousand takes minutes and costs the server nothing.  READY is made when all are connected.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from qanat.client.client import Client
from qanat.config.load import load_config

AT_ONCE = 50
"""Clients that connect at the same time."""


def main() -> None:
    """Start all, then wait."""
    threading.stack_size(256 * 1024)
    rsa.generate_private_key = functools.cache(rsa.generate_private_key)
    coming: list[Client] = []
    clients = []
    for file in Path(sys.argv[1]).read_text().split():
        _wait_until_fewer_are(coming, AT_ONCE)
        coming.append(Client(load_config(Path(file), want="client")))
        clients.append(coming[-1])
        clients[-1].start()
    _wait_until_fewer_are(coming, 1)
    Path(sys.argv[2]).touch()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # a CLOSE from each would take as long as they took to come


def _wait_until_fewer_are(coming: list[Client], number: int) -> None:
    """Take out of `coming` those that are connected, until fewer than `number` are left."""
    while len(coming) >= number:
        coming[:] = [client for client in coming if not any(server.session for server in client.servers)]
        time.sleep(0.01)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
