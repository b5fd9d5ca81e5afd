"""Tokens: only what this program made is taken, and no error repeats one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import UsageError
from qanat.handshake.tokens import format_token, generate_token, parse_token


def test_a_token_that_was_generated_is_read_back() -> None:
    text = generate_token()
    assert len(text) == 57
    assert format_token(parse_token(text)) == text


def test_two_tokens_are_never_the_same() -> None:
    assert generate_token() != generate_token()


@given(st.binary(min_size=32, max_size=32))
def test_every_secret_has_one_token_and_comes_out_of_it(secret: bytes) -> None:
    assert parse_token(format_token(secret)) == secret


def test_every_single_changed_character_is_noticed() -> None:
    text = generate_token()
    for position, old in enumerate(text):
        new = "A" if old != "A" else "B"
        with pytest.raises(UsageError):
            parse_token(text[:position] + new + text[position + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token.upper(),
        lambda token: "password",
        lambda token: "qanat1-" + "é" * 50,
        lambda token: "qanat1-" + "=" * 50,
        lambda token: "qanat1-" + "+" * 43 + "-" + "/" * 6,
    ],
)
def test_anything_else_is_refused_without_being_repeated(change: object) -> None:
    token = generate_token()
    assert callable(change)
    text = change(token)
    with pytest.raises(UsageError) as caught:
        parse_token(text)
    assert token[7:20] not in str(caught.value)
    assert text == "" or text not in str(caught.value)
    assert caught.value.hint


@given(st.text(max_size=80))
def test_any_text_at_all_is_read_or_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_token(text)
