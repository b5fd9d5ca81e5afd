"""A port that leads anywhere: SOCKS and HTTP proxy through a whole tunnel, at either end of it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.applications import END, Target, connection, echo, exchange, receive_exactly, reply_after_end
from tests.support.cuts import Cuts
from tests.support.harness import SECONDS, Relay, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.web import Nginx, wait_until_listening

BODY = os.urandom(3_000_000)
SMALL = b"small\n"
PASSWORD = "wonder:land"


@dataclass(frozen=True, slots=True)
class Proxies:
    """A tunnel with a dynamic forward at either end, and one with a password; web servers and targets to reach."""

    tunnel: Tunnel
    ports: dict[str, int]
    web: tuple[int, int]
    echo: Target
    echo6: Target
    reply: Target
    files: Path
    closed: int


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    directory = tmp_path_factory.mktemp("dynamic")
    files = directory / "files"
    files.mkdir()
    (files / "body").write_bytes(BODY)
    (files / "small").write_bytes(SMALL)
    ports = {name: unused_port() for name in ("local", "remote", "guarded")}
    web = unused_port(), unused_port()
    with ExitStack() as stack:
        # Two servers, so that one connection to a proxy has to change between them; uploads come back by their size.
        blocks = [
            f"server {{ listen 127.0.0.1:{port}; listen [::1]:{port}; root {files}; client_max_body_size 0;"
            f" location /port {{ return 200 {port}; }}"
            f" location /upload {{ proxy_pass http://127.0.0.1:{port}/took; }}"
            ' location /took { return 200 "$content_length:$http_host:$http_proxy_connection:$http_x_hop"; } }'
            for port in web
        ]
        stack.enter_context(Nginx(directory / "nginx", blocks, web[0]))
        targets = [stack.enter_context(t) for t in (Target(echo), Target(echo, "::1"), Target(reply_after_end))]
        (directory / "tunnel").mkdir()
        (directory / "tunnel" / "users").touch(mode=0o600)
        (directory / "tunnel" / "users").write_text(f"# who may\nalice:{PASSWORD}\n")
        forwards = [
            {"dynamic": f"127.0.0.1:{ports['local']}"},
            {"remote": f"127.0.0.1:{ports['remote']}", "to": "dynamic"},
            {"dynamic": f"127.0.0.1:{ports['guarded']}", "password_file": "users"},
        ]
        rules = {"allow_connect": ["127.0.0.1:*", "[::1]:*", "127.0.0.1:*/udp", "[::1]:*/udp"]}
        tunnel = stack.enter_context(Tunnel(directory / "tunnel", forwards, client=rules, account=rules))
        yield Proxies(tunnel.start(), ports, web, *targets, files, unused_port())


@pytest.fixture(params=["local", "remote"])
def port(request: pytest.FixtureRequest, proxies: Proxies) -> int:
    return proxies.ports[request.param]


def curl(*arguments: object) -> tuple[int, str]:
    """curl's exit code, and what it printed."""
    command = [require_program("curl"), "-sS", "--noproxy", "", "-m", SECONDS, *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=2 * SECONDS)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@contextmanager
def socks5(port: int, host: str, target: int, early: bytes = b"") -> Iterator[tuple[socket.socket, int]]:
    """A connection that has asked for a name, all at once, with `early` behind; and the reply's code."""
    with connection(port) as sock:
        name = host.encode()
        asked = b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name + struct.pack("!H", target)
        sock.sendall(asked + early)
        assert receive_exactly(sock, 2) == b"\x05\x00"
        reply = receive_exactly(sock, 4)
        receive_exactly(sock, 6 if reply[3] == 1 else 18)
        yield sock, reply[1]


def http_head(sock: socket.socket) -> bytes:
    """Read an answer's head, byte by byte."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += receive_exactly(sock, 1)
    return head


PROXY = {
    "socks5h": ("--socks5-hostname",),
    "socks5": ("--socks5",),
    "socks4a": ("--socks4a",),
    "socks4": ("--socks4",),
    "http": ("-x",),
    "connect": ("--proxytunnel", "-x"),
}


@pytest.mark.parametrize("protocol", PROXY)
def test_curl_fetches_through_it(proxies: Proxies, port: int, protocol: str, tmp_path: Path) -> None:
    one, two = proxies.web
    options = (*PROXY[protocol], f"127.0.0.1:{port}")
    urls = [f"http://127.0.0.1:{web}/port" for web in (one, two, one)]
    assert curl(*options, *urls) == (0, f"{one}{two}{one}")
    fetched = tmp_path / "body"
    assert curl(*options, "-o", fetched, f"http://127.0.0.1:{one}/body")[0] == 0
    assert fetched.read_bytes() == BODY
    if protocol in ("socks5h", "socks5", "http", "connect"):
        assert curl(*options, f"http://[::1]:{one}/small") == (0, SMALL.decode())
    if protocol in ("socks5h", "socks4a", "http", "connect"):
        assert curl(*options, f"http://localhost:{one}/small") == (0, SMALL.decode())


def test_one_connection_to_the_proxy_serves_many_hosts(proxies: Proxies, port: int) -> None:
    one, two = proxies.web
    urls = [f"http://127.0.0.1:{web}/port" for web in (one, one, two, one, two)]
    code, said = curl("-x", f"127.0.0.1:{port}", "-w", " %{num_connects},", *urls)
    assert (code, said) == (0, f"{one} 1,{one} 0,{two} 0,{one} 0,{two} 0,")


def test_uploads_are_whole_and_headers_of_one_hop_stay_here(proxies: Proxies, port: int) -> None:
    one = proxies.web[0]
    url = f"http://127.0.0.1:{one}/took"
    extra = ("-H", "Proxy-Connection: keep-alive", "-H", "Connection: X-Hop", "-H", "X-Hop: 1")
    said = curl("-x", f"127.0.0.1:{port}", *extra, "--data-binary", f"@{proxies.files / 'body'}", url)
    assert said == (0, f"{len(BODY)}:127.0.0.1:{one}::")
    said = curl("-x", f"127.0.0.1:{port}", "-T", proxies.files / "body", "-H", "Expect: 100-continue", url)
    assert said[0] == 0
    assert said[1].startswith(f"{len(BODY)}:")


@pytest.mark.parametrize(
    ("where", "code", "status"),
    [("closed", 5, "502"), ("forbidden", 2, "403"), ("unknown", 4, "502")],
)
def test_a_refusal_comes_in_the_protocols_own_words(
    proxies: Proxies, port: int, where: str, code: int, status: str
) -> None:
    host, target = {
        "closed": ("127.0.0.1", proxies.closed),
        "forbidden": ("192.0.2.1", 80),
        "unknown": ("no-such-host.invalid", 80),
    }[where]
    with socks5(port, host, target) as (sock, answered):
        assert answered == code
        assert sock.recv(1) == b""  # orderly, not a reset that would take the reply with it
    exit_code, said = curl("-x", f"127.0.0.1:{port}", "-w", "%{http_code}", f"http://{host}:{target}/")
    assert (exit_code, said[-3:]) == (0, status)
    assert f"cannot connect to {host}:{target}: " in said
    exit_code, said = curl("-x", f"127.0.0.1:{port}", "-p", "-w", "%{http_connect}", f"http://{host}:{target}/")
    assert exit_code != 0
    assert f"{status}" in said
    with connection(port) as sock:
        named = b"\x04\x01" + struct.pack("!H", target) + b"\0\0\0\1\0" + host.encode() + b"\0"
        sock.sendall(named)
        assert receive_exactly(sock, 8)[1] == 91
        assert sock.recv(1) == b""


def test_what_is_sent_before_the_answer_reaches_the_target(proxies: Proxies, port: int) -> None:
    with socks5(port, "127.0.0.1", proxies.echo.port, b"early") as (sock, code):
        assert code == 0
        assert receive_exactly(sock, 5) == b"early"
        exchange(sock, os.urandom(300_000))
    with connection(port) as sock:
        sock.sendall(f"CONNECT {proxies.echo6.address} HTTP/1.1\r\nHost: x\r\n\r\nearly".encode())
        assert http_head(sock).startswith(b"HTTP/1.1 200 ")
        assert receive_exactly(sock, 5) == b"early"


def test_the_reply_has_the_address_that_was_reached(proxies: Proxies, port: int) -> None:
    with connection(port) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + struct.pack("!H", proxies.echo.port))
        answer = receive_exactly(sock, 12)
    assert answer == b"\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01" + struct.pack("!H", proxies.echo.port)


def test_half_close_reaches_the_target_and_its_reply_comes_back(proxies: Proxies, port: int) -> None:
    body = os.urandom(200_000)
    with socks5(port, "127.0.0.1", proxies.reply.port) as (sock, code):
        assert code == 0
        sock.sendall(body)
        sock.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert received.startswith(hashlib.sha256(body).digest())
    assert END in proxies.reply.endings


def test_twenty_at_once_of_every_protocol(proxies: Proxies, port: int) -> None:
    one = proxies.web[0]
    options = [PROXY[name] for name in ("socks5h", "socks4a", "http", "connect")] * 5
    results: list[tuple[int, str]] = []
    threads = [
        threading.Thread(
            target=lambda option=option: results.append(  # type: ignore[misc]
                curl(*option, f"127.0.0.1:{port}", f"http://127.0.0.1:{one}/small")
            )
        )
        for option in options
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(0, SMALL.decode())] * 20


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 20,
        b"\xff" * 5000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["tls", "zeros", "ones", "web"],
)
def test_garbage_ends_its_own_connection_alone(proxies: Proxies, port: int, garbage: bytes) -> None:
    with connection(port) as sock:
        sock.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(65536):
                pass
    assert curl("-x", f"127.0.0.1:{port}", f"http://127.0.0.1:{proxies.web[0]}/small") == (0, SMALL.decode())


def test_passwords_let_in_whom_they_should(proxies: Proxies) -> None:
    port, url = proxies.ports["guarded"], f"http://127.0.0.1:{proxies.web[0]}/small"
    for option in ("http://", "socks5h://"):
        right, wrong = f"alice:{PASSWORD}", "alice:wrong"
        assert curl("-x", f"{option}127.0.0.1:{port}", "-U", right, url) == (0, SMALL.decode())
        assert curl("-p", "-x", f"{option}127.0.0.1:{port}", "-U", right, url) == (0, SMALL.decode())
        for user in (wrong, "bob:x"):
            assert SMALL.decode() not in curl("-x", f"{option}127.0.0.1:{port}", "-U", user, url)[1]
        assert SMALL.decode() not in curl("-x", f"{option}127.0.0.1:{port}", url)[1]
    assert curl("-x", f"127.0.0.1:{port}", "-w", "%{http_code}", url)[1].endswith("407")
    assert curl("--socks4a", f"127.0.0.1:{port}", url)[0] != 0
    proxies.tunnel.client.wait_for("wrong user or password")
    assert PASSWORD not in proxies.tunnel.client.output


def test_a_remote_dynamic_port_asks_for_the_passwords_that_the_server_has(proxies: Proxies, tmp_path: Path) -> None:
    port, url = unused_port(), f"http://127.0.0.1:{proxies.web[0]}/small"
    forward = {"remote": f"127.0.0.1:{port}", "to": "dynamic"}
    client, account = {"allow_connect": ["127.0.0.1:*"]}, {"dynamic_password_file": "users"}
    with Tunnel(tmp_path, [forward], client=client, account=account) as tunnel:
        (tmp_path / "users").touch(mode=0o600)
        (tmp_path / "users").write_text(f"alice:{PASSWORD}\n")
        tunnel.start()
        for option in ("http://", "socks5h://"):
            proxy = ("-x", f"{option}127.0.0.1:{port}")
            assert curl(*proxy, "-U", f"alice:{PASSWORD}", url) == (0, SMALL.decode())
            assert SMALL.decode() not in curl(*proxy, "-U", "alice:wrong", url)[1]
            assert SMALL.decode() not in curl(*proxy, url)[1]
        tunnel.server.wait_for("wrong user or password")
        assert PASSWORD not in tunnel.server.output


def test_a_websocket_goes_through_as_a_plain_request_that_is_upgraded(proxies: Proxies, port: int) -> None:
    def serve(sock: socket.socket, target: Target) -> str:
        head = http_head(sock)
        assert head.startswith(b"GET /chat HTTP/1.1\r\n")
        assert b"Upgrade: websocket\r\n" in head
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello")
        return echo(sock, target)

    with Target(serve) as target, connection(port) as sock:
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(
            f"GET http://{target.address}/chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert http_head(sock).startswith(b"HTTP/1.1 101 ")
        assert receive_exactly(sock, 5) == b"hello"
        exchange(sock, os.urandom(1_000_000))
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        target.wait_endings(1)
        assert target.endings == [END]


def test_datagrams_go_to_whatever_each_of_them_names_and_end_with_their_connection(proxies: Proxies, port: int) -> None:
    def target(host: str) -> socket.socket:
        sock = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind((host, 0))
        sock.settimeout(SECONDS)
        return sock

    def header(form: bytes, number: int) -> bytes:
        return b"\0\0\0" + form + struct.pack("!H", number)

    with ExitStack() as stack:
        one, both = target("127.0.0.1"), target("::")  # the second gets what comes over IPv4, too
        control = stack.enter_context(connection(port))
        control.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        answer = receive_exactly(control, 12)
        assert answer[:6] == b"\x05\x00\x05\x00\x00\x01"
        relay = socket.inet_ntoa(answer[6:10]), struct.unpack("!H", answer[10:])[0]
        assert relay[0] == "127.0.0.1"
        user, stranger = target("127.0.0.1"), target("127.0.0.1")
        v4, v6 = b"\x01\x7f\0\0\1", b"\x04" + bytes(15) + b"\1"
        for sock, form in ((one, v4), (both, v6), (both, b"\x03\x09localhost")):
            number, payload = sock.getsockname()[1], os.urandom(1200)
            for _ in range(3):  # datagrams may be lost
                user.sendto(header(form, number) + payload, relay)
            came, source = sock.recvfrom(65535)
            assert came == payload
            sock.sendto(b"back:" + payload, source)
            said = user.recv(65535)
            assert said.endswith(b"back:" + payload)
            assert said[3:4] in (v4[:1], v6[:1])
            assert struct.unpack("!H", said[-len(payload) - 7 : -len(payload) - 5])[0] == number
            sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while True:
                    assert sock.recv(65535) == payload
            sock.settimeout(SECONDS)
        big = os.urandom(60_000)
        user.sendto(header(v4, one.getsockname()[1]) + big, relay)
        assert one.recv(65535) == big
        # A fragment, half a header, a forbidden target, and another sender than the one who came first: dropped.
        number = one.getsockname()[1]
        bad_ones = b"\0\0\1" + header(v4, number)[3:], b"\0\0\0\3\x50a", header(b"\x01\xc0\0\2\1", 9)
        for bad in bad_ones:
            user.sendto(bad, relay)
        stranger.sendto(header(v4, number) + b"stranger", relay)
        user.sendto(header(v4, number) + b"last", relay)
        assert one.recv(65535) == b"last"
        control.close()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            try:
                probe.bind(relay)
                break
            except OSError:
                time.sleep(0.05)
        else:
            pytest.fail("the socket of the datagrams outlived their connection")


def test_what_waits_costs_no_thread(proxies: Proxies, port: int) -> None:
    """Connections that have said nothing, that wait for a slow target, that are kept, and that were upgraded."""
    program = proxies.tunnel.client if port == proxies.ports["local"] else proxies.tunnel.server
    with ExitStack() as stack:
        silent = Target(lambda sock, target: (target.go.wait(), "end")[1])
        stack.enter_context(silent)
        before = settled_threads(program)
        kept = []
        for number in range(40):
            sock = stack.enter_context(connection(port))
            url = f"http://127.0.0.1:{proxies.web[0]}/port" if number % 2 else f"http://{silent.address}/"
            if number % 4:
                sock.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            if number % 2:
                http_head(sock)
                kept.append(sock)
        silent.wait_accepted(10)
        assert settled_threads(program) <= before + 3


def settled_threads(program: object) -> int:
    """How many threads a program has when those that wait for more to do have ended: they do after 3 s."""
    deadline, least = time.monotonic() + 4, 1 << 20
    while time.monotonic() < deadline:
        least = min(least, program.threads)  # type: ignore[attr-defined]
        time.sleep(0.2)
    return least


# --- other people's programs ------------------------------------------------------------------------


def test_git_clones_through_it(proxies: Proxies, port: int, tmp_path: Path) -> None:
    git = require_program("git")
    work, bare = tmp_path / "work", proxies.files / f"repository-{port}.git"

    def run(*command: object) -> None:
        environ = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "no_proxy": ""}
        subprocess.run([str(part) for part in (git, *command)], check=True, timeout=SECONDS, env=environ)

    run("init", "-q", "-b", "main", work)
    (work / "file").write_bytes(BODY)
    run("-C", work, "add", "file")
    run("-C", work, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one")
    run("clone", "-q", "--bare", work, bare)
    run("-C", bare, "update-server-info")
    url = f"http://localhost:{proxies.web[0]}/{bare.name}"
    for number, proxy in enumerate((f"http://127.0.0.1:{port}", f"socks5h://127.0.0.1:{port}")):
        run("-c", f"http.proxy={proxy}", "clone", "-q", url, tmp_path / f"clone-{number}")
        assert (tmp_path / f"clone-{number}" / "file").read_bytes() == BODY


def test_apt_updates_through_it(proxies: Proxies, port: int, tmp_path: Path) -> None:
    apt = require_program("apt-get")
    repository = proxies.files / f"debian-{port}"
    repository.mkdir()
    (repository / "Packages").write_text(
        "Package: qanat-test\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nFilename: ./x.deb\nSize: 1\n"
        f"SHA256: {'0' * 64}\nDescription: only a test\n"
    )
    state = tmp_path / "state"
    for name in ("lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "etc/trusted.gpg.d"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    sources = tmp_path / "sources.list"
    sources.write_text(f"deb [trusted=yes] http://localhost:{proxies.web[0]}/{repository.name} ./\n")
    options = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc": state / "etc",
        "Acquire::http::Proxy": f"http://127.0.0.1:{port}",
        "Acquire::http::Proxy::localhost": f"http://127.0.0.1:{port}",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "false",
    }
    command = [apt, *(part for key, value in options.items() for part in ("-o", f"{key}={value}")), "update"]
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=SECONDS)
    lists = list((state / "lists").glob("*Packages*"))
    assert len(lists) == 1, (done.stdout + done.stderr).decode()
    assert b"Package: qanat-test" in lists[0].read_bytes()


def test_proxychains_takes_a_program_through_it_that_knows_no_proxy(
    proxies: Proxies, port: int, tmp_path: Path
) -> None:
    chains = require_program("proxychains4")
    for kind in ("socks5", "socks4", "http"):
        config = tmp_path / f"{kind}.conf"
        config.write_text(f"strict_chain\nproxy_dns\n[ProxyList]\n{kind} 127.0.0.1 {port}\n")
        command = [chains, "-q", "-f", config, require_program("curl"), "-sS", "-m", "20"]
        url = f"http://localhost:{proxies.web[0]}/small"
        done = subprocess.run([str(part) for part in (*command, url)], capture_output=True, timeout=SECONDS)
        assert (done.returncode, done.stdout) == (0, SMALL), done.stderr.decode()


# --- cuts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "transport", "option"), [("local", "websocket", "-x"), ("remote", "grpc", "--socks5-hostname")]
)
def test_a_download_through_it_outlives_its_connections(
    proxies: Proxies, tmp_path: Path, side: str, transport: str, option: str
) -> None:
    port, block, blocks = unused_port(), os.urandom(1_000_000), 100
    large = proxies.files / "large"
    large.write_bytes(block * blocks)
    forward = {"dynamic": f"127.0.0.1:{port}"} if side == "local" else {"remote": f"127.0.0.1:{port}", "to": "dynamic"}
    client = {"transport": transport, "allow_connect": ["127.0.0.1:*"]}
    came, count = hashlib.sha256(), 0
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel(tmp_path / "tunnel", [forward], client=client))
        relay = stack.enter_context(Relay(tunnel.port))
        scheme = "ws" if transport == "websocket" else "http"
        tunnel.client_settings["url"] = f"{scheme}://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        command = [require_program("curl"), "-sS", "--noproxy", "", option, f"127.0.0.1:{port}"]
        url = f"http://127.0.0.1:{proxies.web[0]}/large"
        curl = stack.enter_context(subprocess.Popen([*map(str, command), url], stdout=subprocess.PIPE))
        stack.callback(curl.kill)
        assert isinstance(curl.stdout, io.BufferedReader)
        with Cuts(tunnel, relay, lambda: count, least=50_000) as cuts:
            while data := curl.stdout.read1(50_000):
                came.update(data)
                count += len(data)
                if not cuts.over:
                    time.sleep(0.02)
        assert curl.wait(SECONDS) == 0
    assert count == len(block) * blocks
    assert came.digest() == hashlib.sha256(block * blocks).digest()


def test_a_request_without_a_session_is_told_so_and_one_that_waits_is_served(tmp_path: Path) -> None:
    port = unused_port()
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        forwards = [{"dynamic": f"127.0.0.1:{port}"}]
        tunnel = stack.enter_context(Tunnel(tmp_path, forwards, client={"connect_timeout": 1}))
        tunnel.start_client(wait=False).wait_for("listening on")
        wait_until_listening(port, tunnel.client)
        with socks5(port, "127.0.0.1", target.port) as (_, code):
            assert code == 3
        status = curl("-x", f"127.0.0.1:{port}", "-w", "%{http_code}", f"http://{target.address}/")
        assert status[1].endswith("503")
