"""A real browser without a screen: Debian's chromium, on a page that says how all it does went, or driven by a test."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.harness import SECONDS
from tests.support.machine.programs import require_program
from tests.support.web_service import RESOURCES, UPLOADED, resource

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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


@contextlib.contextmanager
def driven_browser() -> Iterator[Browser]:
    """A browser that the test drives by playwright, for the length of a `with` block.  Give it a module's fixture."""
    from playwright.sync_api import sync_playwright  # only here: it takes a while to load

    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(require_program("chromium")), args=options)
        try:
            yield browser
        finally:
            browser.close()
