"""`tunnel.py`, with which a split pipe never tries a streamed answer; run as a program by `tests.support.storm`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from qanat.cli import main
    from qanat.transports.split import client

    client.STREAMS = False
    sys.exit(main())
