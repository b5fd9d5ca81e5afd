"""TCP ports for what has to know its number before it listens, and one that never answers."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import threading
from contextlib import ExitStack

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


class SilentListener:
    """A port where connecting does not end: its queue is full, and nobody accepts, until `answer`."""

    def __init__(self, stack: ExitStack, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = stack.enter_context(socket.socket(family))
        self._sock.bind((host, 0))
        self._sock.listen(0)
        self._fillers = [stack.enter_context(socket.socket(family)) for _ in range(4)]
        for sock in self._fillers:
            sock.setblocking(False)
            assert sock.connect_ex(self._sock.getsockname()) in (0, errno.EINPROGRESS)
        self.address: tuple[str, int] = self._sock.getsockname()[:2]

    def answer(self) -> None:
        """Make room: whoever is waiting is connected when its kernel tries again, within a second or two."""
        for sock in self._fillers:
            sock.close()  # or those of them that wait too would take the room, if their kernel tries first
        self._sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._sock.accept()[0].close()


def silent_address(stack: ExitStack) -> tuple[str, int]:
    """An address where connecting never ends."""
    return SilentListener(stack).address
