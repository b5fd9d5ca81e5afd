"""Thirty reloads a second for a minute under 200 streams: `python -m benchmarks.reloads`; exits with 1 for a fault.

`tunnel.py server` and `tunnel.py client` run as processes of their own, over TLS, and the streams are of every kind
(`benchmarks.every_kind`).  Each end in turn, or the one that `--which` names, is reloaded by SIGHUP and by the control
socket's command alternately, and now and then by `tunnel.py reload`.  Before each reload its file is written anew:
clients, tokens, rules, limits, addresses and the certificate at the server; forwards, tokens, rules, limits and times
at the client, and every five seconds a header, which moves its connection.  Checked are every byte, that nobody's
stream ended, that memory is level, and that the logs hold nothing else.  The smaller forms are in
tests/integration/test_reload.py and tests/client/test_reload.py.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.every_kind import Applications, Counts, Load
from qanat.base.errors import QanatError
from qanat.control.asking import ask
from qanat.handshake.tokens import generate_token
from tests.support.background import Background
from tests.support.harness import Program, Tunnel, qanat
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port

RATE = 30
WARM = 10.0
"""Seconds after which memory has to be level."""
LEVEL = 24_000_000
"""Bytes that the allocator and a server's audit may have more at the end than then."""
MOVE_EVERY = 150
"""Reloads between two that move the client's connection."""
COMMAND_EVERY = 150
"""Reloads between two by `tunnel.py reload`, which takes longer than a reload."""
RULES = ["127.0.0.1:*", "127.0.0.1:*/udp"]
EXPECTED = re.compile(r" more lines like this| lines were left out|suppressed")
"""What a log may say that is no fault: that it is bounded."""

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """One of the two programs, and the file that it is reloaded from."""

    name: str
    program: Program
    file: Path
    socket: Path
    variant: Callable[[int], Settings]
    """Returns what stands in the file before a reload of that number."""

    def write(self, number: int) -> None:
        """Put the settings of that number into the file, whole."""
        new = self.file.with_suffix(".new")
        new.write_text(yaml.dump({self.name: self.variant(number)}, Dumper=yaml.CSafeDumper, sort_keys=False))
        os.replace(new, self.file)


class Site:
    """Both programs, configured so that all forwards of `applications` are there."""

    def __init__(self, directory: Path, applications: Applications, stack: ExitStack) -> None:
        self._directory = directory
        authority = Authority(directory)
        self._issued = [authority.issue() for _ in range(2)]
        for issued in self._issued:
            issued.key.chmod(0o600)
        self._tunnel = stack.enter_context(
            Tunnel(
                directory,
                applications.forwards,
                server={"tls": self._tls(0), "audit": {"file": "audit.log"}, "state_dir": "server-state"},
                client={
                    "tls": {"ca_file": str(authority.ca_file)},
                    "allow_connect": RULES,
                    "transport": "websocket",
                },
                account={"allow_connect": RULES, "allow_listen": RULES, "token_file": ["a.token", "second.token"]},
            )
        )
        self._tunnel.client_settings["url"] = f"wss://127.0.0.1:{self._tunnel.port}/tunnel"
        (directory / "server-state").mkdir(mode=0o700)
        for name in ("second", "other"):
            (directory / f"{name}.token").touch(mode=0o600)
            (directory / f"{name}.token").write_text(generate_token() + "\n")
        self._spare = [unused_port() for _ in range(3)]
        self._tunnel.start()
        (server_socket,) = (directory / "server-state").glob("*.sock")
        (client_socket,) = (directory / "state").glob("*.sock")
        self.server = End("server", self._tunnel.server, directory / "server.yaml", server_socket, self._server)
        self.client = End("client", self._tunnel.client, directory / "client.yaml", client_socket, self._client)

    def _tls(self, number: int) -> dict[str, str]:
        issued = self._issued[number % 2]
        return {"certificate": str(issued.certificate), "key": str(issued.key)}

    def _server(self, number: int) -> Settings:
        settings = self._tunnel.server_settings
        (account,) = settings["clients"]
        rules = [*RULES, f"10.0.0.{number % 200}:22"]
        changed = {**account, "allow_connect": rules, "allow_listen": rules, "rate_up": 10**9 + number % 7}
        if number % 3 == 1:
            changed["token_file"] = ["a.token"]
        other = {"name": "other", "token_file": "other.token", "allow_connect": [f"10.0.0.0/8:{1 + number % 9}"]}
        listen = [settings["listen"], f"127.0.0.1:{self._spare[0]}"] if number % 4 == 2 else settings["listen"]
        return {
            **settings,
            "clients": [changed, other] if number % 2 else [changed],
            "listen": listen,
            "tls": self._tls(number // 5),
            "drain": 1 + number % 3,
            "limits": {"handshakes": 60 + number % 5},
        }

    def _client(self, number: int) -> Settings:
        settings = self._tunnel.client_settings
        to = settings["forwards"][0]["to"]
        extra: list[dict[str, object]] = [
            {"local": f"127.0.0.1:{self._spare[1]}", "to": to, "max_streams": 1 + number % 7},
            {"remote": f"127.0.0.1:{self._spare[2]}", "to": to},
        ]
        return {
            **settings,
            "forwards": [*settings["forwards"], *extra[: number % 3]],
            "token_file": "second.token" if number % 2 else "a.token",
            "allow_connect": [*RULES, f"10.0.0.{number % 200}:22"],
            "drain": 1 + number % 3,
            "headers": {"X-Number": str(number // MOVE_EVERY)},
        }


def reload_for(end: End, seconds: float, ends: Mapping[str, Program]) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Reload `end` RATE times a second; return how often by what way, and how many bytes each process has grown by."""
    asked = {"SIGHUP": 0, "command": 0, "tunnel.py reload": 0, "missed": 0}
    memory: dict[str, int] = {}
    commands: list[Background[None]] = []
    begun, number = time.monotonic(), 0
    while (now := time.monotonic()) < begun + seconds:
        if not memory and now >= begun + min(WARM, seconds / 2):
            memory = {name: program.memory for name, program in ends.items()}
        end.write(number)
        if number % COMMAND_EVERY == COMMAND_EVERY - 1:
            commands.append(Background(partial(_reload_by_command, end.file)))  # the others do not wait for its start
            asked["tunnel.py reload"] += 1
        elif number % 2:
            end.program.process.send_signal(signal.SIGHUP)
            asked["SIGHUP"] += 1
        else:
            answer = ask(end.socket, "reload")
            assert answer["ok"], answer
            asked["command"] += 1
        number += 1
        late = time.monotonic() - (begun + number / RATE)
        if late > 1 / RATE:  # this machine is too slow just now; what was missed is said, and not made up for
            asked["missed"] += int(late * RATE)
            begun_later = int(late * RATE) / RATE
            begun, seconds = begun + begun_later, seconds - begun_later
        time.sleep(max(0.0, begun + number / RATE - time.monotonic()))
    for command in commands:
        command.result()
    return asked, {name: program.memory - memory[name] for name, program in ends.items()}


def _reload_by_command(file: Path) -> None:
    with qanat("reload", "-c", file) as command:
        assert command.end() == 0, command.output


def faults_in(output: str) -> list[str]:
    """Return the lines of a log that should not be there."""
    wrong = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback|failed|was lost|session .* over", re.IGNORECASE)
    return [line for line in output.splitlines() if wrong.search(line) and not EXPECTED.search(line)]


def run(which: str, seconds: float, counts: Counts) -> list[str]:
    """Reload one end under all streams, print the figures, and return what is wrong."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="q")))
        applications = Applications(directory, stack)
        site = Site(directory, applications, stack)
        end = site.server if which == "server" else site.client
        ends = {"server": site.server.program, "client": site.client.program}
        load = Load(applications, counts)
        load.start()
        wrong: list[str] = []
        try:
            asked, grown = reload_for(end, seconds, ends)
            done = ask(end.socket, "reload")["changes"]
            again = ask(end.socket, "reload")["changes"]
            if again:
                wrong.append(f"the last reload left {again} after {done}")
            wrong += [f"the {name} grew by {more:,} bytes" for name, more in grown.items() if more > LEVEL]
        except (AssertionError, QanatError, OSError) as error:
            wrong.append(f"a reload failed: {error}")
            asked, grown = {}, {}
        finally:
            try:
                load.finish()
            except AssertionError as error:
                wrong.append(str(error))
        for name, program in ends.items():
            wrong += [f"{name}: {line}" for line in faults_in(program.output)]
        connected = site.client.program.count(r"connected to \S+ over")
        if connected != 1:
            wrong.append(f"the client began {connected} sessions")
    print(f"{which}: {sum(asked.values()) - asked.get('missed', 0)} reloads under {counts.total} streams: {asked}")
    print(f"  carried: {dict(load.done)}")
    print(f"  memory after {WARM:g} s against the end: " + ", ".join(f"{k} {v:+,} bytes" for k, v in grown.items()))
    print(f"  {len(wrong)} faults" + "".join(f"\n  ! {line}" for line in wrong[:20]), flush=True)
    return wrong


def main() -> int:
    """Run it for each end."""
    parser = argparse.ArgumentParser(description="Reloads under many streams.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=Counts().total, help="as many, with fewer small exchanges")
    parser.add_argument("--which", choices=("server", "client"))
    options = parser.parse_args()
    counts = Counts()
    counts = replace(counts, small=max(5, counts.small + options.streams - counts.total))
    ends = [options.which] if options.which else ["server", "client"]
    faults = [fault for which in ends for fault in run(which, options.seconds, counts)]
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
