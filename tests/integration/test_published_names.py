"""Promises about web services by name: each has a socket for a proxy, and the TLS connections that ask for it."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qanat.handshake.tokens import generate_token
from tests.support.applications import END, Target, echo, exchange
from tests.support.background import wait_until
from tests.support.harness import SECONDS, Tunnel, qanat
from tests.support.machine.certificates import Authority
from tests.support.web_service import SECRET, WebService

OWN = "localhost"


@dataclass(frozen=True, slots=True)
class Place:
    """A server with TLS and a directory for names, which one client publishes two names at."""

    tunnel: Tunnel
    names: Path
    ca_file: Path
    listener: tuple[str, int]
    app: Target


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        yield make_place(tmp_path_factory.mktemp("names"), stack)


@pytest.fixture
def own_place(tmp_path: Path) -> Iterator[Place]:
    """For a test that starts its client or server anew."""
    with ExitStack() as stack:
        yield make_place(tmp_path, stack)


def short_directory(stack: ExitStack) -> Path:
    """A directory to be made in which the path of a socket is not too long (unix(7)), wherever the tests lie."""
    return Path(stack.enter_context(TemporaryDirectory())) / "published"


def make_place(directory: Path, stack: ExitStack) -> Place:
    names = short_directory(stack)
    authority = Authority(directory)
    own, apps = authority.issue(OWN), authority.issue("*.office.example.com")
    own.key.chmod(0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(apps.certificate, apps.key)
    web, app = stack.enter_context(WebService(context)), stack.enter_context(Target(echo))
    tunnel = stack.enter_context(
        Tunnel(
            directory / "tunnel",
            [
                {"publish": "app", "to": app.address},
                {"publish": "Web.Office.example.com", "to": web.address},
            ],
            account={"allow_publish": ["*.office.example.com"]},
            server={
                "tls": {"certificate": str(own.certificate), "key": str(own.key)},
                "publish_dir": str(names),
                "publish_mode": "0600",
            },
        )
    )
    tunnel.start_server()
    tunnel.client_settings["url"] = f"wss://{OWN}:{tunnel.port}/tunnel"
    tunnel.client_settings["tls"] = {"ca_file": str(authority.ca_file)}
    client = tunnel.start_client()
    client.wait_for("the server publishes app.office.example.com for")
    client.wait_for("the server publishes web.office.example.com for")
    return Place(tunnel, names, authority.ca_file, ("127.0.0.1", tunnel.port), app)


def by_name(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(SECONDS)
    sock.connect(os.fspath(path))
    return sock


def over_tls(place: Place, name: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=place.ca_file)
    sock = socket.create_connection(place.listener, SECONDS)
    return context.wrap_socket(sock, server_hostname=name)


def test_each_name_is_a_socket_with_the_mode_that_is_set(place: Place) -> None:
    assert {path.name for path in place.names.iterdir()} == {"app.office.example.com", "web.office.example.com"}
    for path in place.names.iterdir():
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_proxy_that_connects_to_it_reaches_the_service(place: Place) -> None:
    with by_name(place.names / "app.office.example.com") as sock:
        assert exchange(sock, b"through the proxy") == b"through the proxy"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_tls_for_a_name_is_between_the_visitor_and_the_service(place: Place) -> None:
    with over_tls(place, "web.office.example.com") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: web.office.example.com\r\nConnection: close\r\n\r\n")
        answer = bytearray()
        while data := sock.recv(65536):
            answer += data
    assert SECRET in answer


def test_the_servers_own_name_goes_on_being_served(place: Place) -> None:
    for name in (OWN, "other.example.net"):
        context = ssl.create_default_context(cafile=place.ca_file)
        context.check_hostname = False
        with (
            socket.create_connection(place.listener, SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name) as sock,
        ):
            names = sock.getpeercert()["subjectAltName"]  # type: ignore[index]
            assert ("DNS", OWN) in names
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_a_name_that_nobody_publishes_now_is_refused_as_one(place: Place) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        over_tls(place, "away.office.example.com")


def test_a_hello_that_comes_byte_by_byte_finds_its_name(place: Place) -> None:
    context = ssl.create_default_context(cafile=place.ca_file)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="web.office.example.com")
    with socket.create_connection(place.listener, SECONDS) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    sock.sendall(bytes([byte]))
                incoming.write(sock.recv(65536))


def test_the_server_sees_no_plain_text(place: Place) -> None:
    """What crosses the server's port, and what its process gets for the tunnel: neither has a word of it."""
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def relay() -> None:
            visitor, _ = listener.accept()
            with visitor, socket.create_connection(place.listener, SECONDS) as server:
                threads = [
                    threading.Thread(target=copy, args=ends, daemon=True)
                    for ends in ((visitor, server), (server, visitor))
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(SECONDS)

        def copy(source: socket.socket, target: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    seen.extend(data)
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        relaying = threading.Thread(target=relay, daemon=True)
        relaying.start()
        through = Place(place.tunnel, place.names, place.ca_file, ("127.0.0.1", port), place.app)
        with over_tls(through, "web.office.example.com") as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: web.office.example.com\r\nConnection: close\r\n\r\n")
            answer = bytearray()
            while data := sock.recv(65536):
                answer += data
        relaying.join(SECONDS)
    assert SECRET in answer
    assert len(seen) > len(answer)
    assert SECRET not in seen
    assert b"GET / " not in seen
    assert b"web.office.example.com" in seen  # the name alone, in the ClientHello


def test_names_are_gone_with_the_client_and_stale_ones_with_the_next_start(own_place: Place) -> None:
    tunnel, names = own_place.tunnel, own_place.names
    tunnel.client.stop()
    wait_until(lambda: not list(names.iterdir()), "the names are gone")
    stale = names / "old.office.example.com"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(stale))
    tunnel.server.stop(signal.SIGTERM)
    tunnel.start_server()
    assert not stale.exists()
    token, url = tunnel.directory / "a.token", tunnel.client_settings["url"]
    common = ("client", url, "--token-file", token, "--fingerprint", tunnel.fingerprint, "--ca-file", own_place.ca_file)
    with qanat(*common, "--publish", f"app:{own_place.app.port}") as client:
        client.wait_for("the server publishes app.office.example.com for 127.0.0.1:")
        with by_name(names / "app.office.example.com") as sock:
            assert exchange(sock, b"again") == b"again"
    both = ("--publish", "app.example.net:1", "--publish", "office.example.com:localhost:1")
    with qanat(*common, *both, "--exit-on-forward-failure") as client:
        for name in ("app.example.net", "office.example.com"):
            client.wait_for(f"cannot listen for publish {name} to .*: publishing {name} is not allowed by any rule")
        assert client.end() == 1


def test_several_clients_share_a_name_and_the_last_takes_it_away(directory: Path) -> None:
    directory.mkdir()
    with ExitStack() as stack:
        names = short_directory(stack)
        clients = []
        for name in "ab":
            (directory / f"{name}.token").touch(mode=0o600)
            (directory / f"{name}.token").write_text(generate_token())
            clients.append(
                {"name": name, "token_file": str(directory / f"{name}.token"), "allow_publish": ["app.example.com"]}
            )
        server = stack.enter_context(Tunnel(directory / "s", server={"clients": clients, "publish_dir": str(names)}))
        server.start_server()
        programs = {}
        for name in "ab":

            def greet(sock: socket.socket, target: Target, name: str = name) -> str:
                sock.sendall(name.encode())
                sock.recv(1)
                return END

            target = stack.enter_context(Target(greet))
            tunnel = stack.enter_context(
                Tunnel(
                    directory / name,
                    [{"publish": "app.example.com", "to": target.address}],
                    url=f"ws://127.0.0.1:{server.port}/tunnel",
                    client={
                        "name": name,
                        "token_file": str(directory / f"{name}.token"),
                        "server_fingerprint": server.fingerprint,
                    },
                )
            )
            programs[name] = tunnel.start_client()
            programs[name].wait_for("the server publishes app.example.com")
        path = names / "app.example.com"
        with ExitStack() as visitors:
            met = [visitors.enter_context(by_name(path)).recv(1) for _ in range(6)]
        assert sorted(met) == [b"a"] * 3 + [b"b"] * 3
        programs["a"].stop()
        with by_name(path) as sock:
            assert sock.recv(1) == b"b"
        programs["b"].stop()
        wait_until(lambda: not path.exists(), "the name is gone")
