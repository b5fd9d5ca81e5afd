"""The front door with a certificate of its own, and what happens when the two ends disagree about TLS."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import pytest
import websocket

from qanat.base.errors import UsageError
from qanat.config.server_settings import ServerLimits, ServerSettings, ServerTls
from qanat.server.front_door.front_door import FrontDoor
from tests.support.server.front_door_rig import (
    Certificate,
    connect,
    echo,
    exchange,
    front_door,
    read_to_end,
    request,
    seconds_until_closed,
)


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


def ask_health(door: FrontDoor, context: ssl.SSLContext) -> bytes:
    with connect(door) as sock, context.wrap_socket(sock, server_hostname="localhost") as tls:
        tls.sendall(request("GET /healthz HTTP/1.1"))
        return read_to_end(tls)


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelno >= logging.WARNING for record in caplog.records)


def test_it_serves_https_and_offers_http2_before_http_1_1(certificate: Certificate) -> None:
    context = certificate.client_context()
    context.set_alpn_protocols(["http/1.1", "h2"])
    with (
        front_door(tls=certificate.tls) as door,
        connect(door) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        assert tls.selected_alpn_protocol() == "h2"
        assert tls.version() == "TLSv1.3"
    context.set_alpn_protocols(["http/1.1"])
    with (
        front_door(tls=certificate.tls) as door,
        connect(door) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        assert tls.selected_alpn_protocol() == "http/1.1"
        tls.sendall(request("GET /healthz HTTP/1.1"))
        assert read_to_end(tls).endswith(b"\r\n\r\nok\n")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_speaks_tls_1_2_and_nothing_older(certificate: Certificate) -> None:
    with front_door(tls=certificate.tls) as door:
        modern = certificate.client_context()
        modern.maximum_version = ssl.TLSVersion.TLSv1_2
        assert ask_health(door, modern).endswith(b"ok\n")
        old = certificate.client_context()
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_health(door, old)


def test_a_websocket_client_comes_in_over_tls(certificate: Certificate) -> None:
    with front_door(tls=certificate.tls) as door:
        client = websocket.create_connection(
            f"wss://localhost:{door.addresses[0][1]}/tunnel",
            timeout=10,
            subprotocols=["qanat.1"],
            sslopt={"ca_certs": str(certificate.tls.certificate)},
        )
        try:
            client.send_binary(b"x" * 200_000)
            assert client.recv() == b"x" * 200_000
        finally:
            client.shutdown()  # type: ignore[no-untyped-call]


def test_a_renewed_certificate_is_served_without_a_restart(certificate: Certificate) -> None:
    with front_door(tls=certificate.tls) as door:
        assert certificate.served_by(door) == certificate.serial
        before = certificate.serial
        certificate.renew()
        assert certificate.serial != before
        assert certificate.served_by(door) == certificate.serial
        certificate.tls.certificate.write_text("garbage")
        assert certificate.served_by(door) == certificate.serial


def test_other_settings_bring_another_certificate_and_who_is_connected_stays(
    certificate: Certificate, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Certificate(tmp_path / "other")
    settings = ServerSettings(clients=(), tls=certificate.tls, listen=(("127.0.0.1", 0),))
    with front_door(tls=certificate.tls) as door, connect(door) as sock:
        with certificate.client_context().wrap_socket(sock, server_hostname="localhost") as tls:
            assert door.change(settings) == []
            assert door.change(replace(settings, tls=other.tls)) == ["tls: new connections get the new certificate"]
            assert other.served_by(door) == other.serial
            tls.sendall(request("GET /healthz HTTP/1.1"))
            assert read_to_end(tls).endswith(b"ok\n")
        other.renew()
        assert door.change(replace(settings, tls=other.tls)) == ["tls: new connections get the new certificate"]
        other.tls.certificate.write_text("garbage")
        with pytest.raises(UsageError):
            door.change(replace(settings, tls=other.tls))
        assert other.served_by(door) == other.serial
        assert door.change(replace(settings, tls=None)) == ["tls: none any more"]
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")


def test_a_certificate_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    tls = ServerTls(certificate=tmp_path / "missing.pem", key=tmp_path / "missing.key")
    with pytest.raises(UsageError, match=r"missing\.pem"):
        FrontDoor(ServerSettings(clients=(), tls=tls), echo)


def test_plain_http_on_a_tls_port_is_told_so_and_the_operator_too(
    certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    with front_door(tls=certificate.tls) as door:
        for _ in range(3):
            answer = exchange(door, request("GET /healthz HTTP/1.1"))
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"https://" in answer
            assert b"ok\n" not in answer
    assert warnings(caplog) == 1
    assert "plain HTTP from 127.0.0.1" in caplog.text


def test_tls_on_a_plain_port_is_closed_and_the_operator_told(
    certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    with front_door() as door:
        for _ in range(3):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask_health(door, certificate.client_context())
    assert warnings(caplog) == 1
    assert "TLS from 127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\xff\xff" + b"\xff" * 300, b"\x16", b"\x80\x2e\x01\x00\x02", b"\x00" * 500]
)
def test_garbage_on_a_tls_port_ends_that_connection_alone(
    certificate: Certificate, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with front_door(tls=certificate.tls, limits=ServerLimits(header_timeout=5)) as door:
        with connect(door) as sock:
            sock.sendall(data)
            with contextlib.suppress(OSError):  # it may have been reset for its garbage by now
                sock.shutdown(socket.SHUT_WR)
            assert b"HTTP" not in read_to_end(sock)
        assert ask_health(door, certificate.client_context()).endswith(b"ok\n")
    assert warnings(caplog) == 0


def test_a_tls_handshake_that_stalls_dies_at_the_deadline(certificate: Certificate) -> None:
    with front_door(tls=certificate.tls, limits=ServerLimits(header_timeout=0.4)) as door:
        started = time.monotonic()
        with connect(door) as silent, connect(door) as stalled:
            stalled.sendall(b"\x16\x03\x01\x02\x00\x01")
            assert seconds_until_closed(silent, started) > 0.3
            assert seconds_until_closed(stalled, started) > 0.3


def test_a_request_that_comes_in_slices_of_one_tls_record_dies_at_the_deadline(certificate: Certificate) -> None:
    """Each slice restarts no clock, though none completes anything that could be decrypted."""
    with front_door(tls=certificate.tls, limits=ServerLimits(header_timeout=2.0)) as door, connect(door) as sock:
        started = time.monotonic()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = certificate.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        tls.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000)
        record = outgoing.read()
        sock.settimeout(0.02)
        sent = 0
        while sent < len(record):
            try:
                sent += sock.send(record[sent : sent + 1])
                if not sock.recv(65536):
                    break
            except TimeoutError:
                continue  # nothing came, so it is still open: the next byte
            except OSError:
                break
        assert sent < len(record)
        assert 1 < time.monotonic() - started < 30, "all of it would take two minutes"
