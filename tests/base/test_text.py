"""Text for people and for the wire: nothing in it moves a cursor, and no character is cut in half."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qanat.base.text import NAME, encode_cut, printable


def test_what_could_move_a_cursor_or_begin_a_line_is_replaced() -> None:
    assert printable("a\x1b[2Jb\nc\u202ed\u00e9") == "a\ufffd[2Jb\ufffdc\ufffdd\u00e9"
    assert printable("abcdef", 3) == "abc"


def test_text_is_cut_at_a_character() -> None:
    assert encode_cut("a\u00e9", 3) == b"a\xc3\xa9"
    assert encode_cut("a\u00e9", 2) == b"a"
    assert encode_cut("\ud800", 10) == b"?"


@given(st.text(), st.integers(0, 40))
def test_what_was_cut_is_a_beginning_in_utf8(text: str, limit: int) -> None:
    cut = encode_cut(text, limit)
    assert len(cut) <= limit
    assert text.encode("utf-8", "replace").startswith(cut)
    cut.decode("utf-8")


def test_a_name_has_a_few_plain_characters() -> None:
    assert NAME.fullmatch("office-1.example_x")
    for wrong in ("", "a b", "\u00e9", "a" * 65, "a\n"):
        assert not NAME.fullmatch(wrong)
