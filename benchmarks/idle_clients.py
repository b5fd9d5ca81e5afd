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
    places = threading.Semaphore(AT_ONCE)
    connected = threading.Semaphore(0)

    def ready() -> None:
        places.release()
        connected.release()

    files = Path(sys.argv[1]).read_text().split()
    clients = []
    for file in files:
        places.acquire()
        clients.append(Client(load_config(Path(file), want="client"), ready))
        clients[-1].start()
    for _ in files:
        connected.acquire()
    Path(sys.argv[2]).touch()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # a goodbye from each would take as long as they took to come


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
