"""What a tunnel promises under silence, on every transport over every path, and the table of all that was promised.

Begun by `test_matrix`, and the last of these tests by its name.  Alone it begins by itself.
"""

from __future__ import annotations

import pytest

from tests.support.applications import exchange
from tests.support.harness import ROOT
from tests.support.matrix import BEGIN, END, PROMISES, Cell, Matrix
from tests.support.silence import Silence

pytestmark = pytest.mark.slow


def test_after_ninety_seconds_of_silence_the_same_streams_go_on(cell: Cell, silence: Silence) -> None:
    silence.wait()
    for sock in silence.streams[cell.transport, cell.path]:
        assert exchange(sock, b"after") == b"after"
    assert cell.connections == 1, cell.client.output
    cell.kept.append(PROMISES[5])


def test_without_keepalive_a_proxy_cuts_that_very_silence(silence: Silence) -> None:
    """So what keeps the others alive is ours."""
    silence.wait()
    silence.unkept.client.wait_for("was lost after .*; 1 streams wait for the next one")
    silence.unkept.wait_resumed()
    assert exchange(silence.unkept_stream, b"after") == b"after"


def test_the_readme_has_the_table_of_this_run(matrix: Matrix) -> None:
    """Of a run of all tests here; fewer give another table."""
    _, _, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    table, _, _ = rest.partition(END)
    assert table == matrix.table(), f"put into README.md:\n{BEGIN}{matrix.table()}{END}"
