"""A proxy that carries many clients on one HTTP/2 connection: what strangers do behind it cuts no honest client.

The limits are the defaults, and how much of each was used at worst is printed at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import SECTIONS
from tests.support.machine.proxies import SHARING
from tests.support.shared_proxy.bench import SHORT, Bench, Outcome, margins


@pytest.fixture(scope="module")
def outcomes(pytestconfig: pytest.Config) -> Iterator[dict[str, Outcome]]:
    found: dict[str, Outcome] = {}
    yield found
    pytestconfig.stash[SECTIONS]["behind shared proxies: limits and what was used of them"] = margins(found)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("proxy", SHARING)
def test_no_stranger_cuts_an_honest_client_behind_a_shared_proxy(
    tmp_path: Path, proxy: str, outcomes: dict[str, Outcome]
) -> None:
    with ExitStack() as stack:
        outcomes[proxy] = Bench(tmp_path, SHARING[proxy], stack).run(SHORT)
