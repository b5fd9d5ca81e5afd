from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.machine.certificates import Authority, Certificate


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def good_certificate(authority: Authority) -> Certificate:
    return authority.issue()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opens is put here, and closed when it ends."""
    with ExitStack() as opened:
        yield opened
