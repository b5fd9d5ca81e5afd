"""TLS in two directions at once."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError, UsageError
from qanat.transports.pipe import Wire
from qanat.transports.wire import tls
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import ReloadingServerContext, client_tls_context
from tests.support.background import DEADLINE, Background, wait_until
from tests.support.machine.certificates import Authority, Certificate
from tests.support.machine.programs import require_program
from tests.support.transports.loopback import closing, socket_pair, tls_pair, trusting

VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"]
)
BULK = 24 * 1024 * 1024


def send_bulk(wire: Wire, seed: bytes) -> bytes:
    """Send `BULK` bytes in pieces of odd sizes; return their SHA-256."""
    digest = hashlib.sha256()
    sent = 0
    block = seed * 40_000
    sizes = (1, 100, 16383, 16384, 16385, 65536, 131_071, 300_000)
    while sent < BULK:
        for size in sizes:
            piece = block[: min(size, BULK - sent)]
            wire.send_all(piece)
            digest.update(piece)
            sent += len(piece)
    return digest.digest()


def receive_bulk(wire: Wire) -> bytes:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(200_000))
    received = 0
    while received < BULK:
        count = wire.recv_into(buffer)
        assert count > 0
        digest.update(buffer[:count])
        received += count
    return digest.digest()


@VERSIONS
@pytest.mark.parametrize("small_buffers", [False, True], ids=["", "small buffers"])
def test_bulk_in_both_directions_at_once_is_not_damaged(
    stack: ExitStack, good_certificate: Certificate, version: ssl.TLSVersion, small_buffers: bool
) -> None:
    client, server = tls_pair(stack, good_certificate, version=version, small_buffers=small_buffers)
    assert client.version == server.version == version.name.replace("_", ".")
    up_sent = Background(lambda: send_bulk(client, b"upward!"))
    down_sent = Background(lambda: send_bulk(server, b"down"))
    up, down = Background(lambda: receive_bulk(server)), Background(lambda: receive_bulk(client))
    assert up.result(60) == up_sent.result(60)
    assert down.result(60) == down_sent.result(60)


@VERSIONS
@pytest.mark.parametrize("we_are", ["client", "server"])
def test_a_plain_ssl_socket_understands_us(
    stack: ExitStack, good_certificate: Certificate, version: ssl.TLSVersion, we_are: str
) -> None:
    """Echo through Python's own SSLSocket, which one thread at a time may use."""
    ours_sock, theirs_sock = socket_pair(stack)
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.load_cert_chain(good_certificate.certificate, good_certificate.key)
    client_context = trusting(good_certificate)
    client_context.maximum_version = server_context.maximum_version = version

    def echo() -> None:
        if we_are == "client":
            theirs = server_context.wrap_socket(theirs_sock, server_side=True)
        else:
            theirs = client_context.wrap_socket(theirs_sock, server_hostname="localhost")
        with theirs:
            while data := theirs.recv(50_000):
                theirs.sendall(data)

    echoing = Background(echo)
    if we_are == "client":
        wire = TlsWire(TcpWire(ours_sock), client_context, server_hostname="localhost", deadline=Deadline(DEADLINE))
    else:
        wire = TlsWire(TcpWire(ours_sock), server_context, server_side=True, deadline=Deadline(DEADLINE))
    sending = Background(lambda: send_bulk(wire, os.urandom(8)))
    assert receive_bulk(wire) == sending.result()
    wire.close()
    echoing.result()  # it got close_notify: otherwise SSLEOFError


def test_an_orderly_end_and_a_cut_are_told_apart(stack: ExitStack, good_certificate: Certificate) -> None:
    client, server = tls_pair(stack, good_certificate)
    server.send_all(b"last")
    server.close()
    buffer = memoryview(bytearray(100))
    assert client.recv_into(buffer) == 4
    assert client.recv_into(buffer) == 0
    assert client.recv_into(buffer) == 0

    client, server = tls_pair(stack, good_certificate)
    server.send_all(b"last")
    server._wire.close()  # as a proxy that dies would do it
    assert client.recv_into(buffer) == 4
    with pytest.raises(TransportError, match="truncated"):
        client.recv_into(buffer)


def test_forged_ciphertext_ends_the_wire(stack: ExitStack, good_certificate: Certificate) -> None:
    client, server = tls_pair(stack, good_certificate)
    server._wire.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(TransportError, match="TLS failed while receiving"):
        client.recv_into(memoryview(bytearray(100)))


def test_close_wakes_a_reader_and_a_writer_at_once(stack: ExitStack, good_certificate: Certificate) -> None:
    client, _ = tls_pair(stack, good_certificate)
    reading = Background(lambda: client.recv_into(memoryview(bytearray(100))))
    writing = Background(lambda: send_bulk(client, b"x"))
    assert not writing.wait(0.3)
    started = time.monotonic()
    client.close()
    assert isinstance(reading.error(), TransportError)
    assert isinstance(writing.error(), TransportError)
    assert time.monotonic() - started < DEADLINE / 2, "else it waits for somebody who reads"


def test_last_words_go_out_before_close_notify(stack: ExitStack, good_certificate: Certificate) -> None:
    client, server = tls_pair(stack, good_certificate)
    server.close(b"the end")
    buffer = memoryview(bytearray(100))
    assert bytes(buffer[: client.recv_into(buffer)]) == b"the end"
    assert client.recv_into(buffer) == 0


class OpenSslServer:
    """OpenSSL's own command line, which sends KeyUpdate (RFC 8446 §4.6.3) when it is given the letter K."""

    def __init__(self, stack: ExitStack, certificate: Certificate) -> None:
        arguments = ["s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-tls1_3"]
        arguments += ["-cert", str(certificate.certificate), "-key", str(certificate.key)]
        self._process = stack.enter_context(
            subprocess.Popen(
                [str(require_program("openssl")), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        )
        stack.callback(self._process.kill)
        self.port = int(self.read_until(b"ACCEPT ").rpartition(b":")[2])

    def type(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")

    def read_until(self, beginning: bytes) -> bytes:
        """The next line of its output that begins so."""
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith(beginning):
            assert line, "it ended"
        return line


class CountingWire(TcpWire):
    sent = 0
    received = 0

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += len(data)
        super().send_all(data)

    def recv_into(self, buffer: memoryview) -> int:
        count = super().recv_into(buffer)
        self.received += count
        return count


class KeyUpdates:
    """A wire of ours that is being read, and a server that demands new keys of it."""

    def __init__(self, stack: ExitStack, certificate: Certificate) -> None:
        self.server = OpenSslServer(stack, certificate)
        self.below = CountingWire(socket.create_connection(("127.0.0.1", self.server.port), timeout=DEADLINE))
        self.wire = TlsWire(self.below, trusting(certificate), server_hostname="localhost", deadline=Deadline(DEADLINE))
        stack.callback(self.wire.close)
        self.wakeups = 0
        self.wire.set_wakeup(self._count)
        self.receiving = Background(lambda: self.wire.recv_into(memoryview(bytearray(100))))

    def _count(self) -> None:
        self.wakeups += 1

    def demand(self) -> None:
        """One KeyUpdate, come and read.  OpenSSL puts off the answer to the last of them until it is used again."""
        before = self.below.received
        self.server.type(b"K")
        wait_until(lambda: self.below.received > before or self.receiving.wait(0), "the KeyUpdate came")


def test_what_a_reader_owes_to_a_key_update_is_sent_by_the_writer(
    stack: ExitStack, good_certificate: Certificate
) -> None:
    updates = KeyUpdates(stack, good_certificate)
    sent_before = updates.below.sent
    updates.demand()
    updates.demand()
    wait_until(lambda: updates.wakeups > 0, "the writer was told")
    assert updates.below.sent == sent_before, "the reader must not write"
    updates.wire.flush()
    assert updates.below.sent > sent_before
    updates.wire.send_all(b"with the newest key\n")
    updates.server.read_until(b"with the newest key")
    updates.server.type(b"hello")
    assert updates.receiving.result() == len(b"hello\n")


def test_a_flood_of_key_updates_is_cut_off(
    stack: ExitStack, good_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_MAX_PENDING", 500)
    updates = KeyUpdates(stack, good_certificate)
    for _ in range(50):
        if not updates.receiving.wait(0):
            updates.demand()
    assert "flood" in str(updates.receiving.error())
    assert 5 < updates.wakeups < 50


def test_ciphertext_is_not_received_at_the_start_of_a_page(stack: ExitStack, good_certificate: Certificate) -> None:
    """From there some processors copy it ten times more slowly, into memory that begins 16 bytes behind a page's."""
    client, _ = tls_pair(stack, good_certificate)
    address = ctypes.addressof(ctypes.c_char.from_buffer(client._raw))
    assert 64 <= address % mmap.PAGESIZE <= mmap.PAGESIZE - 64


def test_a_server_has_a_time_limit_for_the_handshake(stack: ExitStack, good_certificate: Certificate) -> None:
    client, server = socket_pair(stack)
    context = ReloadingServerContext(good_certificate.certificate, good_certificate.key, ()).context()
    client.sendall(b"\x16\x03\x01\x02\x00")
    with pytest.raises(TransportError, match="too long"):
        TlsWire(TcpWire(server), context, server_side=True, deadline=Deadline(0.1))
    assert client.recv(10) == b""


def test_garbage_instead_of_a_handshake_is_refused(stack: ExitStack, good_certificate: Certificate) -> None:
    client, server = socket_pair(stack)
    context = ReloadingServerContext(good_certificate.certificate, good_certificate.key, ()).context()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TransportError, match="TLS handshake failed: http request"):
        TlsWire(TcpWire(server), context, server_side=True, deadline=Deadline(DEADLINE))


def test_versions_before_1_2_are_refused(good_certificate: Certificate) -> None:
    server = ReloadingServerContext(good_certificate.certificate, good_certificate.key, ()).context()
    for context in (server, trusting(good_certificate)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def serial_of(stack: ExitStack, context: ssl.SSLContext) -> bytes:
    """The certificate that a client sees."""
    client, server = socket_pair(stack)
    serving = Background(lambda: TlsWire(TcpWire(server), context, server_side=True, deadline=Deadline(DEADLINE)))
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    with careless.wrap_socket(client) as sock:
        seen = sock.getpeercert(binary_form=True)
        serving.result().close()
    assert seen is not None
    return seen


def test_a_changed_certificate_is_taken_over_and_a_broken_one_is_not(
    stack: ExitStack, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = authority.issue(), authority.issue()
    certificate, key = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    certificate.write_bytes(first.certificate.read_bytes())
    key.write_bytes(first.key.read_bytes())
    reloading = ReloadingServerContext(certificate, key, ("http/1.1",))
    old = serial_of(stack, reloading.context())
    assert reloading.context() is reloading.context()

    certificate.write_bytes(second.certificate.read_bytes())  # and the key is still the old one
    with caplog.at_level("WARNING"):
        assert serial_of(stack, reloading.context()) == old
        reloading.context()
    assert len(caplog.records) == 1, "said once, not for every connection"
    assert "keeping the old" in caplog.text

    key.write_bytes(second.key.read_bytes())
    new = serial_of(stack, reloading.context())
    assert new != old

    certificate.unlink()
    assert serial_of(stack, reloading.context()) == new


def test_a_certificate_that_cannot_be_used_is_a_usage_error(authority: Authority, tmp_path: Path) -> None:
    one, other = authority.issue(), authority.issue()
    for certificate, key in (
        (one.certificate, other.key),
        (one.certificate, tmp_path / "missing.key"),
        (one.key, one.key),
    ):
        with pytest.raises(UsageError) as caught:
            ReloadingServerContext(certificate, key, ())
        assert caught.value.hint


def chain_of(*parts: Path) -> bytes:
    return b"".join(part.read_bytes() for part in parts)


@pytest.mark.parametrize("trusted", ["root", "intermediate", "the certificate itself"])
def test_whoever_is_named_is_trusted_be_it_a_root_or_not(
    stack: ExitStack, authority: Authority, tmp_path: Path, trusted: str
) -> None:
    """Let's Encrypt's roots and intermediates change, so some name the one and some the other."""
    intermediate = Authority(tmp_path, authority)
    leaf = intermediate.issue()
    sent = tmp_path / "fullchain.pem"
    sent.write_bytes(chain_of(leaf.certificate, intermediate.ca_file))
    anchors = {"root": authority.ca_file, "intermediate": intermediate.ca_file}
    ca_file = anchors.get(trusted, leaf.certificate)
    client, server = socket_pair(stack)
    context = ReloadingServerContext(sent, leaf.key, ()).context()
    serving = Background(lambda: TlsWire(TcpWire(server), context, server_side=True, deadline=Deadline(20)))
    wire = TlsWire(TcpWire(client), client_tls_context(ca_file, ()), server_hostname="localhost", deadline=Deadline(20))
    closing(stack, wire)
    closing(stack, serving.result())


def failed_handshake(stack: ExitStack, certificate: Path, key: Path, context: ssl.SSLContext) -> TransportError:
    client, server = socket_pair(stack)
    ours = ReloadingServerContext(certificate, key, ()).context()
    serving = Background(lambda: TlsWire(TcpWire(server), ours, server_side=True, deadline=Deadline(20)))
    with pytest.raises(TransportError) as caught:
        TlsWire(TcpWire(client), context, server_hostname="localhost", deadline=Deadline(20))
    serving.error()
    return caught.value


def test_a_chain_that_the_server_leaves_out_is_guessed(stack: ExitStack, authority: Authority, tmp_path: Path) -> None:
    leaf = Authority(tmp_path, authority).issue()
    error = failed_handshake(stack, leaf.certificate, leaf.key, client_tls_context(authority.ca_file, ()))
    assert "authority that this machine does not know" in error.message
    assert "fullchain.pem" in error.hint


def test_a_machine_without_authorities_is_told_so(
    stack: ExitStack, good_certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of a container without ca-certificates."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    error = failed_handshake(stack, good_certificate.certificate, good_certificate.key, client_tls_context(None, ()))
    assert "this machine has no certificates of authorities" in error.message
    assert "ca-certificates" in error.hint


def test_what_is_accepted_does_not_depend_on_the_version_of_python(
    authority: Authority, good_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = ssl.create_default_context

    def as_python_3_13_does(**arguments: str | None) -> ssl.SSLContext:
        context = default(**arguments)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", as_python_3_13_does)
    client = client_tls_context(authority.ca_file, ())
    server = ReloadingServerContext(
        good_certificate.certificate, good_certificate.key, (), client_ca=authority.ca_file
    ).context()
    for context in (client, server):
        assert not context.verify_flags & ssl.VerifyFlags.VERIFY_X509_STRICT
        assert context.verify_flags & ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
