"""URLs as people write them."""

from __future__ import annotations

import pytest

from qanat.base.addresses import normalize_name
from qanat.base.errors import UsageError
from qanat.transports.dial.proxies import Proxy
from qanat.transports.dial.urls import TunnelUrl


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wss://tunnel.example.com/tunnel", TunnelUrl(True, "tunnel.example.com", 443, "/tunnel")),
        ("https://tunnel.example.com/tunnel", TunnelUrl(True, "tunnel.example.com", 443, "/tunnel")),
        ("ws://10.0.0.1/t", TunnelUrl(False, "10.0.0.1", 80, "/t")),
        ("HTTP://Example.COM:8080", TunnelUrl(False, "example.com", 8080, "/")),
        ("wss://[2001:db8::1]:8443/a/b?c=d&e", TunnelUrl(True, "2001:db8::1", 8443, "/a/b?c=d&e")),
        ("wss://bücher.example/pfad/ü", TunnelUrl(True, "xn--bcher-kva.example", 443, "/pfad/%C3%BC")),
    ],
)
def test_good_urls(text: str, expected: TunnelUrl) -> None:
    assert TunnelUrl.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tunnel.example.com",
        "tunnel.example.com:443/tunnel",
        "ftp://example.com/",
        "wss:/example.com",
        "wss:///tunnel",
        "wss://example.com:0/",
        "wss://example.com:65536/",
        "wss://example.com:port/",
        "wss://[::1/",
        "wss://[nonsense]/",
        "wss://example.com/a b",
        "wss://example.com/\r\nHost: other",
        "wss://example.com/#fragment",
        "wss://example.com/a;b",
        "wss://" + "ü" * 80 + ".example/",
        "wss://" + "ß" * 80 + ".example/",
        "wss://[fe80::1%]/",
    ],
)
def test_bad_urls_say_how_they_should_look(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        TunnelUrl.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["wss://user:hunter2@example.com/", "ftp://user:hunter2@example.com/"])
def test_a_password_in_a_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        TunnelUrl.parse(text)
    assert "hunter2" not in str(caught.value)


def test_the_host_header_has_the_port_only_where_it_is_unusual() -> None:
    assert TunnelUrl.parse("wss://a.example/").authority == "a.example"
    assert TunnelUrl.parse("wss://a.example:80/").authority == "a.example:80"
    assert TunnelUrl.parse("ws://[::1]:80/").authority == "[::1]"
    assert TunnelUrl.parse("ws://[::1]:81/").authority == "[::1]:81"


def test_a_final_dot_is_for_looking_the_name_up_alone() -> None:
    """It keeps resolvers from appending a search domain; certificates and HTTP know names without it."""
    url = TunnelUrl.parse("wss://Tunnel.Example.:8443/t")
    assert (url.host, url.address, url.authority) == (
        "tunnel.example",
        "tunnel.example:8443",
        "tunnel.example:8443",
    )
    assert url.lookup_host == "tunnel.example."
    assert TunnelUrl.parse("wss://tunnel.example:8443/t").lookup_host == "tunnel.example"
    with pytest.raises(UsageError, match="names no host"):
        TunnelUrl.parse("wss://./t")


def test_a_url_prints_as_it_can_be_parsed() -> None:
    for text in ("wss://a.example/t?x=1", "ws://[::1]:81/", "wss://a.example.:8443/", "ws://a./"):
        assert str(TunnelUrl.parse(text)) == text


@pytest.mark.parametrize("text", ["ws://[fe80::1%eth0]:81/t", "ws://[fe80::1%25eth0]:81/t"])
def test_the_interface_of_a_link_local_address_is_for_connecting_alone(text: str) -> None:
    """It means something on this machine only: in Host it is a fault (RFC 6874 §4), and no certificate has it."""
    url = TunnelUrl.parse(text)
    assert url.lookup_host == "fe80::1%eth0"
    assert (url.host, url.authority, url.address) == ("fe80::1", "[fe80::1]:81", "[fe80::1%eth0]:81")
    assert TunnelUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    ("name", "ascii_form"),
    [
        ("straße.example", "xn--strae-oqa.example"),
        ("FAẞ.Straße.example", "xn--fa-hia.xn--strae-oqa.example"),
        ("κλαρα-σωλις.ευ", "xn----ylba7abgd9bnh0e.xn--qxa6a"),
        ("Bücher.straße。example", "xn--bcher-kva.xn--strae-oqa.example"),
    ],
)
def test_a_name_stands_for_the_host_that_browsers_reach_by_it(name: str, ascii_form: str) -> None:
    """IDNA 2003, which Python's codec is, makes another host of these: strasse.example, which anybody may own."""
    assert TunnelUrl.parse(f"wss://{name}/").host == ascii_form
    assert Proxy.parse(f"http://{name}:3128").host == ascii_form
    assert normalize_name(name) == ascii_form
