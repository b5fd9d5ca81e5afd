"""deploy/logrotate.conf under the real logrotate: no line is lost and the new file is the one in use."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.machine.deployed import deployed, group, user
from tests.support.machine.processes import SECONDS, Pair, wait_for
from tests.support.machine.programs import require_program


def test_logrotate_moves_the_log_and_the_process_follows(tmp_path: Path) -> None:
    program = require_program("logrotate")
    pair = Pair(tmp_path)
    logs, pids = tmp_path / "log", tmp_path / "run"
    logs.mkdir(mode=0o755)
    pids.mkdir()
    configuration = tmp_path / "logrotate.conf"
    configuration.write_text(
        deployed(
            "logrotate.conf",
            {"/var/log/qanat/": f"{logs}/", "/run/qanat/": f"{pids}/", "su qanat qanat": f"su {user()} {group()}"},
        )
    )
    configuration.chmod(0o644)
    log = logs / "server.log"
    with pair.server("--log-file", log, "--pid-file", pids / "server.pid") as server:
        server.wait_until_ready()
        command = [str(program), "--force", "--state", str(tmp_path / "logrotate.state"), str(configuration)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert (done.returncode, done.stderr) == (0, "")
        wait_for(lambda: log.exists() and "opened again" in log.read_text(), "a new log")
        assert server.stop() == 0
    assert "fingerprint" in (logs / "server.log.1").read_text()
    assert "SIGTERM" in log.read_text()
