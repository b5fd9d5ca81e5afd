"""Networks of a test's own: two machines on two cables, of which one can be pulled out.

The server's machine is reached at SERVER over either cable; the client's prefers the first.  Only root may make them,
and only on Linux.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import pytest

from tests.support.background import Background
from tests.support.machine.programs import require_program

SERVER = "10.77.0.1"
_CLONE_NEWNET = 0x40000000  # sched.h

Result = TypeVar("Result")


class TwoCables:
    """See the module's docstring.  Skips the test where there can be none."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root may make networks")
        self._ip = require_program("ip")
        self.server, self.client = (f"qanat-{os.getpid()}-{which}" for which in ("server", "client"))

    def __enter__(self) -> Self:
        try:
            for machine in (self.server, self.client):
                self._run("netns", "add", machine)
                self._run("-n", machine, "link", "set", "lo", "up")
            self.on_server("address", "add", f"{SERVER}/32", "dev", "lo")
            for number in (1, 2):
                cable = f"cable{number}"
                self.on_client("link", "add", cable, "type", "veth", "peer", "name", cable, "netns", self.server)
                for end, address in ((self.on_server, 1), (self.on_client, 2)):
                    end("address", "add", f"10.77.{number}.{address}/24", "dev", cable)
                    end("link", "set", cable, "up")
                self.lead_over(number)
        except subprocess.CalledProcessError as error:
            self.__exit__(None, None, None)
            pytest.skip(f"no networks can be made here: {error.stderr.strip()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for machine in (self.server, self.client):
            if Path("/run/netns", machine).exists():
                self._run("netns", "delete", machine)

    def lead_over(self, number: int) -> None:
        """Give the client's machine its way to the server over this cable."""
        self.on_client("route", "add", SERVER, "via", f"10.77.{number}.1", "metric", str(100 * number))

    def on_server(self, *words: str) -> None:
        """`ip` on the server's machine."""
        self._run("-n", self.server, *words)

    def on_client(self, *words: str) -> None:
        """`ip` on the client's machine."""
        self._run("-n", self.client, *words)

    def _run(self, *words: str) -> None:
        subprocess.run([self._ip, *words], check=True, capture_output=True, text=True)


def within(machine: str, action: Callable[[], Result]) -> Result:
    """Have `action` done on that machine: sockets that it makes, and programs and threads that it starts, are there."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with Path("/run/netns", machine).open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter {machine}")
            results.append(action())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name=f"within {machine}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def in_a_network_of_its_own(scenario: Callable[[], None]) -> None:
    """Run `scenario` in a thread, and so with threads and programs, of another network namespace (unshare(2))."""
    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    if os.geteuid() != 0:
        pytest.skip("only root may make a network namespace")
    require_program("ip")
    libc = ctypes.CDLL(None, use_errno=True)

    def run() -> str:
        if libc.unshare(_CLONE_NEWNET) != 0:
            return f"no network namespace can be made here: {os.strerror(ctypes.get_errno())}"
        scenario()
        return ""

    problem = Background(run).result()
    if problem:
        pytest.skip(problem)


def ip(*words: str) -> None:
    """`ip` in the network of the calling thread."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def card(name: str, *addresses: str) -> None:
    """A network card with a carrier, joined to another one called NAME-peer.  Skips where the kernel makes none."""
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel makes no cards: {error.stderr}")
    for address in addresses:
        ip("address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
    for one in (name, f"{name}-peer"):
        ip("link", "set", one, "up")
