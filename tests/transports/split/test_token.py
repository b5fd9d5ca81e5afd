"""Promises of a token: nobody makes one without the key, and it travels where the path lets it."""

from __future__ import annotations

import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import ProtocolError
from qanat.transports.split.segments import HEADER_SIZE, Segment, SegmentReader
from qanat.transports.split.token import (
    OPENING,
    OPENING_SIZE,
    TOKEN_SIZE,
    Carrier,
    Kind,
    Token,
    carriers_of,
    nonce_text,
    opening_nonce,
    parse,
    request_token,
)

KEY = bytes(range(32))
TOKEN = Token(bytes(16), Kind.UP, number=7, acknowledged=1, limit=2, oldest=3, at=4, size=5, wait=6)


def test_a_token_says_what_went_into_it_to_who_has_the_key_and_nothing_to_others() -> None:
    for token in (TOKEN, dataclasses.replace(TOKEN, early=True, ended=True, streams=True, kind=Kind.STREAM)):
        found = parse(token.encode(KEY))
        assert found is not None
        assert found.id == token.id
        assert found.early is token.early
        assert found.verify(KEY) == token
        assert found.verify(bytes(32)) is None


@given(st.integers(0, TOKEN_SIZE * 8 - 1))
def test_a_token_with_any_bit_turned_is_refused(bit: int) -> None:
    found = parse(TOKEN.encode(KEY))
    assert found is not None
    raw = bytearray(found.raw)
    raw[bit // 8] ^= 1 << bit % 8
    assert dataclasses.replace(found, raw=bytes(raw)).verify(KEY) is None


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_none(text: str) -> None:
    parse(text)
    request_token((("authorization", f"Bearer {text}"), ("cookie", f"a=b; sid={text}")), f"sid={text}")


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ((("authorization", "Bearer {}"),), ""),
        ((("cookie", "lb=1; sid={}; x=y"),), ""),
        ((("authorization", "Basic abc"), ("cookie", "sid={}")), ""),
        ((), "sid={}"),
        ((), "a=b&sid={}&c=d"),
    ],
)
def test_a_token_is_found_wherever_it_travels(headers: tuple[tuple[str, str], ...], query: str) -> None:
    text = TOKEN.encode(KEY)
    found = request_token(tuple((name, value.format(text)) for name, value in headers), query.format(text))
    assert found is not None
    assert found.verify(KEY) == TOKEN


def test_a_request_for_a_pipe_tells_which_carriers_pass() -> None:
    nonce = os.urandom(16)
    assert opening_nonce(OPENING + nonce) == nonce
    assert opening_nonce(b"x" * OPENING_SIZE) is None
    assert opening_nonce(OPENING + nonce + b"x") is None
    text = nonce_text(nonce)
    both = (("authorization", f"Bearer {text}"), ("cookie", f"sid={text}"))
    assert carriers_of(both, "", nonce) == Carrier.HEADER | Carrier.COOKIE
    assert carriers_of(both[1:], "", nonce) == Carrier.COOKIE
    assert carriers_of((("authorization", "Bearer other"),), "", nonce) == 0


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.binary(max_size=300)), max_size=8), st.integers(1, 90))
def test_segments_come_out_as_they_went_in_however_the_path_cuts_them(parts: list[tuple[int, bytes]], cut: int) -> None:
    body = b"".join(
        Segment(number, 1, 2, at, len(content)).encode() + content for number, (at, content) in enumerate(parts)
    )
    reader = SegmentReader()
    found: dict[int, bytes] = {}
    for at in range(0, len(body), cut):
        for segment, where, piece in reader.feed(memoryview(body[at : at + cut])):
            assert where == segment.at + len(found.get(segment.number, b""))
            found[segment.number] = found.get(segment.number, b"") + bytes(piece)
    assert found == {number: content for number, (_, content) in enumerate(parts)}
    assert not reader.in_the_middle


def test_what_is_no_segment_is_an_error() -> None:
    for header in (b"<html>" * 10, b"\xff" * HEADER_SIZE, Segment(1, 0, 0, 0, 1 << 30).encode()):
        with pytest.raises(ProtocolError):
            list(SegmentReader().feed(memoryview(header)))
