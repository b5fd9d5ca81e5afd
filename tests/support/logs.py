"""Waiting for what a test expects in the log."""

from __future__ import annotations

import time

import pytest

SECONDS = 20.0


def wait_for_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Block until `text` has been logged."""
    deadline = time.monotonic() + SECONDS
    while text not in caplog.text:
        assert time.monotonic() < deadline, f"{text!r} is not in:\n{caplog.text}"
        time.sleep(0.005)  # the log has no condition to wait on
