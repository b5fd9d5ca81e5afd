"""Nothing that a stranger sends raises, and everything that comes of it is bounded."""

from __future__ import annotations

import ast
import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base import untrusted
from qanat.base.untrusted import MAX_RETRY_AFTER, MAX_TEXT, http_status, number, retry_after, words

NOW = datetime.datetime(2026, 1, 31, 12, 0, 0, tzinfo=datetime.UTC)
PACKAGE = Path(untrusted.__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("65535", 65535),
        ("65536", None),
        ("", None),
        ("-1", None),
        ("+1", None),
        (" 1", None),
        ("1_0", None),
        ("\u00b2", None),
        ("\u0663", None),
        ("9" * 5000, None),
        ("0" * 5000, None),
    ],
)
def test_a_number_is_a_few_decimal_digits(text: str, value: int | None) -> None:
    assert number(text, 65535) == value


@pytest.mark.parametrize(
    ("text", "status"),
    [("200", 200), ("999", 999), ("099", 0), ("20", 0), ("2000", 0), ("9" * 5000, 0), ("\u00b2\u00b3", 0)],
)
def test_a_status_has_three_digits(text: str, status: int) -> None:
    assert http_status(text) == status


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 400, MAX_RETRY_AFTER),
        ("99999999999", MAX_RETRY_AFTER),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30.0),
        ("Saturday, 31-Jan-26 12:00:30 GMT", 30.0),
        ("Sat Jan 31 12:00:30 2026", 30.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),
        ("Sat, 31 Jan 2099 12:00:00 GMT", MAX_RETRY_AFTER),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2020 00:00:00 +99999999999", None),
        ("Mon, 01 Jan 2020 00:00:99999999999999999999 GMT", None),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2020 " + "0" * 5000, None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_and_at_most_an_hour(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@given(st.text(max_size=80))
def test_no_retry_after_raises(value: str) -> None:
    for text in (value, f"Mon, 01 Jan {value} 00:00:00 GMT", f"Mon, 01 Jan 2020 00:00:00 {value}"):
        seconds = retry_after(text, NOW)
        assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER
        seconds = untrusted.retry_after_milliseconds(text)
        assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@given(st.binary(max_size=1000))
def test_words_are_printable_and_short_whatever_the_bytes(data: bytes) -> None:
    for text in (words(data), words(memoryview(data)), words(untrusted.header_text(data))):
        assert text.isprintable()
        assert len(text) <= MAX_TEXT
    assert untrusted.percent_decoded(untrusted.header_text(data)).isprintable()


def test_a_reason_that_was_cut_inside_a_character_is_shown_as_far_as_it_goes() -> None:
    assert words("gr\u00fc\u00dfe".encode()[:3]) == "gr\ufffd"


def test_only_this_module_parses_what_strangers_send() -> None:
    """Python's own parsers raise for input that nobody thought of; see the module's docstring."""
    wrong = []
    for folder in ("transports", "server/front_door"):
        for path in sorted((PACKAGE / folder).resolve().rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    function = node.func
                    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                    if name in ("int", "float", "decode") or name.startswith("parsedate"):
                        wrong.append(f"{path}:{node.lineno}: {name}")
    assert not wrong
