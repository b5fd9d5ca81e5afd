"""Starts the tunnels of `test_matrix`; the first of these tests by its name, so that they stand unused meanwhile."""

from __future__ import annotations

import pytest

from tests.support.matrix import Matrix

pytestmark = pytest.mark.slow


def test_every_tunnel_begins_with_a_silence(matrix: Matrix) -> None:
    """Ended by `test_a_tunnel_that_nobody_has_used_yet_stays_up_too`."""
    assert matrix.cells
