"""What takes too long for each run of the tests, and is done by `make soak`: QANAT_LONG=1 in the environment."""

from __future__ import annotations

import os

LONG = os.environ.get("QANAT_LONG") == "1"
