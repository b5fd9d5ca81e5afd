"""`status`: the snapshot of this process, as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable

from qanat.control.commands import Answer, Command, Request
from qanat.monitor.rates import LEAST
from qanat.monitor.sessions import BRIEF, Wanted
from qanat.monitor.snapshot import Snapshot


def status_command(snapshot: Callable[[Wanted], Snapshot], sample: Callable[[], bool]) -> Command:
    """Return the command `status`.

    `sample` looks at the streams' counts alone, so that a later look has rates, unless somebody has looked lately;
    then it returns False.

    With `brief` the answer has neither sessions nor forwards: enough to know which process this is.  With `streams`
    it has so many streams, those that move most; with `sessions` so many of a server's sessions, beside those of these
    streams, and counts of all; with `names` the sessions of these clients alone.
    """

    def status(request: Request) -> Answer:
        if request.flag("brief"):
            brief = snapshot(BRIEF).to_json()
            return {"status": {**brief, "sessions": [], "forwards": []}}
        names = frozenset(request.texts("names"))
        wanted = Wanted(sessions=request.count("sessions"), streams=request.count("streams"), names=names)
        if sample():
            time.sleep(LEAST)
        return {"status": snapshot(wanted).to_json()}

    return status
