"""Promises of a client whose settings change while it runs: only what changed is touched, and no byte is lost."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import ANYWHERE, PublishedName, TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import UsageError
from qanat.client import local_port
from qanat.client.client import Client
from qanat.client.reload import plan_servers
from qanat.config.client_settings import ClientSettings, ClientTls, Reconnect, RemoteServer
from qanat.config.forward_settings import Forward, ForwardLimits
from qanat.config.server_settings import ClientAccount, ServerSettings
from qanat.config.settings import Keepalive
from qanat.control.commands import Request
from qanat.endpoints.unix import Permissions
from qanat.server.server import Server
from qanat.transports.dial.proxies import Proxy
from tests.support.applications import (
    END,
    RESET,
    Target,
    connection,
    echo,
    ending_at,
    ending_of,
    exchange,
    receive_exactly,
)
from tests.support.background import Background, wait_until
from tests.support.datagrams import UdpEcho, ask, udp_client
from tests.support.harness import SECONDS, Relay
from tests.support.identities import place_identity
from tests.support.machine.ports import unused_port

TOKENS = os.urandom(32), os.urandom(32)
QUICK = Reconnect(first=0.01, min=0.02, max=0.05)


def named(name: bytes) -> Target:
    """A target that says its name and then echoes."""

    def serve(sock: socket.socket, target: Target) -> str:
        sock.sendall(name)
        return echo(sock, target)

    return Target(serve)


class Rig:
    """A server, two targets, and a client that tests change."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.stack = stack
        rules = ("127.0.0.1:*", "127.0.0.1:*/udp", f"unix:{directory}/*")
        account = ClientAccount("a", TOKENS, (*rules, "127.0.0.1:0"), rules, allow_publish=("web",))
        settings = ServerSettings(
            clients=(account,),
            listen=(("127.0.0.1", 0),),
            identity=place_identity(directory / "server.key"),
            publish_dir=directory / "names",
            drain=0.1,
        )
        (directory / "names").mkdir()
        self.server = Server(settings)
        self.server.start()
        stack.callback(self.server.stop)
        self.port = self.server.addresses[0][1]
        self.one, self.two = (stack.enter_context(named(name)) for name in (b"1", b"2"))
        self.url = f"ws://127.0.0.1:{self.port}/tunnel"
        remote = RemoteServer((self.url,), TOKENS[0], self.server.identity.fingerprint)
        self.settings = ClientSettings("a", (remote,), reconnect=QUICK, drain=0.1, state_dir=directory)
        self.client = Client(self.settings)
        self.client.start()
        stack.callback(self.client.stop)
        self.wait_connected()

    def wait_connected(self) -> None:
        wait_until(lambda: self.client.servers[0].disconnected_since is None, "the client is connected")

    def have(self, *forwards: Forward, **settings: object) -> list[str]:
        """Give the client these forwards and settings, all else as at first; return what it says."""
        return self.client.apply(replace(self.settings, forwards=forwards, **settings))  # type: ignore[arg-type]

    def to(self, target: Target, port: int = 0) -> Forward:
        return Forward("local", TcpAddress("127.0.0.1", port), TcpAddress("127.0.0.1", target.port))

    def back(self, target: Target, port: int = 0) -> Forward:
        return replace(self.to(target, port), kind="remote")

    @property
    def remote_port(self) -> int:
        """That of the only remote forward."""
        ((place, _, _, _),) = self.client.servers[0].session.forward_states  # type: ignore[union-attr]
        return int(place.rpartition(":")[2])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(_short_directory()))
        yield Rig(directory, stack)


@pytest.fixture
def rig(shared: Rig, caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    caplog.set_level(logging.INFO, "qanat")
    yield shared
    shared.have()
    shared.wait_connected()


@pytest.fixture
def own_rig(caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    """One whose connections may be other ones at the end."""
    caplog.set_level(logging.INFO, "qanat")
    with ExitStack() as stack:
        yield Rig(Path(stack.enter_context(_short_directory())), stack)


def _short_directory() -> AbstractContextManager[str]:
    """A Unix socket's path has 107 bytes at most."""
    return tempfile.TemporaryDirectory(dir="/tmp", prefix="q")


def greeting(port: int) -> bytes:
    with connection(port) as sock:
        return sock.recv(1)


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), SECONDS).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the listener went while this came: whoever comes next is refused
        return False
    return False


# --- forwards ---------------------------------------------------------------------------------------


def test_adding_and_removing_forwards_touches_no_other_one(rig: Rig) -> None:
    first, port = rig.to(rig.one), unused_port()
    (said,) = rig.have(first)
    assert f"listening on 127.0.0.1:{rig.client.local_ports[0]}" in said
    listener = rig.client._local._all_locked()[0]._listener
    with connection(rig.client.local_ports[0]) as sock:
        assert sock.recv(1) == b"1"
        (said,) = rig.have(first, rig.to(rig.two, port))
        assert said.startswith(f"added local 127.0.0.1:{port} to ")
        assert greeting(port) == b"2"
        assert rig.client._local._all_locked()[0]._listener is listener
        assert rig.have(first) == [
            f"removed local 127.0.0.1:{port} to 127.0.0.1:{rig.two.port}; its open connections go on"
        ]
        assert refused(port)
        exchange(sock, b"still here")
        assert rig.have(first) == []


def test_open_connections_of_a_removed_forward_go_on(rig: Rig) -> None:
    rig.have(rig.to(rig.one), rig.back(rig.one))
    local, remote = rig.client.local_ports[0], rig.remote_port
    with connection(local) as here, connection(remote) as there:
        assert here.recv(1) == there.recv(1) == b"1"
        rig.have()
        wait_until(lambda: refused(local) and refused(remote), "both ports are free")
        exchange(here, os.urandom(100_000))
        exchange(there, os.urandom(100_000))
        for sock in here, there:
            sock.shutdown(socket.SHUT_WR)
            assert ending_of(sock) == END


def test_a_forward_that_leads_elsewhere_is_not_bound_anew(rig: Rig) -> None:
    port, there = unused_port(), unused_port()
    rig.have(rig.to(rig.one, port), rig.back(rig.one, there))
    ours, (theirs,) = rig.client._local._all_locked()[0]._listener, rig.server.registry.sessions
    listeners = dict(theirs._listeners)
    with connection(port) as here, connection(there) as back:
        assert here.recv(1) == back.recv(1) == b"1"
        said = rig.have(rig.to(rig.two, port), rig.back(rig.two, there))
        assert [line.split()[0] for line in said] == ["changed", "changed"]
        assert greeting(port) == greeting(there) == b"2"
        assert rig.client._local._all_locked()[0]._listener is ours
        assert theirs._listeners == listeners
        exchange(here, b"with the first")
        exchange(back, b"with the first")


def test_a_range_changes_port_by_port(rig: Rig) -> None:
    low = next(port for port in iter(unused_port, 0) if all(_is_free(port + n) for n in range(4)) and port < 65_000)
    to = rig.one.port - 1

    def ports(first: int, count: int) -> Forward:
        return Forward("local", TcpAddress("127.0.0.1", first), TcpAddress("127.0.0.1", to + first - low), ports=count)

    rig.have(ports(low, 3))
    before = [one._listener for one in rig.client._local._all_locked()]
    rig.have(ports(low + 1, 3))
    after = [one._listener for one in rig.client._local._all_locked()]
    assert rig.client.local_ports == [low + 1, low + 2, low + 3]
    assert after[:2] == before[1:]
    assert refused(low)
    assert greeting(low + 1) == b"1"


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_one_that_cannot_be_bound_says_why_and_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_port, "RETRY_IN_USE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = rig.have(rig.to(rig.one), rig.to(rig.two, port))
        assert any("Address already in use" in line and "another process has it" in line for line in said)
        assert greeting(rig.client.local_ports[0]) == b"1"
    wait_until(lambda: port in rig.client.local_ports, "the port is bound")
    assert greeting(port) == b"2"


def test_a_remote_one_that_is_refused_says_why(rig: Rig) -> None:
    good = rig.back(rig.one)
    said = rig.have(good, replace(rig.back(rig.two), listen=TcpAddress("0.0.0.0", 8080)))
    assert any("add it to this client's allow_listen" in line for line in said)
    with connection(int(next(line for line in said if "listening" in line).rpartition(":")[2])) as sock:
        assert sock.recv(1) == b"1"


def test_every_kind_of_forward_comes_and_goes(rig: Rig) -> None:
    path, other = str(rig.directory / "l"), str(rig.directory / "r")
    with UdpEcho() as udp:
        to = UdpAddress("127.0.0.1", int(udp.address.rpartition(":")[2]))
        udp_port, back_port, dynamic, back_dynamic = (unused_port() for _ in range(4))
        target = TcpAddress("127.0.0.1", rig.one.port)
        everything = (
            Forward("local", UdpAddress("127.0.0.1", udp_port), to),
            Forward("remote", UdpAddress("127.0.0.1", back_port), to),
            Forward("local", UnixAddress(path), target),
            Forward("remote", UnixAddress(other), target),
            Forward("local", TcpAddress("127.0.0.1", dynamic), ANYWHERE),
            Forward("remote", TcpAddress("127.0.0.1", back_dynamic), ANYWHERE),
            Forward("remote", PublishedName("web"), target),
        )
        said = rig.have(*everything, allow_connect=("127.0.0.1:*",))
        assert sum(line.startswith("added ") and "listening on" in line for line in said) == len(everything), said
        for port in udp_port, back_port:
            with udp_client(port) as sock:
                assert ask(sock, b"datagram") == b"datagram"
        for place in path, other, str(rig.directory / "names" / "web"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(SECONDS)
                sock.connect(place)
                assert sock.recv(1) == b"1"
        for port in dynamic, back_dynamic:
            with connection(port) as sock:
                sock.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % rig.one.port)
                answer = b""
                while not answer.endswith(b"\r\n\r\n1") and (more := sock.recv(1000)):
                    answer += more
                assert answer.endswith(b"1"), answer
        private = replace(everything[2], permissions=Permissions(0o640))
        rig.have(everything[0], private)
        assert os.stat(path).st_mode & 0o777 == 0o640
        wait_until(lambda: refused(back_dynamic) and not os.path.exists(other), "the server has let go")
        rig.have()
        assert not os.path.exists(path)


def test_open_connections_that_the_clients_own_rules_forbid_are_reset_and_others_go_on(rig: Rig) -> None:
    """Those whose targets somebody at the server's end has named; what a forward itself leads to is not judged."""
    with UdpEcho() as udp, ExitStack() as stack:
        there = unused_port()
        forwards = Forward("remote", TcpAddress("127.0.0.1", there), ANYWHERE), rig.back(rig.two)
        both = [f"127.0.0.1:{one.port}" for one in (rig.one, rig.two)]
        rules = (*both, f"{udp.address}/udp")
        rig.have(*forwards, allow_connect=rules)
        kept, lost = (stack.enter_context(connection(there)) for _ in range(2))
        for sock, target in (kept, rig.one), (lost, rig.two):
            sock.sendall(b"\x04\x01" + target.port.to_bytes(2, "big") + b"\x7f\0\0\x01\0")  # SOCKS4
            assert sock.recv(8)[1] == 90
            assert sock.recv(1) in b"12"
        ((back, _, _, _),) = (s for s in rig.client.servers[0].session.forward_states if s[1] != str(ANYWHERE))  # type: ignore[union-attr]
        own = stack.enter_context(connection(int(back.rpartition(":")[2])))
        assert own.recv(1) == b"2"
        asking, flow = stack.enter_context(connection(there)), stack.enter_context(udp_client(1))
        asking.sendall(b"\x05\x01\0\x05\x03\0\x01" + bytes(6))  # SOCKS5: no password, UDP ASSOCIATE
        relay = receive_exactly(asking, 12)
        flow.connect(("127.0.0.1", int.from_bytes(relay[-2:], "big")))
        packet = b"\0\0\0\x01\x7f\0\0\x01" + int(udp.address.split(":")[1]).to_bytes(2, "big") + b"datagram"
        assert ask(flow, packet) == packet
        said = rig.have(*forwards, allow_connect=both[:1])
        resets = [line for line in said if "reset: no rule allows it any more" in line]
        assert len(resets) == 2, said
        assert f"to 127.0.0.1:{rig.two.port} reset" in resets[0] + resets[1]
        assert f"to {udp.address}/udp reset" in resets[0] + resets[1]
        assert ending_of(lost) == RESET
        exchange(kept, b"goes on")
        exchange(own, b"goes on")


def test_other_limits_hold_at_once_and_count_what_is_open(rig: Rig) -> None:
    forward = rig.to(rig.one, unused_port())
    rig.have(forward)
    with connection(forward.listen.port) as sock:  # type: ignore[union-attr]
        assert sock.recv(1) == b"1"
        rig.have(replace(forward, limits=ForwardLimits(max_streams=1)))
        assert ending_at(forward.listen.port) == RESET  # type: ignore[union-attr]
        exchange(sock, b"still here")


def test_a_hundred_reloads_leave_nothing_behind(rig: Rig) -> None:
    a, b = rig.to(rig.one, unused_port()), rig.back(rig.one, unused_port())
    with connection_after(rig, a) as sock:
        numbers = []
        for n in range(100):
            rig.have(a, *((b,) if n % 2 else ()), replace(a, listen=TcpAddress("127.0.0.1", 0)))
            numbers.append(len(rig.client.servers[0].session.remotes._asked))  # type: ignore[union-attr]
        exchange(sock, b"still here")
    rig.have()
    session = rig.client.servers[0].session
    assert session is not None
    (theirs,) = rig.server.registry.sessions
    wait_until(lambda: not theirs._listeners, "the server listens for nothing")
    assert not session.remotes._asked
    assert not session.remotes._answers
    assert not rig.client._shares.traffic


@contextmanager
def connection_after(rig: Rig, forward: Forward) -> Iterator[socket.socket]:
    rig.have(forward)
    with connection(rig.client.local_ports[0]) as sock:
        assert sock.recv(1) == b"1"
        yield sock


def test_forwards_are_added_and_removed_by_command_and_what_was_bound_is_said(rig: Rig) -> None:
    first, port, there = rig.to(rig.one), unused_port(), unused_port()
    with connection_after(rig, first) as sock:
        run = rig.client.commands.run
        refused_there = {"local": [f"127.0.0.1:0:127.0.0.1:{rig.two.port}"], "remote": [f"0.0.0.0:{there}:127.0.0.1:1"]}
        answer = run(Request("add", refused_there))
        assert not answer["ok"]
        assert answer["hint"].startswith("nothing was added")
        assert rig.client.settings.forwards == (first,)
        fields = {
            "local": [f"127.0.0.1:0:127.0.0.1:{rig.two.port}"],
            "remote": [f"127.0.0.1:{there}:127.0.0.1:{rig.two.port}"],
            "dynamic": [f"127.0.0.1:{port}"],
        }
        answer = run(Request("add", fields))
        assert answer["ok"], answer
        chosen = int(answer["changes"][0]["listening"][0].rpartition(":")[2])
        assert greeting(chosen) == greeting(there) == b"2"
        assert not run(Request("add", {"dynamic": [f"127.0.0.1:{port}"]}))["ok"]
        assert not run(Request("remove", {"local": [f"127.0.0.1:{unused_port()}"]}))["ok"]
        fields = {"local": [f"{chosen}"], "remote": [f"127.0.0.1:{there}"], "dynamic": [f"{port}"]}
        answer = run(Request("remove", fields))
        assert [change["change"] for change in answer["changes"]] == ["removed"] * 3
        wait_until(lambda: refused(chosen) and refused(there) and refused(port), "the ports are free")
        assert rig.client.settings.forwards == (first,)
        exchange(sock, b"still here")


def test_streams_of_every_kind_do_not_notice_two_hundred_reloads(rig: Rig) -> None:
    path, stop = str(rig.directory / "k"), threading.Event()
    local, back, dynamic = (unused_port() for _ in range(3))
    target = TcpAddress("127.0.0.1", rig.one.port)
    kept = (
        rig.to(rig.one, local),
        rig.back(rig.one, back),
        Forward("local", UnixAddress(path), target),
        Forward("local", TcpAddress("127.0.0.1", dynamic), ANYWHERE),
    )
    rig.have(*kept)
    session = rig.client.servers[0].session
    with ExitStack() as stack:
        socks = [stack.enter_context(connection(port)) for port in (local, back, dynamic)]
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.settimeout(SECONDS)
        unix.connect(path)
        socks[2].sendall(b"\x04\x01" + rig.one.port.to_bytes(2, "big") + b"\x7f\0\0\x01\0")  # SOCKS4
        assert socks[2].recv(8)[1] == 90

        def talk(sock: socket.socket) -> int:
            assert sock.recv(1) == b"1"
            rounds = 0
            while not stop.is_set():
                exchange(sock, os.urandom(20_000))
                rounds += 1
            return rounds

        talks = [Background(partial(talk, sock)) for sock in (*socks, unix)]
        one, two, tokens = rig.to(rig.two, unused_port()), rig.back(rig.two, unused_port()), TOKENS
        for n in range(200):
            more = (one, replace(two, limits=ForwardLimits(max_streams=n + 1)))[: n % 3]
            server = replace(rig.settings.servers[0], token=tokens[n % 2])
            rig.have(*kept, *more, servers=(server,), max_pipe_age=1000.0 + n)
        stop.set()
        assert all(each.result() > 0 for each in talks)
    assert rig.client.servers[0].session is session


# --- the way to the server --------------------------------------------------------------------------


def test_another_token_is_for_the_next_connection(rig: Rig) -> None:
    forward = rig.to(rig.one)
    with connection_after(rig, forward) as sock:
        session = rig.client.servers[0].session
        server = replace(rig.settings.servers[0], token=TOKENS[1])
        (said,) = rig.have(forward, servers=(server,))
        assert "another token" in said
        assert rig.client.servers[0].session is session
        assert rig.client.servers[0].connector._server.token == TOKENS[1]
        exchange(sock, b"still here")


def test_another_way_moves_the_streams_without_a_byte_lost(own_rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig = own_rig
    forward = rig.to(rig.one)
    with connection_after(rig, forward) as sock, Relay(rig.port) as relay:
        session = rig.client.servers[0].session
        for settings in (
            {"transports": ("http2",)},
            {"transports": ("grpc",), "headers": (("X-Way", "2"),)},
            {"transports": ("websocket",), "connect_to": ("127.0.0.1", relay.port)},
        ):
            caplog.clear()
            rig.have(forward, **settings)
            wait_until(lambda: "since the configuration has changed" in caplog.text, "the connection was replaced")
            exchange(sock, os.urandom(300_000))
        assert rig.client.servers[0].session is session
        rig.have(forward, proxy=Proxy("http", "127.0.0.1", unused_port()))
        (shown,) = rig.client.snapshot().servers
        assert (shown.state, shown.proxy) == ("connected", ""), "the way that it goes, until there is another"


def test_another_url_of_the_same_server_takes_the_session_over(own_rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig = own_rig
    forward = rig.to(rig.one)
    with connection_after(rig, forward) as sock, Relay(rig.port) as relay:
        session = rig.client.servers[0].session
        server = replace(rig.settings.servers[0], urls=(f"ws://127.0.0.1:{relay.port}/tunnel",), fingerprint=None)
        rig.have(forward, servers=(server,))
        wait_until(lambda: "since the configuration has changed" in caplog.text, "the connection was replaced")
        exchange(sock, os.urandom(300_000))
        assert rig.client.servers[0].session is session
        caplog.clear()
        rig.have(forward)
        wait_until(lambda: "since the configuration has changed" in caplog.text, "it is back")


def test_a_url_of_another_server_begins_a_session_there_and_leaves_the_streams(own_rig: Rig, tmp_path: Path) -> None:
    rig = own_rig
    forward = rig.to(rig.one)
    settings = replace(rig.server.settings, listen=(("127.0.0.1", 0),), identity=place_identity(tmp_path / "key"))
    other = Server(replace(settings, publish_dir=None))
    other.start()
    try:
        with connection_after(rig, forward) as sock:
            url = f"ws://127.0.0.1:{other.addresses[0][1]}/tunnel"
            rig.have(forward, servers=(RemoteServer((url,), TOKENS[0], other.identity.fingerprint),))
            wait_until(lambda: len(other.registry.sessions) == 1, "the other server has a session")
            wait_until(lambda: rig.client.servers[0].disconnected_since is None, "it is in service")
            assert greeting(rig.client.local_ports[0]) == b"1"
            exchange(sock, b"still with the first")
            assert len(rig.server.registry.sessions) == 1
        wait_until(lambda: not rig.server.registry.sessions, "the first session has ended with its last stream")
        rig.have(forward)
        wait_until(lambda: len(rig.server.registry.sessions) == 1, "it is back")
    finally:
        other.stop()


def test_servers_come_and_go(own_rig: Rig, tmp_path: Path) -> None:
    rig = own_rig
    forward = rig.to(rig.one)
    settings = replace(rig.server.settings, listen=(("127.0.0.1", 0),), identity=place_identity(tmp_path / "key"))
    other = Server(replace(settings, publish_dir=None))
    other.start()
    try:
        with connection_after(rig, forward) as sock:
            second = RemoteServer(
                (f"ws://127.0.0.1:{other.addresses[0][1]}/tunnel",), TOKENS[0], other.identity.fingerprint
            )
            first = rig.settings.servers[0]
            said = rig.have(forward, servers=(first, second), connect="all")
            assert f"added server {second.urls[0]}" in said
            wait_until(lambda: len(other.registry.sessions) == 1, "the second server has a session")
            said = rig.have(forward, servers=(first,))
            assert any(line.startswith(f"removed server {second.urls[0]}") for line in said)
            wait_until(lambda: not other.registry.sessions, "its session has ended")
            exchange(sock, b"still here")
    finally:
        other.stop()


def test_what_cannot_be_used_changes_nothing_and_all_of_it_is_said(rig: Rig, tmp_path: Path) -> None:
    forward = rig.to(rig.one)
    with connection_after(rig, forward) as sock:
        (tmp_path / "ca.pem").write_text("no certificate")
        first = replace(rig.settings.servers[0], urls=("wss://127.0.0.1:1/tunnel", rig.url))
        bad = ClientTls(ca_file=tmp_path / "ca.pem")
        before = rig.client.settings
        with pytest.raises(UsageError, match=r"ca\.pem"):
            rig.have(rig.to(rig.two, unused_port()), servers=(first,), tls=bad)
        assert rig.client.settings == before
        assert len(rig.client.local_ports) == 1
        exchange(sock, b"still here")


def test_what_counts_later_or_needs_a_restart_is_said(rig: Rig) -> None:
    said = rig.have(name="b", lanes=2, drain=9.0, keepalive=Keepalive(7, 21))
    assert "name: needs a restart" in said
    assert "lanes: 1 -> 2: with the next session" in said
    assert "drain: 0.1 -> 9: at once" in said
    assert "keepalive.timeout: 45 -> 21: with the next connection" in said
    assert rig.client.settings.name == "a"


def test_servers_are_known_by_their_urls_then_by_their_keys() -> None:
    def server(*urls: str, key: str | None = None) -> RemoteServer:
        return RemoteServer(urls, b"t" * 32, key)

    a, b, c = server("ws://a", "ws://b"), server("ws://c", key="K"), server("ws://d")
    plan = plan_servers((a, b, c), (server("ws://e", key="K"), server("ws://b"), server("ws://f")))
    assert plan.kept == ((1, 0), (0, 1))
    assert (plan.removed, plan.added, plan.moved) == ((2,), (2,), None)
    assert plan_servers((c,), (server("ws://e"),)).moved == (0, 0)
