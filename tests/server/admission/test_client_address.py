"""Promises about X-Forwarded-For: whatever a stranger writes there, it cannot choose what address it is charged to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.server.admission.client_address import MAX_ENTRIES, client_address, is_internal

PROXIES = ("10.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        ("203.0.113.9", [], ("203.0.113.9", False)),
        ("203.0.113.9", ["198.51.100.1"], ("203.0.113.9", False)),  # nobody trusts the one who says so
        ("10.0.0.1", [], ("10.0.0.1", True)),
        ("10.0.0.1", ["198.51.100.1"], ("198.51.100.1", True)),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], ("198.51.100.1", True)),  # the left one is the stranger's own
        ("10.0.0.1", ["198.51.100.1, 10.2.2.2"], ("198.51.100.1", True)),  # two proxies in a row
        ("10.0.0.1", ["198.51.100.1", "10.2.2.2"], ("198.51.100.1", True)),  # the same in two headers
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1"], ("198.51.100.1", True)),
        ("10.0.0.1", ["10.3.3.3, 10.2.2.2"], ("10.3.3.3", True)),
        ("::1", ["2001:db8::7"], ("2001:db8::7", True)),
        ("::1", ["2001:DB8:0:0::7"], ("2001:db8::7", True)),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], ("198.51.100.1", True)),
        ("10.0.0.1", ["198.51.100.1:4711"], ("198.51.100.1", True)),
        ("10.0.0.1", ['"[2001:db8::7]:4711"'], ("2001:db8::7", True)),
        ("10.0.0.1", ["[2001:db8::7]"], ("2001:db8::7", True)),
        ("10.0.0.1", ["  198.51.100.1\t"], ("198.51.100.1", True)),
        ("10.0.0.1", ["fe80::1%eth0"], ("fe80::1", True)),
        ("10.0.0.1", ["unknown"], ("10.0.0.1", True)),
        ("10.0.0.1", [""], ("10.0.0.1", True)),
        ("10.0.0.1", [",,,"], ("10.0.0.1", True)),
        ("10.0.0.1", ["198.51.100.1,"], ("10.0.0.1", True)),
        ("10.0.0.1", ["198.51.100.1, garbage, 10.2.2.2"], ("10.2.2.2", True)),
        ("10.0.0.1", ["198.51.100.1\r\nx: y"], ("10.0.0.1", True)),
        ("10.0.0.1", ["0x7f.1"], ("10.0.0.1", True)),
        ("10.0.0.1", ["::::"], ("10.0.0.1", True)),
        ("10.0.0.1", ["[]:1"], ("10.0.0.1", True)),
        ("10.0.0.1", ["1.2.3.4:"], ("10.0.0.1", True)),
        ("", ["198.51.100.1"], ("", False)),
    ],
)
def test_the_header_is_read_from_the_right_as_far_as_it_is_trusted(
    peer: str, headers: list[str], expected: tuple[str, bool]
) -> None:
    assert client_address(peer, headers, PROXIES) == expected


def test_nobody_is_trusted_unless_said() -> None:
    assert client_address("127.0.0.1", ["198.51.100.1"], ()) == ("127.0.0.1", False)


def test_a_header_of_any_length_is_read_only_so_far() -> None:
    header = "198.51.100.1, " + ", ".join(["10.1.1.1"] * MAX_ENTRIES)
    assert client_address("10.0.0.1", [header], PROXIES) == ("10.1.1.1", True)


@given(st.lists(st.text()))
def test_garbage_never_yields_anything_but_an_address(headers: list[str]) -> None:
    client, via_proxy = client_address("10.0.0.1", headers, PROXIES)
    assert via_proxy
    assert str(ipaddress.ip_address(client)) == client


@given(st.lists(st.text()), st.ip_addresses(v=4))
def test_what_the_nearest_proxy_wrote_wins_over_all_that_a_stranger_did(
    headers: list[str], address: ipaddress.IPv4Address
) -> None:
    if address in ipaddress.ip_network(PROXIES[0]):
        return
    assert client_address("10.0.0.1", [*headers, str(address)], PROXIES) == (str(address), True)


def test_loopback_and_private_addresses_are_internal() -> None:
    assert all(
        is_internal(each) for each in ("127.0.0.1", "::1", "10.1.2.3", "::ffff:192.168.0.1", "fd00::1", "fe80::1")
    )
    assert not any(is_internal(each) for each in ("8.8.8.8", "2600::1", "::ffff:8.8.8.8", "no address"))
