"""What people do with a tunnel, done by real programs through a real nginx with TLS, as deploy/ configures it."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import scenarios
from tests.support.applications import Conversation, Target, connection, echo, wait_until_echoes
from tests.support.harness import SECONDS, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.proxies import TunnelProxy
from tests.support.machine.terminal import Terminal
from tests.support.machine.web import Nginx, Sshd, file_server

BULK = 250_000_000


@dataclass(frozen=True, slots=True)
class Site:
    tunnel: Tunnel
    nginx: Nginx
    bulk: scenarios.Bulk
    bulk_target: Target
    bulk_port: int
    echo_ports: tuple[int, int]  # through a local and a remote forward
    files: dict[str, bytes]
    web_port: int
    sshd: Sshd
    ssh_port: int


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    bulk = scenarios.Bulk(BULK)
    files = {f"resource-{n}": os.urandom(2_000 + 997 * n) for n in range(100)} | {"large": os.urandom(2_000_000)}
    sshd = Sshd(directory / "sshd")
    with ExitStack() as stack:
        bulk_target = stack.enter_context(Target(bulk.handler))
        other = stack.enter_context(Target(echo))
        web, web_target = file_server(directory, files)
        stack.enter_context(web)
        stack.enter_context(sshd.start())
        bulk_port, web_port, ssh_port, local, remote = (unused_port() for _ in range(5))
        tunnel = Tunnel(
            directory / "tunnel",
            [
                {"local": f"127.0.0.1:{bulk_port}", "to": bulk_target.address},
                {"local": f"127.0.0.1:{web_port}", "to": f"127.0.0.1:{web_target}"},
                {"remote": f"127.0.0.1:{ssh_port}", "to": f"127.0.0.1:{sshd.port}"},
                {"local": f"127.0.0.1:{local}", "to": other.address},
                {"remote": f"127.0.0.1:{remote}", "to": other.address},
            ],
            server={"trusted_proxies": ["127.0.0.1/32"]},
        )
        front = TunnelProxy(directory / "front", tunnel.port)
        tunnel.client_settings |= {"url": front.url, "tls": {"ca_file": str(front.ca_file)}}
        nginx = stack.enter_context(front.start())
        stack.enter_context(tunnel).start()
        yield Site(
            tunnel,
            nginx,
            bulk,
            bulk_target,
            bulk_port,
            (local, remote),
            files,
            web_port,
            sshd,
            ssh_port,
        )


@pytest.mark.slow
def test_hundreds_of_megabytes_each_way_at_once_through_one_stream(site: Site) -> None:
    """`make soak` does it with gigabytes."""
    figures = site.bulk.run(site.bulk_port, site.bulk_target)
    print(figures)
    assert figures["seconds"] < 60


def test_many_concurrent_downloads(site: Site, tmp_path: Path) -> None:
    scenarios.downloads(tmp_path, site.web_port, {"large": site.files["large"]}, count=60, parallel=60)


def test_a_page_of_a_hundred_resources(site: Site, tmp_path: Path) -> None:
    """Six connections at once, each used again and again, as browsers do."""
    resources = {name: content for name, content in site.files.items() if name.startswith("resource-")}
    scenarios.downloads(tmp_path, site.web_port, resources, count=100, parallel=6)


def test_scp_through_a_remote_forward_both_ways(site: Site, tmp_path: Path) -> None:
    scp = require_program("scp")
    options = site.sshd.options(site.ssh_port)
    original, there, back = (tmp_path / name for name in ("original", "there", "back"))
    original.write_bytes(os.urandom(20_000_000))
    remote = f"{getpass.getuser()}@127.0.0.1:{there}"
    for source, target in ((original, remote), (remote, back)):
        subprocess.run([scp, "-q", *options, source, target], check=True, timeout=60)
    assert there.read_bytes() == back.read_bytes() == original.read_bytes()


def test_an_interactive_ssh_session_through_a_remote_forward(site: Site) -> None:
    options = site.sshd.options(site.ssh_port)
    with Terminal(require_program("ssh"), "-tt", *options, f"{getpass.getuser()}@127.0.0.1", "exec sh -i") as terminal:
        terminal.type("stty -echo; PS1='ready> '\n")
        terminal.wait_for("ready> ")
        for number in range(20):
            terminal.type(f"echo answer-$(({number} * {number}))\n")
            terminal.wait_for(f"answer-{number * number}\r\nready> ")
        terminal.type("sh -c 'tty; exec sleep 60'\n")
        terminal.wait_for("/dev/pts/")
        terminal.type("\x03")  # ^C goes through too
        terminal.wait_for("ready> ")
        terminal.type("exit 7\n")
        assert terminal.process.wait(SECONDS) == 7


def test_the_server_hears_from_nginx_who_is_calling(site: Site) -> None:
    site.tunnel.server.wait_for(r"a connected from 127\.0\.0\.1\S* .*over websocket")


def test_after_nginx_was_killed_and_started_anew_the_tunnel_goes_on(tmp_path: Path) -> None:
    local, remote = unused_port(), unused_port()
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": target.address},
            {"remote": f"127.0.0.1:{remote}", "to": target.address},
        ]
        tunnel = stack.enter_context(Tunnel(tmp_path / "tunnel", forwards))
        front = TunnelProxy(tmp_path / "front", tunnel.port)
        tunnel.client_settings |= {"url": front.url, "tls": {"ca_file": str(front.ca_file)}}
        with front.start():
            tunnel.start()
            sock = stack.enter_context(connection(local))
            talk = Conversation(sock)
            assert talk.flowing.wait(SECONDS)
        tunnel.client.wait_for("was lost after .*; 1 streams wait for the next one")
        stack.enter_context(front.start())
        tunnel.wait_resumed()
        talk.flowing.clear()
        assert talk.flowing.wait(SECONDS), talk.ending
        sock.shutdown(socket.SHUT_RDWR)
        talk.join(SECONDS)
        for port in (local, remote):
            wait_until_echoes(port)
