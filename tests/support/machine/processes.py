"""Qanat as a process of its own, told apart from the test that runs it: real signals, real exit codes.

`Qanat` is for tests of the command line and of what runs it.  Readiness is what systemd sees: a
datagram on NOTIFY_SOCKET.
"""

from __future__ import annotations

import copy
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from qanat.cli.init_files import Written, write_files
from tests.support.machine.ports import unused_port

ROOT = Path(__file__).resolve().parents[3]
TUNNEL = ROOT / "tunnel.py"
SECONDS = 60.0
"""How long anything here may take before the test fails."""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Look again and again whether `condition` holds: for what gives no other sign, such as a file's content."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s"
        time.sleep(0.01)


def run_qanat(*arguments: object, cwd: Path | None = None, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.  A variable set to None is taken out of the environment."""
    return subprocess.run(
        [sys.executable, TUNNEL, *map(str, arguments)],
        cwd=cwd,
        env=_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


class Qanat:
    """A command that stays, for the length of a `with` block; killed at its end if it still runs.

    `directory` is where its output goes; that is the current directory too unless `cwd` is another.
    """

    def __init__(self, *arguments: object, directory: Path, cwd: Path | None = None, **environment: object) -> None:
        self._is_client = arguments[0] == "client"
        self._output = directory / f"output-{time.monotonic_ns()}"
        self.notifications = NotifySocket(directory / f"notify-{time.monotonic_ns()}")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, TUNNEL, *map(str, arguments)],
                cwd=cwd or directory,
                env=_environment({"NOTIFY_SOCKET": self.notifications.path, **environment}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self.notifications.close()

    @property
    def output(self) -> str:
        """All that it has written to stdout and stderr so far."""
        return self._output.read_text()

    def wait_for_output(self, text: str) -> None:
        """Wait until it has written `text`."""
        wait_for(lambda: text in self.output, f"{text!r} in the output")

    def wait_until_ready(self) -> Self:
        """Wait until a server listens, or a client has connected for the first time."""
        assert self.notifications.wait(self.process.pid) == "READY=1", self.output
        if self._is_client:
            assert self.notifications.wait_for_status(self.process.pid, "connected to "), self.output
        return self

    def wait_until_stopping(self) -> None:
        """Wait until it says that it has begun to stop."""
        assert self.notifications.wait(self.process.pid) == "STOPPING=1", self.output

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it `number` and return its exit code."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        return self.process.wait(SECONDS)


class Pair:
    """What `init` writes, on ports of this test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = unused_port()
        self.written: Written = write_files(directory / "etc", name="client", url=None, listen=f"127.0.0.1:{self.port}")
        self.forward_port = unused_port()
        sample = f"127.0.0.1:{self.forward_port}"
        self.client_yaml = self.written.client_yaml
        self.server_yaml = self.written.server_yaml
        self.client_yaml.write_text(self.client_yaml.read_text().replace(self.written.sample, sample))

    def copied_to(self, directory: Path) -> Pair:
        """The same server's files and the client's once more, for a client with a forward on a port of its own."""
        copied, etc = copy.copy(self), directory / "etc"
        shutil.copytree(self.directory / "etc", etc, ignore=shutil.ignore_patterns("*.sock"))
        copied.directory = directory
        paths = ("server_yaml", "client_yaml", "token_file", "identity")
        copied.written = replace(self.written, **{name: etc / getattr(self.written, name).name for name in paths})
        copied.forward_port = unused_port()
        copied.client_yaml, copied.server_yaml = copied.written.client_yaml, copied.written.server_yaml
        here, there = f"127.0.0.1:{self.forward_port}", f"127.0.0.1:{copied.forward_port}"
        copied.client_yaml.write_text(copied.client_yaml.read_text().replace(here, there))
        return copied

    def server(self, *arguments: object, cwd: Path | None = None) -> Qanat:
        return Qanat("server", "-c", self.server_yaml, *arguments, directory=self.directory, cwd=cwd)

    def client(self, *arguments: object, cwd: Path | None = None) -> Qanat:
        return Qanat("client", "-c", self.client_yaml, *arguments, directory=self.directory, cwd=cwd)

    def fetch(self, port: int | None = None) -> bytes:
        """The server's own health page, through the tunnel."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.forward_port}/healthz", timeout=20) as answer:
            content: bytes = answer.read()
        return content


class NotifySocket:
    """The receiving end of sd_notify(3), as systemd has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._heard: list[str] = []  # and not asked for yet
        self.status = ""
        """The last STATUS that was read."""

    def close(self) -> None:
        self._sock.close()

    @property
    def silent(self) -> bool:
        """Whether no message but a STATUS waits to be read."""
        while select.select([self._sock], [], [], 0)[0]:
            self._keep(self._sock.recv(4096).decode())
        return not self._heard

    def wait(self, pid: int, seconds: float = SECONDS) -> str:
        """The next message but for STATUS; "" when the process `pid` ended without one.  Fails after `seconds`."""
        while not self._heard:
            message = self._receive(pid, seconds)
            if not message:
                return ""
            self._keep(message)
        return self._heard.pop(0)

    def wait_for_status(self, pid: int, text: str, seconds: float = SECONDS) -> bool:
        """Read until a STATUS has `text` in it; False when the process `pid` ended without one."""
        while text not in self.status:
            message = self._receive(pid, seconds)
            if not message:
                return False
            self._keep(message)
        return True

    def _keep(self, message: str) -> None:
        if message.startswith("STATUS="):
            self.status = message.removeprefix("STATUS=")
        else:
            self._heard.append(message)

    def _receive(self, pid: int, seconds: float) -> str:
        with process_handle(pid) as handle:
            ready, _, _ = select.select([self._sock.fileno(), handle], [], [], seconds)
        if not ready:
            pytest.fail(f"no message from the process within {seconds} s")
        return self._sock.recv(4096).decode() if self._sock.fileno() in ready else ""


@contextmanager
def process_handle(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends."""
    handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        os.close(handle)


def _environment(changes: dict[str, object]) -> dict[str, str]:
    ours = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("QANAT_", "XDG_", "NOTIFY_")) and not key.lower().endswith("_proxy")
    }
    return {key: str(value) for key, value in {**ours, **changes}.items() if value is not None}
