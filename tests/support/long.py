"""What takes too long for each run of the tests, and is done by `make soak`: QANAT_LONG=1 in the environment."""

from __future__ import annotations

import os

import pytest

LONG = os.environ.get("QANAT_LONG") == "1"
"""Whether to take minutes."""


def long_only() -> None:
    """Skip the calling test, visibly, unless this run may take minutes."""
    if not LONG:
        pytest.skip("it takes minutes: QANAT_LONG=1, or make soak")
