"""URLs as people write them."""

from __future__ import annotations

import pytest

from qanat.base.errors import UsageError
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
