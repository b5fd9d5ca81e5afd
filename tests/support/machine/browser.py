"""A real browser without a screen: Debian's chromium, on a page that says how all it does went, or driven by a test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.harness import SECONDS, Program
from tests.support.machine.programs import require_program
from tests.support.web_service import RESOURCES, resource

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MEGABYTE = 1_000_000
_TOLD = "^browser said (.*)"
UPLOAD = 64 * MEGABYTE
"""Bytes, a whole number of MEGABYTEs."""
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
)


@contextlib.contextmanager
def open_page(directory: Path, url: str, *options: str) -> Iterator[None]:
    """A browser that shows `url` until the block is left; `directory` is for what it keeps."""
    directory.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}
    command = [str(require_program("chromium")), *_OPTIONS, f"--user-data-dir={directory / 'profile'}", *options, url]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, env=environ, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    ) as browser:
        try:
            yield
        finally:
            os.killpg(browser.pid, signal.SIGKILL)


def browse(
    directory: Path, name: str, port: int, service: Program, *, upload: int = UPLOAD, seconds: float = 3 * SECONDS
) -> list[str]:
    """Return what the page `/browser` of `name`, which is on `port` of this machine, told `service` that it saw."""
    count = service.count(_TOLD) + 1
    options = ("--no-proxy-server", "--ignore-certificate-errors", f"--host-resolver-rules=MAP {name} 127.0.0.1:{port}")
    with open_page(directory, f"https://{name}/browser?upload={upload}", *options):
        said: list[str] = json.loads(service.wait_for(_TOLD, count=count, seconds=seconds)[1])
        return said


def all_well(upload: int = UPLOAD) -> list[str]:
    """Return what it says when all went well."""
    digest = hashlib.sha256()
    for _ in range(0, upload, MEGABYTE):
        digest.update(b"q" * MEGABYTE)
    return [
        f"resources {RESOURCES} {sum(len(resource(n)) for n in range(RESOURCES))}",
        f"upload {upload} {digest.hexdigest()}",
        "chat hello",
        "events first second",
        "done",
    ]


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
