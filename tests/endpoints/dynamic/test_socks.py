"""What SOCKS5 and SOCKS4a ask for, byte by byte, and what they are told."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import UsageError
from qanat.endpoints.dynamic.asked import Asked, Command, ProxyMachine
from qanat.endpoints.dynamic.connection import machine_for
from qanat.endpoints.dynamic.http_proxy import HttpProxy
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.dynamic.socks4 import Socks4
from qanat.endpoints.dynamic.socks5 import Socks5
from qanat.mux.frames import Reason

GREETING = b"\x05\x01\x00"
IPV4 = b"\x05\x01\x00\x01\x0a\x00\x00\x05" + struct.pack("!H", 5432)
NAME = b"\x05\x01\x00\x03\x0bexample.com" + struct.pack("!H", 443)
IPV6 = b"\x05\x01\x00\x04" + bytes(15) + b"\x01" + struct.pack("!H", 80)
ALICE = Passwords({b"alice": b"wonderland"})
LOGIN = b"\x01\x05alice\x0awonderland"


def fed(machine: ProxyMachine, data: bytes, step: int = 1 << 20) -> tuple[Asked | None, bytes]:
    """What is asked for, and all that was answered, when `data` comes in pieces of `step` bytes."""
    asked, answers = None, b""
    for start in range(0, len(data), step):
        if asked is None:
            asked = machine.receive(data[start : start + step])
            answers += machine.take_output()
    return asked, answers


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("request_bytes", "host", "port"), [(IPV4, "10.0.0.5", 5432), (NAME, "example.com", 443), (IPV6, "::1", 80)]
)
def test_socks5_asks_for_a_host_of_every_form_however_it_is_cut(
    request_bytes: bytes, host: str, port: int, step: int
) -> None:
    asked, answers = fed(Socks5(), GREETING + request_bytes, step)
    assert (asked, answers) == (Asked(host, port), b"\x05\x00")


def test_what_comes_behind_the_request_is_for_the_target() -> None:
    machine = Socks5()
    assert fed(machine, GREETING + NAME + b"hello")[0] == Asked("example.com", 443)
    assert machine.take_rest() == b"hello"


def test_socks5_udp_associate_needs_no_host() -> None:
    request = b"\x05\x03\x00\x01" + bytes(6)
    assert fed(Socks5(), GREETING + request)[0] == Asked("0.0.0.0", 0, Command.ASSOCIATE)


@pytest.mark.parametrize(
    ("offered", "answer"),
    [(b"\x02", b"\x05\x02"), (b"\x00\x02", b"\x05\x02"), (b"\x00", b"\x05\xff"), (b"", b"\x05\xff")],
)
def test_socks5_with_passwords_takes_no_other_method(offered: bytes, answer: bytes) -> None:
    machine = Socks5(ALICE)
    assert fed(machine, bytes((5, len(offered))) + offered) == (None, answer)
    assert bool(machine.problem) == (answer[1] == 0xFF)


def test_socks5_lets_in_who_knows_the_password_and_nobody_else() -> None:
    assert fed(Socks5(ALICE), b"\x05\x01\x02" + LOGIN + NAME, 1) == (Asked("example.com", 443), b"\x05\x02\x01\x00")
    for login in (b"\x01\x05alice\x05wrong", b"\x01\x03bob\x0awonderland", b"\x01\x00\x00"):
        machine = Socks5(ALICE)
        assert fed(machine, b"\x05\x01\x02" + login + NAME) == (None, b"\x05\x02\x01\x01")
        assert machine.problem
        assert "wonderland" not in machine.problem


def test_socks5_without_passwords_takes_one_that_is_given_anyway() -> None:
    assert fed(Socks5(), b"\x05\x01\x02" + LOGIN + NAME)[0] == Asked("example.com", 443)


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"\x05\x02\x00" + IPV4[3:], 7),  # BIND
        (b"\x05\x09\x00" + IPV4[3:], 7),
        (b"\x05\x01\x00\x02" + bytes(6), 8),
        (b"\x05\x01\x00\x03\x00\x00\x50", 1),  # no name
        (b"\x05\x01\x00\x03\x01\xff\x00\x50", 1),  # not UTF-8
    ],
)
def test_socks5_says_what_it_cannot_do(request_bytes: bytes, code: int) -> None:
    machine = Socks5()
    asked, answers = fed(machine, GREETING + request_bytes)
    assert asked is None
    assert machine.problem
    assert answers == b"\x05\x00" + bytes((5, code, 0, 1)) + bytes(6)


@pytest.mark.parametrize("data", [b"\x05\x01\x00\x04garbage", b"\x05\x01\x02\x05garbage"])
def test_socks5_that_goes_on_with_something_else_ends(data: bytes) -> None:
    machine = Socks5()
    assert fed(machine, data)[0] is None
    assert machine.problem


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.REFUSED, 5),
        (Reason.UNREACHABLE, 4),
        (Reason.NOT_ALLOWED, 2),
        (Reason.TIMED_OUT, 6),
        (Reason.NO_ROUTE, 3),
        (Reason.LIMIT, 1),
        (Reason.INTERNAL, 1),
    ],
)
def test_socks5_tells_the_reason_as_its_own_code(reason: Reason, code: int) -> None:
    assert Socks5().refused(reason, "text") == bytes((5, code, 0, 1)) + bytes(6)


def test_socks5_tells_the_address_that_was_reached() -> None:
    assert Socks5().accepted("10.0.0.5:5432") == b"\x05\x00\x00\x01\x0a\x00\x00\x05\x15\x38"
    assert Socks5().accepted("[::1]:80") == b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x50"
    assert Socks5().accepted("[fe80::1%eth0]:80")[3] == 4
    for unknown in ("", "echo", "/run/x.sock", "host:99999", "a:b:c"):
        assert Socks5().accepted(unknown) == b"\x05\x00\x00\x01" + bytes(6)


@pytest.mark.parametrize("step", [1, 1000])
def test_socks4_asks_for_an_address_and_socks4a_for_a_name(step: int) -> None:
    plain = b"\x04\x01" + struct.pack("!H", 22) + b"\x0a\x00\x00\x05user\0"
    assert fed(Socks4(), plain, step) == (Asked("10.0.0.5", 22), b"")
    named = b"\x04\x01" + struct.pack("!H", 22) + b"\x00\x00\x00\x01user\0example.com\0"
    assert fed(Socks4(), named, step) == (Asked("example.com", 22), b"")
    machine = Socks4()
    assert fed(machine, named + b"SSH-2.0")[0] is not None
    assert machine.take_rest() == b"SSH-2.0"


@pytest.mark.parametrize(
    "data",
    [
        b"\x04\x02\x00\x16\x0a\x00\x00\x05\0",  # BIND
        b"\x04\x01\x00\x16\x00\x00\x00\x01\0\0",  # no name
        b"\x04\x01\x00\x16\x0a\x00\x00\x05" + b"u" * 300,
        b"\x04\x01\x00\x16\x00\x00\x00\x01\0" + b"h" * 300,
        b"\x04\x01\x00\x16\x00\x00\x00\x01\0\xff\xfe\0",
    ],
)
def test_socks4_rejects_what_it_cannot_do(data: bytes) -> None:
    machine = Socks4()
    assert fed(machine, data) == (None, b"\x00\x5b" + bytes(6))
    assert machine.problem


def test_socks4_has_no_passwords_so_nobody_comes_in_where_there_are_some() -> None:
    assert fed(Socks4(ALICE), b"\x04\x01\x00\x16\x0a\x00\x00\x05alice\0") == (None, b"\x00\x5b" + bytes(6))


def test_socks4_answers() -> None:
    assert Socks4().accepted("10.0.0.5:22") == b"\x00\x5a\x00\x16\x0a\x00\x00\x05"
    assert Socks4().accepted("[::1]:22") == b"\x00\x5a\x00\x16" + bytes(4)
    assert Socks4().refused(Reason.REFUSED, "") == b"\x00\x5b" + bytes(6)


def test_the_first_byte_tells_the_protocol() -> None:
    assert isinstance(machine_for(5, None), Socks5)
    assert isinstance(machine_for(4, None), Socks4)
    assert isinstance(machine_for(ord("G"), None), HttpProxy)
    assert [machine_for(byte, None) for byte in (0, 3, 6, 0x16, 0x80, 0xFF)] == [None] * 6


@given(st.binary(max_size=600), st.sampled_from([4, 5]), st.integers(1, 50), st.booleans())
def test_garbage_asks_for_nothing_or_ends(data: bytes, first: int, step: int, passwords: bool) -> None:
    machine = machine_for(first, ALICE if passwords else None)
    assert machine is not None
    pieces = bytes((first,)) + data
    for start in range(0, len(pieces), step):
        asked = machine.receive(pieces[start : start + step])
        if asked is not None:
            assert 0 <= asked.port <= 65535
            assert machine.accepted("10.0.0.5:1")
            assert len(machine.take_rest()) <= len(pieces)
            return
        if machine.problem:
            return


def test_a_file_of_passwords() -> None:
    passwords = Passwords.parse("# ours\nalice:wonder:land\n\nbob:x\n")
    assert passwords.allows(b"alice", b"wonder:land")
    assert passwords.allows(b"bob", b"x")
    assert not passwords.allows(b"bob", b"")
    assert not passwords.allows(b"# ours", b"")
    assert "wonder" not in repr(passwords)


@pytest.mark.parametrize(
    "text", ["", "# nobody\n", "alice\n", "alice:\n", ":secret\n", "a:secret\na:secret\n", "a:" + "secret" * 50]
)
def test_a_file_of_passwords_that_cannot_be_used_says_where_and_never_what(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Passwords.parse(text)
    assert "secret" not in str(caught.value)
