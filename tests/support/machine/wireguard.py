"""WireGuard in user space: two of its interfaces, each in a network of its own, whose packets go over our loopback.

Their sockets stay in the network where the interfaces were made, as WireGuard has it ("Routing & Network Namespaces" in
its documentation), so that nothing but the tunnel between the sockets leads from one network to the other.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.harness import SECONDS, Program
from tests.support.machine.programs import require_program

NEAR, FAR = "10.78.0.1", "10.78.0.2"


def _run(*command: object, **options: str) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, timeout=SECONDS, **options
    ).stdout


class WireGuard:
    """Both ends; the far one is asked at `port` of this machine, and the near one asks where `join` says."""

    def __init__(self, directory: Path, stack: ExitStack, port: int) -> None:
        """Make both.  Skips the test where there can be none."""
        if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
            pytest.skip("only root may make network interfaces, and needs /dev/net/tun for these")
        self._port = port
        self._ip, self._wg = require_program("ip"), require_program("wg")
        self._names = [f"qwg{os.getpid() % 10**7}{end}" for end in "nf"]
        self._keys = [_run(self._wg, "genkey") for _ in self._names]
        self._public = [_run(self._wg, "pubkey", input=key).strip() for key in self._keys]
        for number, (name, address) in enumerate(zip(self._names, (NEAR, FAR), strict=True)):
            stack.enter_context(self._interface(name, directory, number, address))

    def join(self, port: int) -> None:
        """Have the near end ask the far one at `port` of this machine."""
        self._set(0, "peer", self._public[1], "endpoint", f"127.0.0.1:{port}", "allowed-ips", f"{FAR}/32")
        self._set(1, "peer", self._public[0], "allowed-ips", f"{NEAR}/32")

    def _set(self, number: int, *words: object) -> None:
        _run(self._wg, "set", self._names[number], *words)  # over wireguard-go's own socket

    @contextmanager
    def _interface(self, name: str, directory: Path, number: int, address: str) -> Iterator[None]:
        key = directory / f"{name}.key"
        key.touch(mode=0o600)
        key.write_text(self._keys[number])
        try:
            _run(self._ip, "netns", "add", name)
            with Program(require_program("wireguard-go"), "-f", name, LOG_LEVEL="verbose") as program:
                program.wait_for("UAPI listener started")
                listen = ("listen-port", self._port) if number else ()
                _run(self._wg, "set", name, "private-key", key, *listen)
                _run(self._ip, "link", "set", name, "netns", name)
                _run(self._ip, "-n", name, "address", "add", f"{address}/24", "dev", name)
                _run(self._ip, "-n", name, "link", "set", name, "mtu", "1420", "up")
                yield
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no WireGuard can be had here: {error.stderr.strip()}")
        finally:
            subprocess.run([self._ip, "netns", "delete", name], capture_output=True, check=False)

    def _within(self, number: int, *command: object) -> list[object]:
        return [self._ip, "netns", "exec", self._names[number], *command]

    def transfer(self, seconds: float = 1) -> int:
        """Return how many bytes one TCP connection brings from the near network to the far one, by iperf3."""
        iperf = require_program("iperf3")
        with Program(*self._within(1, iperf, "--server", "--one-off", "--forceflush", "--bind", FAR)) as server:
            server.wait_for("Server listening")
            with Program(*self._within(0, iperf, "--client", FAR, "--time", seconds, "--json")) as client:
                assert client.end() == 0, client.output
                return int(json.loads(client.output)["end"]["sum_received"]["bytes"])
