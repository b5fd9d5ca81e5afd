"""`status`: the whole snapshot of this process, as JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qanat.control.commands import Answer, Command, Request
from qanat.monitor.rates import LEAST, STALE
from qanat.monitor.snapshot import Snapshot


def status_command(snapshot: Callable[[], Snapshot], sample: Callable[[], None]) -> Command:
    """Return the command `status`.  `sample` looks at the streams' counts alone, so that a later look has rates.

    With `brief` the answer has neither sessions nor forwards: enough to know which process this is.
    """
    lock = threading.Lock()
    looked_at = -STALE

    def status(request: Request) -> Answer:
        nonlocal looked_at
        if request.flag("brief"):
            brief = snapshot().to_json()
            return {"status": {**brief, "sessions": [], "forwards": []}}
        with lock:
            stale, looked_at = time.monotonic() - looked_at >= STALE, time.monotonic()
        if stale:
            sample()
            time.sleep(LEAST)
        return {"status": snapshot().to_json()}

    return status
