"""Thirty reloads a second for a minute under 200 streams: `python -m benchmarks.reloads`; exits with 1 for a fault.

`tunnel.py server` and `tunnel.py client` run as processes of their own, over TLS, and the streams are of every kind
(`benchmarks.every_kind`).  Each end in turn, or the one that `--which` names, is reloaded by SIGHUP and by the control
socket's command alternately, and now and then by `tunnel.py reload`.  Before each reload its file is written anew:
clients, tokens, rules, limits, addresses and the certificate at the server; forwards, tokens, rules, limits and times
at the client, and every five seconds a header, which moves its connection.  None is left out: each opens or closes a
port, and the next comes when that is seen; each by a command says that it goes from the `drain` of the one before to
its own.  A machine that is too slow takes longer, and the rate says so.

Checked are every byte, that nobody's stream ended, that memory is level, and that the logs hold nothing else.  The
smaller forms are in tests/integration/test_reload.py and tests/client/test_reload.py.  A whole minute without a fault
is written into docs/SOAK.md.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.every_kind import Applications, Counts, Load
from benchmarks.report.sections import made_on, number, table, write_section
from qanat.base.errors import QanatError
from qanat.control.asking import ask
from qanat.handshake.tokens import generate_token
from tests.support.harness import ROOT, SECONDS, Program, Tunnel, qanat
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port

REPORT = ROOT / "docs" / "SOAK.md"
_ABOUT = [
    "Both programs, TLS.  Each reload changes clients, tokens, rules, limits, addresses, certificates, or forwards,",
    "tokens, rules and headers, and opens or closes a port, which is looked for before the next.  ssh, psql, curl,",
    "small exchanges over TCP, Unix sockets and SOCKS both ways, and UDP: 0 bytes lost or doubled, no stream ended, no",
    "new session, nothing in the logs.  The rate says how busy the machine was: `python -m benchmarks.reloads`.",
]
MINUTE = 60.0
RATE = 30
WARM = 10.0
"""Seconds after which memory has to be level."""
LEVEL = 24_000_000
"""Bytes that the allocator and a server's audit may have more at the end than then."""
MOVE_EVERY = 150
"""Reloads between two that move the client's connection."""
CATCHES_UP = 1.0
"""Seconds by which the reloads may be late, and come faster after it."""
COMMAND_EVERY = 450
"""Reloads between two by `tunnel.py reload`, which takes longer than a reload; even."""
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
    port: int
    """One that every second of them opens, and the others close."""

    def write(self, number: int) -> None:
        """Put the settings of that number into the file, whole."""
        new = self.file.with_suffix(".new")
        new.write_text(yaml.dump({self.name: self.variant(number)}, Dumper=yaml.CSafeDumper, sort_keys=False))
        os.replace(new, self.file)

    def reload(self, number: int) -> str:
        """Have it reload, block until that is seen, and return by what way."""
        way = "SIGHUP" if number % 2 else "tunnel.py reload" if number % COMMAND_EVERY == 0 else "command"
        said = f"drain: {_drain(number - 1)} -> {_drain(number)}"
        if way == "SIGHUP":
            self.program.process.send_signal(signal.SIGHUP)
        elif way == "command":
            answer = ask(self.socket, "reload")
            assert answer["ok"], answer
            assert any(line.startswith(said) for line in answer["changes"]), (
                f"reload {number} said {answer['changes']}, no {said}"
            )
        else:
            with qanat("reload", "-c", self.file) as command:
                assert command.end() == 0, command.output
                assert said in command.output, f"reload {number} said {command.output}, not {said}"
        deadline = time.monotonic() + SECONDS
        while _listens(self.port) != (number % 2 == 1):
            assert time.monotonic() < deadline, f"nothing was seen of reload {number}"
            time.sleep(0.001)
        return way


def _listens(port: int) -> bool:
    """Return whether anything listens on that port of 127.0.0.1: what listens comes first in the table (proc(5))."""
    with open("/proc/net/tcp", "rb") as table:
        return f" 0100007F:{port:04X} 00000000:0000 0A ".encode() in table.read(16_384)


def _drain(number: int) -> str:
    """Return the seconds of `drain` that the reload of that number sets: each another."""
    return f"{1 + number / 10_000:g}"


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
        at = directory
        self.server = End(
            "server", self._tunnel.server, at / "server.yaml", server_socket, self._server, self._spare[0]
        )
        self.client = End(
            "client", self._tunnel.client, at / "client.yaml", client_socket, self._client, self._spare[1]
        )

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
        listen = [settings["listen"], f"127.0.0.1:{self._spare[0]}"] if number % 2 else settings["listen"]
        return {
            **settings,
            "clients": [changed, other] if number % 3 else [changed],
            "listen": listen,
            "tls": self._tls(number // 5),
            "drain": float(_drain(number)),
            "limits": {"handshakes": 60 + number % 5},
        }

    def _client(self, number: int) -> Settings:
        settings = self._tunnel.client_settings
        to = settings["forwards"][0]["to"]
        extra: list[dict[str, object]] = []
        if number % 2:
            extra += [{"local": f"127.0.0.1:{self._spare[1]}", "to": to, "max_streams": 1 + number % 7}]
        if number % 3:
            extra += [{"remote": f"127.0.0.1:{self._spare[2]}", "to": to}]
        return {
            **settings,
            "forwards": [*settings["forwards"], *extra],
            "token_file": "second.token" if number % 2 else "a.token",
            "allow_connect": [*RULES, f"10.0.0.{number % 200}:22"],
            "drain": float(_drain(number)),
            "headers": {"X-Number": str(number // MOVE_EVERY)},
        }


@dataclass(frozen=True, slots=True)
class Reloads:
    """What came of many."""

    asked: Mapping[str, int]
    """How many by what way."""
    seconds: float
    slowest: float
    """Seconds from asking until one was done, at worst."""
    grown: Mapping[str, int]
    """Bytes that each process has more at the end than after WARM."""
    used: Mapping[str, float]
    """Seconds of processor time that each process has used."""


def reload_often(end: End, seconds: float, ends: Mapping[str, Program]) -> Reloads:
    """Reload `end` RATE times a second, as often as that is in `seconds`; a slow machine takes longer for them."""
    end.write(0)
    ask(end.socket, "reload")
    asked = Counter[str]()
    memory: dict[str, int] = {}
    count, slowest = round(seconds * RATE), 0.0
    before = {name: _cpu(program.pid) for name, program in ends.items()}
    begun = due = time.monotonic()
    for turn in range(1, count + 1):
        if not memory and turn >= RATE * min(WARM, seconds / 2):
            memory = {name: program.memory for name, program in ends.items()}
        since = time.monotonic()
        end.write(turn)
        asked[end.reload(turn)] += 1
        slowest = max(slowest, time.monotonic() - since)
        due = max(due + 1 / RATE, time.monotonic() - CATCHES_UP)
        time.sleep(max(0.0, due - time.monotonic()))
    taken = time.monotonic() - begun
    grown = {name: program.memory - memory[name] for name, program in ends.items()}
    used = {name: _cpu(program.pid) - before[name] for name, program in ends.items()}
    return Reloads(asked, taken, slowest, grown, used)


def _cpu(pid: int) -> float:
    """Return the seconds of processor time that a process has used (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
        reloads = Reloads({}, 0.0, 0.0, {}, {})
        try:
            reloads = reload_often(end, seconds, ends)
            again = ask(end.socket, "reload")["changes"]
            if again:
                wrong.append(f"the last reload left {again}")
            wrong += [f"the {name} grew by {more:,} bytes" for name, more in reloads.grown.items() if more > LEVEL]
        except (AssertionError, QanatError, OSError) as error:
            wrong.append(f"a reload failed: {error}")
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
    figures = _figures(reloads, load)
    print(f"{which}: {counts.total} streams")
    for name, value in figures.items():
        print(f"  {name}: {number(value)}")
    print(f"  {len(wrong)} faults" + "".join(f"\n  ! {line}" for line in wrong[:20]), flush=True)
    if not wrong and (seconds, counts) == (MINUTE, Counts()):
        head = REPORT.read_text().partition("\n## ")[0].splitlines()
        title = f"{RATE} reloads a second of the {which} for a minute, under {counts.total} streams of every kind"
        write_section(REPORT, head, title, [f"{made_on()}.", "", *_ABOUT, "", *table(figures)])
    return wrong


def _figures(reloads: Reloads, load: Load) -> dict[str, float]:
    done, seconds = sum(reloads.asked.values()), max(reloads.seconds, 1e-9)
    return {
        "reloads that took effect": done,
        **{f"of these by {way}": count for way, count in reloads.asked.items()},
        "seconds": seconds,
        "reloads a second": done / seconds,
        "the slowest, ms": reloads.slowest * 1000,
        **{f"{name}: percent of a core": 100 * used / seconds for name, used in reloads.used.items()},
        **{f"{name}: memory grew by, MiB": grown / 2**20 for name, grown in reloads.grown.items()},
        **{f"exchanges, {kind}": count for kind, count in load.done.items()},
    }


def main() -> int:
    """Run it for each end."""
    parser = argparse.ArgumentParser(description="Reloads under many streams.")
    parser.add_argument("--seconds", type=float, default=MINUTE)
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
