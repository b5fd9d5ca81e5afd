"""A client thrown out in the middle of its bulk, beside three others: `python -m benchmarks.revocation`.

Real processes.  In each round the victim is thrown out in one way, and lets in again after it.  The cut is taken where
the application sees it, from the moment at which the server was asked, and from the audit log's line.  The others'
throughput is compared by medians of short windows, before and after.  Exits with 1 when a cut took longer than a second
from the line on, when the others' fell below `--least` of what it was, or when the audit log or the cut is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from qanat.control.asking import ControlUsage, ask
from qanat.handshake.tokens import generate_token
from tests.support.applications import CHUNK, Target, connection, source
from tests.support.background import Background
from tests.support.harness import Program, Tunnel, qanat
from tests.support.machine.ports import unused_port

OTHERS = ("b", "c", "d")
WINDOW = 0.25
WINDOWS = 16
RATE = 20_000_000
"""Bytes a second that each client may have: so none gets what another one had, and what is left is a disturbance."""


class Site:
    """A server, the victim `a` and three others, each with a port that leads to a source of bytes."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        target = stack.enter_context(Target(source))
        to = f"127.0.0.1:{target.port}"
        self.ports = {name: unused_port() for name in ("a", *OTHERS)}
        self.tunnel = stack.enter_context(
            Tunnel(
                directory,
                [{"local": f"127.0.0.1:{self.ports['a']}", "to": to}],
                server={"audit": {"file": "audit.log"}},
                account={"rate_down": RATE},
            )
        )
        for name in OTHERS:
            (directory / f"{name}.token").touch(mode=0o600)
            (directory / f"{name}.token").write_text(generate_token() + "\n")
            account = {"name": name, "token_file": f"{name}.token", "allow_connect": [to], "rate_down": RATE}
            self.tunnel.server_settings["clients"].append(account)
        self.tunnel.start()
        for name in OTHERS:
            forward = {"local": f"127.0.0.1:{self.ports[name]}", "to": to}
            settings = self.tunnel.client_settings | {
                "name": name,
                "token_file": f"{name}.token",
                "forwards": [forward],
            }
            (directory / f"{name}.yaml").write_text(yaml.safe_dump({"client": settings}))
            stack.enter_context(qanat("client", "-c", directory / f"{name}.yaml")).wait_for("connected to")
        (self.socket,) = directory.glob("server-*.sock")

    @property
    def server(self) -> Program:
        return self.tunnel.server

    def write(self, *, without: str = "") -> None:
        """Put the server's settings into its file, with one client left out."""
        settings = self.tunnel.server_settings
        clients = [client for client in settings["clients"] if client["name"] != without]
        new = self.directory / "new.yaml"
        new.write_text(yaml.safe_dump({"server": {**settings, "clients": clients}}))
        os.replace(new, self.directory / "server.yaml")

    def revoked(self) -> list[dict[str, Any]]:
        """Return the audit log's lines of sessions that were revoked."""
        lines = [json.loads(line) for line in (self.directory / "audit.log").read_text().splitlines()]
        return [line for line in lines if line["event"] == "session revoked"]

    # --- ways to throw somebody out, and to let him in again --------------------------------------

    def revoke(self) -> None:
        with qanat("revoke", "-c", self.directory / "server.yaml", "a") as command:
            assert command.end() == 0, command.output

    def revoke_by_socket(self) -> None:
        assert ask(self.socket, "revoke", client="a")["ok"]

    def take_out(self) -> None:
        self.write(without="a")
        self.server.process.send_signal(signal.SIGHUP)

    def let_in(self) -> None:
        self.write()
        with contextlib.suppress(ControlUsage):  # it was taken out of the file
            ask(self.socket, "revoke", client="a", undo=True)
        assert ask(self.socket, "reload")["ok"]


class Reader:
    """Reads bulk from a client's port until it is cut, or over; counts it."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self.cut_at = 0.0
        self._over = threading.Event()
        self._port = port
        self._running = Background(self._run)

    def _run(self) -> None:
        with connection(self._port) as sock:
            while not self._over.is_set():
                try:
                    data = sock.recv(CHUNK)
                except ConnectionResetError:
                    data = b""
                if not data:
                    self.cut_at = time.time()
                    return
                self.count += len(data)

    def finish(self) -> None:
        self._over.set()
        self._running.result(60.0)


def rates(readers: list[Reader]) -> list[float]:
    """Return the bytes a second of all of them together, in each of WINDOWS windows."""
    found = []
    for _ in range(WINDOWS):
        before, since = sum(reader.count for reader in readers), time.monotonic()
        time.sleep(WINDOW)
        found.append((sum(reader.count for reader in readers) - before) / (time.monotonic() - since))
    return found


def one_round(site: Site, name: str, throw_out: Callable[[], None], least: float) -> list[str]:
    """Throw the victim out once, print what was measured, and return what is wrong."""
    victim, others = Reader(site.ports["a"]), [Reader(site.ports[each]) for each in OTHERS]
    time.sleep(1.0)
    before, lines = statistics.median(rates(others)), len(site.revoked())
    asked = time.time()
    throw_out()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (victim.cut_at and len(site.revoked()) > lines):
        time.sleep(0.01)
    after = statistics.median(rates(others))
    cut, told = victim.cut_at, site.revoked()[lines:]
    wrong = [f"{name}: another client was cut as well" for reader in others if reader.cut_at]
    for reader in (victim, *others):
        reader.finish()
    if not cut or not told:
        return [*wrong, f"{name}: cut {bool(cut)}, audit line {bool(told)}"]
    accepted = datetime.fromisoformat(told[0]["ts"].replace("Z", "+00:00")).timestamp()
    ratio = after / before
    after_asked, after_line = 1000 * (cut - asked), 1000 * (cut - accepted)
    print(f"{name}: cut {after_asked:.0f} ms after it was asked, {after_line:.0f} ms after the audit log's line")
    print(f"  the others: {before / 1e6:.1f} MB/s before, {after / 1e6:.1f} after, ratio {ratio:.2f}", flush=True)
    if cut - accepted > 1.0:
        wrong.append(f"{name}: the cut came {cut - accepted:.2f} s after the audit line")
    if ratio < least:
        wrong.append(f"{name}: the others have {ratio:.2f} of what they had")
    count = site.tunnel.client.count("connected to")
    site.let_in()
    site.tunnel.client.wait_for("connected to", count=count + 1)
    return wrong


def main() -> int:
    """Run a few rounds of each way."""
    parser = argparse.ArgumentParser(description="Throw a client out in the middle of bulk.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--least", type=float, default=0.8)
    options = parser.parse_args()
    wrong: list[str] = []
    with ExitStack() as stack:
        site = Site(Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="q"))), stack)
        ways = {
            "tunnel.py revoke": site.revoke,
            "revoke over the control socket": site.revoke_by_socket,
            "taken out of the file, SIGHUP": site.take_out,
        }
        for _ in range(options.rounds):
            for name, throw_out in ways.items():
                wrong += one_round(site, name, throw_out, options.least)
    print(f"{len(wrong)} faults" + "".join(f"\n! {line}" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
