"""Unix sockets at either end of a tunnel: files and abstract names, with real programs that use them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.applications import (
    END,
    Target,
    connection,
    echo,
    ending_of,
    exchange,
    receive_all,
    receive_exactly,
    reply_after_end,
    unix_connection,
)
from tests.support.background import Background, wait_until
from tests.support.harness import SECONDS, Relay, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.postgres import Postgres
from tests.support.machine.programs import require_program
from tests.support.machine.web import Sshd, file_server

NAME = f"@qanat-test-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class Site:
    tunnel: Tunnel
    directory: Path
    ways: dict[str, str]  # each leads to an echo; from where to where, and the path or port
    half_close: str
    sshd: Sshd
    ssh_port: int

    def connect(self, way: str) -> AbstractContextManager[socket.socket]:
        where = self.ways[way]
        return connection(int(where)) if where.isdecimal() else unix_connection(where)


WAYS = {
    "local file to file": ("local", "file", "file"),
    "local file to port": ("local", "file", "port"),
    "local port to file": ("local", "port", "file"),
    "local name to name": ("local", "name", "name"),
    "remote file to file": ("remote", "file", "file"),
    "remote file to port": ("remote", "file", "port"),
    "remote port to file": ("remote", "port", "file"),
    "remote name to name": ("remote", "name", "name"),
}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        # pytest's own directories have long names, and a socket's path has 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-")))
        targets = {
            "file": stack.enter_context(Target(echo, f"{directory}/echo")),
            "port": stack.enter_context(Target(echo)),
            "name": stack.enter_context(Target(echo, f"{NAME}-echo")),
        }
        half = stack.enter_context(Target(reply_after_end, f"{directory}/half"))
        sshd = Sshd(directory / "sshd")
        stack.enter_context(sshd.start())
        web, web_port = file_server(directory, {"file": b"content" * 1000})
        stack.enter_context(web)
        ways, forwards, ssh_port = {}, [], unused_port()
        for number, (way, (side, listen, to)) in enumerate(WAYS.items()):
            place = {"file": f"{directory}/{number}", "port": f"127.0.0.1:{unused_port()}", "name": f"{NAME}-{number}"}
            forwards.append({side: place[listen], "to": targets[to].address})
            ways[way] = place[listen].rpartition(":")[2]
        forwards += [
            {"local": f"{directory}/to-half", "to": half.address},
            {"local": f"{directory}/to-web", "to": f"127.0.0.1:{web_port}"},
            {"local": f"{directory}/to-nobody", "to": f"{directory}/nobody"},
            {"local": f"{directory}/to-secret", "to": "/run/secret"},
            {"local": f"{directory}/to-link", "to": f"{directory}/link"},
            {"remote": f"{directory}/ssh", "to": f"127.0.0.1:{sshd.port}"},
            {"local": f"127.0.0.1:{ssh_port}", "to": f"{directory}/ssh"},
            {"remote": f"{directory}/shared", "to": targets["port"].address, "mode": "0660", "group": "33"},
        ]
        rules = [f"unix:{directory}/*", f"unix:{NAME}-*"]
        tunnel = Tunnel(
            directory / "tunnel",
            forwards,
            account={
                "allow_connect": ["127.0.0.1:*", *rules],
                "allow_listen": ["127.0.0.1:1-65535", *rules],
            },
        )
        stack.enter_context(tunnel).start()
        yield Site(tunnel, directory, ways, f"{directory}/to-half", sshd, ssh_port)


@pytest.mark.parametrize("way", WAYS)
def test_bytes_go_both_ways_and_each_end_ends_by_itself(site: Site, way: str) -> None:
    data = os.urandom(1_000_000)
    with site.connect(way) as sock:
        sending = Background(lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        assert receive_all(sock) == data
        sending.result()


def test_an_answer_that_comes_after_the_end_arrives(site: Site) -> None:
    with unix_connection(site.half_close) as sock:
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        assert len(receive_all(sock)) == 32 + (1 << 20)


@pytest.mark.parametrize("way", ["local file to file", "remote file to file"])
def test_twenty_at_once(site: Site, way: str) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(site.connect(way)) for _ in range(20)]
        blocks = [os.urandom(50_000) for _ in socks]
        talks = [Background(lambda s=s, b=b: exchange(s, b)) for s, b in zip(socks, blocks, strict=True)]
        assert [talk.result() for talk in talks] == blocks


def test_they_survive_cuts_with_nothing_lost(tmp_path: Path) -> None:
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-"))
        target = stack.enter_context(Target(echo, f"{name}/echo"))
        rules = [f"unix:{name}/*"]
        forwards = [{side: f"{name}/{side}", "to": target.address} for side in ("local", "remote")]
        tunnel = Tunnel(tmp_path, forwards, account={"allow_connect": rules, "allow_listen": rules})
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        stack.enter_context(tunnel).start()
        socks = [stack.enter_context(unix_connection(f"{name}/{side}")) for side in ("local", "remote")]
        for number in range(1, 21):
            data = os.urandom(20_000)
            for sock in socks:
                sock.sendall(data)
            relay.cut()
            assert [receive_exactly(sock, len(data)) for sock in socks] == [data] * 2
            tunnel.wait_resumed(number)


def test_the_file_is_for_our_own_user_alone_unless_its_mode_says_otherwise(site: Site) -> None:
    for way in ("local file to file", "remote file to file"):
        found = os.stat(site.ways[way])
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())
    shared = os.stat(site.directory / "shared")
    assert stat.S_IMODE(shared.st_mode) == 0o660
    if os.geteuid() == 0:
        assert shared.st_gid == 33


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("to-nobody", "No such file or directory"),
        ("to-secret", "no rule allows /run/secret"),
        ("to-link", "no rule allows"),
    ],
)
def test_a_target_that_cannot_be_had_is_refused_with_its_reason(site: Site, name: str, reason: str) -> None:
    link = site.directory / "link"
    if not link.is_symlink():
        link.symlink_to("/run/secret")  # an allowed directory, and a link out of it
    with unix_connection(str(site.directory / name)) as sock:
        assert ending_of(sock) == END, "a Unix socket has no reset"
    site.tunnel.client.wait_for(reason)
    if name == "to-link":
        site.tunnel.server.wait_for("link, which is /run/secret,")
        assert "link, which" not in site.tunnel.client.output, "where a link leads is not for the other end"


def test_who_connected_is_named_by_user_and_process(site: Site) -> None:
    with site.connect("local file to file") as sock:
        sock.sendall(b"x")
        sock.recv(1)
    with unix_connection(str(site.directory / "to-secret")):
        site.tunnel.client.wait_for(f"from uid {os.geteuid()} pid {os.getpid()}")


def test_curl_and_ssh_use_them(site: Site, tmp_path: Path) -> None:
    curl = require_program("curl")
    command = [curl, "-sS", "--unix-socket", site.directory / "to-web", "http://localhost/file"]
    answer = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
    assert answer.stdout == b"content" * 1000
    command = [require_program("ssh"), *site.sshd.options(site.ssh_port), "127.0.0.1", "echo from afar"]
    answer = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
    assert answer.stdout == b"from afar\n"


def test_psql_reaches_a_database_over_a_unix_socket_at_either_end(tmp_path: Path) -> None:
    psql = require_program("psql")
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-"))
        database = stack.enter_context(Postgres(tmp_path / "postgres", sockets=Path(name, "there")))
        Path(name, "here").mkdir()
        forwards = [
            {"local": f"{name}/here/.s.PGSQL.5432", "to": database.socket},
            {"remote": f"{name}/here/.s.PGSQL.5433", "to": database.socket},
        ]
        account = {"allow_connect": [f"unix:{name}/there/*"], "allow_listen": [f"unix:{name}/here/*"]}
        stack.enter_context(Tunnel(tmp_path / "tunnel", forwards, account=account)).start()
        for port in ("5432", "5433"):
            command = [psql, "--no-psqlrc", "-h", f"{name}/here", "-p", port, "-U", "postgres", "-Atc"]
            query = "select count(*), sum(n) from generate_series(1, 100000) n"
            answer = subprocess.run([*command, query], capture_output=True, timeout=SECONDS, check=True)
            assert answer.stdout == b"100000|5000050000\n"


def test_files_go_with_the_tunnel_and_stale_ones_are_replaced(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="qanat-") as name, ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        forwards = [
            {"local": f"{name}/local", "to": target.address},
            {"remote": f"{name}/remote", "to": target.address},
            {"local": f"{name}/live", "to": target.address},
            {"local": f"{name}/plain", "to": target.address},
        ]
        tunnel = Tunnel(tmp_path, forwards, account={"allow_listen": [f"unix:{name}/*"]})
        live = stack.enter_context(Target(echo, f"{name}/live"))
        Path(name, "plain").write_text("a file")
        stack.enter_context(tunnel).start()
        tunnel.client.wait_for(f"cannot listen on {name}/live: Address already in use")
        tunnel.client.wait_for(f"cannot listen on {name}/plain: there is a file of that name that is no socket")
        for path in ("local", "remote"):
            with unix_connection(f"{name}/{path}") as sock:
                assert exchange(sock, b"x") == b"x", "the others go on"
        for program in (tunnel.client, tunnel.server):
            program.process.kill()
            program.process.wait(SECONDS)
        assert {"local", "remote"} <= set(os.listdir(name)), "nobody has removed them"
        tunnel.start()
        for path in ("local", "remote"):
            with unix_connection(f"{name}/{path}") as sock:
                assert exchange(sock, b"x") == b"x"
        tunnel.client.process.terminate()
        tunnel.client.process.wait(SECONDS)
        wait_until(lambda: not {"local", "remote"} & set(os.listdir(name)), "both are gone")
        live.close()
        assert sorted(os.listdir(name)) == ["live", "plain"]
