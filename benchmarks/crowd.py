"""How long an answer takes where a thousand sessions and five thousand streams lie idle: `python -m benchmarks.crowd`.

    --sessions 1000 --streams 5 --looks 20

A real server, `tunnel.py server` with `monitor:`, in a process of its own; the sessions are real ones over WebSocket,
whose other ends lie in this process, as lanes on one watcher.  Prints for `tunnel.py status` in its forms, and for a
scrape of /metrics by curl: the time by the clock, the CPU time of the command and of the server, and the longest round
trip meanwhile of a ping-pong through the same server, beside the longest of as long without a look.
"""

from __future__ import annotations

import argparse
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.monitoring import cpu_seconds
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
from tests.support.applications import Target, echo
from tests.support.harness import ROOT, Tunnel
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
        limits = {"sessions": sessions + 2, "handshake_rate": 100_000, "per_address_burst": 1_000_000}
        self._near = unused_port()
        echoing = stack.enter_context(Target(echo))
        tunnel = Tunnel(
            directory,
            [{"local": f"127.0.0.1:{self._near}", "to": echoing.address}],
            server={"monitor": {"listen": self.monitor}, "limits": limits},
        )
        tunnel.server_settings["clients"] += accounts
        stack.enter_context(tunnel)
        tunnel.start()
        self.server = tunnel.server
        self.config = directory / "server.yaml"
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

    def ping_pong(self) -> socket.socket:
        """Return a connection through the server, by a client of its own, to what echoes."""
        return socket.create_connection(("127.0.0.1", self._near), timeout=SECONDS)

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


@dataclass(frozen=True)
class Figures:
    """Of several looks of one kind, in seconds."""

    clock: list[float]
    command: list[float]
    server: list[float]
    pauses: list[float]


class PingPong:
    """A byte that goes to and fro; `longest` is what one turn took at most since it was asked."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._longest = 0.0
        threading.Thread(target=self._turn_loop, name="shared-ping-pong", daemon=True).start()

    def _turn_loop(self) -> None:
        while True:
            began = time.perf_counter()
            try:
                self._sock.sendall(b"x")
                if not self._sock.recv(1):
                    return
            except OSError:
                return
            self._longest = max(self._longest, time.perf_counter() - began)
            time.sleep(0.001)

    def longest(self) -> float:
        """Return the longest turn that has ended since the last call."""
        found, self._longest = self._longest, 0.0
        return found


def look(crowd: Crowd, command: list[str], turns: PingPong, looks: int) -> Figures:
    """Run a command so often.  Blocks."""
    found = Figures([], [], [], [])
    for _ in range(looks):
        time.sleep(0.3)
        turns.longest()
        server, ours, began = cpu_seconds(crowd.server), _children(), time.perf_counter()
        subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True)
        found.clock.append(time.perf_counter() - began)
        found.command.append(_children() - ours)
        found.server.append(cpu_seconds(crowd.server) - server)
        found.pauses.append(turns.longest())
    return found


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(arguments: list[str]) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=5, help="of each session")
    parser.add_argument("--looks", type=int, default=20, help="of each kind")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        crowd = Crowd(directory / "crowd", options.sessions, options.streams, stack)
        turns = PingPong(stack.enter_context(crowd.ping_pong()))
        for line in crowd.scrape()[1].splitlines():
            if line.startswith(("qanat_sessions{", "qanat_streams ", "qanat_threads ")):
                print(line)
        status = [sys.executable, str(ROOT / "tunnel.py"), "status", "-c", str(crowd.config)]
        commands = {
            "nothing": ["sleep", "0.5"],
            "status": status,
            "status --brief": [*status, "--brief"],
            "status, drawn": ["script", "-qec", f"stty cols 200; exec {' '.join(status)}", "/dev/null"],
            "status --json": [*status, "--json"],
            "scrape": ["curl", "-sS", "--noproxy", "*", f"http://{crowd.monitor}/metrics"],
        }
        print("milliseconds (median, worst)    clock          command's CPU  server's CPU   longest ping-pong")
        for name, command in commands.items():
            found = look(crowd, command, turns, options.looks)
            columns = (found.clock, found.command, found.server, found.pauses)
            print(f"{name:32}" + "".join(f"{1000 * statistics.median(c):6.0f} {1000 * max(c):6.0f}  " for c in columns))


if __name__ == "__main__":
    main(sys.argv[1:])
