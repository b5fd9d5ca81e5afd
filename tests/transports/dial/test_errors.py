"""Answers that are not the tunnel, in words."""

from __future__ import annotations

import email.utils
import time

import pytest

from qanat.base.untrusted import MAX_RETRY_AFTER
from qanat.transports.dial.errors import explain_reset, explain_status
from qanat.transports.dial.urls import TunnelUrl

URL = TunnelUrl.parse("wss://tunnel.example/t")


def test_every_status_there_can_be_is_explained_with_what_to_do() -> None:
    for status in range(100, 1000):
        error = explain_status(status, {}, "websocket", URL)
        assert error.hint
        assert str(status) in error.message
        assert "wss://tunnel.example/t over websocket" in error.message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_name_their_target(status: int) -> None:
    error = explain_status(status, {"location": "https://login.example/\x1b[2J"}, "websocket", URL)
    assert "https://login.example/\ufffd[2J" in error.message


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_in_seconds_or_as_a_date(status: int) -> None:
    def retry_after(value: str) -> float | None:
        return explain_status(status, {"retry-after": value}, "websocket", URL).retry_after

    assert retry_after("120") == 120
    in_a_minute = retry_after(email.utils.formatdate(time.time() + 60, usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("99999999") == MAX_RETRY_AFTER
    for nonsense in ("", "soon", "-5", "1.5", "²"):
        assert retry_after(nonsense) is None


def test_a_date_in_retry_after_is_by_the_clock_of_who_sent_it() -> None:
    """Ours may be years off, as that of a small computer that has just started."""
    headers = {"date": "Wed, 21 Oct 2015 07:28:00 GMT", "retry-after": "Wed, 21 Oct 2015 07:28:42 GMT"}
    assert explain_status(503, headers, "websocket", URL).retry_after == 42
    assert explain_status(503, headers | {"date": "today"}, "websocket", URL).retry_after == 0


def test_retry_after_is_not_believed_elsewhere() -> None:
    assert explain_status(404, {"retry-after": "9"}, "websocket", URL).retry_after is None


@pytest.mark.parametrize("transport", ["http2", "grpc"])
@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "client certificate"),
        (403, "switch gRPC on"),
        (405, "transport: websocket"),
        (413, "client_max_body"),
        (504, "request buffering"),
        (524, "gRPC is switched on"),
        (426, "transport: websocket"),
        (501, "transport: websocket"),
        (502, "grpc_pass"),
    ],
)
def test_over_http2_a_status_gets_advice_that_fits(transport: str, status: int, advice: str) -> None:
    error = explain_status(status, {}, transport, TunnelUrl.parse("wss://tunnel.example.com/tunnel"))
    assert str(status) in error.message
    assert advice in error.hint
    assert "upgrade headers" not in error.hint


def test_400_is_about_tls_where_the_url_has_none() -> None:
    for transport in ("websocket", "http2", "grpc"):
        assert "write wss://" in explain_status(400, {}, transport, TunnelUrl.parse("ws://h/t")).hint
        assert "wss://" not in explain_status(400, {}, transport, URL).hint
    assert "proxy_set_header Upgrade $http_upgrade" in explain_status(400, {}, "websocket", URL).hint


def test_a_redirect_to_a_login_may_be_an_access_gateway() -> None:
    error = explain_status(302, {"location": "https://team.cloudflareaccess.com/login"}, "websocket", URL)
    assert "`headers`" in error.hint


@pytest.mark.parametrize(
    ("code", "sent", "guessed"),
    [
        ("INTERNAL_ERROR", 2**20, True),
        ("INTERNAL_ERROR", 2**20 + 100_000, True),
        ("INTERNAL_ERROR", 2**19, False),
        ("INTERNAL_ERROR", 2**23, False),
        ("CANCEL", 2**20, False),
    ],
)
def test_a_reset_after_about_one_mebibyte_is_guessed_to_be_the_body_limit_of_nginx(
    code: str, sent: int, guessed: bool
) -> None:
    assert ("client_max_body_size 0" in explain_reset(code, sent)) is guessed


def test_a_reason_that_the_server_gives_takes_the_place_of_a_guess() -> None:
    error = explain_status(400, {}, "websocket", URL, reason="the request has two Host headers")
    assert "the request has two Host headers" in error.message
    assert "the log of the server" in error.hint
    assert "nginx" not in error.hint
    error = explain_status(400, {}, "websocket", URL, reason="it came without its hop-by-hop headers")
    assert "proxy_set_header Upgrade $http_upgrade" in error.hint
