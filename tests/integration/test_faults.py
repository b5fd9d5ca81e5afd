"""The table of what goes wrong first: for each, the real command says once what it is and what to do.

Where trying again may help, the client goes on trying, and ends with 0 when told to; where only a person
can help, it ends by itself.  No output has a traceback or a token in it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qanat.handshake.tokens import generate_token
from tests.support.applications import Target
from tests.support.harness import Program, Tunnel, qanat
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3


@pytest.fixture
def tunnel(directory: Path) -> Iterator[Tunnel]:
    """Not started."""
    with Tunnel(directory) as tunnel:
        yield tunnel


def said_once(tunnel: Tunnel, program: Program, *parts: str, tries: int = 1) -> None:
    """One line (a try) has the message, and what to do stands with it."""
    output = program.output
    tunnel.check_output(output)
    assert output.count(parts[0]) == tries, output
    _, _, after = output.partition(parts[0])
    for part in parts[1:]:
        assert part in after, f"{part!r} is not in:\n{output}"


def ends_with(tunnel: Tunnel, program: Program, code: int, *parts: str) -> None:
    """The program ends by itself."""
    assert program.end() == code, program.output
    assert program.output.count("error") == 1, program.output
    said_once(tunnel, program, *parts)


def tries_again(tunnel: Tunnel, *parts: str) -> None:
    """The client says what it met, tries again, and stops when told to."""
    tunnel.client_settings["reconnect"] = {"min": 30, "max": 30}  # anything up to that, so mostly it is met once
    client = tunnel.start_client(wait=False)
    client.wait_for(r"trying again in \d")
    assert client.stop() == DONE
    said_once(tunnel, client, *parts, tries=client.count(" error "))


# --- who is who -------------------------------------------------------------------------------------


def test_a_wrong_token(tunnel: Tunnel) -> None:
    tunnel.start_server()
    (tunnel.directory / "a.token").write_text(generate_token() + "\n")
    ends_with(tunnel, tunnel.start_client(wait=False), REFUSED, "the server does not accept the client 'a'", "compare")
    tunnel.server.wait_for(r"refused 127\.0\.0\.1:\d+: .*wrong token")


def test_an_unknown_name_looks_the_same_to_the_client(tunnel: Tunnel) -> None:
    tunnel.start_server()
    tunnel.client_settings["name"] = "b"
    ends_with(tunnel, tunnel.start_client(wait=False), REFUSED, "the server does not accept the client 'b'", "compare")
    tunnel.server.wait_for(r"refused 127\.0\.0\.1:\d+: .*unknown client name")


def test_a_wrong_fingerprint(tunnel: Tunnel) -> None:
    tunnel.start_server()
    wrong = "SHA256:" + "A" * 43
    tunnel.client_settings["server_fingerprint"] = wrong
    ends_with(
        tunnel,
        tunnel.start_client(wait=False),
        REFUSED,
        f"the server's key is {tunnel.fingerprint}, but {wrong} is pinned",
        "someone may be in between",
        "tunnel.py fingerprint",
    )


def test_a_known_host_whose_key_changed(tunnel: Tunnel) -> None:
    del tunnel.client_settings["server_fingerprint"]
    tunnel.start_server()
    tunnel.start_client()
    tunnel.client.wait_for("is trusted from now on")
    assert tunnel.client.stop() == DONE
    assert tunnel.server.stop() == DONE
    (tunnel.directory / "server.key").unlink()
    tunnel.start_server()
    client = tunnel.start_client(wait=False)
    assert client.end() == REFUSED
    said_once(tunnel, client, "HAS CHANGED!", tunnel.fingerprint, "known_hosts", "delete line")


def test_a_name_in_use_by_another_live_process(tunnel: Tunnel) -> None:
    tunnel.start()
    tries_again(tunnel, "the server refuses this client's name: a is connected from 127.0.0.1:", "stop the other")


# --- ports ------------------------------------------------------------------------------------------


def test_a_local_port_in_use(tunnel: Tunnel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tunnel.client_settings["forwards"] = [{"local": f"127.0.0.1:{port}", "to": "127.0.0.1:9"}]
        tunnel.client_settings["exit_on_forward_failure"] = True
        client = tunnel.start_client(wait=False)
        ends_with(tunnel, client, FAILED, f"cannot listen on 127.0.0.1:{port}: Address already in use", "another port")


def test_a_local_port_in_use_is_asked_for_again(tunnel: Tunnel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tunnel.client_settings["forwards"] = [{"local": f"127.0.0.1:{port}", "to": "127.0.0.1:9"}]
        client = tunnel.start_client(wait=False)
        client.wait_for("asking again in 10 s")
        assert client.stop() == DONE
        said_once(tunnel, client, f"cannot listen on 127.0.0.1:{port}: Address already in use", "another port")


def test_a_remote_port_in_use(tunnel: Tunnel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tunnel.client_settings["forwards"] = [{"remote": f"127.0.0.1:{port}", "to": "127.0.0.1:9"}]
        tunnel.start_server()
        client = tunnel.start_client(wait=False)
        client.wait_for("asking again in 10 s")
        assert client.stop() == DONE
        said_once(tunnel, client, f"the server cannot listen for remote 127.0.0.1:{port}", "in use", "choose another")


def test_a_remote_port_that_the_server_does_not_allow(tunnel: Tunnel) -> None:
    port = unused_port()
    tunnel.client_settings["forwards"] = [{"remote": f"127.0.0.1:{port}", "to": "127.0.0.1:9"}]
    tunnel.server_settings["clients"][0]["allow_listen"] = []
    tunnel.start_server()
    client = tunnel.start_client(wait=False)
    client.wait_for("asking again in 60 s")
    assert client.stop() == DONE
    said_once(tunnel, client, f"the server cannot listen for remote 127.0.0.1:{port}", "allow_listen")


def test_the_servers_port_in_use(tunnel: Tunnel) -> None:
    tunnel.start_server()
    second = qanat("server", "-c", tunnel.directory / "server.yaml")
    with second:
        message = f"cannot listen on 127.0.0.1:{tunnel.port}: Address already in use"
        ends_with(tunnel, second, FAILED, message, "another process")


# --- configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["server", "client"])
def test_yaml_that_is_none(tunnel: Tunnel, which: str) -> None:
    (tunnel.directory / f"{which}.yaml").write_text(f"{which}: [unclosed\n")
    with qanat(which, "-c", tunnel.directory / f"{which}.yaml") as program:
        assert program.end() == USAGE
        tunnel.check_output(program.output)
        assert f"{which}.yaml:" in program.output


def test_a_misspelled_key(tunnel: Tunnel) -> None:
    tunnel.client_settings["forwarts"] = []
    client = tunnel.start_client(wait=False)
    assert client.end() == USAGE
    said_once(tunnel, client, "forwarts", "forwards")


# --- what answers instead of the server -------------------------------------------------------------


def test_nothing_listens_there(tunnel: Tunnel) -> None:
    tries_again(tunnel, f"127.0.0.1:{tunnel.port}: connection refused", "check that the server runs")


def test_a_host_that_does_not_exist(tunnel: Tunnel) -> None:
    tunnel.client_settings["url"] = "wss://no-such-host.invalid/tunnel"
    # Without any name server the answer is another one, and just as clear.
    tries_again(tunnel, "no-such-host.invalid", "check")


def test_a_tls_certificate_that_does_not_verify(tunnel: Tunnel) -> None:
    tunnel.server_settings["tls"] = _certificate(tunnel)
    tunnel.start_server()
    tunnel.client_settings["url"] = f"wss://localhost:{tunnel.port}/tunnel"
    tries_again(tunnel, "the TLS certificate of localhost is", "tls.ca_file")


def test_tls_towards_a_port_without_it(tunnel: Tunnel) -> None:
    tunnel.start_server()
    tunnel.client_settings["url"] = f"wss://127.0.0.1:{tunnel.port}/tunnel"
    tries_again(tunnel, "closed the connection during the TLS handshake", "write ws:// instead of wss://")


def test_no_tls_towards_a_port_with_it(tunnel: Tunnel) -> None:
    tunnel.server_settings["tls"] = _certificate(tunnel)
    tunnel.start_server()
    tries_again(
        tunnel,
        f"ws://127.0.0.1:{tunnel.port}/tunnel over websocket: 400",
        "if the port speaks TLS, write wss:// instead of ws://",
    )


def test_our_server_at_another_path(tunnel: Tunnel) -> None:
    tunnel.start_server()
    tunnel.client_settings["url"] = f"ws://127.0.0.1:{tunnel.port}/elsewhere"
    tries_again(tunnel, "404 Not Found", "path")


@pytest.mark.parametrize(
    ("answer", "words", "hint"),
    [
        ("200 OK", "an ordinary web page", "path"),
        ("426 Upgrade Required\r\nUpgrade: websocket", "426 Upgrade Required", "proxy_http_version 1.1"),
        ("403 Forbidden", "403 Forbidden", "allow the tunnel's path"),
        ("502 Bad Gateway", "502 Bad Gateway", "check that the server runs"),
        ("503 Service Unavailable", "503 Service Unavailable", "tried again later"),
        (
            "301 Moved Permanently\r\nLocation: https://example.com/",
            "301: it redirects to https://example.com/",
            "wss://",
        ),
        ("302 Found\r\nLocation: /login", "302: it redirects to /login", "put the final address into the URL"),
    ],
)
def test_a_web_server_that_is_not_ours(tunnel: Tunnel, answer: str, words: str, hint: str) -> None:
    with web_server(f"HTTP/1.1 {answer}\r\nContent-Length: 6\r\nConnection: close\r\n\r\nHello\n") as port:
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{port}/tunnel"
        tries_again(tunnel, words, hint)


def test_a_server_that_is_no_web_server(tunnel: Tunnel) -> None:
    with web_server("220 smtp.example.com ESMTP\r\n") as port:
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{port}/tunnel"
        tries_again(tunnel, "is not a web server", "check host and port")


@contextmanager
def web_server(answer: str) -> Iterator[int]:
    """Something that answers every request with `answer`; its port."""

    def serve(sock: socket.socket, target: Target) -> str:
        with contextlib.suppress(OSError):
            sock.recv(65536)
            sock.sendall(answer.encode())
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        return "end"

    with Target(serve) as target:
        yield target.port


def _certificate(tunnel: Tunnel) -> dict[str, str]:
    issued = Authority(tunnel.directory).issue()
    issued.key.chmod(0o600)
    return {"certificate": str(issued.certificate), "key": str(issued.key)}
