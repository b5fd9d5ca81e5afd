"""Every cell of the matrix silent at once, for longer than proxies let a connection live."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from tests.support.applications import Target, connection, echo, exchange
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.proxies import TunnelProxy, start_haproxy
from tests.support.matrix import SILENCE, Matrix, sleep_until

NEVER = {"interval": 3600, "timeout": 7200}


class Silence:
    """A stream in each direction on every cell, used, and then all silent for SILENCE seconds.

    `unkept` is a tunnel through HAProxy whose ends send no keepalive, `unkept_stream` a stream in it.
    """

    def __init__(self, matrix: Matrix, directory: Path, stack: ExitStack) -> None:
        self.streams = {
            (transport, path): [stack.enter_context(connection(cell.ports[name])) for name in ("echo", "remote echo")]
            for (transport, path), cell in matrix.cells.items()
        }
        port = unused_port()
        target = stack.enter_context(Target(echo))
        self.unkept = stack.enter_context(
            Tunnel(
                directory,
                [{"local": f"127.0.0.1:{port}", "to": target.address}],
                server={"keepalive": NEVER},
                client={"keepalive": NEVER, "transport": "http2"},
            )
        )
        front = TunnelProxy(directory / "front", self.unkept.port, start_haproxy)
        self.unkept.client_settings |= {"url": front.url, "tls": {"ca_file": str(front.ca_file)}}
        stack.enter_context(front.start())
        self.unkept.start()
        self.unkept_stream = stack.enter_context(connection(port))
        for sock in (self.unkept_stream, *(sock for pair in self.streams.values() for sock in pair)):
            assert exchange(sock, b"before") == b"before"
        self._over_at = time.monotonic() + SILENCE

    def wait(self) -> None:
        """Block until it has been silent for long enough."""
        sleep_until(self._over_at)
