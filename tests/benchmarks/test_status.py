"""A look at a large server is quick; the whole thousand sessions are `python -m benchmarks.status`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.status import measure
from qanat.cli.status_tables import MOST_ROWS
from tests.support.identities import placed_identity


def test_a_fifth_of_a_thousand_sessions_is_seen_in_far_less_than_a_second() -> None:
    directory = Path(tempfile.mkdtemp(prefix="q-"))
    placed_identity(directory / "server.key")
    try:
        looks = measure(directory, 200, 1000)
    finally:
        shutil.rmtree(directory)
    assert looks.streams == looks.counted == 1000
    assert looks.short_streams == MOST_ROWS, "nobody makes a thousand rows of which fifty are shown"
    assert looks.short_size < 0.6 * looks.size
    assert looks.short < looks.answer < 1, "a fifth takes some 50 ms here"
