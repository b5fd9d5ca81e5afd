"""Both programs, while the server is reloaded over and over: streams that a change does not concern notice nothing.

The full form, thirty reloads a second for a minute, has QANAT_RELOADS=1800 in the environment (`make soak`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qanat.control.asking import ask
from qanat.handshake.tokens import generate_token, parse_token, token_fingerprint
from tests.support.applications import Target, connection, echo, exchange
from tests.support.background import Background, wait_until
from tests.support.flows import Flow
from tests.support.harness import SECONDS, Program, Tunnel, qanat
from tests.support.machine.ports import unused_port

RELOADS = int(os.environ.get("QANAT_RELOADS", "60"))
A_SECOND = 30.0
RELOADED = "reloaded .*SIGHUP"


class Site:
    """A server with the clients a and b, each with forwards of several kinds to an echo."""

    def __init__(self, directory: Path, target: int, udp_target: int) -> None:
        self.directory = directory
        self.ports = {name: unused_port() for name in ("tcp", "udp", "dynamic", "remote", "b")}
        self.tunnel = Tunnel(
            directory,
            [
                {"local": f"127.0.0.1:{self.ports['tcp']}", "to": f"127.0.0.1:{target}"},
                {"local": f"127.0.0.1:{self.ports['udp']}", "to": f"127.0.0.1:{udp_target}", "udp": True},
                {"dynamic": f"127.0.0.1:{self.ports['dynamic']}"},
                {"remote": f"127.0.0.1:{self.ports['remote']}", "to": f"127.0.0.1:{target}"},
            ],
            server={"audit": {"file": "audit.log"}},
            account={"allow_connect": ["127.0.0.1:*", "127.0.0.1:*/udp"]},
        )
        self.target = target
        self.b_token = generate_token()
        (directory / "b.token").touch(mode=0o600)
        (directory / "b.token").write_text(self.b_token + "\n")
        account = {"name": "b", "token_file": "b.token", "allow_connect": [f"127.0.0.1:{target}"]}
        self.tunnel.server_settings["clients"].append(account)
        self.tunnel.start()
        b = {
            **self.tunnel.client_settings,
            "name": "b",
            "token_file": "b.token",
            "forwards": [{"local": f"127.0.0.1:{self.ports['b']}", "to": f"127.0.0.1:{target}"}],
        }
        (directory / "b.yaml").write_text(yaml.safe_dump({"client": b}))
        self.b = qanat("client", "-c", directory / "b.yaml")
        self.b.wait_for("connected to")

    @property
    def server(self) -> Program:
        return self.tunnel.server

    def write(self, settings: dict[str, Any]) -> None:
        """Put these settings of the server into its file, whole."""
        new = self.directory / "new.yaml"
        new.write_text(yaml.safe_dump({"server": settings}, sort_keys=False))
        os.replace(new, self.directory / "server.yaml")

    def reload(self) -> None:
        """Have the server reload, and wait until it has."""
        count = self.server.count("reloaded .*SIGHUP")
        self.server.process.send_signal(signal.SIGHUP)
        self.server.wait_for("reloaded .*SIGHUP", count=count + 1)

    def ask(self, command: str, **fields: object) -> dict[str, Any]:
        (path,) = self.directory.glob("server-*.sock")
        return ask(path, command, **fields)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.directory / "audit.log").read_text().splitlines()
        return [entry for line in lines if (entry := json.loads(line))["event"] == name]


@contextlib.contextmanager
def udp_echo() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.2)
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    data, address = sock.recvfrom(2000)
                    sock.sendto(data, address)

        running = Background(run)
        yield int(sock.getsockname()[1])
        over.set()
        running.result()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Target(echo) as target, udp_echo() as udp:
        site = Site(tmp_path_factory.mktemp("reload"), target.port, udp)
        with site.tunnel, site.b:
            yield site


def ping_pong(sock: socket.socket, key: str, over: threading.Event) -> int:
    """Exchange small messages until it is over; return how many."""
    flow, count = Flow(key), 0
    while not over.is_set():
        flow.check(exchange(sock, flow.make(300)))
        count += 1
        over.wait(0.02)
    return count


def bulk(sock: socket.socket, key: str, over: threading.Event) -> int:
    """Send and receive without a pause until it is over; return how many bytes came back, each in its place."""
    flow = Flow(key)
    while not over.is_set():
        flow.check(exchange(sock, flow.make(256 * 1024)))
    return flow.received


def datagrams(sock: socket.socket, over: threading.Event) -> int:
    """Exchange datagrams until it is over; return how many came back, each the one that was sent."""
    count = 0
    while not over.is_set():
        sent = b"datagram %d" % count
        sock.send(sent)
        with contextlib.suppress(TimeoutError):
            while sock.recv(2000) != sent:
                pass  # a late answer to one before
            count += 1
        over.wait(0.02)
    return count


def through_proxy(port: int, to: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    sock.sendall(f"CONNECT 127.0.0.1:{to} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert b" 200 " in sock.recv(1000)
    return sock


def test_streams_of_every_kind_notice_nothing_of_reloads(site: Site) -> None:
    settings = site.tunnel.server_settings
    first, second = settings["clients"]
    (site.directory / "other.token").touch(mode=0o600)
    (site.directory / "other.token").write_text(generate_token() + "\n")
    changed = {**first, "rate_up": 10**9, "allow_connect": [*first["allow_connect"], "10.0.0.1:22"]}
    other = {"name": "other", "token_file": "other.token", "allow_connect": ["10.0.0.0/8:*"]}
    variants = [
        settings,
        {**settings, "clients": [changed, second]},
        {**settings, "drain": 2, "listen": [settings["listen"], f"127.0.0.1:{unused_port()}"]},
        {**settings, "clients": [first, second, other], "limits": {"streams": 512}},
    ]
    with contextlib.ExitStack() as stack:
        over = threading.Event()
        ports = site.ports
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.connect(("127.0.0.1", ports["udp"]))
        udp.settimeout(1)
        tcp = [stack.enter_context(connection(port)) for port in (*[ports["tcp"]] * 3, ports["remote"], ports["b"])]
        tcp.append(stack.enter_context(through_proxy(ports["dynamic"], site.target)))
        heavy = stack.enter_context(connection(ports["tcp"]))
        jobs = [Background(lambda sock=sock, n=n: ping_pong(sock, f"p{n}", over)) for n, sock in enumerate(tcp)]  # type: ignore[misc]
        jobs += [Background(lambda: bulk(heavy, "bulk", over)), Background(lambda: datagrams(udp, over))]
        site.reload()
        memory = site.server.memory
        begun = time.monotonic()
        for number in itertools.count():
            # Wishes that come meanwhile become one: a slow machine needs more of them.
            if number >= RELOADS and site.server.count(RELOADED) >= RELOADS // 4:
                break
            assert time.monotonic() - begun < RELOADS / A_SECOND + SECONDS, site.server.output
            site.write(variants[number % len(variants)])
            site.server.process.send_signal(signal.SIGHUP)
            time.sleep(max(0.0, begun + (number + 1) / A_SECOND - time.monotonic()))
        site.write(settings)
        site.reload()
        over.set()
        counts = [job.result(SECONDS) for job in jobs]
    assert all(count > 5 for count in counts), counts
    assert site.server.memory - memory < 40_000_000
    assert site.tunnel.client.count("connected to") == site.b.count("connected to") == 1
    assert site.server.count("reload .*failed") == 0


def command(*arguments: object) -> tuple[int, str]:
    """Run a command of the program; its exit code and all that it wrote."""
    with qanat(*arguments) as program:
        return program.end(), program.output


def test_the_command_says_what_a_reload_changed_or_every_fault(site: Site) -> None:
    config = site.directory / "server.yaml"
    assert command("reload", "-c", config) == (0, "nothing has changed")
    site.write({**site.tunnel.server_settings, "drain": 2, "pid_file": "pid"})
    code, output = command("reload", "-c", config)
    assert code == 0
    assert output.splitlines() == [
        "drain: 1 -> 2",
        f"pid_file: none -> {site.directory}/pid (takes effect with a restart)",
    ]
    site.write({**site.tunnel.server_settings, "drain": "long", "wrong": 1})
    code, output = command("reload", "-c", config)
    assert code == 2
    assert "`drain` must be a number" in output
    assert "unknown key `wrong`" in output
    site.write(site.tunnel.server_settings)
    assert command("reload", "-c", config)[0] == 0


def test_a_client_that_is_not_there_cannot_be_revoked(site: Site) -> None:
    code, output = command("revoke", "-c", site.directory / "server.yaml", "nobody")
    assert code == 2
    assert "there is no client 'nobody'" in output


def test_a_faulty_file_changes_nothing_and_says_every_fault(site: Site) -> None:
    with connection(site.ports["tcp"]) as sock:
        assert exchange(sock, b"before") == b"before"
        site.write({**site.tunnel.server_settings, "clients": [], "drain": "long", "wrong": 1})
        site.server.process.send_signal(signal.SIGHUP)
        site.server.wait_for("reload .*failed, so nothing has changed")
        for fault in ("`clients` is empty", "`drain` must be a number", "unknown key `wrong`"):
            site.server.wait_for(f"reload: .*server.yaml:[0-9]+:[0-9]+: .*{fault}")
        assert exchange(sock, b"after") == b"after"
        wait_until(lambda: len(site.events("reload failed")[-1]["faults"]) == 3, "the audit log has them")
    site.write(site.tunnel.server_settings)


def test_a_file_that_is_watched_reloads_by_itself(site: Site) -> None:
    watched = {**site.tunnel.server_settings, "watch_config": True}
    site.write(watched)
    site.reload()
    site.write({**watched, "drain": 3})
    site.server.wait_for(r"reloaded .*the file has changed\): 1 change")
    site.write(site.tunnel.server_settings)
    site.server.wait_for(r"reloaded .*the file has changed\): 2 changes")


def best_rate(count: Callable[[], int]) -> float:
    """What was counted in a second, in the best of several moments: others may have the processor in the rest."""
    rates = []
    for _ in range(8):
        before, since = count(), time.monotonic()
        time.sleep(0.25)
        rates.append((count() - before) / (time.monotonic() - since))
    return max(rates)


def test_a_token_revoked_in_the_middle_of_bulk_is_cut_and_others_go_on(site: Site) -> None:
    with connection(site.ports["tcp"]) as victim, connection(site.ports["b"]) as other:
        over = threading.Event()
        came = {"other": 0}

        def keep_on() -> None:
            flow = Flow("other")
            while not over.is_set():
                flow.check(exchange(other, flow.make(64 * 1024)))
                came["other"] = flow.received

        def push() -> float:
            try:
                bulk(victim, "victim", over)
            except (OSError, AssertionError):
                return time.monotonic()
            raise AssertionError("nothing was cut")

        pushing, going_on = Background(push), Background(keep_on)
        wait_until(lambda: came["other"] > 1_000_000, "both carry bulk")
        before = best_rate(lambda: came["other"])
        asked = time.monotonic()
        code, output = command("revoke", "-c", site.directory / "server.yaml", "a")
        assert code == 0, output
        assert "its session from 127.0.0.1" in output
        cut_after = pushing.result() - asked
        assert cut_after < 30, cut_after  # most of it is the command's start
        after = best_rate(lambda: came["other"])
        over.set()
        going_on.result()
        assert after > before / 3  # it has the victim's part as well
    fingerprint = token_fingerprint(parse_token(site.tunnel.token))
    wait_until(lambda: bool(site.events("session revoked")), "the audit log has it")
    assert site.events("session revoked")[-1]["token"] == fingerprint
    assert site.events("session revoked")[-1]["by"].startswith("user ")
    site.tunnel.client.wait_for("refused by")
    assert site.b.count("connected to") == 1
    assert command("revoke", "-c", site.directory / "server.yaml", "--undo", "a")[0] == 0
    site.tunnel.client.wait_for("connected to", count=2)
