"""Promises when a process dies without a word: nothing looks whole that is not, and all comes back by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import scenarios
from tests.support.applications import Target, echo
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port


@pytest.mark.parametrize("which", ["server", "client"])
def test_after_kill_9_applications_see_resets_and_the_other_process_recovers(directory: Path, which: str) -> None:
    with Target(echo) as near, Target(echo) as far:
        local, remote = unused_port(), unused_port()
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": near.address},
            {"remote": f"127.0.0.1:{remote}", "to": far.address},
        ]
        # A client that was killed is silent, and that is how long its successor has to wait for the name.
        with Tunnel(directory, forwards, server={"takeover_timeout": 0.5}) as tunnel:
            tunnel.start()
            scenarios.kills(tunnel, which, local, remote, (near, far), times=2)
