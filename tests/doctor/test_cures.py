"""What `doctor` advises, followed to the letter, cures a path.  All of them are in `python -m benchmarks.doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broken_proxies import BROKEN, Broken
from tests.support.harness import Tunnel
from tests.support.seeded_faults import SERVER

CHOSEN = ("nginx: a site with proxy_pass for everything", "Apache: ProxyPass inside a Location")


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with Tunnel(tmp_path_factory.mktemp("tunnel"), server=SERVER) as tunnel:
        tunnel.start_server()
        yield tunnel


@pytest.mark.slow
@pytest.mark.parametrize("one", [one for one in BROKEN if one.name in CHOSEN], ids=lambda one: one.name)
def test_the_patch_and_a_reload_make_the_path_sound(one: Broken, tunnel: Tunnel, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)  # Apache's children are nobody in particular
    one.cure(tunnel, tmp_path / "proxy")


def test_those_that_are_chosen_are_there_and_there_are_enough() -> None:
    names = [one.name for one in BROKEN]
    assert set(CHOSEN) <= set(names)
    assert len(set(names)) == len(names) >= 10
    assert len({one.program for one in BROKEN}) == 5
