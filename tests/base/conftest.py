from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opens is put here, and closed when it ends."""
    with ExitStack() as opened:
        yield opened
