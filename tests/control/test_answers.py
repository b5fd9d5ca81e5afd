"""A long answer is the same JSON as a short one, and nothing waits for all of it at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.control import answers
from qanat.control.answers import PIECE, encoded
from tests.support.made_snapshots import crowd

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


@given(st.dictionaries(st.text(), _VALUES), st.integers(1, 3))
def test_it_is_what_json_says(answer: dict[str, Any], times: int) -> None:
    answer["long"] = [*answer.values()] * PIECE * times
    line = encoded(answer)
    assert line.count(b"\n") == 1
    assert json.loads(line) == answer
    assert line == json.dumps(answer, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize("sessions", [1, 1000])
def test_no_piece_of_five_thousand_streams_is_long(sessions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, sizes = answers._ENCODE, []

    def noted(value: Any) -> str:
        piece = encode(value)
        sizes.append(len(piece))
        return piece

    monkeypatch.setattr(answers, "_ENCODE", noted)
    line = encoded({"ok": True, "status": crowd(0, sessions, 5000).to_json()})
    assert len(line) > 1_000_000
    assert max(sizes) < 5000, "a millisecond of encoding is a hundred thousand bytes"
