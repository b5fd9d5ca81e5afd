"""A real browser without a screen: Debian's chromium, on a page that says how all it does went."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.harness import SECONDS
from tests.support.machine.programs import require_program
from tests.support.web_service import RESOURCES, UPLOADED, resource

SAID = [
    f"resources {RESOURCES} {sum(len(resource(n)) for n in range(RESOURCES))}",
    f"upload {UPLOADED}",
    "chat hello",
    "events first second",
    "done",
]
"""What `/browser` of a WebService says when all went well."""


def browse(directory: Path, name: str, port: int) -> list[str]:
    """What the page `/browser` of `name`, which is on `port` of this machine, says in the end."""
    command = [
        require_program("chromium"),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-proxy-server",
        "--ignore-certificate-errors",
        f"--user-data-dir={directory}",
        f"--host-resolver-rules=MAP {name} 127.0.0.1:{port}",
        "--timeout=40000",
        "--virtual-time-budget=20000",
        "--dump-dom",
        f"https://{name}/browser",
    ]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, timeout=2 * SECONDS, check=False, text=True
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    return found[1].split("\n")[:-1] if found is not None else [done.stdout + done.stderr]
