"""Files that come with the program: the example, the schema, and what is in deploy/."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def share(*parts: str) -> Path:
    """Return where such a file, or folder, is installed.  In a checkout these are links to what lies at the top."""
    return Path(str(resources.files("qanat").joinpath("share", *parts)))
