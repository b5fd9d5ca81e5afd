"""Request heads as bytes: what is recognized, what is refused, and how answers look."""

from __future__ import annotations

import contextlib
import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.request_head import BadRequest, HeadReader, RequestHead
from qanat.server.front_door.http_head import (
    HTTP2_PREFACE,
    Opening,
    answer,
    classify_opening,
)

UPGRADE = (
    b"GET /tunnel HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def read(data: bytes, limit: int = 16384) -> RequestHead:
    head = HeadReader(limit).feed(data)
    assert head is not None
    return head


def request(line: str, *headers: str) -> RequestHead:
    return read("\r\n".join([line, "Host: x", *headers, "", ""]).encode("latin-1"))


def test_an_upgrade_is_recognized_and_the_bytes_after_it_are_kept() -> None:
    head = read(UPGRADE + b"\x82\x80frame")
    assert head.may_be_upgraded
    assert head.values("upgrade") == ("WebSocket",)
    assert head.path == "/tunnel"
    assert head.rest == b"\x82\x80frame"


@given(st.lists(st.integers(0, len(UPGRADE)), max_size=5))
def test_a_head_may_come_in_any_pieces(cuts: list[int]) -> None:
    bounds = [0, *sorted(set(cuts) - {0, len(UPGRADE)}), len(UPGRADE)]
    reader = HeadReader(4096)
    heads = [reader.feed(UPGRADE[a:b]) for a, b in itertools.pairwise(bounds)]
    assert heads[:-1] == [None] * (len(heads) - 1)
    assert heads[-1] is not None
    assert heads[-1].path == "/tunnel"


@pytest.mark.parametrize(
    "target",
    ["/tunnel", "/tunnel?token=x", "/tunnel?", "http://x/tunnel", "HTTPS://x:8443/tunnel?a=/b", "/tunnel?u=http://y/"],
)
def test_these_targets_are_the_tunnels_path(target: str) -> None:
    assert request(f"GET {target} HTTP/1.1").path == "/tunnel"


@pytest.mark.parametrize(
    "target", ["*", "x:443", "/tunnel/", "/tunnel%20", "//tunnel", "/x/http://y/tunnel", "ftp://x/tunnel"]
)
def test_these_targets_are_not(target: str) -> None:
    assert request(f"GET {target} HTTP/1.1").path != "/tunnel"


@pytest.mark.parametrize(
    ("line", "headers", "allowed"),
    [
        ("GET / HTTP/1.1", [], True),
        ("GET / HTTP/1.1", ["Content-Length: 0"], True),
        ("GET / HTTP/1.0", [], False),
        ("GET / HTTP/1.1", ["Content-Length: 5"], False),
        ("GET / HTTP/1.1", ["Content-Length: 500"], False),
        ("GET / HTTP/1.1", ["Transfer-Encoding: chunked"], False),
    ],
)
def test_who_sends_a_body_or_speaks_1_0_is_not_upgraded(line: str, headers: list[str], allowed: bool) -> None:
    assert request(line, *headers).may_be_upgraded is allowed


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"\r\n\r\n",
        b"\x00\x01\x02",
    ],
)
def test_malformed_heads_are_bad_requests(data: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        HeadReader(4096).feed(data)
    assert 400 <= caught.value.status <= 505


def test_a_head_above_the_limit_is_refused_without_reading_further() -> None:
    reader = HeadReader(1000)
    assert reader.feed(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 900) is None
    with pytest.raises(BadRequest) as caught:
        reader.feed(b"a" * reader.room)
    assert caught.value.status == 431


def test_a_head_of_exactly_the_limit_is_read() -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    assert HeadReader(len(head)).feed(head) is not None


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_are_a_head_or_a_bad_request_or_not_enough(data: bytes) -> None:
    reader = HeadReader(4096)
    with contextlib.suppress(BadRequest):  # and no other error
        reader.feed(data)


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=50))
def test_any_target_gives_a_path(target: str) -> None:
    path = request(f"GET {target} HTTP/1.1").path
    assert path == "" or path.startswith("/")


def test_the_first_bytes_tell_the_protocol() -> None:
    assert classify_opening(b"") is Opening.UNDECIDED
    assert classify_opening(b"GET /") is Opening.HTTP1
    assert classify_opening(b"P") is Opening.UNDECIDED
    assert classify_opening(b"PO") is Opening.HTTP1
    assert classify_opening(HTTP2_PREFACE[:-1]) is Opening.UNDECIDED
    assert classify_opening(HTTP2_PREFACE + b"more") is Opening.HTTP2
    assert classify_opening(b"\x16") is Opening.UNDECIDED
    assert classify_opening(b"\x16\x03\x01\x02") is Opening.TLS


@pytest.mark.parametrize("status", [200, 400, 404, 431, 501, 503])
@pytest.mark.parametrize("to_head", [False, True])
def test_an_answer_is_whole_and_names_no_server(status: int, to_head: bool) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="HEAD" if to_head else "GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer(status, to_head=to_head, retry_after=3 if status == 503 else None))
    response = client.next_event()
    assert isinstance(response, h11.Response)
    headers = dict(response.headers)
    assert not {b"upgrade", b"server"} & set(headers)
    assert headers.get(b"retry-after") == (b"3" if status == 503 else None)
    body = client.next_event()
    if not to_head:
        assert isinstance(body, h11.Data)
        assert len(body.data) == int(headers[b"content-length"])
        body = client.next_event()
    assert isinstance(body, h11.EndOfMessage)
    assert client.trailing_data == (b"", False)
