"""The image; see deploy/oci/Dockerfile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from packages.wheels import Wheel


def build_oci(wheels: Sequence[Wheel], into: Path, *, base: str | None = None) -> tuple[Path, Path]:
    """Build the image."""
    raise SystemExit("not yet")
