"""Tunnels of real processes on loopback, one for each way to carry, with the programs of `programs` behind them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from qanat.base.deadline import Deadline
from qanat.handshake.tokens import generate_token
from tests.support.machine.ports import unused_port

from .programs import PROGRAMS

TRANSPORTS = ("websocket", "http2", "grpc")
TUNNELS = {
    "websocket": ("websocket", 300),
    "websocket, resume_for: 0": ("websocket", 0),
    "http2": ("http2", 300),
    "grpc": ("grpc", 300),
}
"""By name: the transport, and the server's `resume_for`.  With 0 neither end keeps what it has sent."""

_ROOT = Path(__file__).resolve().parent.parent
_START = 20.0


class Rig:
    """`direct` maps a program's name to the port where it is reached, `tunnelled` does for each of TUNNELS."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.direct: dict[str, int] = {}
        self.tunnelled: dict[str, dict[str, int]] = {}

    def __enter__(self) -> Rig:
        with self._stack as stack:
            for name in PROGRAMS:
                process = self._start("-m", "benchmarks.programs", name)
                assert process.stdout is not None
                self.direct[name] = int(process.stdout.readline())
            self._start_tunnels()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, *arguments], cwd=_ROOT, stdout=subprocess.PIPE, text=True)
        self._stack.callback(_end, process)
        return process

    def _start_tunnels(self) -> None:
        servers = {resume_for: self._start_server(resume_for) for resume_for in {kept for _, kept in TUNNELS.values()}}
        for name, (transport, resume_for) in TUNNELS.items():
            port, fingerprint = servers[resume_for]
            self.tunnelled[name] = {program: unused_port() for program in self.direct}
            folder = self._folder / str(resume_for)
            client = {
                "name": transport,
                "transport": transport,
                "url": f"ws://127.0.0.1:{port}/tunnel",
                "proxy": "none",
                "token_file": f"{transport}.token",
                "server_fingerprint": fingerprint,
                "forwards": [
                    {"local": f"127.0.0.1:{self.tunnelled[name][program]}", "to": f"127.0.0.1:{target}"}
                    for program, target in self.direct.items()
                ],
                "log": {"level": "warning"},
            }
            (folder / f"{transport}.yaml").write_text(json.dumps({"client": client}))
            self._start("tunnel.py", "client", "-c", str(folder / f"{transport}.yaml"))
            self._wait_until_up(self.tunnelled[name]["echo"], b"?", b"?")

    def _start_server(self, resume_for: int) -> tuple[int, str]:
        """A server for every transport; its port and fingerprint."""
        folder, port = self._folder / str(resume_for), unused_port()
        transports = sorted({transport for transport, _ in TUNNELS.values()})
        subprocess.run(
            [
                sys.executable,
                "tunnel.py",
                "init",
                str(folder),
                "--listen",
                f"127.0.0.1:{port}",
                "--url",
                f"ws://127.0.0.1:{port}/tunnel",
                "--name",
                "unused",
            ],
            cwd=_ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        fingerprint = subprocess.run(
            [sys.executable, "tunnel.py", "fingerprint", "-c", str(folder / "server.yaml")],
            cwd=_ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for name in transports:
            token = folder / f"{name}.token"
            token.touch(mode=0o600)
            token.write_text(generate_token())
        clients = [{"name": n, "token_file": f"{n}.token", "allow_connect": ["127.0.0.1:*"]} for n in transports]
        server = {
            "listen": f"127.0.0.1:{port}",
            "clients": clients,
            "resume_for": resume_for,
            "log": {"level": "warning"},
        }
        (folder / "server.yaml").write_text(json.dumps({"server": server}))
        self._start("tunnel.py", "server", "-c", str(folder / "server.yaml"))
        self._wait_until_up(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"H")
        return port, fingerprint

    def _wait_until_up(self, port: int, question: bytes, answer: bytes) -> None:
        deadline = Deadline(_START)
        retry = threading.Event()
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                    sock.sendall(question)
                    if sock.recv(1) == answer:
                        return
            except OSError:
                pass
            if deadline.passed:
                raise TimeoutError("the tunnel did not come up; see the lines above")
            retry.wait(0.05)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
