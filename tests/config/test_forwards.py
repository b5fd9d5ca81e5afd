"""Forwards of Unix sockets and of ranges of ports, in a file and as ssh has them, and what each may have beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import TcpAddress, UnixAddress
from qanat.base.errors import UsageError
from qanat.config.command_line import client_from_options
from qanat.config.forward_settings import Forward
from qanat.config.forwards import parse_ssh_forward
from qanat.endpoints.unix import Permissions
from tests.support.config_rig import ENVIRON, URL, ConfigDirectory, client_with

A, B = UnixAddress("/run/a.sock"), UnixAddress("/run/b.sock")
DB = TcpAddress("db", 80)
LONG = "/" + "x" * 107


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


@pytest.mark.parametrize(
    ("text", "listen", "to", "ports"),
    [
        ("/run/a.sock:db:80", A, DB, 1),
        ("/run//a.sock:db:80", A, DB, 1),
        ("/run/a.sock:/run/b.sock", A, B, 1),
        ("80:/run/b.sock", TcpAddress("localhost", 80), B, 1),
        ("[::1]:80:/run/b.sock", TcpAddress("::1", 80), B, 1),
        ("*:80:/run/b.sock", TcpAddress("*", 80), B, 1),
        ("@a:@b", UnixAddress("@a"), UnixAddress("@b"), 1),
        ("8000-8100:db:9000-9100", TcpAddress("localhost", 8000), TcpAddress("db", 9000), 101),
        ("[::1]:1-1024:[::2]:1-1024", TcpAddress("::1", 1), TcpAddress("::2", 1), 1024),
        ("*:7-7:db:8", TcpAddress("*", 7), TcpAddress("db", 8), 1),
    ],
)
def test_they_are_read_as_ssh_would(
    text: str, listen: TcpAddress | UnixAddress, to: TcpAddress | UnixAddress, ports: int
) -> None:
    for kind in ("local", "remote"):
        assert parse_ssh_forward(kind, text) == Forward(kind, listen, to, ports=ports)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/run/a.sock", "has no target"),
        ("/run/a.sock:80", "has no target"),
        ("127.0.0.1:/run/a.sock:db:80", "has a port that is not a number"),
        ("1:2:3:/run/b.sock", "has too many parts"),
        ("/run/../a.sock:db:80", "has .. in a Unix socket's path"),
        ("/run/:db:80", "is a directory"),
        ("@:db:80", "names no abstract socket"),
        (f"{LONG}:db:80", "is 108 bytes long, and a Unix socket's path has 107 at most"),
        (f"80:{LONG}", "is 108 bytes long"),
        ("8000-8100:db:9000-9099", "has 101 ports, and its target 100"),
        ("8000-8001:db:80", "has 2 ports, and its target 1"),
        ("8000-8001:/run/a.sock", "has 2 ports, and its target 1"),
        ("8001-8000:db:80", "ends before it begins"),
        ("1-1025:db:1-1025", "has a range of 1025 ports (one forward has 1024 at most)"),
        ("0-5:db:0-5", "has a port outside 1 to 65535"),
        ("65530-65540:db:1-11", "has a port outside"),
        ("1-2-3:db:1-3", "has a port that is not a number"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        client_from_options(urls=[URL], local=[text], environ=ENVIRON)
    assert message in str(caught.value)


def test_two_ranges_that_share_a_port_listen_in_one_place() -> None:
    given = {"urls": [URL], "environ": ENVIRON}
    with pytest.raises(UsageError, match="listens where another -L does already"):
        client_from_options(local=["8000-8010:db:1-11", "127.0.0.1:8010:db:1"], **given)
    with pytest.raises(UsageError, match="listens where another -R does already"):
        client_from_options(remote=["/run/a.sock:db:1", "/run//a.sock:db:2"], **given)
    settings = client_from_options(local=["8000-8010:db:1-11", "127.0.0.1:8011:db:1", "127.0.0.2:8005:db:1"], **given)
    assert len(settings.forwards) == 3


def test_a_range_is_a_forward_for_each_of_its_ports() -> None:
    forward = parse_ssh_forward("remote", "*:8000-8002:db:9000-9002")
    assert str(forward) == "remote *:8000-8002 to db:9000-9002"
    assert [str(part) for part in forward.parts()] == [f"remote *:800{n} to db:900{n}" for n in range(3)]


def test_a_file_has_them_too(directory: ConfigDirectory) -> None:
    settings = directory.client(
        client_with(
            "forwards:\n"
            "  - {local: /run/a.sock, to: db:80, mode: '0660', owner: www-data, group: '33'}\n"
            "  - {local: ['@a', '5432', 8000-8001], to: db:1}\n".replace(", 8000-8001", "")
            + "  - {local: [8000-8001, '*:9000-9001'], to: db:1-2}\n"
            "  - {remote: 0.0.0.0:80, to: /run/b.sock, proxy_protocol: v2, accept_proxy_protocol: true}\n"
        )
    )
    assert settings.forwards == (
        Forward("local", A, DB, permissions=Permissions(0o660, "www-data", "33")),
        Forward("local", UnixAddress("@a"), TcpAddress("db", 1)),
        Forward("local", TcpAddress("localhost", 5432), TcpAddress("db", 1)),
        Forward("local", TcpAddress("localhost", 8000), TcpAddress("db", 1), ports=2),
        Forward("local", TcpAddress("*", 9000), TcpAddress("db", 1), ports=2),
        Forward("remote", TcpAddress("0.0.0.0", 80), B, proxy_protocol="v2", accept_proxy_protocol=True),
    )


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("{local: 8000-8001, to: db:1}", "has 2 ports, and `to` has 1"),
        ("{local: /run/a.sock, to: db:1, mode: '0999'}", "is not a file's mode in octal digits"),
        ("{local: 127.0.0.1:1, to: db:1, mode: '0660'}", "is for the file of a Unix socket"),
        ("{local: '@a', to: db:1, owner: x}", "is for the file of a Unix socket"),
        ("{remote: /run/a.sock, to: db:1, owner: www-data}", "must be a number for `remote`"),
        ("{local: /run/a.sock, to: db:1, owner: 'a b'}", "is neither a name nor a number"),
        ("{local: 127.0.0.1:1, to: db:1, proxy_protocol: v3}", "must be v1 or v2"),
        ("{local: 127.0.0.1:1, to: db:1, accept_proxy_protocol: true}", "is for `remote`"),
        ("{remote: /run/a.sock, to: db:1, accept_proxy_protocol: true}", "is for TCP"),
        ("{local: run/a.sock, to: db:1}", "has no port"),
    ],
)
def test_what_a_file_cannot_have_is_told(directory: ConfigDirectory, forward: str, message: str) -> None:
    assert message in directory.fault(client_with(f"forwards: [{forward}]"))
