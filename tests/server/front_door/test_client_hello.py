"""The name in a ClientHello: found in real ones however they are cut, and in nothing else."""

from __future__ import annotations

import random
import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.server.front_door.client_hello import MAX_BYTES, MAX_HELLO, find_server_name


def real_hello(name: str | None, versions: tuple[ssl.TLSVersion, ssl.TLSVersion] | None = None) -> bytes:
    """What OpenSSH's peer would call a ClientHello: made by OpenSSL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if versions is not None:
        context.minimum_version, context.maximum_version = versions
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def made_hello(*extensions: tuple[int, bytes], session: bytes = b"", before: bytes = b"") -> bytes:
    """A ClientHello of our own, in one record."""
    listed = b"".join(struct.pack("!HH", kind, len(content)) + content for kind, content in extensions)
    body = b"\x03\x03" + bytes(32) + bytes([len(session)]) + session + b"\x00\x04\x0a\x0a\x13\x01" + b"\x01\x00"
    body += struct.pack("!H", len(listed)) + listed
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return before + b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def server_name(name: bytes, kind: int = 0) -> tuple[int, bytes]:
    entry = struct.pack("!BH", kind, len(name)) + name
    return 0, struct.pack("!H", len(entry)) + entry


def in_records(hello: bytes, size: int) -> bytes:
    """The same message cut into records of `size` bytes."""
    message = hello[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(piece)) + piece for piece in pieces)


GREASE = (0x0A0A, b""), (0x3A3A, b"\x00")
ECH = (0xFE0D, bytes(300))


@pytest.mark.parametrize(
    "versions", [None, (ssl.TLSVersion.TLSv1_2,) * 2, (ssl.TLSVersion.TLSv1_3,) * 2], ids=["any", "1.2", "1.3"]
)
def test_a_real_hello_names_its_host(versions: tuple[ssl.TLSVersion, ssl.TLSVersion] | None) -> None:
    assert find_server_name(real_hello("app.example.com", versions)) == "app.example.com"
    assert find_server_name(real_hello(None, versions)) == ""


def test_it_is_told_as_soon_as_the_message_is_whole_and_not_before() -> None:
    hello = real_hello("app.example.com")
    assert all(find_server_name(hello[:count]) is None for count in range(len(hello)))
    assert find_server_name(hello + b"\x14\x03\x03\x00\x01\x01") == "app.example.com"


@pytest.mark.parametrize("size", [1, 3, 4, 50, 200])
def test_it_may_be_cut_into_records(size: int) -> None:
    hello = made_hello(server_name(b"app.example.com"))
    cut = in_records(hello, size)
    assert len(cut) < MAX_BYTES
    assert find_server_name(cut) == "app.example.com"
    assert all(find_server_name(cut[:count]) is None for count in range(len(cut)))


def test_what_nobody_knows_is_skipped() -> None:
    hello = made_hello(GREASE[0], ECH, GREASE[1], server_name(b"App.Example.COM."), session=bytes(32))
    assert find_server_name(hello) == "app.example.com"


@pytest.mark.parametrize("name", [b"", b"a/b", b"..\x00", "straße.example".encode(), b"x" * 256, b"a b"])
def test_a_name_that_cannot_be_is_none(name: bytes) -> None:
    assert find_server_name(made_hello(server_name(name))) == ""


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x02\x00\x00\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x40\x00\x01" + (MAX_HELLO + 1).to_bytes(3, "big"),
        b"\x80\x2e\x01\x03\x01",
        made_hello((0, b"\x00")),
        made_hello((0, b"\x00\x05\x00\x00")),
        made_hello(server_name(b"app", kind=7)),
        made_hello(),
    ],
)
def test_what_has_no_name_is_told_at_once(data: bytes) -> None:
    assert find_server_name(data) == ""


def test_nothing_is_waited_for_beyond_the_bound() -> None:
    """Records that never make a whole message."""
    endless = in_records(b"\x16\x03\x01\x00\x00\x01\x00\x3f\xff" + bytes(MAX_HELLO), 1)
    assert find_server_name(endless[: MAX_BYTES - 1]) is None
    assert find_server_name(endless[:MAX_BYTES]) == ""


@given(st.binary(max_size=400))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    find_server_name(data)
    find_server_name(b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc" + data)


@given(st.integers(0, 2**32), st.integers(1, 20))
def test_a_hello_with_changed_bytes_has_an_answer(seed: int, changes: int) -> None:
    dice = random.Random(seed)
    hello = bytearray(made_hello(GREASE[0], server_name(b"app.example.com"), ECH))
    for _ in range(changes):
        hello[dice.randrange(len(hello))] = dice.randrange(256)
    name = find_server_name(bytes(hello))
    assert name is None or len(name) <= 255
