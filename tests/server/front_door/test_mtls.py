"""A front door that demands certificates of its clients, over every transport."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError, UsageError
from qanat.config.server_settings import ServerSettings, ServerTls
from qanat.server.front_door.front_door import FrontDoor
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import extended_connect, grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.websocket import upgrade as websocket
from tests.support.machine.certificates import Authority, Certificate
from tests.support.server.front_door_rig import echo, front_door
from tests.support.transports.loopback import send_bytes

CONNECT = {
    "websocket": websocket.connect,
    "http2": http2.connect,
    "grpc": grpc.connect,
    "websocket-h2": extended_connect.connect,
}


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    (tmp_path / "ours").mkdir()
    return Authority(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    """The authority of the clients; another one than the server's own."""
    (tmp_path / "theirs").mkdir()
    return Authority(tmp_path / "theirs")


@contextmanager
def demanding(ours: Authority, client_ca: Path) -> Iterator[FrontDoor]:
    issued = ours.issue()
    issued.key.chmod(0o600)
    with front_door(tls=ServerTls(issued.certificate, issued.key, client_ca)) as door:
        yield door


def exchange(door: FrontDoor, transport: str, ours: Authority, shown: Certificate | None) -> None:
    """A message there and back; raises TransportError when there is no pipe to be had."""
    route = Route(ca_file=ours.ca_file)
    if shown is not None:
        route = Route(ca_file=ours.ca_file, certificate=shown.certificate, key=shown.key)
    url = TunnelUrl.parse(f"wss://localhost:{door.addresses[0][1]}/tunnel")
    pipe = CONNECT[transport](url, route=route, deadline=Deadline(20))
    try:
        send_bytes(pipe, b"hello")
        assert pipe.recv() == b"hello"
    finally:
        pipe.close("the test is over")


@pytest.mark.parametrize("transport", CONNECT)
def test_only_who_shows_a_certificate_gets_in(transport: str, ours: Authority, theirs: Authority) -> None:
    with demanding(ours, theirs.ca_file) as door:
        exchange(door, transport, ours, theirs.issue("client.example"))
        for shown in (None, ours.issue("client.example"), theirs.issue("client.example", since=-9, until=-2)):
            with pytest.raises(TransportError, match=r"TLS failed .*(certificate|ca)") as caught:
                exchange(door, transport, ours, shown)
            assert "tls.certificate" in caught.value.hint
        exchange(door, transport, ours, theirs.issue("client.example"))


def test_a_changed_authority_counts_from_then_on(tmp_path: Path, ours: Authority, theirs: Authority) -> None:
    client_ca = tmp_path / "clients.pem"
    shutil.copy(theirs.ca_file, client_ca)
    old, new = theirs.issue("client.example"), ours.issue("client.example")
    with demanding(ours, client_ca) as door:
        exchange(door, "websocket", ours, old)
        client_ca.unlink()
        shutil.copy(ours.ca_file, client_ca)
        exchange(door, "websocket", ours, new)
        with pytest.raises(TransportError, match="TLS failed"):
            exchange(door, "websocket", ours, old)
        client_ca.write_text("not a certificate any more")
        exchange(door, "websocket", ours, new)  # the last one that could be used stays


def test_an_authority_that_cannot_be_read_ends_the_start(tmp_path: Path, ours: Authority) -> None:
    issued = ours.issue()
    (tmp_path / "bad.pem").write_text("hello")
    for name in ("bad.pem", "absent.pem"):
        tls = ServerTls(issued.certificate, issued.key, tmp_path / name)
        with pytest.raises(UsageError, match=name) as caught:
            FrontDoor(ServerSettings(clients=(), tls=tls), echo)
        assert "client_ca" in caught.value.hint
