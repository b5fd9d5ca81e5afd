"""How long an answer takes where a thousand sessions and five thousand streams lie idle: `python -m benchmarks.crowd`.

    --sessions 1000 --streams 5 --scrapes 50

A real server, `tunnel.py server` with `monitor:`, in a process of its own; the sessions are real ones over WebSocket,
whose other ends lie in this process, as lanes on one watcher.  Prints the seconds that a scrape of /metrics takes.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.watcher import Watcher
from qanat.handshake.exchange import client_handshake
from qanat.handshake.hello import Hello, RecordKind
from qanat.handshake.keys import ClientKey
from qanat.handshake.machine import ClientHandshake
from qanat.handshake.tokens import generate_token, parse_token
from qanat.mux.lane import Lane
from qanat.mux.parameters import LaneParameters
from qanat.session.messages import Connect
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.websocket import upgrade as websocket
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port
from tests.support.server.raw_peers import PARAMETERS

SECONDS = 120.0
AT_ONCE = 8
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Crowd:
    """Sessions of clients c0, c1, ... with one server, which it starts, and their idle streams."""

    def __init__(self, directory: Path, sessions: int, streams: int, stack: ExitStack) -> None:
        """Start the server, and connect all; blocks until they are there."""
        tokens = {f"c{number}": generate_token() for number in range(sessions)}
        self.monitor = f"127.0.0.1:{unused_port()}"
        for name, token in tokens.items():
            directory.mkdir(exist_ok=True)
            (directory / f"{name}.token").touch(mode=0o600)
            (directory / f"{name}.token").write_text(token)
        accounts = [{"name": name, "token_file": f"{name}.token", "allow_connect": "127.0.0.1:*"} for name in tokens]
        limits = {"sessions": sessions + 1, "handshake_rate": 100_000, "per_address_burst": 1_000_000}
        tunnel = Tunnel(
            directory,
            server={"clients": accounts, "monitor": {"listen": self.monitor}, "limits": limits},
        )
        stack.enter_context(tunnel)
        tunnel.start_server()
        self.server = tunnel.server
        self._port = tunnel.port
        self._key = ClientKey.generate()
        self._streams = streams
        self._target = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept_loop, name="shared-target", daemon=True).start()
        self._watcher = Watcher()
        stack.callback(self._watcher.close)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self.lanes = list(pool.map(lambda each: self._connect(*each), tokens.items()))

    def scrape(self) -> tuple[float, str]:
        """Ask for all metrics; the seconds that took, and the answer."""
        began = time.perf_counter()
        with _OPENER.open(f"http://{self.monitor}/metrics", timeout=SECONDS) as answer:
            text = answer.read().decode()
        return time.perf_counter() - began, text

    def _accept_loop(self) -> None:
        while True:
            try:
                self._held.append(self._target.accept()[0])
            except OSError:
                return

    def _connect(self, name: str, token: str) -> Lane:
        deadline = Deadline(SECONDS)
        pipe = websocket.connect(TunnelUrl.parse(f"ws://127.0.0.1:{self._port}/tunnel"), deadline=deadline)
        sealed = client_handshake(pipe, ClientHandshake(name, parse_token(token), self._key, lambda _: None), deadline)
        sealed.send_record(bytes((RecordKind.HELLO,)) + Hello(name.encode().ljust(16), PARAMETERS).encode())
        kind, _ = sealed.recv_record()
        assert kind is RecordKind.READY, kind
        lane = Lane(
            name,
            LaneParameters(client=True, resumable=True),
            on_open=lambda _: None,
            on_control=lambda _: None,
            watcher=self._watcher,
        )
        lane.start(sealed, lambda _: None, silence=SECONDS)
        to = TcpAddress("127.0.0.1", self._target.getsockname()[1])
        opened = [lane.open_stream(Connect(to, "192.0.2.1:4711").encode()) for _ in range(self._streams)]
        while not all(stream.accepted for stream in opened):
            assert not deadline.passed, "a stream was not accepted"
            time.sleep(0.002)
        return lane


def main(arguments: list[str]) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=5, help="of each session")
    parser.add_argument("--scrapes", type=int, default=50)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        crowd = Crowd(directory / "crowd", options.sessions, options.streams, stack)
        taken = sorted(crowd.scrape()[0] for _ in range(options.scrapes))
        _, text = crowd.scrape()
        for line in text.splitlines():
            if line.startswith(("qanat_sessions{", "qanat_streams ", "qanat_threads ")):
                print(line)
        median, worst = taken[len(taken) // 2], taken[-1]
        print(f"{len(text)} bytes; a scrape takes {median * 1000:.1f} ms, at worst {worst * 1000:.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1:])
