"""The recipes of README.md, as they stand there but for the addresses of this machine: each carries what it says."""

from __future__ import annotations

import re
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.support.applications import Target, connection, echo, exchange, receive_exactly, unix_connection
from tests.support.datagrams import UdpEcho, ask, udp_client
from tests.support.harness import ROOT, Program, Tunnel, qanat
from tests.support.machine.ports import unused_port

_PAGE = (ROOT / "README.md").read_text().partition("\n## Recipes\n")[2]
_SHORT = re.search(r"`QANAT` stands for\n`tunnel\.py (.+)`", _PAGE)
RECIPES = re.findall(r"^# (.+?)[,;].*\n(allow_\w+: .+)\nQANAT (.+)$", _PAGE.partition("```\n")[2], re.MULTILINE)


class Place:
    """A server whose client `office` may do what a recipe says, and where the recipe's ports are on this machine."""

    def __init__(self, directory: Path, stack: ExitStack, rule: str) -> None:
        self.ours = unused_port()
        self.names = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-"))) / "published"
        self.echo, self.udp = stack.enter_context(Target(echo)), stack.enter_context(UdpEcho())
        account = {"allow_connect": [], "allow_listen": [], "name": "office", **yaml.safe_load(self._here(rule))}
        self._tunnel = stack.enter_context(Tunnel(directory, server={"publish_dir": str(self.names)}, account=account))
        self._tunnel.start_server()

    def run(self, options: str) -> Program:
        """Start the client with a recipe's options."""
        assert _SHORT is not None
        shared = _SHORT[1].replace("wss://tunnel.example.com/tunnel", f"ws://127.0.0.1:{self._tunnel.port}/tunnel")
        shared = shared.replace("office.token", str(self._tunnel.directory / "a.token"))
        return qanat(*shared.split(), *self._here(options).split(), cwd=self._tunnel.directory)

    def _here(self, text: str) -> str:
        """Put this machine's ports in: of what is listened on, and of the target, which comes second."""
        udp = self.udp.address.rpartition(":")[2]
        for said, here in (
            ("2222", self.ours),
            ("127.0.0.1:22", f"127.0.0.1:{self.echo.port}"),
            ("-L 5432", f"-L {self.ours}"),
            ("127.0.0.1:5432", f"127.0.0.1:{self.echo.port}"),
            (":3000", f":{self.echo.port}"),
            ("10.0.0.0/8", "127.0.0.0/8"),
            ("-D 1080", f"-D {self.ours}"),
            ("-L 51820", f"-L {self.ours}"),
            ("127.0.0.1:51820", f"127.0.0.1:{udp}"),
        ):
            text = re.sub(rf"{re.escape(said)}\b", str(here), text)
        return text


def _tcp(place: Place) -> None:
    with connection(place.ours) as sock:
        assert exchange(sock, b"hello") == b"hello"


def _name(place: Place) -> None:
    with unix_connection(str(place.names / "app.office.example.com")) as sock:
        assert exchange(sock, b"hello") == b"hello"


def _socks(place: Place) -> None:
    with connection(place.ours) as sock:
        sock.sendall(
            b"\x05\x01\x00\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + struct.pack("!H", place.echo.port)
        )
        assert receive_exactly(sock, 4) == b"\x05\x00\x05\x00"
        receive_exactly(sock, 8)
        assert exchange(sock, b"hello") == b"hello"


def _udp(place: Place) -> None:
    with udp_client(place.ours) as sock:
        assert ask(sock, b"hello") == b"hello"


CHECKS: dict[str, Callable[[Place], None]] = {
    "ssh to a machine behind NAT": _tcp,
    "a database beside the server": _tcp,
    "a web app by name": _name,
    "a browser through the office": _socks,
    "WireGuard over HTTPS": _udp,
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_the_page_has_these() -> None:
    assert [recipe for recipe, _, _ in RECIPES] == list(CHECKS)


@pytest.mark.parametrize(("recipe", "rule", "options"), RECIPES, ids=[recipe for recipe, _, _ in RECIPES])
def test_a_recipe_works_as_it_stands(tmp_path: Path, stack: ExitStack, recipe: str, rule: str, options: str) -> None:
    place = Place(tmp_path / "tunnel", stack, rule)
    client = stack.enter_context(place.run(options))
    client.wait_for("connected to ")
    if "-R" in options or "--publish" in options:
        client.wait_for("the server (listens on|publishes)")
    CHECKS[recipe](place)
