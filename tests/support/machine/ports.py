"""TCP ports for what has to know its number before it listens: a program's configuration, a proxy's file."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading

# Below Linux's ephemeral ports, so that no outgoing connection takes one between our look and its use.
_FIRST, _LAST = 20_000, 32_000
_LOCK = threading.Lock()


def _of_this_process() -> itertools.cycle[int]:
    """A share of its own for each process that runs tests at the same time, begun somewhere else each time."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (_LAST - _FIRST) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = _FIRST + worker * share
    start = os.getpid() * 7 % share
    return itertools.cycle((*range(first + start, first + share), *range(first, first + start)))


_ports = _of_this_process()


def unused_port() -> int:
    """A port of 127.0.0.1 that nobody on this machine listens on, and that this process has not given out lately."""
    with _LOCK:
        while True:
            port = next(_ports)
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with contextlib.suppress(OSError):
                    sock.bind(("127.0.0.1", port))
                    return port
