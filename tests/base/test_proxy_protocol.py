"""The PROXY protocol's headers: what the specification's examples mean, in whatever pieces, and what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import ProtocolError
from qanat.base.proxy_protocol import V2_SIGNATURE, Endpoints, HeaderReader, begins, crc32c, encode

TCP4 = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + struct.pack("!HH", 5555, 443)
ENDS4 = Endpoints("192.0.2.1:5555", "198.51.100.2:443")


def v2(family: int = 0x11, content: bytes = TCP4, *, command: int = 0x21) -> bytes:
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(content)) + content


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(content: bytes, *, off_by: int = 0) -> bytes:
    zeroed = v2(content=content + tlv(3, bytes(4)))
    return v2(content=content + tlv(3, struct.pack("!I", crc32c(zeroed) ^ off_by)))


def read(header: bytes) -> Endpoints | None:
    reader = HeaderReader()
    assert reader.feed(header) == len(header)
    return reader.endpoints


WHOLE = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 5555 443\r\n", ENDS4),
    (b"PROXY TCP6 2001:db8::1 2001:DB8::2 5555 443\r\n", Endpoints("[2001:db8::1]:5555", "[2001:db8::2]:443")),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 5555 443\r\n", ENDS4),
    (b"PROXY UNKNOWN\r\n", Endpoints("")),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", Endpoints("")),
    (v2(), ENDS4),
    (v2(content=TCP4 + tlv(1, b"h2") + tlv(0x20, bytes(300))), ENDS4),
    (with_checksum(TCP4 + tlv(4, bytes(8))), ENDS4),
    (v2(0x21, bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack("!HH", 1, 2)), Endpoints("[::1]:1", "[::2]:2")),
    (v2(0x31, bytes(108) + b"/run/app".ljust(108, b"\0")), Endpoints("", "/run/app")),
    (v2(0x31, bytes(108) + b"\0app".ljust(108, b"\0")), Endpoints("", "@app")),
    (v2(0x00, b""), Endpoints("")),
    (v2(0x00, b"junk"), Endpoints("")),
    (v2(0x11, TCP4, command=0x20), Endpoints("")),
    (v2(0x00, b"", command=0x20), Endpoints("")),
    (v2(0x11, b"x", command=0x20), Endpoints("")),
]
BROKEN = [
    b"GET / HTTP/1.1\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5555\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5555 65536\r\n",
    b"PROXY TCP4 ::1 ::2 1 2\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.300 198.51.100.2 1 2\r\n",
    b"PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY UNKNOWN" + b" x" * 50 + b"\r\n",
    b"PROXY " + b"T" * 120,
    b"\r\n\r\n\0\r\nQUITE",
    v2(command=0x11),
    v2(command=0x22),
    v2(0x12),
    v2(0x31, bytes(100)),
    v2(content=TCP4[:-1]),
    v2(content=TCP4 + b"\1"),
    v2(content=TCP4 + b"\1\0\x09abc"),
    v2(content=bytes(5000)),
    with_checksum(TCP4, off_by=1),
    v2(content=TCP4 + tlv(3, bytes(3))),
]


@pytest.mark.parametrize(("header", "ends"), WHOLE)
def test_a_header_says_who_came_and_takes_nothing_of_what_follows(header: bytes, ends: Endpoints) -> None:
    reader = HeaderReader()
    assert reader.feed(header + b"PROXY payload") == len(header)
    assert reader.endpoints == ends
    assert reader.feed(b"more") == 0


@pytest.mark.parametrize("header", BROKEN)
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        HeaderReader().feed(header)


@given(st.sampled_from(WHOLE), st.lists(st.integers(1, 40)))
def test_a_header_may_come_in_any_pieces(whole: tuple[bytes, Endpoints], sizes: list[int]) -> None:
    header, ends = whole
    reader, stream = HeaderReader(), header + b"payload"
    taken = 0
    for size in [*sizes, *[1] * len(stream)]:
        if reader.endpoints is not None:
            break
        piece = stream[taken : taken + size]
        count = reader.feed(piece)
        assert count == min(len(piece), len(header) - taken), "all that can be told to be the header's, and no more"
        taken += count
    assert (reader.endpoints, taken) == (ends, len(header))


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE, V2_SIGNATURE + b"\x21"]))
def test_garbage_is_refused_or_waited_for_and_nothing_else(garbage: bytes, beginning: bytes) -> None:
    reader = HeaderReader()
    try:
        taken = reader.feed(beginning + garbage)
    except ProtocolError:
        return
    assert taken <= len(beginning + garbage)


@pytest.mark.parametrize(
    ("source", "destination", "v1"),
    [
        ("192.0.2.1:5555", "198.51.100.2:443", b"PROXY TCP4 192.0.2.1 198.51.100.2 5555 443\r\n"),
        ("[2001:db8::1]:5555", "[::1]:443", b"PROXY TCP6 2001:db8::1 ::1 5555 443\r\n"),
        ("[fe80::1%eth0]:1", "[fe80::2%eth0]:2", b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"),
        ("192.0.2.1:5555", "", b"PROXY TCP4 192.0.2.1 0.0.0.0 5555 0\r\n"),
    ],
)
def test_what_is_written_can_be_read(source: str, destination: str, v1: bytes) -> None:
    assert encode("v1", source, destination) == v1
    for version in ("v1", "v2"):
        ends = read(encode(version, source, destination))
        assert ends is not None
        assert ends.source == source.replace("%eth0", "")


def test_both_ends_are_told_in_one_family() -> None:
    for version in ("v1", "v2"):
        assert read(encode(version, "192.0.2.1:5", "[::1]:6")) == Endpoints("192.0.2.1:5", "[::1]:6")


@pytest.mark.parametrize(
    ("path", "known"), [("/run/x.sock", True), ("@x", True), ("", False), ("/" + "x" * 110, False)]
)
def test_who_came_over_a_unix_socket_is_unknown_and_its_path_told(path: str, known: bool) -> None:
    assert encode("v1", "uid 1000 pid 4711", path) == b"PROXY UNKNOWN\r\n"
    assert read(encode("v2", "uid 1000 pid 4711", path)) == Endpoints("", path if known else "")


def test_a_beginning_is_known_as_soon_as_it_can_be() -> None:
    assert [begins(b""), begins(b"PROX"), begins(b"PROXY TCP4"), begins(b"PROPFIND")] == [None, None, True, False]
    assert [begins(b"\r\n\r\n"), begins(V2_SIGNATURE), begins(b"\r\n\r\nGET")] == [None, True, False]


def test_the_checksum_is_that_of_the_specification() -> None:
    assert crc32c(b"123456789") == 0xE3069283
